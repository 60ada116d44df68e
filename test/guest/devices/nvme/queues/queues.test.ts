/** Queues: doorbells, wrap and phase, backpressure, interrupts, many queues, many commands. */
import test from "ava";
import type { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { QueuePair, writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import type { Machine } from "../machine.js";
import { Random } from "../random.js";
import { bringUp, scratch, settle } from "../setup.js";

const SUBMISSION = 0x1000 + 8;
const COMPLETION = SUBMISSION + 4;
const FLUSH = { opcode: 0, namespaceId: 1 };
const READ = { opcode: 2, namespaceId: 1 };

/**
 * Creates I/O queue 2 on its own, in the scratch memory: its entries are seen, and completions stay until they are
 * taken.
 */
async function createPair(
  machine: Machine,
  driver: NvmeDriver,
  { submissionEntries = 16, completionEntries = 16, interrupts = true, vector = 2 } = {},
): Promise<{ submission: number; completion: number }> {
  const { address, offset } = scratch(machine);
  const flags = (vector << 16) | (interrupts ? 3 : 1);
  await driver.checkAdmin({ opcode: 5, prp1: address, dwords: [((completionEntries - 1) << 16) | 2, flags] });
  const prp1 = address + 0x8000;
  await driver.checkAdmin({ opcode: 1, prp1, dwords: [((submissionEntries - 1) << 16) | 2, (2 << 16) | 1] });
  return { submission: offset + 0x8000, completion: offset };
}

/** A completion queue entry's phase, identifier and submission queue head. */
function entry(machine: Machine, queue: number, n: number): { phase: number; id: number; sqhd: number } {
  const { data } = machine.memory;
  const at = queue + n * 16;
  return {
    phase: data.getUint16(at + 14, true) & 1,
    id: data.getUint16(at + 12, true),
    sqhd: data.getUint16(at + 8, true),
  };
}

for (const entries of [2, 3, 7, 16, 1024]) {
  test(`the phase turns over as often as a queue of ${entries} entries wraps`, async (t) => {
    const { storage, driver } = await bringUp(t, { entries });
    const total = Math.max(entries * 3 + 1, 20);
    let most = 0;
    await Promise.all(
      Array.from({ length: total }, async () => {
        t.is((await driver.io(FLUSH)).status, 0);
        most = Math.max(most, driver.queues[0].pending);
      }),
    );
    t.true(storage.calls.length > 0);
    t.true(most < entries);
    t.is(driver.queues[0].pending, 0);
  });
}

test("completions carry the submission queue's head and identifier", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission, completion } = await createPair(machine, driver);
  for (const [n, id] of [7, 0xffff, 0].entries()) writeCommand(machine.memory.data, submission + n * 64, id, FLUSH);
  machine.write(SUBMISSION + 8, 3);
  await settle();
  t.deepEqual(
    [0, 1, 2].map((n) => entry(machine, completion, n)),
    [
      { phase: 1, id: 7, sqhd: 3 },
      { phase: 1, id: 0xffff, sqhd: 3 },
      { phase: 1, id: 0, sqhd: 3 },
    ],
  );
  t.is(machine.memory.data.getUint16(completion + 10, true), 2);
  t.is(entry(machine, completion, 3).phase, 0);
});

test("a completion queue is never overfilled: commands wait for places", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission, completion } = await createPair(machine, driver, { completionEntries: 4 });
  for (let n = 0; n < 10; n++)
    writeCommand(machine.memory.data, submission + n * 64, n, { ...READ, prp1: scratch(machine, 100).address });
  machine.write(SUBMISSION + 8, 10);
  await settle();
  t.is(storage.calls.length, 3);
  t.is(entry(machine, completion, 3).phase, 0);
  const event = driver.admin({ opcode: 0x0c });
  machine.write(SUBMISSION + 8, 3);
  t.is((await event).result, 0x0001_0100, "more commands than the submission queue has places for");
  machine.write(COMPLETION + 8, 2);
  await settle();
  t.is(storage.calls.length, 5);
  t.deepEqual(entry(machine, completion, 0), { phase: 0, id: 4, sqhd: 5 }, "the second time round the phase is 0");
  for (const head of [1, 0, 3, 1, 2]) {
    machine.write(COMPLETION + 8, head);
    await settle();
  }
  t.is(storage.calls.length, 10);
});

test("doorbell values out of range, unchanged or too far raise an event and do nothing else", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission } = await createPair(machine, driver);
  for (let n = 0; n < 16; n++) writeCommand(machine.memory.data, submission + n * 64, n, FLUSH);
  machine.write(SUBMISSION + 8, 3);
  await settle();
  const calls = storage.calls.length;
  for (const [register, value, information] of [
    [SUBMISSION + 8, 16, 1],
    [SUBMISSION + 8, 0xffff, 1],
    [SUBMISSION + 8, 3, 1],
    [COMPLETION + 8, 0, 1],
    [COMPLETION + 8, 4, 1],
    [COMPLETION + 8, 16, 1],
    [SUBMISSION + 16, 1, 0],
    [COMPLETION + 16, 1, 0],
    [0x1ffc, 1, 0],
  ]) {
    const event = driver.admin({ opcode: 0x0c });
    machine.write(register, value);
    t.is((await event).result, 0x0001_0000 | (information << 8), `${value} to ${register.toString(16)}`);
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
  }
  await settle();
  t.is(storage.calls.length, calls);
  machine.write(COMPLETION + 8, 3);
  machine.write(SUBMISSION + 8, 5);
  await settle();
  t.true(storage.calls.length > calls, "and the queue works on");
});

