/**
 * Each process on the way from the driver VM to its disk stands still under verified I/O, for less time and for more
 * than QEMU waits for an answer (5 s), and the device VM is paused at bad moments: nothing fails, and nothing is left
 * open.
 */
import { setTimeout as delay } from "node:timers/promises";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { BOOT_MS, booted, COMMAND_MS, disk, exerciseDisk, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmChoices, driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";
import { startVerifiedIo } from "./verified-io.js";

const DISK_MIB = 64;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

type Test = ExecutionContext<LongSetUp>;

async function pause(vm: Vm, milliseconds: number): Promise<void> {
  await vm.qmp("stop");
  await delay(milliseconds);
  await vm.qmp("cont");
}

async function works(t: Test, vm: Vm): Promise<void> {
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.notRegex(await kernelLog(vm), /I\/O error|nvme.*(timeout|not ready)|Disabling device/i);
  t.true(t.context.product.bridge.alive);
}

/** Waits for `milliseconds` while a process stands still. */
type StandStill = (t: Test, driverVm: Vm, milliseconds: number) => Promise<void>;

const stopped = (pidOf: (t: Test, driverVm: Vm) => number | undefined): StandStill => {
  return async (t, driverVm, milliseconds) => {
    const pid = pidOf(t, driverVm);
    if (pid === undefined) throw new Error("the process has ended");
    process.kill(pid, "SIGSTOP");
    await delay(milliseconds);
    process.kill(pid, "SIGCONT");
  };
};

const STANDSTILLS: Readonly<Record<string, StandStill>> = {
  "the driver VM's QEMU": stopped((_, driverVm) => driverVm.pid),
  "the driver VM, by QMP": (_, driverVm, milliseconds) => pause(driverVm, milliseconds),
  "the device VM's QEMU": stopped((t) => t.context.product.deviceVm.pid),
  "the device VM, by QMP": (t, _, milliseconds) => pause(t.context.product.deviceVm, milliseconds),
  "the bridge": stopped((t) => t.context.product.bridge.pid),
  "the device process": async (t, _, milliseconds) => {
    const { deviceVm } = t.context.product;
    await deviceVm.check(`kill -STOP $(cat ${disk(0).pid})`, COMMAND_MS);
    await delay(milliseconds);
    await deviceVm.check(`kill -CONT $(cat ${disk(0).pid})`, COMMAND_MS);
  },
};

for (const [who, standStill] of Object.entries(STANDSTILLS)) {
  test.serial(`${who} stands still`, async (t) => {
    const { vm } = await driverVmOf(t);
    await works(t, vm);
    const open = await t.context.product.openFiles();
    for (const seconds of [3, 12]) {
      const io = await startVerifiedIo(vm, { offsetMiB: 16, sizeMiB: 32 });
      await standStill(t, vm, seconds * 1000);
      await io.end();
      await works(t, vm);
    }
    t.deepEqual(await t.context.product.openFiles(), open);
  });
}

/** What the device process says while a driver VM boots, and how often until then. */
const MOMENTS = {
  "its QEMU has connected": ["client connected", 1],
  "its firmware has enabled the controller": ["enabled by the driver", 1],
  "Linux has enabled the controller": ["enabled by the driver", 2],
} as const;

// While commands wait for the end of a pause, for 2 s.
for (const [moment, [message, nth]] of Object.entries(MOMENTS)) {
  test.serial(`a pause of a second in a driver VM's boot, when ${moment}`, async (t) => {
    t.timeout(15 * 60_000);
    const { product } = t.context;
    const count = `grep -c '"msg":"${message}"' ${disk(0).log}`;
    const before = Number((await product.deviceVm.run(count, COMMAND_MS)).output);
    const vm = await product.switchOn(t, await driverVmChoices(t));
    await product.deviceVm.check(`until [ $(${count}) -ge ${before + nth} ]; do sleep 0.05; done`, BOOT_MS);
    await pause(product.deviceVm, 1000);
    await booted(vm);
    await works(t, vm);
  });
}

test.serial(
  "the device VM is paused for longer than Linux waits for a command: it asks, and goes on waiting",
  async (t) => {
    t.timeout(15 * 60_000);
    const { product } = t.context;
    const { vm } = await driverVmOf(t);
    await waitForDisk(vm);
    const io = await startVerifiedIo(vm, { offsetMiB: 16, sizeMiB: 32 });
    await pause(product.deviceVm, 45_000);
    await io.end();
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    t.notRegex(await kernelLog(vm), /I\/O error|Disabling device|controller is down/);
  },
);
