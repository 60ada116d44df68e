/**
 * Driver VMs of other makes than the other tests': more CPUs, memory above 4 GiB, and a balloon, each under verified
 * I/O.
 */
import { setTimeout as delay } from "node:timers/promises";
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS, exerciseDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";
import { startVerifiedIo } from "./verified-io.js";

const DISK_MIB = 64;
const MiB = 2 ** 20;
const BALLOON_MS = 3 * 60_000;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test.serial("four CPUs have four queue pairs", async (t) => {
  const { vm } = await driverVmOf(t, "trixie", { cpus: 4, memoryMiB: 1024 });
  t.regex(await kernelLog(vm), /nvme0: 4\/0\/0 default\/read\/poll queues/);
  const io = await startVerifiedIo(vm, { sizeMiB: DISK_MIB });
  await io.passes(2);
  await io.end();
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.context.product.assertHealthy(t);
});

test.serial("memory above 4 GiB", async (t) => {
  const { vm } = await driverVmOf(t, "trixie", { memoryMiB: 4096 });
  t.regex(await vm.check("cat /proc/iomem", COMMAND_MS), /^1\d{8}-\w+ : System RAM$/m);
  // Linux takes the highest memory first: its buffers are there.
  const io = await startVerifiedIo(vm, { sizeMiB: DISK_MIB });
  await io.passes(2);
  await io.end();
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.context.product.assertHealthy(t);
});

test.serial("a balloon takes most of the memory and gives it back, again and again", async (t) => {
  const more = ["-device", "virtio-balloon-pci"];
  const { vm } = await driverVmOf(t, "trixie", { memoryMiB: 1024, more });
  const io = await startVerifiedIo(vm, { sizeMiB: DISK_MIB });
  for (const mebibytes of [500, 1024, 450, 1024]) {
    await vm.qmp("balloon", { value: mebibytes * MiB });
    const deadline = performance.now() + BALLOON_MS;
    for (;;) {
      const { actual } = (await vm.qmp("query-balloon")) as { actual: number };
      if (actual === mebibytes * MiB) break;
      if (performance.now() > deadline) throw new Error(`the guest has ${actual / MiB} MiB, not ${mebibytes}`);
      await delay(200);
    }
  }
  await io.end();
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)|I\/O error/i);
  t.context.product.assertHealthy(t);
});
