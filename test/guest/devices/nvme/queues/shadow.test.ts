/**
 * Doorbells in memory: the driver's part by the book, the moment before the controller sleeps, and what a driver gets
 * wrong.
 */
import test, { type ExecutionContext } from "ava";
import type { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import type { FakeMap, Machine } from "../machine.js";
import { Random } from "../random.js";
import { bringUp, completed, disable, enable, keepAlive, scratch, settle, untilCompleted } from "../setup.js";

const CONFIGURE = 0x7c;
const CREATE_CQ = 0x05;
const CREATE_SQ = 0x01;
const FLUSH = { opcode: 0, namespaceId: 1 };
const SUBMISSION = 0x1000 + 8;

/**
 * A controller with one queue pair of 16 entries that nobody serves but the test, doorbells in memory, and the buffers'
 * offsets.
 */
async function withShadow(t: ExecutionContext) {
  const setup = await bringUp(t, { controllerQueues: 2 });
  const { machine, driver } = setup;
  const { address, offset } = scratch(machine);
  const [doorbells, events] = [0, 1].map((page) => offset + page * 4096);
  await driver.checkAdmin({ opcode: CONFIGURE, prp1: address, prp2: address + 4096 });
  const pair = await createPair(machine, driver);
  return { ...setup, pair, doorbells, events };
}

async function createPair(machine: Machine, driver: NvmeDriver): Promise<{ submission: number; completion: number }> {
  const [submission, completion] = [scratch(machine, 2), scratch(machine, 3)];
  const size = (15 << 16) | 2;
  await driver.checkAdmin({ opcode: CREATE_CQ, prp1: completion.address, dwords: [size, (2 << 16) | 3] });
  await driver.checkAdmin({ opcode: CREATE_SQ, prp1: submission.address, dwords: [size, (2 << 16) | 1] });
  return { submission: submission.offset, completion: completion.offset };
}

/** The words of queue 2 in a buffer: tail, head. */
const tailOf = (buffer: number): number => buffer + 16;
const headOf = (buffer: number): number => buffer + 20;

/** Resolves when the controller has asked for the doorbell that passes `tail`. */
async function asleep(machine: Machine, events: number, tail: number): Promise<void> {
  while (machine.memory.data.getUint32(tailOf(events), true) !== tail) await settle();
}

/** What is left of a map when `size` bytes from the memory's `offset` on are taken out of it. */
function withHole(map: FakeMap, offset: number, size: number): FakeMap[] {
  const before = offset - map.offset;
  const behind = before + size;
  return [
    { ...map, size: before },
    { ...map, address: map.address + behind, offset: map.offset + behind, size: map.size - behind },
  ];
}

for (const entries of [2, 3, 16, 1024]) {
  test(`every command arrives, by fewer register writes than there are doorbells, queues of ${entries}`, async (t) => {
    const { driver } = await bringUp(t, { entries, queues: 2, shadowDoorbells: true });
    let done = 0;
    const chain = async (): Promise<void> => {
      for (let n = 0; n < 200; n++) {
        t.is((await driver.io(FLUSH)).status, 0);
        done++;
      }
    };
    await Promise.all([chain(), chain(), chain()]);
    t.is(done, 600);
    const rings = driver.queues.reduce((sum, queue) => sum + queue.rings, 0);
    // Each command has two doorbells. By the book a queue that wraps is rung each time.
    t.true(rings < (entries === 2 ? 1200 : 600), `${rings} register writes`);
  });
}

test("data over doorbells in memory is the same data", async (t) => {
  const { storage, driver } = await bringUp(t, { queues: 4, shadowDoorbells: true });
  const source = Uint8Array.from({ length: 256 * 1024 }, (_, n) => n * 31);
  await Promise.all(
    [0, 1, 2, 3].map((part) => driver.write(part * 128, source.subarray(part * 65536, (part + 1) * 65536))),
  );
  t.is(Buffer.compare(storage.bytes.subarray(0, source.length), source), 0);
  const target = new Uint8Array(source.length);
  await driver.read(0, target);
  t.is(Buffer.compare(target, source), 0);
});

test("commands that come while the controller falls asleep are not lost", async (t) => {
  const { driver } = await bringUp(t, { shadowDoorbells: true, lanes: 1 });
  const random = new Random();
  t.log(`seed ${random.seed}`);
  for (let n = 0; n < 300; n++) {
    // A lane's thread looks for a millisecond before it asks for the register. The driver writes it only if it is
    // asked.
    const begin = performance.now();
    const pause = 0.9 + random.below(200) / 1000;
    while (performance.now() - begin < pause);
    t.is((await driver.io(FLUSH)).status, 0);
  }
});

test("the register of a queue with doorbells in memory only wakes: what it says may be old", async (t) => {
  const { machine, driver, pair, doorbells, events } = await withShadow(t);
  const { data } = machine.memory;
  for (let n = 0; n < 16; n++) writeCommand(data, pair.submission + n * 64, n, FLUSH);
  const event = driver.admin({ opcode: 0x0c });
  let reported = false;
  void event.then(() => {
    reported = true;
  });
  data.setUint32(tailOf(doorbells), 5, true);
  machine.write(SUBMISSION + 8, 4);
  machine.write(SUBMISSION + 8, 2);
  machine.write(SUBMISSION + 12, 9);
  await untilCompleted(machine, pair.completion, 5);
  await asleep(machine, events, 5);
  t.is(completed(machine, pair.completion), 5);
  t.false(reported, "none of the register's values is an error");
});

test("a completion queue without places: the head comes from memory, and is asked for only then", async (t) => {
  const { machine, pair, doorbells, events } = await withShadow(t);
  const { data } = machine.memory;
  for (let n = 0; n < 16; n++) writeCommand(data, pair.submission + n * 64, n, FLUSH);
  data.setUint32(headOf(events), 0xdead, true);
  const ring = (tail: number): void => {
    data.setUint32(tailOf(doorbells), tail, true);
    machine.write(SUBMISSION + 8, tail);
  };
  ring(15);
  await untilCompleted(machine, pair.completion, 15);
  await asleep(machine, events, 15);
  t.is(data.getUint32(headOf(events), true), 0xdead, "nothing waits for the head");
  ring(4);
  while (data.getUint32(headOf(events), true) !== 0) await settle();
  t.is(completed(machine, pair.completion), 15);
  data.setUint32(headOf(doorbells), 2, true);
  machine.write(SUBMISSION + 12, 2);
  // The 16th entry, and the first of the second round.
  while ((data.getUint16(pair.completion + 14, true) & 1) !== 0) await settle();
  t.is(data.getUint16(pair.completion + 15 * 16 + 14, true) & 1, 1);
  t.is(data.getUint16(pair.completion + 16 + 14, true) & 1, 1, "two places were free");
});

test("invalid values are reported once, and do nothing", async (t) => {
  const { machine, driver, pair, doorbells, events } = await withShadow(t);
  const { data } = machine.memory;
  writeCommand(data, pair.submission, 0, FLUSH);
  for (const [word, value] of [
    [tailOf(doorbells), 16],
    [tailOf(doorbells), 0xffff_ffff],
    [tailOf(doorbells), 0x1_0000],
    [headOf(doorbells), 1],
    [headOf(doorbells), 16],
    [headOf(doorbells), 0x8000_0000],
  ]) {
    const event = driver.admin({ opcode: 0x0c });
    data.setUint32(word, value, true);
    machine.write(SUBMISSION + 8, 0);
    t.is((await event).result, 0x0001_0100, `${value}`);
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
    let again = false;
    const next = driver.admin({ opcode: 0x0c }).then(() => {
      again = true;
    });
    machine.write(SUBMISSION + 8, 0);
    await settle();
    t.false(again, `${value} a second time`);
    data.setUint32(word, 0, true);
    // What ends the request for the next round.
    machine.write(0x1ffc, 1);
    await next;
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
  }
  t.is(completed(machine, pair.completion), 0);
  data.setUint32(tailOf(doorbells), 1, true);
  machine.write(SUBMISSION + 8, 1);
  await untilCompleted(machine, pair.completion, 1);
  await asleep(machine, events, 1);
});

test("a queue begins at zero, whatever its words were", async (t) => {
  const { machine, driver, pair, doorbells, events } = await withShadow(t);
  const { data } = machine.memory;
  for (const opcode of [0x00, 0x04]) await driver.checkAdmin({ opcode, dwords: [2] });
  for (const buffer of [doorbells, events]) {
    data.setUint32(tailOf(buffer), 7, true);
    data.setUint32(headOf(buffer), 7, true);
  }
  await createPair(machine, driver);
  for (const buffer of [doorbells, events]) {
    t.is(data.getUint32(tailOf(buffer), true), 0);
    t.is(data.getUint32(headOf(buffer), true), 0);
  }
  await settle();
  t.is(completed(machine, pair.completion), 0);
});

test("queues that exist already go on where they are", async (t) => {
  const { machine, driver } = await bringUp(t, { entries: 16 });
  for (let n = 0; n < 5; n++) await driver.flush();
  const { address, offset } = scratch(machine);
  await driver.checkAdmin({ opcode: CONFIGURE, prp1: address, prp2: address + 4096 });
  const { data } = machine.memory;
  t.is(data.getUint32(offset + 8, true), 5);
  t.is(data.getUint32(offset + 12, true), 5);
  driver.queues[0].shadow = { doorbells: offset, events: offset + 4096 };
  for (let n = 0; n < 20; n++) await driver.flush();
});

test("buffers that will not do are refused, and registers work on", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  const [good, other] = [address, address + 4096];
  const configure = async (prp1: number | bigint, prp2: number | bigint): Promise<number> =>
    (await driver.admin({ opcode: CONFIGURE, prp1, prp2 })).status;
  t.is(await configure(good + 4, other), 0x02);
  t.is(await configure(good, other + 2048), 0x02);
  t.is(await configure(2n ** 63n, other), 0x02);
  t.is(await configure(good, 2n ** 62n), 0x02);
  t.is(await configure(good, 2n ** 64n - 4096n), 0x04, "not mapped, up there");
  t.is(await configure(0, other), 0x04, "not mapped");
  t.is(await configure(good, 0x1000), 0x04);
  const [map] = machine.dma.maps;
  for (const wrong of [{ readable: false }, { writable: false }, { windowed: false }]) {
    machine.dma.maps = [...withHole(map, offset, 4096), { address: good, size: 4096, offset, ...wrong }];
    t.is(await configure(good, other), 0x04, JSON.stringify(wrong));
  }
  machine.dma.maps = [map];
  await driver.flush();
  t.is(await configure(good, other), 0);
});

