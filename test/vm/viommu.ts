/**
 * A driver VM whose IOMMU maps each of its pages for DMA as it is used, and unmaps it right afterwards: the memory of a
 * device changes all the time, and goes as a whole when the machine is reset.
 */
import type { ExecutionContext } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { booted, COMMAND_MS, type DriverVmChoices, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";

export const VIOMMU: DriverVmChoices = { iommu: "intel", reboots: true };

export type Reset = "reboot" | "system_reset";

const DATA_MIB = 4;
const WRITE = `dd if=/dev/urandom of=/data bs=1M count=${DATA_MIB} 2>/dev/null
dd if=/data of=/dev/nvme0n1 bs=64k oflag=direct conv=fsync 2>/dev/null
sha256sum </data`;
const READ = `dd if=/dev/nvme0n1 bs=64k count=${DATA_MIB * 16} iflag=direct 2>/dev/null | sha256sum`;
/** Writes behind the data, and reads, until there is no tomorrow; and returns when both are at it. */
const KEEP_BUSY = `
stat() { awk "{ print \\$$1 }" /sys/block/nvme0n1/stat; }
reads=$(stat 1) writes=$(stat 5)
while :; do dd if=/dev/zero of=/dev/nvme0n1 bs=16k seek=512 count=1000 oflag=direct; done 2>/dev/null &
while :; do dd if=/dev/nvme0n1 of=/dev/null bs=16k skip=512 count=1000 iflag=direct; done 2>/dev/null &
until [ $(stat 1) -gt $((reads + 20)) ] && [ $(stat 5) -gt $((writes + 20)) ]; do :; done`;

/**
 * Resets the machine in the middle of reads and writes, as often as there are `resets`: what was flushed is there after
 * each, and the device has as many maps (`countMaps`) as after the first start.
 */
export async function surviveResets(
  t: ExecutionContext,
  vm: Vm,
  resets: readonly Reset[],
  countMaps: () => Promise<number>,
): Promise<void> {
  const size = await waitForDisk(vm);
  const atFirst = await countMaps();
  for (const [round, reset] of resets.entries()) {
    const sum = await vm.check(WRITE, COMMAND_MS);
    await vm.check(KEEP_BUSY, COMMAND_MS);
    const from = vm.nextLine;
    const seen = vm.waitForEvent("RESET", COMMAND_MS);
    if (reset === "reboot") await vm.check("(sleep 0.2; reboot -f) &", COMMAND_MS);
    else await vm.qmp("system_reset");
    await seen;
    await booted(vm, from);
    const what = `round ${round}: ${reset}`;
    t.is(await waitForDisk(vm), size, what);
    t.is(await countMaps(), atFirst, what);
    t.is(await vm.check(READ, COMMAND_MS), sum, what);
    t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)|I\/O error|DMAR:.*fault/i, what);
  }
  t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
}
