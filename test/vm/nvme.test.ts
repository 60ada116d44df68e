/**
 * The product on real parts: an NVMe disk in one stock QEMU VM, used by the Linux driver in another, which dies and
 * comes back.
 */
import anyTest, { type TestFn } from "ava";
import * as vms from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { Product } from "./product.js";

const MiB = 1024 * 1024;
const DISK_MIB = 64;
const DATA_MIB = 4;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test.serial("Linux finds the disk, keeps a file system on it, and gets its data back", async (t) => {
  t.timeout(10 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t);
  t.is(await vms.waitForDisk(vm), DISK_MIB * MiB);
  t.regex(await vms.pciId(vm), /class 010802$/);
  t.is(await vms.pciId(product.deviceVm), "1af4:1067 class 078000");
  const features = product.bridge.lines.filter(({ msg }) => msg === "features negotiated");
  t.true(
    features.length > 0 && features.every(({ eventIndex }) => eventIndex === true),
    "QEMU passes event indices on",
  );
  t.regex(await vms.exerciseDisk(vm, DATA_MIB), /^[0-9a-f]{64}$/);
  t.true((await vms.nvmeInterrupts(vm)) > 0);
  product.assertHealthy(t);
});

test.serial("a driver VM that is killed in the middle of writing and started again finds a working disk", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const { bridge, deviceVm } = product;
  const first = await product.driverVm(t);
  await vms.waitForDisk(first);
  await first.check("printf kept | dd of=/dev/nvme0n1 bs=512 conv=sync,fsync oflag=direct 2>/dev/null", vms.COMMAND_MS);
  await first.check(
    "dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek=1 count=500 oflag=direct 2>/dev/null & sleep 1",
    vms.COMMAND_MS,
  );
  await first.kill();

  const second = await product.driverVm(t);
  t.is(await vms.waitForDisk(second), DISK_MIB * MiB);
  t.is(await second.check("head -c 4 /dev/nvme0n1", vms.COMMAND_MS), "kept");
  t.regex(await vms.exerciseDisk(second, DATA_MIB), /^[0-9a-f]{64}$/);
  t.true(bridge.alive);
  t.is((await vms.nvmeLog(deviceVm)).filter(({ msg }) => msg === "the device is ready").length, 1);
});

test.serial("the device's process ends and starts again, the disk with it, and QEMU lives on", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const { deviceVm } = product;
  for (const signal of ["TERM", "KILL"] as const) {
    await vms.stopNvme(deviceVm, signal);
    await vms.startNvme(deviceVm, DISK_MIB);
  }
  const vm = await product.driverVm(t);
  t.is(await vms.waitForDisk(vm), DISK_MIB * MiB);
  t.regex(await vms.exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.true(product.bridge.alive);
});

test.serial(
  "a device process that has none of the driver VM's memory: the bridge copies, and the disk works",
  async (t) => {
    t.timeout(20 * 60_000);
    const { product } = t.context;
    const { deviceVm } = product;
    await vms.stopNvme(deviceVm);
    await vms.startNvme(deviceVm, DISK_MIB, "--dma copy");
    const vm = await product.driverVm(t);
    t.is(await vms.waitForDisk(vm), DISK_MIB * MiB);
    t.regex(await vms.exerciseDisk(vm, DATA_MIB), /^[0-9a-f]{64}$/);
    const state = await vms.nvmeState(deviceVm);
    t.regex(state, /"isCopied":true/);
    t.regex(state, /"bytesRead":0,"bytesWritten":0,"bytesByCopy":[1-9]/);
    t.notRegex(state, /"windowOffset":[0-9]/);
    t.true(product.bridge.alive);
  },
);

test.serial("Linux uses doorbells in memory, several namespaces, deallocation, and a disk that grows", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const { deviceVm } = product;
  await vms.stopNvme(deviceVm);
  await vms.startNvme(deviceVm, DISK_MIB, "--memory 16M");
  const vm = await product.driverVm(t);
  const number = async (path: string): Promise<number> =>
    Number(await vm.check(`cat /sys/block/${path}`, vms.COMMAND_MS));
  await vms.waitForDisk(vm);
  await vm.check("until [ -b /dev/nvme0n2 ]; do sleep 0.1; done", vms.COMMAND_MS);
  // Linux numbers disks in the order in which its scan came to an end.
  const [file, memory] = (await number("nvme0n1/nsid")) === 1 ? ["nvme0n1", "nvme0n2"] : ["nvme0n2", "nvme0n1"];
  t.deepEqual([await number(`${file}/size`), await number(`${memory}/size`)], [DISK_MIB * 2048, 16 * 2048]);
  t.regex(await vms.nvmeState(deviceVm), /"doorbellsInMemory":true/);

  t.true((await number(`${file}/queue/discard_max_bytes`)) > 0);
  t.true((await number(`${file}/queue/write_zeroes_max_bytes`)) > 0);
  t.is(await number(`${file}/queue/minimum_io_size`), 4096);
  const write = `dd if=/dev/urandom of=/dev/${file} bs=1M count=16 conv=fsync 2>/dev/null`;
  await vm.check(write, vms.COMMAND_MS);
  const full = await vms.diskBlocks(deviceVm);
  await vm.check(`blkdiscard -o 0 -l 8M /dev/${file}`, vms.COMMAND_MS);
  t.true((await vms.diskBlocks(deviceVm)) <= full - 8 * 2048);
  t.is(await vm.check(`head -c 8388608 /dev/${file} | tr -d '\\0' | wc -c`, vms.COMMAND_MS), "0");
  t.regex(await vms.exerciseDisk(vm, DATA_MIB), /^[0-9a-f]{64}$/);

  await vms.resizeDisk(deviceVm, DISK_MIB * 2);
  const grown = `[ $(cat /sys/block/${file}/size) = ${DISK_MIB * 2 * 2048} ]`;
  await vm.check(`until ${grown}; do sleep 0.1; done`, vms.COMMAND_MS);
  await vm.check(`dd if=/dev/urandom of=/dev/${file} bs=1M seek=${DISK_MIB} count=1 2>/dev/null`, vms.COMMAND_MS);
  await vm.check(`dd if=/dev/urandom of=/dev/${memory} bs=1M count=16 conv=fsync 2>/dev/null`, vms.COMMAND_MS);
  t.notRegex(await kernelLog(vm), /I\/O error|timeout|unable to set dbbuf/);
  await vm.stop();
  await vms.resizeDisk(deviceVm, DISK_MIB);
  product.assertHealthy(t);
});
