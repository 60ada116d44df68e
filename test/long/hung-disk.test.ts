/**
 * fio in the driver VM while its disk hangs in the device VM, for longer than Linux waits for a command: no I/O fails,
 * and no byte is lost.
 */
import { setTimeout as sleep } from "node:timers/promises";
import anyTest, { type TestFn } from "ava";
import { goOn, hang, serveHangingDisk } from "../vm/hanging-disk.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";
import { startVerifiedIo } from "./verified-io.js";

const DISK_MIB = 64;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

/** Linux waits 30 s for a command, and asks for it again up to five times. */
for (const seconds of [20, 45, 120]) {
  for (const cache of ["writeback", "none"]) {
    test.serial(`${seconds} s, --cache ${cache}`, async (t) => {
      const { deviceVm, bridge } = t.context.product;
      await serveHangingDisk(deviceVm, DISK_MIB, `--cache ${cache}`);
      const { vm } = await driverVmOf(t);
      const io = await startVerifiedIo(vm, { sizeMiB: DISK_MIB, more: "--fsync=16" });
      await hang(deviceVm);
      try {
        await sleep(seconds * 1000);
        await io.stillRuns();
      } finally {
        await goOn(deviceVm);
      }
      await io.end();
      t.notRegex(await kernelLog(vm), /Disabling device|not ready|I\/O error/);
      t.true(bridge.alive);
      await vm.stop();
    });
  }
}
