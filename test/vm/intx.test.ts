/**
 * A driver VM whose kernel uses no messages (`pci=nomsi`): the disk works by INTA#, with doorbells as registers, in
 * memory and mapped.
 */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { COMMAND_MS, exerciseDisk, nvmeInterrupts, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { startLocalDevice } from "./local-device.js";

const DISK = 64 * 2 ** 20;

for (const doorbells of ["trapped", "shared"] as const) {
  test.serial(`a disk without messages, doorbells ${doorbells}`, async (t) => {
    t.timeout(20 * 60_000);
    const directory = await mkdtemp(join(tmpdir(), "vfio-user-intx-"));
    t.teardown(() => rm(directory, { recursive: true }));
    const file = join(directory, "disk.img");
    await writeFile(file, "");
    await truncate(file, DISK);
    const device = await createNvme({ files: [file], doorbells });
    const { vm, stop } = await startLocalDevice(device, directory, { append: "pci=nomsi" });
    t.teardown(stop);
    t.is(await waitForDisk(vm), DISK);
    t.regex(await vm.check("grep nvme /proc/interrupts", COMMAND_MS), /IO-APIC.*nvme0q0/);
    const before = await nvmeInterrupts(vm);
    t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
    t.true((await nvmeInterrupts(vm)) > before);
    await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    // An interrupt that stays up, or one that comes for nothing again and again, is switched off by Linux.
    t.notRegex(await kernelLog(vm), /nobody cared|I\/O error|timeout/);
  });
}