test("buffers that go away and come back: commands are found without a register write", async (t) => {
  const { machine, pair, doorbells, events } = await withShadow(t);
  const { data } = machine.memory;
  const [map] = machine.dma.maps;
  await asleep(machine, events, 0);
  writeCommand(data, pair.submission, 0, FLUSH);
  writeCommand(data, pair.submission + 64, 1, FLUSH);
  machine.dma.maps = withHole(map, doorbells, 8192);
  data.setUint32(tailOf(doorbells), 1, true);
  machine.write(SUBMISSION + 8, 1);
  await settle();
  t.is(completed(machine, pair.completion), 0);
  // No queue can be made meanwhile: its words could not be set.
  machine.dma.maps = [map];
  data.setUint32(tailOf(doorbells), 2, true);
  await untilCompleted(machine, pair.completion, 2);
});

test("no queue is created while its words cannot be reached", async (t) => {
  const { machine, driver, doorbells } = await withShadow(t);
  for (const opcode of [0x00, 0x04]) await driver.checkAdmin({ opcode, dwords: [2] });
  const [map] = machine.dma.maps;
  machine.dma.maps = withHole(map, doorbells, 4096);
  const prp1 = scratch(machine, 3).address;
  const size = (15 << 16) | 2;
  t.is((await driver.admin({ opcode: CREATE_CQ, prp1, dwords: [size, (2 << 16) | 3] })).status, 0x04);
  machine.dma.maps = [map];
  t.is((await driver.admin({ opcode: CREATE_CQ, prp1, dwords: [size, (2 << 16) | 3] })).status, 0);
});

test("the next driver has its doorbells in registers again", async (t) => {
  const { machine, doorbells, events } = await withShadow(t);
  await asleep(machine, events, 0);
  await disable(machine);
  const { data } = machine.memory;
  machine.memory.bytes.fill(0xaa, doorbells, doorbells + 8192);
  const admin = enable(machine);
  t.is((await keepAlive(machine, admin)).status, 0);
  t.is(data.getUint32(tailOf(events), true), 0xaaaa_aaaa);
});
