/** A disk in the device VM that can be made to hang: a device-mapper device over a loop device. */
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, type Disk, disk, startNvme, stopNvme } from "../../scripts/vm/two-vms.js";

const NAME = "hangs";
const HANGING: Disk = { ...disk(0), file: `/dev/mapper/${NAME}` };

/** Puts it in the place of the device VM's first disk. `options` are more of the controller's. */
export async function serveHangingDisk(vm: Vm, diskMiB: number, options = ""): Promise<void> {
  await stopNvme(vm);
  const loop = `truncate -s ${diskMiB}M /tmp/below.img && losetup /dev/loop0 /tmp/below.img`;
  const create = `dmsetup create ${NAME} --noudevsync --table "0 ${diskMiB * 2048} linear /dev/loop0 0"`;
  await vm.check(`[ -e ${HANGING.file} ] || { ${loop} && ${create}; }`, COMMAND_MS);
  await startNvme(vm, diskMiB, options, HANGING);
}

/** From now on no I/O of it ends. */
export async function hang(vm: Vm): Promise<void> {
  await vm.check(`dmsetup suspend --noflush --nolockfs ${NAME}`, COMMAND_MS);
}

export async function goOn(vm: Vm): Promise<void> {
  await vm.check(`dmsetup resume --noudevsync ${NAME}`, COMMAND_MS);
}
