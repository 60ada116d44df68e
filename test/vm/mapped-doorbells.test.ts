/**
 * NVMe doorbells that stock QEMU maps into the driver VM: Linux's driver rings them without a message. The device runs
 * in this process, whose link counts the messages.
 */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { COMMAND_MS, exerciseDisk, nvmeInterrupts, waitForDisk } from "../../scripts/vm/two-vms.js";
import { type LocalDevice, startLocalDevice } from "./local-device.js";

const DISK = 64 * 2 ** 20;

const test = anyTest as TestFn<{ directory: string; local: LocalDevice }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-doorbells-"));
  t.context.directory = directory;
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, DISK);
  const device = await createNvme({ files: [file], memory: [DISK], doorbells: "shared" });
  t.context.local = await startLocalDevice(device, directory);
});

test.after.always(async (t) => {
  const { local, directory } = t.context;
  await local?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

test.serial("Linux keeps a file system on the disk, and rings no doorbell by message", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm, link } = t.context.local;
  t.is(await waitForDisk(vm), DISK);
  t.true(link.accesses > 0);
  const [before, interrupts] = [link.accesses, await nvmeInterrupts(vm)];
  t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
  t.true((await nvmeInterrupts(vm)) - interrupts > 10);
  t.is(link.accesses, before);
});

test.serial("a reset of the controller, and the driver starts again", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context.local;
  await vm.check("dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null", COMMAND_MS);
  await vm.check("dd if=/data of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null", COMMAND_MS);
  await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
  await vm.check("echo 3 >/proc/sys/vm/drop_caches", COMMAND_MS);
  await vm.check("dd if=/dev/nvme0n1 of=/back bs=64k count=16 iflag=direct 2>/dev/null", COMMAND_MS);
  t.is(await vm.check("cmp /data /back && echo the same", COMMAND_MS), "the same");
});
