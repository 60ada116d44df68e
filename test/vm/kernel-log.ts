/** What the kernel of a VM has said, to be searched for complaints. */
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";

/** Lines that have a word of a complaint and are none. */
const HARMLESS = [
  // Linux 6.1 on the controller's RTD3 Entry Latency; newer ones say "D3 entry latency set to".
  /^\[ *\d+\.\d+\] nvme nvme\d+: Shutdown timeout set to 60 seconds$/,
];

/** Its lines since the boot, without those that are known to be harmless. */
export async function kernelLog(vm: Vm): Promise<string> {
  const lines = (await vm.check("dmesg", COMMAND_MS)).split("\n");
  return lines.filter((line) => !HARMLESS.some((harmless) => harmless.test(line))).join("\n");
}
