/**
 * The disk in the life of one driver VM: its driver goes and comes, Linux reboots, the machine is reset, the disk is
 * unplugged.
 */
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { DEVICE_ID, vfioUserDevice } from "../../scripts/vm/arguments.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { booted, COMMAND_MS, exerciseDisk, nvmeLog, pciId, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Product } from "./product.js";

const MiB = 2 ** 20;
const DISK_MIB = 64;
const PCI = "/sys/bus/pci/devices/0000:01:00.0";
const NVME_DRIVER = "/sys/bus/pci/drivers/nvme";

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

async function vmWithDisk(t: ExecutionContext<{ product: Product }>): Promise<Vm> {
  t.timeout(10 * 60_000);
  const vm = await t.context.product.driverVm(t, { reboots: true });
  t.is(await waitForDisk(vm), DISK_MIB * MiB);
  return vm;
}

/** Puts a mark on the disk, durably. */
async function mark(vm: Vm, text: string): Promise<void> {
  const dd = "dd of=/dev/nvme0n1 bs=4096 seek=16 conv=sync,fsync oflag=direct 2>/dev/null";
  await vm.check(`printf ${text} | ${dd}`, COMMAND_MS);
}

async function readMark(vm: Vm, length: number): Promise<string> {
  return await vm.check(
    `dd if=/dev/nvme0n1 bs=4096 skip=16 count=1 iflag=direct 2>/dev/null | head -c ${length}`,
    COMMAND_MS,
  );
}

test.serial("the driver is unbound and bound again, with I/O under way too", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisk(t);
  await mark(vm, "bound");
  for (let round = 0; round < 3; round++) {
    if (round > 0) await vm.check("dd if=/dev/nvme0n1 of=/dev/null bs=64k 2>/dev/null &", COMMAND_MS);
    await vm.check(`echo 0000:01:00.0 >${NVME_DRIVER}/unbind && [ ! -e /dev/nvme0 ]`, COMMAND_MS);
    await vm.check(`echo 0000:01:00.0 >${NVME_DRIVER}/bind`, COMMAND_MS);
    t.is(await waitForDisk(vm), DISK_MIB * MiB);
    t.is(await readMark(vm, 5), "bound");
  }
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  product.assertHealthy(t);
});

test.serial("the controller is reset through sysfs and by FLR while the file system is mounted", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisk(t);
  await vm.check("mkfs.ext4 -q -F /dev/nvme0n1 && mkdir -p /mnt && mount -t ext4 /dev/nvme0n1 /mnt", COMMAND_MS);
  await vm.check("dd if=/dev/urandom of=/mnt/data bs=1M count=2 2>/dev/null && sync", COMMAND_MS);
  const sum = await vm.check("sha256sum /mnt/data", COMMAND_MS);
  await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
  await vm.check(`echo 1 >${PCI}/reset`, COMMAND_MS);
  await vm.check("until grep -q live /sys/class/nvme/nvme0/state; do sleep 0.1; done", COMMAND_MS);
  await vm.check("echo 3 >/proc/sys/vm/drop_caches", COMMAND_MS);
  t.is(await vm.check("sha256sum /mnt/data", COMMAND_MS), sum);
  await vm.check("umount /mnt && e2fsck -fn /dev/nvme0n1 >/dev/null", COMMAND_MS);
  product.assertHealthy(t);
});

test.serial("Linux reboots by itself, and the machine is reset in the middle of writing", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisk(t);
  const resets: Array<() => Promise<unknown>> = [
    () => vm.check("(sleep 0.5; reboot -f) &", COMMAND_MS),
    async () => {
      const dd = "dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek=16 count=900 oflag=direct";
      const wrote = "[ $(awk '{ print $7 }' /sys/block/nvme0n1/stat) -gt 1000 ]";
      await vm.check(`${dd} 2>/dev/null & until ${wrote}; do :; done`, COMMAND_MS);
      await vm.qmp("system_reset");
    },
  ];
  for (const [round, reset] of resets.entries()) {
    await mark(vm, `round${round}`);
    const from = vm.nextLine;
    const seen = vm.waitForEvent("RESET", COMMAND_MS);
    await reset();
    await seen;
    await booted(vm, from);
    t.is(await waitForDisk(vm), DISK_MIB * MiB);
    t.is(await readMark(vm, 6), `round${round}`);
  }
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.is((await nvmeLog(product.deviceVm)).filter(({ msg }) => msg === "the device is ready").length, 1);
  product.assertHealthy(t);
});

test.serial("the disk is unplugged and plugged in again", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisk(t);
  await mark(vm, "plugged");
  const deleted = vm.waitForEvent("DEVICE_DELETED", COMMAND_MS, ({ device }) => device === DEVICE_ID);
  try {
    await vm.qmp("device_del", { id: DEVICE_ID });
    await deleted;
  } catch (error) {
    // QEMU 11.1 takes a function's BARs apart before its MSI-X tables, and stumbles: any function with MSI-X ends it
    // here.
    await vm.exited;
    t.regex(vm.log, /memory_region_del_subregion: Assertion `subregion->container == mr' failed/, String(error));
    const next = await vmWithDisk(t);
    t.is(await readMark(next, 7), "plugged");
    product.assertHealthy(t);
    return;
  }
  await vm.check(`[ ! -e ${PCI} ] && [ ! -e /dev/nvme0n1 ]`, COMMAND_MS);
  await vm.qmp("device_add", vfioUserDevice(product.bridge.vfioUserSocket));
  t.is(await waitForDisk(vm), DISK_MIB * MiB);
  t.regex(await pciId(vm), /class 010802$/);
  t.is(await readMark(vm, 7), "plugged");
  product.assertHealthy(t);
});

test.serial("the disk is plugged into a VM that started without one", async (t) => {
  t.timeout(10 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t, { plugged: false });
  await vm.check(`[ ! -e ${PCI} ]`, COMMAND_MS);
  await vm.qmp("device_add", vfioUserDevice(product.bridge.vfioUserSocket));
  t.is(await waitForDisk(vm), DISK_MIB * MiB);
  t.is(await readMark(vm, 7), "plugged");
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  product.assertHealthy(t);
});
