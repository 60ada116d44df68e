#!/usr/bin/env bash
# What looks at the status page: a headless Chromium, and promtool, which checks metrics. In a tree of their own beside
# setup.sh's, unpacked from the packages of this machine's own release, whose C library they use.
#
# The tree is $VVU_PREFIX/browser-N, made and kept as setup.sh does it. stdout has the result as one line: tree=DIR.
# In it root holds the programs, with their libraries in root/usr/lib; fonts.conf names the fonts.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "$0")/packages.sh"

recipe=1 # one more whenever the tree's contents change
suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-stable}")
tree=$prefix/browser-$recipe

begin_own_tree 900

read_lists "$suite"
say "downloading Chromium, its libraries and promtool (about 200 MB)"
kept_share+=(fonts fontconfig)
unpack_packages "$suite" chromium-headless-shell fonts-dejavu-core fontconfig-config prometheus
rm -f "$work/tree/root/usr/bin/prometheus"
cat >"$work/tree/fonts.conf" <<CONF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>$tree/root/usr/share/fonts</dir></fontconfig>
CONF
finish_tree
report_tree
