#!/usr/bin/env bash
# The npm package with the compiled files of every platform there is (prebuild.sh), as build/package/NAME-VERSION.tgz,
# which is the last line of what it prints.
set -euo pipefail
cd "$(dirname "$0")/../.."

bash scripts/package/prebuild.sh
mkdir -p build/package
echo "build/package/$(npm pack --silent --pack-destination build/package)"
