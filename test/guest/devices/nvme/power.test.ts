/** Resets of every kind, shutdown, the Keep Alive Timer, and pauses. */
import test from "ava";
import { KeepAlive } from "../../../../guest/devices/nvme/lifecycle.js";
import { NvmeDriver } from "../../../../scripts/drivers/nvme.js";
import { bringUp, powerOn, scratch, settle } from "./setup.js";

const CC = 0x14;
const CSTS = 0x1c;
const NSSR = 0x20;
const ENABLE = 0x0046_0001;
const MAGIC = 0x4e56_4d65;
const READ = { opcode: 2, namespaceId: 1 };

test("NSSR resets by its magic number alone, and CSTS.NSSRO says so until it is cleared", async (t) => {
  const { machine } = await bringUp(t);
  machine.write(NSSR, 0xffff_ffff);
  machine.write(NSSR, MAGIC & 0xffff, 2);
  machine.write(NSSR + 2, MAGIC >>> 16, 2);
  t.is(machine.read(CSTS), 1);
  machine.write(0x0c, 6);
  machine.write(NSSR, MAGIC);
  t.is(machine.read(NSSR), 0);
  t.is(machine.read(CC), 0);
  t.is(machine.read(0x24), 0, "AQA");
  t.is(machine.read(0x0c), 0, "INTMS");
  t.is(machine.read(CSTS), 1 << 4);
  const driver = await NvmeDriver.open(machine);
  t.is(machine.read(CSTS), 1 | (1 << 4), "a controller reset leaves it");
  machine.write(CSTS, 1);
  t.is(machine.read(CSTS), 1 | (1 << 4));
  machine.write(CSTS, 1 << 4);
  t.is(machine.read(CSTS), 1);
  await driver.flush();
  machine.write(NSSR, MAGIC);
  await machine.reset();
  t.is(machine.read(CSTS), 0, "as after power-on");
});

test("NSSR in the middle of I/O: nothing of before happens, and the next driver waits for no disk", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  storage.bytes.fill(7);
  storage.hold();
  void driver.io({ ...READ, prp1: address });
  await storage.whenHeld(1);
  const interrupts = machine.interrupts.count;
  machine.write(NSSR, MAGIC);
  t.is(machine.read(CSTS), 1 << 4);
  storage.release();
  await settle();
  t.is(machine.interrupts.count, interrupts);
  t.is(machine.memory.bytes[offset], 0);
  await NvmeDriver.open(machine);
});

for (const [name, shn] of [
  ["normal", 1],
  ["abrupt", 2],
] as const) {
  test(`a ${name} shutdown syncs every namespace`, async (t) => {
    const { machine, storages } = await bringUp(t, { moreSizes: [1024 * 1024] });
    machine.write(CC, ENABLE | (shn << 14));
    while ((machine.read(CSTS) & 0xc) !== 8) await settle();
    for (const { calls } of storages) t.deepEqual(calls, ["sync"]);
  });
}

test("shutdowns that are asked for while a disk hangs do not pile up, and the last one is complete", async (t) => {
  const { machine, storage } = await bringUp(t);
  storage.hold();
  for (let n = 0; n < 1000; n++) {
    machine.write(CC, ENABLE);
    machine.write(CC, ENABLE | (1 << 14));
    if (n === 500) await storage.whenHeld(1);
  }
  await settle();
  t.is(storage.held, 1);
  t.is(machine.read(CSTS) & 0xc, 4, "shutdown processing is not at its end");
  storage.release();
  while ((machine.read(CSTS) & 0xc) !== 8) await settle();
  t.deepEqual(storage.calls, ["sync", "sync"], "what was written between the first and the last is synced, too");
});

test("a shutdown after which a disk could not be synced is not complete", async (t) => {
  const { machine, storages, driver } = await bringUp(t, { moreSizes: [1024 * 1024] });
  storages[1].errors.sync = "EIO";
  t.is((await driver.io({ opcode: 0, namespaceId: 2 })).status, 0x280);
  delete storages[1].errors.sync;
  machine.write(CC, ENABLE | (1 << 14));
  while ((machine.read(CSTS) & 2) === 0) await settle();
  t.is(machine.read(CSTS) & 0xf, 1 | 2 | 4, "RDY, CFS, and shutdown processing that is not at its end");
  await machine.reset();
  const again = await NvmeDriver.open(machine);
  const smart = await again.adminRead({ opcode: 0x02, dwords: [0x02 | (127 << 16)] }, 512);
  t.is(new DataView(smart.buffer).getBigUint64(144, true), 1n, "an unsafe shutdown");
});

