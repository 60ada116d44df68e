# Debian packages unpacked into a directory of our own: sourced by setup.sh and setup-extra.sh.
#
# The packages come through the machine's own apt (its mirror, proxies, credentials and keys), but with lists, cache and
# dpkg status of our own, and are unpacked rather than installed. So neither root nor any change to the system is
# needed. Signatures are always checked. Left out: other architectures than amd64, and any distribution without Debian's
# archive.
#
# Whoever sources it sets $tree, the directory to make; it builds $work/tree, which finish_tree renames into place.

prefix=${VVU_PREFIX:-${XDG_CACHE_HOME:-${HOME:?VVU_PREFIX or HOME must be set}/.cache}/virtio-vfio-user}
started=$SECONDS

say() { printf '[vm setup] %s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

free_mib() { df --output=avail -m "$prefix" | tail -n 1; }

# Waits for other runs; until this one ends they wait for it.
take_lock() {
  [[ $(uname -m) == x86_64 ]] || fail "the VM tests run on x86-64 machines only, and this one is $(uname -m)."
  local tool
  for tool in apt-get apt-cache dpkg-deb flock; do
    command -v "$tool" >/dev/null || fail "$tool is missing: the VM tests need Debian 12 or newer with its usual tools."
  done
  mkdir -p "$prefix" 2>/dev/null && [[ -w $prefix ]] ||
    fail "cannot write to $prefix: set VVU_PREFIX to a directory that you may write to."
  exec {lock}>"$prefix/lock"
  if ! flock -n "$lock"; then
    say "another run is at work: waiting for it"
    flock "$lock"
  fi
}

# Makes an empty $work, for which $1 MiB are needed; from here on an interruption leaves nothing behind.
begin_tree() {
  needed_mib=$1
  work=$prefix/.unfinished-${tree##*/}
  rm -rf "$work"
  trap 'rm -rf "$work"' EXIT
  trap 'say "interrupted: nothing was left behind"; exit 130' INT TERM HUP
  (($(free_mib) >= needed_mib)) ||
    fail "$prefix has $(($(free_mib))) MiB free and $needed_mib are needed: free some, or set VVU_PREFIX elsewhere."
  mkdir -p "$work/tree/root" "$work"/apt/{lists,cache/archives}/partial
  : >"$work/apt/status"
  # apt, with the machine's settings but its own state. Hooks of the machine's apt and its pinning are not for this
  # tree.
  cat >"$work/apt/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
APT::Default-Release "";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
CONF
}

# For a tree that is complete when it is there: says where it is and ends then; otherwise begins it, with $1 MiB.
begin_own_tree() {
  if [[ -d $tree ]]; then report_tree; fi
  take_lock
  if [[ -d $tree ]]; then report_tree; fi
  begin_tree "$1"
}

report_tree() {
  printf 'tree=%s\n' "$tree"
  exit 0
}

finish_tree() {
  rm -rf "$tree"
  mv -T "$work/tree" "$tree"
  say "ready in $((SECONDS - started)) s: $(du -sm "$tree" | cut -f 1) MiB in $tree"
}

run_apt() {
  local command=$1
  shift
  "$command" -q -c="$work/apt/apt.conf" "$@" 2>>"$work/apt/log"
}
run_own_apt() {
  local command=$1
  shift
  run_apt "$command" -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null "$@"
}

# Says why apt failed, in one sentence, below apt's own words.
apt_failed() {
  { grep -hE '^(E|Err|W):' "$work/apt/log" || tail -n 5 "$work/apt/log"; } | tail -n 8 | sed 's/^/  /' >&2
  if (($(free_mib) < 20)); then
    fail "the disk is full: free $needed_mib MiB in $prefix, or set VVU_PREFIX to a directory elsewhere."
  elif grep -qE 'NO_PUBKEY|not signed|EXPKEYSIG' "$work/apt/log"; then
    local command="apt-get update && apt-get install debian-archive-keyring"
    fail "Debian's signing keys are too old here: run '$command' as root."
  else
    fail "$1: check the network, the proxy and the Debian mirror in apt's sources."
  fi
}

# Reads the package lists of these suites, from the first of the machine's mirrors that has them.
read_lists() {
  local uris release mirrors keyring=/usr/share/keyrings/debian-archive-keyring.gpg options="" mirror known
  # The mirrors that serve this machine, as apt itself understands its sources, in either format.
  uris=$(run_apt apt-get update --print-uris) || apt_failed "apt does not understand this machine's sources"
  release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-stable}")
  known="$release|bookworm|trixie|stable|oldstable|testing|unstable|sid"
  mapfile -t mirrors < <(sed -nE "s#^'([^']+)/dists/($known)/main/binary-amd64/Packages[^']*'.*#\1#p" <<<"$uris" |
    grep -v '^cdrom:' | awk '!seen[$0]++')
  ((${#mirrors[@]})) ||
    fail "apt's sources name no Debian archive: add Debian's main archive to them, as Debian itself sets it up."
  [[ -f $keyring ]] && options="[signed-by=$keyring] "
  for mirror in "${mirrors[@]}"; do
    printf "deb $options$mirror %s main\n" "$@" >"$work/apt/sources.list"
    say "reading the package lists of Debian $*"
    if run_own_apt apt-get -o APT::Update::Error-Mode=any update >>"$work/apt/log"; then return 0; fi
  done
  apt_failed "the package lists of Debian $* did not come"
}

# Downloads with a line now and then; the arguments are apt-get's.
download() {
  run_own_apt apt-get -y "$@" | tee -a "$work/apt/log" |
    awk '/^Get:/ && ++n % 25 == 0 { print "[vm setup]   " n " packages so far"; fflush() }' >&2
}

unpack() { dpkg-deb -x "$1" "$2" 2>>"$work/apt/log" || apt_failed "cannot unpack ${1##*/}"; }

# What of /usr/share a tree keeps.
kept_share=(qemu seabios)

# unpack_packages SUITE PACKAGE...: these and all they need, into the tree's root; others than programs, libraries,
# firmware and boot loaders are left out of it.
unpack_packages() {
  local suite=$1 root=$work/tree/root package count=0
  shift
  download -t "$suite" --download-only install "$@" || apt_failed "the packages did not come"
  say "unpacking"
  for package in "$work"/apt/cache/archives/*.deb; do
    unpack "$package" "$root"
    count=$((count + 1))
    ((count % 25)) || say "  $count packages so far"
  done
  local name kept=()
  for name in "${kept_share[@]}"; do kept+=(! -name "$name"); done
  find "$root/usr/share" -mindepth 1 -maxdepth 1 "${kept[@]}" -exec rm -rf {} +
  rm -rf "$root"/usr/bin/qemu-system-{i386,x86_64-microvm}
  rm -rf "$root"/usr/lib/x86_64-linux-gnu/{perl-base,gconv} "$root/var"
}

# fetch_kernel SUITE DIRECTORY MODULE...: the image as DIRECTORY/vmlinuz, its version, and the modules with what they
# need, uncompressed, in DIRECTORY/modules, whose file "order" lists them as they load. Wants busybox in the root.
fetch_kernel() {
  local suite=$1 directory=$2 image packages package module parts=$work/kernel-package unpacked=$work/kernel-tree
  shift 2
  image=$(run_own_apt apt-cache -o "APT::Default-Release=$suite" depends --important linux-image-cloud-amd64 |
    sed -nE 's/^ +Depends: (linux-image-[0-9].*)/\1/p') && [[ -n $image ]] ||
    apt_failed "no kernel found in Debian $suite"
  local version=${image#linux-image-}
  # Newer kernels come in two packages, which the one of the old name depends on.
  mapfile -t packages < <(run_own_apt apt-cache depends --important "$image" |
    sed -nE 's/^ +Depends: (linux-(binary|modules)-[0-9].*)/\1/p')
  say "downloading $image (about 35 MB)"
  rm -rf "$parts" "$unpacked"
  mkdir -p "$parts" "$directory/modules"
  (cd "$parts" && download download "$image" "${packages[@]}") || apt_failed "the kernel did not come"
  for package in "$parts"/*.deb; do unpack "$package" "$unpacked"; done
  local modules
  modules=$(find "$unpacked" -type d -path "*/modules/$version" -print -quit)
  for file in "$unpacked/boot/vmlinuz-$version" "$modules/vmlinuz"; do
    [[ ! -f $file ]] || mv "$file" "$directory/vmlinuz"
  done
  [[ -f $directory/vmlinuz ]] || fail "the packages of the kernel $version hold no kernel: please report this."
  : >"$directory/modules/order"
  for module in "$@"; do add_module "$modules" "$directory/modules" "$module"; done
  rm -rf "$parts" "$unpacked"
  printf '%s\n' "$version" >"$directory/version"
}

# add_module FROM TO NAME, after those that it depends on, as its "depends=" says.
add_module() {
  local file=$2/$3.ko source dependency
  [[ ! -f $file ]] || return 0
  source=$(find "$1" -name "$3.ko*" -o -name "${3//_/-}.ko*" -o -name "${3//-/_}.ko*" | head -n 1)
  [[ -n $source ]] || fail "the kernel ${1##*/} has no module $3."
  case $source in
    *.xz) "$work/tree/root/usr/bin/busybox" xzcat "$source" >"$file" ;;
    *.ko) cp "$source" "$file" ;;
    *) fail "do not know how to unpack ${source##*/}." ;;
  esac
  for dependency in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' '); do
    add_module "$1" "$2" "$dependency"
  done
  printf '%s.ko\n' "$3" >>"$2/order"
}
