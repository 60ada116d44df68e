#!/usr/bin/env bash
# What the tests of docs/protocol/ run: tshark, and Kaitai Struct's library for Python, in a tree of their own.
#
# The tree is $VVU_PREFIX/protocol-N, made and kept as setup.sh does it. stdout has the result as one line: tree=DIR.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "$0")/packages.sh"

recipe=1 # one more whenever the tree's contents change
suite=trixie
tree=$prefix/protocol-$recipe

begin_own_tree 700

read_lists "$suite"
say "downloading tshark (about 60 MB, 100 packages)"
unpack_packages "$suite" tshark python3-kaitaistruct
# Started by the tree's own loader, Wireshark takes the loader's directory for its own. Root may run scripts of its own:
# the tests run as root in containers.
mkdir "$work/tree/root/usr/lib/x86_64-linux-gnu/plugins"
echo 'run_user_scripts_when_superuser = true' >"$work/tree/root/usr/lib/x86_64-linux-gnu/plugins/init.lua"
finish_tree
report_tree
