/**
 * What was written and flushed is there after the device's process was killed; the driver VM that runs meanwhile goes
 * on.
 */
import anyTest, { type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, exerciseDisk, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Product } from "./product.js";

const DISK_MIB = 64;
const DATA_MIB = 8;
/** The nvme driver's own are 30 s for I/O and 60 s for the commands with which it then tries to help itself. */
const timeOuts = (ioSeconds: number) => `nvme_core.io_timeout=${ioSeconds} nvme_core.admin_timeout=5`;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

const READ = `dd if=/dev/nvme0n1 bs=1M count=${DATA_MIB} iflag=direct 2>/dev/null | sha256sum`;

/** Writes random data to the disk, each write durable before the next; gives its checksum. */
async function writeDurably(vm: Vm): Promise<string> {
  await vm.check(`dd if=/dev/urandom of=/tmp/data bs=1M count=${DATA_MIB} 2>/dev/null`, COMMAND_MS);
  await vm.check("dd if=/tmp/data of=/dev/nvme0n1 bs=1M oflag=direct conv=fsync 2>/dev/null", COMMAND_MS);
  return (await vm.check("sha256sum </tmp/data", COMMAND_MS)).split(" ")[0];
}

const readBack = async (vm: Vm) => (await vm.check(READ, COMMAND_MS)).split(" ")[0];

test.serial("a new driver VM finds what was flushed before the device's process was killed", async (t) => {
  t.timeout(15 * 60_000);
  const { product } = t.context;
  const { deviceVm } = product;
  const first = await product.driverVm(t);
  await waitForDisk(first);
  const written = await writeDurably(first);
  await stopNvme(deviceVm, "KILL");
  await first.kill();
  await startNvme(deviceVm, DISK_MIB);
  const second = await product.driverVm(t);
  await waitForDisk(second);
  t.is(await readBack(second), written);
  t.true(product.bridge.alive);
});

test.serial("a running driver VM has its disk again after the device's process was killed", async (t) => {
  t.timeout(30 * 60_000);
  const { product } = t.context;
  const { deviceVm, bridge } = product;
  const vm = await product.driverVm(t);
  await waitForDisk(vm);
  const written = await writeDurably(vm);
  await stopNvme(deviceVm, "KILL");
  await startNvme(deviceVm, DISK_MIB);
  await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
  t.is(await readBack(vm), written);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.true(bridge.alive);
});

/**
 * Starts to write /tmp/data to the disk in small pieces, and returns in the middle of that. The end is told in
 * /tmp/status.
 */
async function startWriting(vm: Vm): Promise<void> {
  await vm.check(`dd if=/dev/urandom of=/tmp/data bs=1M count=${DATA_MIB} 2>/dev/null`, COMMAND_MS);
  const copy = "dd if=/tmp/data of=/dev/nvme0n1 bs=4k oflag=direct conv=fsync 2>/tmp/said";
  const written = "awk '{ print $7 }' /sys/block/nvme0n1/stat";
  const enough = `[ $(${written}) -gt $((before + 2000)) ]`;
  await vm.check(`before=$(${written}); { ${copy}; echo $? >/tmp/status; } & until ${enough}; do :; done`, COMMAND_MS);
}

const STATUS = "until [ -e /tmp/status ]; do sleep 0.1; done; cat /tmp/status";

test.serial(
  "I/O under way when the device's process is killed is done again by Linux, and no byte is lost",
  async (t) => {
    t.timeout(30 * 60_000);
    const { product } = t.context;
    const vm = await product.driverVm(t, { append: timeOuts(20) });
    await waitForDisk(vm);
    await startWriting(vm);
    await stopNvme(product.deviceVm, "KILL");
    await vm.check("[ ! -e /tmp/status ]", COMMAND_MS);
    await startNvme(product.deviceVm, DISK_MIB);
    t.is(await vm.check(STATUS, COMMAND_MS), "0", await vm.check("dmesg | grep nvme", COMMAND_MS));
    t.is(await readBack(vm), (await vm.check("sha256sum </tmp/data", COMMAND_MS)).split(" ")[0]);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    t.true(product.bridge.alive);
  },
);

test.serial(
  "a disk that Linux gave up, its device gone for longer than the time-out, comes back by a rescan",
  async (t) => {
    t.timeout(30 * 60_000);
    const { product } = t.context;
    const vm = await product.driverVm(t, { append: timeOuts(1) });
    await waitForDisk(vm);
    const written = await writeDurably(vm);
    await vm.check("dd if=/dev/nvme0n1 of=/dev/null bs=4k iflag=direct 2>/dev/null & sleep 0.2", COMMAND_MS);
    await stopNvme(product.deviceVm, "KILL");
    await vm.check("until dmesg | grep -q 'Disabling device after reset failure'; do sleep 0.1; done", COMMAND_MS);
    await startNvme(product.deviceVm, DISK_MIB);
    await vm.check("echo 1 >/sys/bus/pci/devices/0000:01:00.0/remove; echo 1 >/sys/bus/pci/rescan", COMMAND_MS);
    await waitForDisk(vm);
    t.is(await readBack(vm), written);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    t.true(product.bridge.alive);
  },
);