test("doorbells of other sizes and at odd offsets", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission } = await createPair(machine, driver);
  writeCommand(machine.memory.data, submission, 0, FLUSH);
  for (const [offset, size] of [
    [SUBMISSION + 8, 1],
    [SUBMISSION + 9, 1],
    [SUBMISSION + 10, 2],
  ]) {
    const event = driver.admin({ opcode: 0x0c });
    machine.write(offset, 1, size);
    t.is((await event).result, 0x0001_0000);
    await driver.adminRead({ opcode: 2, dwords: [1] }, 4);
  }
  t.deepEqual(storage.calls, []);
  machine.write(SUBMISSION + 8, 1, 2);
  await settle();
  t.deepEqual(storage.calls, ["sync"]);
});

test("completions that come together share an interrupt", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission } = await createPair(machine, driver);
  const prp1 = scratch(machine, 100).address;
  for (let n = 0; n < 15; n++) writeCommand(machine.memory.data, submission + n * 64, n, { ...READ, prp1 });
  storage.hold();
  machine.write(SUBMISSION + 8, 15);
  await storage.whenHeld(15);
  t.is(machine.interrupts.pending(2), 0);
  storage.release();
  await settle();
  t.is(machine.interrupts.pending(2), 1);
});

test("a queue without interrupts never interrupts", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission, completion } = await createPair(machine, driver, { interrupts: false });
  writeCommand(machine.memory.data, submission, 0, FLUSH);
  machine.write(SUBMISSION + 8, 1);
  await settle();
  t.is(entry(machine, completion, 0).phase, 1);
  t.is(machine.interrupts.pending(2), 0);
});

test("a masked interrupt comes when it is unmasked", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 2 });
  const { submission } = await createPair(machine, driver);
  writeCommand(machine.memory.data, submission, 0, FLUSH);
  machine.write(0x0c, 1 << 2);
  machine.write(SUBMISSION + 8, 1);
  await settle();
  t.is(machine.interrupts.pending(2), 0);
  machine.write(0x10, 1 << 2);
  await settle();
  t.is(machine.interrupts.pending(2), 1);
});

test("a queue that goes away while it is used is fatal", async (t) => {
  const { machine, driver } = await bringUp(t);
  machine.dma.maps = [];
  machine.write(SUBMISSION, 1);
  await settle();
  t.is(machine.read(0x1c), 3);
  t.is(driver.queues.length, 1);
});

test("64 queues at once, random sizes and places", async (t) => {
  const random = new Random();
  t.log(`seed ${random.seed}`);
  const { storage, driver } = await bringUp(t, {
    controllerQueues: 64,
    queues: 64,
    entries: 8,
    size: 16 * 1024 * 1024,
  });
  t.is(driver.queues.length, 64);
  const model = new Uint8Array(storage.size);
  for (let round = 0; round < 4; round++) {
    const writes: Promise<void>[] = [];
    for (let block = 0; ; ) {
      block += random.below(100);
      const blocks = 1 + random.below(100);
      if (block + blocks > driver.blockCount) break;
      const place = model.subarray(block * 512, (block + blocks) * 512);
      random.fill(place);
      writes.push(driver.write(block, place.slice()));
      block += blocks;
    }
    await Promise.all(writes);
    t.is(Buffer.compare(storage.bytes, model), 0, `seed ${random.seed}`);
  }
});

test("more commands than are worked on at once, and the event loop goes on in between", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2, queues: 2, entries: 1024 });
  const prp1 = scratch(machine, 100).address;
  storage.hold();
  // One on its own, so that the limit is reached in the middle of a burst.
  const commands = [driver.io({ ...READ, prp1 }, 0)];
  await settle();
  commands.push(...Array.from({ length: 2046 }, () => driver.io({ ...READ, prp1 })));
  await settle();
  t.true(storage.held > 64, "several turns have gone by");
  await storage.whenHeld(1024);
  await settle();
  t.is(storage.held, 1024);
  t.is((await Promise.race([commands[0], Promise.resolve("waits")])) as unknown, "waits");
  storage.release();
  for (const { status } of await Promise.all(commands)) t.is(status, 0);
});

test("queues by messages: fetched in bunches, over the wrap, and the phase last", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { controllerQueues: 2 });
  const { offset } = scratch(machine);
  await createPair(machine, driver, { submissionEntries: 8, completionEntries: 8 });
  machine.leaveWindow();
  const pair = new QueuePair(machine, 2, 8, offset + 0x8000, offset, 2);
  let taken = 0;
  const serve = async (): Promise<void> => {
    while (taken < 40) {
      await machine.interrupts.wait(2);
      taken += await pair.reap();
    }
  };
  const serving = serve();
  const done = await Promise.all(Array.from({ length: 40 }, () => pair.submit(FLUSH)));
  await serving;
  t.true(done.every(({ status }) => status === 0));
  t.true(storage.calls.length > 0);
  t.true(machine.dma.messages > 80);
});

test("entries that are being read by messages when the controller is disabled are not executed", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  machine.leaveWindow();
  let open = (): void => {};
  machine.dma.gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const { messages } = machine.dma;
  void driver.io({ ...READ, prp1: scratch(machine).address });
  await settle();
  t.is(machine.dma.messages, messages + 1);
  machine.write(0x14, 0);
  t.is(machine.read(0x1c), 1, "RDY stays while the message is in flight");
  open();
  await settle();
  t.is(machine.read(0x1c), 0);
  t.deepEqual(storage.calls, []);
});
