#!/usr/bin/env bash
# Cross-builds the addon and the holder for the platforms that the package brings besides this machine's own, which
# build.sh has built: what binding.gyp lists, straight by Debian's cross compilers.
#
# Left out: musl, for which Debian has no C++ library.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '[prebuild] %s\n' "$*" >&2; }

declare -A compilers=([x64]=x86_64-linux-gnu-g++ [arm64]=aarch64-linux-gnu-g++)
declare -A packages=([x64]=g++-x86-64-linux-gnu [arm64]=g++-aarch64-linux-gnu)

node_headers=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")/include/node
if [[ ! -f $node_headers/node_api.h ]]; then
  # Where node-gyp has put those that it fetched.
  node_headers=$(find "${XDG_CACHE_HOME:-$HOME/.cache}/node-gyp" -path '*/include/node' -print -quit 2>/dev/null) || :
fi
[[ -f $node_headers/node_api.h ]] || { say "error: node's headers are missing: run npm run build first"; exit 1; }

# target NAME FIELD...: a target's entries in binding.gyp, one a line.
target() {
  node -p '
    const [name, ...fields] = process.argv.slice(1);
    const { targets } = JSON.parse(require("node:fs").readFileSync("native/binding.gyp", "utf8"));
    const found = targets.find(({ target_name }) => target_name === name);
    fields.flatMap((field) => (found[field] ?? []).map((each) => (field === "defines" ? `-D${each}` : each))).join("\n")
  ' -- "$@"
}

# link ARCH TARGET OUTPUT OPTION...
link() {
  local compiler=${compilers[$1]} target=$2 output=$3 sources flags
  shift 3
  mapfile -t sources < <(target "$target" sources)
  mapfile -t flags < <(target "$target" defines cflags_cc ldflags)
  (cd native && "$compiler" "${sources[@]}" "${flags[@]}" -s "$@" -o "$output")
}

for arch in x64 arm64; do
  [[ $arch != "$(node -p process.arch)" ]] || continue
  folder=$PWD/build/native/linux-$arch
  if [[ -f $folder/addon.node ]]; then
    newer=$(find native -maxdepth 1 -type f -newer "$folder/addon.node" ! -name '*.ts')
    [[ $newer ]] || continue
  fi
  if ! command -v "${compilers[$arch]}" >/dev/null; then
    say "installing Debian's ${packages[$arch]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[$arch]}" >&2
  fi
  say "compiling for $arch"
  mkdir -p "$folder"
  link "$arch" vfio-user-holder "$folder/vfio-user-holder"
  link "$arch" addon "$folder/addon.node" -shared -fPIC -pthread -DBUILDING_NODE_EXTENSION -D_FILE_OFFSET_BITS=64 \
    -I"$node_headers" -I../node_modules/node-addon-api
done
