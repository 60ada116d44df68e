/**
 * Doorbells that the driver VM's VMM maps: polled, hostile, 0 after every reset; and written by message where nobody
 * has mapped them.
 */
import test, { type ExecutionContext } from "ava";
import { createController } from "../../../../../guest/devices/nvme/index.js";
import type { Polling } from "../../../../../guest/devices/nvme/queues/lanes.js";
import { writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import { UserError } from "../../../../../shared/errors.js";
import { FakeStorage } from "../fake-storage.js";
import type { Machine } from "../machine.js";
import { Random } from "../random.js";
import {
  bringUp,
  completed,
  disable,
  enable,
  keepAlive,
  memoryDisk,
  powerOn,
  scratch,
  settle,
  untilCompleted,
} from "../setup.js";

const FLUSH = { opcode: 0, namespaceId: 1 };
const STRIDE = 64;
const DOORBELLS = 0x1000;
const SHARED = { doorbells: "shared" } as const;
/** Of queue 2, in words. */
const TAIL = (2 * 2 * STRIDE) / 4;
const HEAD = TAIL + STRIDE / 4;

function words({ shared }: Machine): Int32Array {
  if (shared === undefined) throw new Error("no doorbells are shared");
  return shared.words;
}

/** A controller with queue 2 that nobody serves but the test; the driver's own doorbells are mapped. */
async function withPair(t: ExecutionContext, poll: Polling = "adaptive") {
  const { machine, driver, storage } = await bringUp(t, { controllerQueues: 2, ...SHARED, poll });
  machine.doorbells = words(machine);
  const [submission, completion] = [scratch(machine, 2), scratch(machine, 3)];
  const size = (15 << 16) | 2;
  const create = async () => {
    await driver.checkAdmin({ opcode: 5, prp1: completion.address, dwords: [size, (2 << 16) | 3] });
    await driver.checkAdmin({ opcode: 1, prp1: submission.address, dwords: [size, (2 << 16) | 1] });
  };
  await create();
  for (let n = 0; n < 16; n++) writeCommand(machine.memory.data, submission.offset + n * 64, n, FLUSH);
  return { machine, driver, storage, create, completion: completion.offset };
}

async function untilResting(machine: Machine): Promise<void> {
  const isResting = () => (machine.device.inspect() as { resting: boolean }).resting;
  while (!isResting()) await settle();
}

test("where doorbells are in BAR 0: a cache line each, in whole pages, the MSI-X table behind them", async (t) => {
  for (const [queues, pages, size] of [
    [1, 1, 0x4000],
    [16, 1, 0x4000],
    [31, 1, 0x4000],
    [32, 2, 0x8000],
    [64, 3, 0x8000],
  ]) {
    const { machine } = await powerOn(t, { queues, ...SHARED });
    const { bars, msix } = machine.device.identity;
    t.deepEqual(bars[0]?.shared, [{ offset: DOORBELLS, size: pages * 4096 }], `${queues}`);
    t.is(msix?.offset, DOORBELLS + pages * 4096);
    t.is(bars[0]?.size, size);
    t.is(machine.read(4) & 0xf, 4, "CAP.DSTRD");
  }
  const { machine } = await powerOn(t);
  t.is(machine.device.identity.bars[0]?.shared, undefined);
  t.is(machine.read(4) & 0xf, 0);
});

test("options that do not go together", (t) => {
  const make = (choices: object) => () =>
    createController([{ name: "a disk", storage: new FakeStorage(4096) }], { serial: "S", ...choices });
  t.throws(make({ poll: "always" }), { instanceOf: UserError, message: /only shared doorbells/ });
  t.throws(make({ doorbells: "both" }), { instanceOf: UserError, message: /trapped or shared/ });
  t.throws(make({ ...SHARED, poll: "never" }), { instanceOf: UserError, message: /adaptive or always/ });
  t.notThrows(make({ doorbells: "trapped" }));
  t.notThrows(make({ ...SHARED, poll: "always" }));
});

for (const poll of ["adaptive", "always"] as const) {
  test(`the same data over mapped doorbells, several queues, polled ${poll}`, async (t) => {
    for (const { machine, driver } of [
      await memoryDisk(t, { queues: 4, mapped: true, ...SHARED, poll }),
      await bringUp(t, { queues: 4, ...SHARED, poll }),
    ]) {
      machine.doorbells ??= words(machine);
      const source = new Random(1).filled(256 * 1024);
      await Promise.all(
        [0, 1, 2, 3].map((part) => driver.write(part * 128, source.subarray(part * 65536, (part + 1) * 65536))),
      );
      const target = new Uint8Array(source.length);
      await driver.read(0, target);
      t.is(Buffer.compare(target, source), 0);
      await driver.flush();
      t.true(
        driver.queues.every(({ rings }) => rings === 0),
        "no register was written",
      );
      await driver.close();
    }
  });
}

test("a queue of two entries wraps at each command", async (t) => {
  const { driver } = await memoryDisk(t, { entries: 2, adminEntries: 2, mapped: true, ...SHARED });
  const target = new Uint8Array(512);
  for (let n = 0; n < 50; n++) await driver.read(n, target);
  t.pass();
});

test("a device that rests finds a command without a signal", async (t) => {
  const { machine, completion } = await withPair(t);
  await untilResting(machine);
  Atomics.store(words(machine), TAIL, 3);
  await untilCompleted(machine, completion, 3);
  await settle();
  t.is(completed(machine, completion), 3);
  await untilResting(machine);
  Atomics.store(words(machine), TAIL, 4);
  await untilCompleted(machine, completion, 4);
});

test("one that is to poll always does not rest, and a disabled one does nothing", async (t) => {
  const { machine } = await withPair(t, "always");
  for (let turn = 0; turn < 1000; turn++) await settle();
  t.like(machine.device.inspect(), { doorbellsInMemory: true, resting: false });
  await disable(machine);
  t.like(machine.device.inspect(), { doorbellsInMemory: false });
});

test("written by message: heard of at once, with the same effect", async (t) => {
  const { machine, completion } = await withPair(t);
  await untilResting(machine);
  machine.write(DOORBELLS + TAIL * 4, 2);
  await settle();
  t.is(completed(machine, completion), 2, "not by a timer");
  machine.write(DOORBELLS + HEAD * 4, 2, 2);
  machine.write(DOORBELLS + TAIL * 4, 5, 2);
  await settle();
  t.is(completed(machine, completion), 5);
});

test("written by message, and no doorbell", async (t) => {
  const { machine, driver, completion } = await withPair(t);
  for (const [offset, size] of [
    [TAIL * 4, 1],
    [TAIL * 4 + 4, 4],
    [TAIL * 4 + 2, 2],
    [3 * 2 * STRIDE, 4],
    [(3 * 2 + 1) * STRIDE, 4],
  ]) {
    const event = driver.admin({ opcode: 0x0c });
    await settle();
    machine.write(DOORBELLS + offset, 0, size);
    t.is((await event).result, 0x0001_0000, `${size} bytes at ${offset}`);
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
  }
  t.is(completed(machine, completion), 0);
});

test("invalid values are reported once, and do nothing", async (t) => {
  const { machine, driver, completion } = await withPair(t);
  for (const [word, value] of [
    [TAIL, 16],
    [TAIL, -1],
    [TAIL, 0x1_0000],
    [HEAD, 1],
    [HEAD, 16],
    [HEAD, -0x8000_0000],
  ]) {
    const event = driver.admin({ opcode: 0x0c });
    Atomics.store(words(machine), word, value);
    t.is((await event).result, 0x0001_0100, `${value}`);
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
    let again = false;
    const next = driver.admin({ opcode: 0x0c }).then(() => {
      again = true;
    });
    // Work that makes it look again.
    for (let n = 0; n < 10; n++) await driver.flush();
    t.false(again, `${value} a second time`);
    Atomics.store(words(machine), word, 0);
    // What ends the request for the next round.
    machine.write(DOORBELLS + 3 * 2 * STRIDE, 1);
    await next;
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
  }
  t.is(completed(machine, completion), 0);
  Atomics.store(words(machine), TAIL, 1);
  await untilCompleted(machine, completion, 1);
});

test("a driver that scribbles over all doorbells all the time", async (t) => {
  const { machine, driver } = await memoryDisk(t, { queues: 2, mapped: true, size: 65536, ...SHARED });
  const random = new Random();
  t.log(`seed ${random.seed}`);
  for (let n = 0; n < 3000; n++) {
    words(machine)[random.below(words(machine).length)] =
      random.below(2) === 0 ? random.below(70) : random.below(2 ** 32);
    if (n % 10 === 0) await settle();
  }
  await disable(machine);
  t.true(words(machine).every((word) => word === 0));
  t.truthy(driver);
});

test("a completion queue without places: its head is looked at", async (t) => {
  const { machine, completion } = await withPair(t);
  Atomics.store(words(machine), TAIL, 15);
  await untilCompleted(machine, completion, 15);
  Atomics.store(words(machine), TAIL, 4);
  await settle();
  t.is(completed(machine, completion), 15);
  Atomics.store(words(machine), HEAD, 2);
  // The 16th entry, and the first of the second round.
  while ((machine.memory.data.getUint16(completion + 14, true) & 1) !== 0) await settle();
  t.is(machine.memory.data.getUint16(completion + 15 * 16 + 14, true) & 1, 1);
  t.is(machine.memory.data.getUint16(completion + 16 + 14, true) & 1, 1, "two places were free");
});

test("doorbells are 0 after a controller reset, a function reset, and where a queue is created", async (t) => {
  const { machine, driver, create, completion } = await withPair(t);
  Atomics.store(words(machine), TAIL, 3);
  await untilCompleted(machine, completion, 3);
  for (const opcode of [0x00, 0x04]) await driver.checkAdmin({ opcode, dwords: [2] });
  Atomics.store(words(machine), TAIL, 7);
  Atomics.store(words(machine), HEAD, 7);
  await create();
  t.deepEqual([words(machine)[TAIL], words(machine)[HEAD]], [0, 0]);
  await settle();
  t.is(completed(machine, completion), 3);
  words(machine).fill(5);
  machine.write(0x14, 0);
  t.true(words(machine).every((word) => word === 0));
  words(machine).fill(5);
  await machine.reset();
  t.true(words(machine).every((word) => word === 0));
});

test("what was written while the controller was disabled is no doorbell", async (t) => {
  const { machine } = await withPair(t);
  await disable(machine);
  words(machine).fill(3);
  const admin = enable(machine, STRIDE);
  t.true(words(machine).every((word) => word === 0));
  t.like(await keepAlive(machine, admin), { status: 0, sqhd: 1 });
});

test("no second place for doorbells: Doorbell Buffer Config is not there", async (t) => {
  const { machine, driver } = await bringUp(t, { ...SHARED, shadowDoorbells: true });
  t.is(driver.oacs & (1 << 8), 0);
  const { address } = scratch(machine);
  t.is((await driver.admin({ opcode: 0x7c, prp1: address, prp2: address + 4096 })).status, 1);
  const effects = await driver.adminRead({ opcode: 2, dwords: [5 | (0x3ff << 16)] }, 4096);
  t.is(effects[0x7c * 4] & 1, 0);
  t.is(effects[0x06 * 4] & 1, 1);
});

test("a paused function looks at nothing until it goes on", async (t) => {
  const { machine, completion } = await withPair(t);
  await machine.device.pause();
  Atomics.store(words(machine), TAIL, 2);
  machine.write(DOORBELLS + TAIL * 4, 2);
  await settle();
  t.is(completed(machine, completion), 0);
  machine.device.resume();
  await untilCompleted(machine, completion, 2);
});

test("commands that are in flight end while doorbells are polled", async (t) => {
  const { machine, storage, completion } = await withPair(t);
  storage.hold();
  Atomics.store(words(machine), TAIL, 1);
  await storage.whenHeld(1);
  await settle();
  t.is(completed(machine, completion), 0);
  storage.release();
  await untilCompleted(machine, completion, 1);
});
