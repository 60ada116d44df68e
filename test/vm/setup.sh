#!/usr/bin/env bash
# Puts what the VM tests run into a private tree: QEMU 11.1, a guest kernel with a few modules, and guest programs.
#
# The packages come from Debian 13 and its backports through the machine's own apt (its mirror, proxies, credentials and
# keys), but with lists, cache and dpkg status of our own, and are unpacked rather than installed. So neither root nor any
# change to the system is needed, and QEMU runs by the unpacked tree's own dynamic loader.
#
# The tree is $VVU_PREFIX/vm-N (default: the user's cache directory); it is renamed into place when complete, so what is
# there is whole. Progress goes to stderr; stdout tells the result as three lines: tree=DIR, kernel=VERSION, qemu=PATH.
# Signatures are always checked. Left out: other architectures than amd64, and any distribution without Debian's archive.
set -euo pipefail
shopt -s inherit_errexit

recipe=2 # one more whenever the tree's contents change
suite=trixie
kernel_modules=(vfio_iommu_type1 vfio-pci)
needed_mib=600

prefix=${VVU_PREFIX:-${XDG_CACHE_HOME:-${HOME:?VVU_PREFIX or HOME must be set}/.cache}/virtio-vfio-user}
tree=$prefix/vm-$recipe
work=$prefix/.unfinished-vm-$recipe
private_qemu=$tree/root/usr/bin/qemu-system-x86_64

say() { printf '[vm setup] %s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

# A QEMU of the machine's own, if it is new enough and was built with the devices that we need.
system_qemu() {
  local path version devices
  path=$(command -v qemu-system-x86_64) || return 0
  version=$("$path" --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\.[0-9]*\).*/\1/p') || return 0
  [[ -n $version ]] && printf '11.1\n%s\n' "$version" | sort -VC || return 0
  devices=$("$path" -device help 2>/dev/null) || return 0
  [[ $devices == *'"vfio-user-pci"'* && $devices == *'"vhost-user-test-device-pci"'* ]] && printf '%s\n' "$path"
  return 0
}

report() {
  printf 'tree=%s\nkernel=%s\nqemu=%s\n' "$tree" "$(<"$tree/kernel/version")" "${qemu:-$private_qemu}"
  exit 0
}

is_complete() { [[ -f $tree/kernel/version && (-n $qemu || -x $private_qemu) ]]; }

qemu=$(system_qemu)
if is_complete; then report; fi

[[ $(uname -m) == x86_64 ]] || fail "the VM tests run on x86-64 machines only, and this one is $(uname -m)."
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
if is_complete; then report; fi

rm -rf "$work"
trap 'rm -rf "$work"' EXIT
trap 'say "interrupted: nothing was left behind"; exit 130' INT TERM HUP
free_mib() { df --output=avail -m "$prefix" | tail -n 1; }
(($(free_mib) >= needed_mib)) ||
  fail "$prefix has $(($(free_mib))) MiB free and $needed_mib are needed: free some, or set VVU_PREFIX to a directory elsewhere."
started=$SECONDS

# apt, with the machine's settings but its own state. Hooks of the machine's apt and its pinning are not for this tree.
mkdir -p "$work"/apt/{lists,cache/archives}/partial
: >"$work/apt/status"
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
own_sources=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null)
run_apt() {
  local command=$1
  shift
  "$command" -q -c="$work/apt/apt.conf" "$@" 2>>"$work/apt/log"
}

# Says why apt failed, in one sentence, below apt's own words.
apt_failed() {
  { grep -hE '^(E|Err|W):' "$work/apt/log" || tail -n 5 "$work/apt/log"; } | tail -n 8 | sed 's/^/  /' >&2
  if (($(free_mib) < 20)); then
    fail "the disk is full: free $needed_mib MiB in $prefix, or set VVU_PREFIX to a directory elsewhere."
  elif grep -qE 'NO_PUBKEY|not signed|EXPKEYSIG' "$work/apt/log"; then
    fail "Debian's signing keys are too old here: run 'apt-get update && apt-get install debian-archive-keyring' as root."
  else
    fail "$1: check the network, the proxy and the Debian mirror in apt's sources."
  fi
}

# The mirrors that serve this machine, as apt itself understands its sources, in either format.
uris=$(run_apt apt-get update --print-uris) || apt_failed "apt does not understand this machine's sources"
release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-stable}")
mapfile -t mirrors < <(sed -nE "s#^'([^']+)/dists/($release|$suite|stable|oldstable|testing|unstable|sid)/main/binary-amd64/Packages[^']*'.*#\1#p" <<<"$uris" |
  grep -v '^cdrom:' | awk '!seen[$0]++')
