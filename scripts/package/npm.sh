#!/usr/bin/env bash
# The npm package with the compiled files of every platform there is (prebuild.sh), as build/package/NAME-VERSION.tgz,
# which is the last line of what it prints.
set -euo pipefail
cd "$(dirname "$0")/../.."

bash scripts/package/prebuild.sh
mkdir -p build/package
# The bridge is in one file there, and in many again afterwards.
main=build/host/bridge/main.js
cp -p $main build/package/main.js
trap 'mv build/package/main.js $main' EXIT
node build/scripts/package/bundle-main.js
echo "build/package/$(npm pack --silent --pack-destination build/package)"
