/**
 * NVMe doorbells that stock QEMU maps into the driver VM: Linux's driver rings them without a message. The device runs in this
 * process, whose link counts the messages.
 */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { DeviceEndpoint } from "../../guest/endpoint.js";
import { LocalLink } from "../../guest/link/local.js";
import { quietLog } from "../../shared/log.js";
import { Command, Region, RegionAccess } from "../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import { driverVmArguments } from "./arguments.js";
import { prepareVmEnvironment } from "./environment.js";
import { initScript } from "./init.js";
import { driverVmBase, writeInitrd } from "./initramfs.js";
import { Vm } from "./qemu.js";
import { BOOT_MS, COMMAND_MS, exerciseDisk, nvmeInterrupts, waitForDisk } from "./two-vms.js";

const DISK = 64 * 2 ** 20;

/** Counts accesses to BAR 0 by message. */
class CountingLink extends LocalLink {
  accesses = 0;

  override handle(command: PendingCommand): void {
    const isAccess = command.command === Command.REGION_READ || command.command === Command.REGION_WRITE;
    const region = command.data.getUint32(command.offset + RegionAccess.offsets.region, true);
    if (isAccess && region === Region.BAR0) this.accesses++;
    super.handle(command);
  }
}

interface Context {
  directory: string;
  endpoint: DeviceEndpoint;
  link: CountingLink;
  vm: Vm;
}
const test = anyTest as TestFn<Context>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const environment = await prepareVmEnvironment();
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-doorbells-"));
  const [socket, file, initrd] = ["nvme.sock", "disk.img", "driver.cpio"].map((name) => join(directory, name));
  await writeFile(file, "");
  await truncate(file, DISK);
  const device = await createNvme({ files: [file], memory: [DISK], doorbells: "shared" });
  const link = new CountingLink({ socket, log: quietLog });
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  Object.assign(t.context, { directory, link, endpoint });
  await endpoint.start();
  await link.open(endpoint);
  await writeInitrd(await driverVmBase(environment), initScript({ afterwards: "commands" }), initrd);
  t.context.vm = new Vm(environment, "driver VM", [
    ...driverVmArguments({ kernel: environment.kernel, initrd, memoryMiB: 512, vfioUserSocket: socket }),
  ]);
  await t.context.vm.waitForLine(/^@@ready$/, BOOT_MS);
});

test.after.always(async (t) => {
  const { vm, link, endpoint, directory } = t.context;
  await vm?.stop();
  await link?.close();
  await endpoint?.close();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

test.serial("Linux keeps a file system on the disk, and rings no doorbell by message", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm, link } = t.context;
  t.is(await waitForDisk(vm), DISK);
  t.true(link.accesses > 0);
  const [before, interrupts] = [link.accesses, await nvmeInterrupts(vm)];
  t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
  t.true((await nvmeInterrupts(vm)) - interrupts > 10);
  t.is(link.accesses, before);
});

test.serial("a reset of the controller, and the driver starts again", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context;
  await vm.check("dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null", COMMAND_MS);
  await vm.check("dd if=/data of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null", COMMAND_MS);
  await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
  await vm.check("echo 3 >/proc/sys/vm/drop_caches", COMMAND_MS);
  await vm.check("dd if=/dev/nvme0n1 of=/back bs=64k count=16 iflag=direct 2>/dev/null", COMMAND_MS);
  t.is(await vm.check("cmp /data /back && echo the same", COMMAND_MS), "the same");
});
