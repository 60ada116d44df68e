#!/usr/bin/env bash
# Puts what the demonstration and the VM tests run into a private tree: QEMU 11.1 from Debian 13's backports, a guest
# kernel with a few modules, and guest programs. QEMU runs by the unpacked tree's own dynamic loader.
#
# The tree is $VVU_PREFIX/vm-N (default: the user's cache directory); it is renamed into place when complete, so what is
# there is whole. Progress goes to stderr; stdout has the result as three lines: tree=DIR, kernel=VERSION, qemu=PATH.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "$0")/packages.sh"

recipe=5 # one more whenever the tree's contents change
suite=trixie
tree=$prefix/vm-$recipe
private_qemu=$tree/root/usr/bin/qemu-system-x86_64

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
take_lock
if is_complete; then report; fi
begin_tree 600

read_lists "$suite" "$suite-backports"
packages=(busybox-static dmsetup e2fsprogs pciutils nvme-cli)
from=$suite
if [[ -z $qemu ]]; then
  packages+=(qemu-system-x86 seabios)
  from=$suite-backports
  say "downloading QEMU and guest programs (about 45 MB, 100 packages)"
else
  say "using $qemu; downloading guest programs (a few MB)"
fi
unpack_packages "$from" "${packages[@]}"
[[ -n $qemu || -x $work/tree/root/usr/bin/qemu-system-x86_64 ]] ||
  fail "the unpacked packages hold no QEMU: please report this."
fetch_kernel "$suite" "$work/tree/kernel" virtio_blk virtio-rng virtio_net vfio_iommu_type1 vfio-pci loop dm-mod
finish_tree
report
