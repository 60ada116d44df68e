#!/usr/bin/env bash
# What only the long tests run, in a tree of its own beside setup.sh's: three driver-VM kernels, disk tools, a boot
# loader.
#
# The tree is $VVU_PREFIX/vm-extra-N, made and kept as setup.sh does it. stdout has the result as one line: tree=DIR.
# In it kernels/SUITE holds each kernel, and root the programs with their libraries.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "$0")/packages.sh"

recipe=3 # one more whenever the tree's contents change
suites=(bookworm trixie trixie-backports)
packages=(busybox-static e2fsprogs pciutils util-linux nvme-cli fio xfsprogs grub-pc-bin grub-common)
modules=(xfs virtio_mem virtio_balloon)
# Not in bookworm's kernel for clouds.
newer_modules=(virtio_iommu)
tree=$prefix/vm-extra-$recipe

begin_own_tree 1200

read_lists "${suites[@]}"
say "downloading the long tests' guest programs (about 60 MB, 150 packages)"
unpack_packages trixie "${packages[@]}"
for suite in "${suites[@]}"; do
  wanted=("${modules[@]}")
  [[ $suite == bookworm ]] || wanted+=("${newer_modules[@]}")
  fetch_kernel "$suite" "$work/tree/kernels/$suite" "${wanted[@]}"
done
finish_tree
report_tree