test("a reset without a shutdown is unsafe, and counted", async (t) => {
  const { machine, driver } = await bringUp(t);
  const unsafe = async (current: NvmeDriver): Promise<bigint> => {
    const smart = await current.adminRead({ opcode: 0x02, dwords: [0x02 | (127 << 16)] }, 512);
    return new DataView(smart.buffer).getBigUint64(144, true);
  };
  t.is(await unsafe(driver), 0n);
  await machine.reset();
  await machine.reset();
  const second = await NvmeDriver.open(machine);
  t.is(await unsafe(second), 1n);
  await second.close();
  await machine.reset();
  t.is(await unsafe(await NvmeDriver.open(machine)), 1n);
});

test("without Keep Alive in time the controller fails, and a reset heals it", async (t) => {
  const { machine, driver } = await bringUp(t);
  t.is((await driver.admin({ opcode: 0x18 })).status, 0, "without a timer it is just answered");
  await driver.checkAdmin({ opcode: 0x09, dwords: [0x0f, 100] });
  await driver.checkAdmin({ opcode: 0x18 });
  t.is(machine.read(CSTS), 1);
  while (machine.read(CSTS) === 1) await settle();
  t.is(machine.read(CSTS), 3);
  const again = await NvmeDriver.open(machine);
  t.is((await again.checkAdmin({ opcode: 0x0a, dwords: [0x0f] })).result, 0, "the timer is gone");
});

test("a Keep Alive Timer that is set to 0, or anew, does not expire as it was", async (t) => {
  const keepAlive = new KeepAlive(() => t.fail());
  keepAlive.set(1);
  keepAlive.set(0);
  // Later than the timer would have been, and so it fires behind it.
  await new Promise((resolve) => setTimeout(resolve, 5));
  keepAlive.set(1);
  keepAlive.set(60_000);
  await new Promise((resolve) => setTimeout(resolve, 5));
  keepAlive.set(0);
  t.pass();
});

for (const shadowDoorbells of [false, true]) {
  const where = shadowDoorbells ? "memory" : "registers";
  test(`a pause, doorbells in ${where}: what is in flight ends, and nothing else happens`, async (t) => {
    const { machine, storage, driver } = await bringUp(t, { shadowDoorbells });
    const prp1 = scratch(machine).address;
    storage.hold();
    const first = driver.io({ ...READ, prp1 });
    await storage.whenHeld(1);
    const event = driver.admin({ opcode: 0x0c });
    await settle();
    let paused = false;
    const pausing = machine.device.pause().then(() => {
      paused = true;
    });
    await settle();
    t.false(paused);
    storage.release();
    await pausing;
    const { count } = machine.interrupts;
    const second = driver.io({ ...READ, prp1 });
    // The driver rings in a microtask, the controller works in a turn of the event loop.
    for (let n = 0; n < 10; n++) await Promise.resolve();
    const memory = machine.memory.bytes.slice();
    machine.write(0x1ffc, 1);
    await settle();
    t.deepEqual(storage.calls, ["read"]);
    t.is(machine.interrupts.count, count);
    t.is(Buffer.compare(machine.memory.bytes, memory), 0);
    machine.device.resume();
    t.is((await first).status, 0);
    t.is((await second).status, 0);
    t.is((await event).result, 0x0001_0000);
  });
}

test("a pause stops the Keep Alive Timer, and a disabled controller can be paused", async (t) => {
  const { machine, driver } = await bringUp(t);
  await driver.checkAdmin({ opcode: 0x09, dwords: [0x0f, 100] });
  await machine.device.pause();
  await new Promise((resolve) => setTimeout(resolve, 150));
  t.is(machine.read(CSTS), 1);
  machine.device.resume();
  while (machine.read(CSTS) !== 3) await settle();
  const other = await powerOn(t);
  await other.machine.device.pause();
  other.machine.device.resume();
  await NvmeDriver.open(other.machine);
});
