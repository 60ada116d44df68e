/** The device VM is paused by QMP's `stop` and goes on by `cont`: the driver VM keeps its disk, and loses no byte. */
import { setTimeout as delay } from "node:timers/promises";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { booted, COMMAND_MS, exerciseDisk, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { Product } from "./product.js";

const DISK_MIB = 64;
const DATA_MIB = 16;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

async function pause(vm: Vm, milliseconds: number): Promise<void> {
  await vm.qmp("stop");
  await delay(milliseconds);
  await vm.qmp("cont");
}

/**
 * Writes 4 KiB at a time while the device VM is paused again and again; then what is on the disk is what was written.
 */
async function writeThroughPauses(t: ExecutionContext<{ product: Product }>, vm: Vm): Promise<void> {
  const { deviceVm } = t.context.product;
  await vm.check(`rm -f /tmp/status; dd if=/dev/urandom of=/tmp/data bs=1M count=${DATA_MIB} 2>/dev/null`, COMMAND_MS);
  const copy = "dd if=/tmp/data of=/dev/nvme0n1 bs=4k oflag=direct conv=fsync 2>/tmp/said";
  const written = "awk '{ print $7 }' /sys/block/nvme0n1/stat";
  const enough = (sectors: number) => `until [ $(${written}) -gt $(($(cat /tmp/before) + ${sectors})) ]; do :; done`;
  await vm.check(`${written} >/tmp/before; { ${copy}; echo $? >/tmp/status; } & ${enough(1000)}`, COMMAND_MS);
  for (const [n, milliseconds] of [100, 1000, 3000, 6000].entries()) {
    await pause(deviceVm, milliseconds);
    // It goes on in between.
    await vm.check(enough(2000 * (n + 1)), COMMAND_MS);
  }
  t.is(await vm.check("until [ -e /tmp/status ]; do sleep 0.1; done; cat /tmp/status", COMMAND_MS), "0");
  await vm.check("echo 3 >/proc/sys/vm/drop_caches", COMMAND_MS);
  const read = `dd if=/dev/nvme0n1 bs=1M count=${DATA_MIB} iflag=direct 2>/dev/null | sha256sum`;
  t.is(await vm.check(read, COMMAND_MS), await vm.check("sha256sum </tmp/data", COMMAND_MS));
}

test.serial("a pause that nobody notices", async (t) => {
  t.timeout(10 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t);
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  for (const milliseconds of [500, 3000, 6000]) {
    await pause(product.deviceVm, milliseconds);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  }
  product.assertHealthy(t);
});

test.serial("pauses under writes", async (t) => {
  t.timeout(10 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t);
  await waitForDisk(vm);
  await writeThroughPauses(t, vm);
  product.assertHealthy(t);
});

test.serial("pauses under writes whose data the bridge copies", async (t) => {
  t.timeout(10 * 60_000);
  const { product } = t.context;
  await stopNvme(product.deviceVm);
  await startNvme(product.deviceVm, DISK_MIB, "--dma copy");
  const vm = await product.driverVm(t);
  await waitForDisk(vm);
  await writeThroughPauses(t, vm);
  product.assertHealthy(t);
});

test.serial(
  "a driver VM that is reset while its device VM is paused boots with its disk when that goes on",
  async (t) => {
    t.timeout(10 * 60_000);
    const { product } = t.context;
    const { deviceVm } = product;
    const vm = await product.driverVm(t, { reboots: true });
    await waitForDisk(vm);
    await deviceVm.qmp("stop");
    // Until nobody is kept waiting any more.
    await delay(3000);
    const from = vm.nextLine;
    const reset = vm.waitForEvent("RESET", COMMAND_MS);
    await vm.qmp("system_reset");
    await reset;
    // The firmware waits for the controller, for as long as that says that it may take: 30 s.
    await delay(10_000);
    await deviceVm.qmp("cont");
    await booted(vm, from);
    t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
    t.notRegex(await kernelLog(vm), /nvme.*not ready/);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    product.assertHealthy(t);
  },
);
