#!/usr/bin/env bash
# Two systems of Debian 12, for tests of what is installed there, in a tree of their own beside setup.sh's.
#
# The tree is $VVU_PREFIX/debian-N. stdout has the result as one line: tree=DIR. In it fresh.tar is the least system
# that has apt, and system.tar one that boots by systemd and has what looks at packages and at libvirt's domains.
# Wants root.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "$0")/packages.sh"

recipe=1 # one more whenever the tree's contents change
packages=(systemd-sysv udev dbus kmod procps iproute2 psmisc lintian libvirt-clients libxml2-utils)
tree=$prefix/debian-$recipe

[[ -d $tree || $(id -u) == 0 ]] || fail "only root can make systems of Debian: run it as root."
begin_own_tree 1500
rmdir "$work/tree/root"

read_lists bookworm
mkdir "$work/tools"
(cd "$work/tools" && download download mmdebstrap) || apt_failed "mmdebstrap did not come"
unpack "$work"/tools/mmdebstrap_*.deb "$work/tools"
# It has no settings of the machine's apt by itself.
run_apt apt-config dump Acquire >"$work/apt/acquire.conf"

# bootstrap NAME PACKAGE...
bootstrap() {
  local name=$1 included
  shift
  included=$(IFS=,; echo "$*")
  say "making $name of $# packages and those that they need"
  PATH=$PATH:/usr/sbin:/sbin perl "$work/tools/usr/bin/mmdebstrap" --quiet --variant=minbase --mode=root \
    --aptopt="$work/apt/acquire.conf" --include="$included" \
    bookworm "$work/tree/$name.tar" "$work/apt/sources.list" >>"$work/apt/log" 2>&1 || apt_failed "$name was not made"
}
bootstrap fresh ca-certificates
bootstrap system "${packages[@]}"
finish_tree
report_tree
