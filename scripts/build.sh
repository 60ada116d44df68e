#!/usr/bin/env bash
# Brings a fresh clone to a built tree: compilers from Debian, packages from npm, the addon, the TypeScript.
# Each step is skipped when its result is in place, so that a second run takes about a second.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*" >&2; }

node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a * 1000 + b >= 20019 ? 0 : 1)' || {
  say "Node.js $(node --version) is too old: install Node.js 20.19 or newer"
  exit 1
}

missing=()
for tool in g++ make python3; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
  say "installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

if [[ ! -f node_modules/.package-lock.json || package-lock.json -nt node_modules/.package-lock.json ]]; then
  say "installing npm packages"
  npm ci --no-fund --no-audit --loglevel=error >&2
  touch node_modules/.package-lock.json
fi

# node-gyp finds the headers that were installed beside this node, if any; otherwise it fetches them itself.
prefix=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
gyp_options=()
[[ -f $prefix/include/node/node_api.h ]] && gyp_options+=("--nodedir=$prefix")
if [[ ! -f native/build/Makefile || native/binding.gyp -nt native/build/Makefile ]]; then
  say "configuring the addon"
  node_modules/.bin/node-gyp configure -C native "${gyp_options[@]}" --loglevel=error >&2
fi
compiled=build/native/$(node -p 'process.platform + "-" + process.arch')
addon=$compiled/addon.node
newer() { find native -maxdepth 1 -type f -name '*.*' -newer $addon ! -name '*.ts' ! -name '*.json'; }
if [[ ! -f $addon || $(newer) ]]; then
  say "compiling the addon"
  node_modules/.bin/node-gyp build -C native "${gyp_options[@]}" --loglevel=error >/dev/null
  mkdir -p "$compiled"
  # Under other names first: a process that runs has the old ones open.
  for file in addon.node vfio-user-holder; do
    cp "native/build/Release/$file" "$compiled/.$file"
    mv "$compiled/.$file" "$compiled/$file"
  done
fi

# The compiler leaves what it made of files that are gone, and a test that is gone must not run.
while IFS= read -r output; do
  source=${output#build/}
  [[ -f ${source%.js}.ts ]] || rm -f "${output%.js}".{js,js.map,d.ts}
done < <(find build -name '*.js' 2>/dev/null)

say "compiling TypeScript"
node_modules/.bin/tsc -b
cp -u shared/control/page/*.{html,css,svg} build/shared/control/page/
for program in build/host/{bridge,check,ctl}/main.js build/guest/main.js; do
  if [[ -f $program ]]; then chmod +x "$program"; fi
done