((${#mirrors[@]})) || fail "apt's sources name no Debian archive: add Debian's main archive to them, as Debian itself sets it up."

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
options=""
[[ -f $keyring ]] && options="[signed-by=$keyring] "
updated=
for mirror in "${mirrors[@]}"; do
  printf "deb $options%s %s main\n" "$mirror" "$suite" "$mirror" "$suite-backports" >"$work/apt/sources.list"
  say "reading the package lists of Debian $suite"
  if run_apt apt-get "${own_sources[@]}" -o APT::Update::Error-Mode=any update >>"$work/apt/log"; then
    updated=yes
    break
  fi
done
[[ $updated ]] || apt_failed "the package lists of Debian $suite did not come"

# Downloads with a line now and then; the arguments are apt-get's.
download() {
  run_apt apt-get "${own_sources[@]}" -y "$@" | tee -a "$work/apt/log" |
    awk -v what="packages" '/^Get:/ { n++; if (n % 25 == 0) { print "[vm setup]   " n " " what " so far"; fflush() } }' >&2
}

kernel_package=$(run_apt apt-cache "${own_sources[@]}" depends --important linux-image-cloud-amd64 |
  sed -nE 's/^ +Depends: (linux-image-[0-9].*)/\1/p') && [[ -n $kernel_package ]] || apt_failed "no kernel found in Debian $suite"
version=${kernel_package#linux-image-}
say "downloading $kernel_package (about 35 MB)"
mkdir "$work/kernel-package"
(cd "$work/kernel-package" && download download "$kernel_package") || apt_failed "the kernel did not come"

packages=(busybox-static e2fsprogs pciutils)
from=$suite
if [[ -z $qemu ]]; then
  packages+=(qemu-system-x86 seabios)
  from=$suite-backports
  say "downloading QEMU and guest programs (about 45 MB, 100 packages)"
else
  say "using $qemu; downloading guest programs (a few MB)"
fi
download -t "$from" --download-only install "${packages[@]}" || apt_failed "the packages did not come"

say "unpacking"
mkdir -p "$work/tree/root" "$work/tree/kernel/modules"
unpack() { dpkg-deb -x "$1" "$2" 2>>"$work/apt/log" || apt_failed "cannot unpack ${1##*/}"; }
count=0
for package in "$work"/apt/cache/archives/*.deb; do
  unpack "$package" "$work/tree/root"
  count=$((count + 1))
  ((count % 25)) || say "  $count packages so far"
done
unpack "$work"/kernel-package/*.deb "$work/kernel-tree"

# Of the tree keep what runs: programs, libraries, firmware.
root=$work/tree/root
find "$root/usr/share" -mindepth 1 -maxdepth 1 ! -name qemu ! -name seabios -exec rm -rf {} +
rm -rf "$root"/usr/bin/qemu-system-{i386,x86_64-microvm} "$root"/usr/lib/x86_64-linux-gnu/{perl-base,gconv} "$root/var"
[[ -n $qemu || -x $root/usr/bin/qemu-system-x86_64 ]] || fail "the unpacked packages hold no QEMU: please report this."

# Of the kernel keep the image and the modules we load, uncompressed, in load order: "depends=" says what comes first.
modules=$(find "$work/kernel-tree" -type d -path "*/modules/$version" -print -quit)
mv "$work/kernel-tree/boot/vmlinuz-$version" "$work/tree/kernel/vmlinuz"
add_module() {
  local file=$work/tree/kernel/modules/$1.ko source dependency
  [[ ! -f $file ]] || return 0
  source=$(find "$modules" -name "$1.ko*" -o -name "${1//_/-}.ko*" -o -name "${1//-/_}.ko*" | head -n 1)
  [[ -n $source ]] || fail "the kernel $version has no module $1."
  case $source in
    *.xz) "$root/usr/bin/busybox" xzcat "$source" >"$file" ;;
    *.ko) cp "$source" "$file" ;;
    *) fail "do not know how to unpack ${source##*/}." ;;
  esac
  for dependency in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' '); do
    add_module "$dependency"
  done
  printf '%s.ko\n' "$1" >>"$work/tree/kernel/modules/order"
}
for module in "${kernel_modules[@]}"; do
  add_module "$module"
done
printf '%s\n' "$version" >"$work/tree/kernel/version"

rm -rf "$tree"
mv -T "$work/tree" "$tree"
say "ready in $((SECONDS - started)) s: $(du -sm "$tree" | cut -f 1) MiB in $tree"
report
