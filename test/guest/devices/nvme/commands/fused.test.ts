/** Compare and Write: a pair of commands that is one, and halves that have no other. */
import test, { type ExecutionContext } from "ava";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import type { CommandFields } from "../../../../../scripts/drivers/nvme-queue.js";
import { MiB } from "../../../../../shared/limits.js";
import { bringUp, disable, memoryDisk, scratch, settle } from "../setup.js";

const [WRITE, READ, COMPARE, ABORT, DELETE_SQ] = [0x01, 0x02, 0x05, 0x08, 0x00];
const [FIRST, SECOND] = [1, 2];
const [INVALID_FIELD, ABORTED, SQ_DELETION, FAILED, MISSING] = [0x02, 0x07, 0x08, 0x09, 0x0a];
const COMPARE_FAILURE = 0x285;

async function setUp(t: ExecutionContext, options: Parameters<typeof bringUp>[1] = {}) {
  const up = await bringUp(t, options);
  const { machine, driver } = up;
  const [expected, wanted] = [scratch(machine, 0), scratch(machine, 1)];
  machine.memory.bytes.fill(0, expected.offset, expected.offset + 4096);
  machine.memory.bytes.fill(9, wanted.offset, wanted.offset + 4096);
  const compare = { opcode: COMPARE, flags: FIRST, namespaceId: 1, prp1: expected.address, dwords: [8, 0, 7] };
  const write = { opcode: WRITE, flags: SECOND, namespaceId: 1, prp1: wanted.address, dwords: [8, 0, 7] };
  const pair = async (first: Partial<CommandFields> = {}, second: Partial<CommandFields> = {}) => {
    const both = await Promise.all([driver.io({ ...compare, ...first }, 0), driver.io({ ...write, ...second }, 0)]);
    return both.map(({ status }) => status);
  };
  const isWritten = () => up.storage.bytes.subarray(4096, 8192).every((byte) => byte === 9);
  return { ...up, compare, write, pair, isWritten };
}

test("what is equal is written, and then it is not equal any more", async (t) => {
  const { pair, isWritten, storage } = await setUp(t);
  t.deepEqual(await pair(), [0, 0]);
  t.true(isWritten());
  t.deepEqual(storage.calls, ["read", "write"]);
  t.deepEqual(await pair(), [COMPARE_FAILURE, FAILED]);
  t.deepEqual(storage.calls, ["read", "write", "read"]);
});

test("with Force Unit Access it is stable before and after", async (t) => {
  const { pair, storage } = await setUp(t);
  t.deepEqual(await pair({ dwords: [8, 0, 7 | (1 << 30)] }, { dwords: [8, 0, 7 | (1 << 30)] }), [0, 0]);
  t.deepEqual(storage.calls, ["sync", "read", "write", "sync"]);
});

test("of memory, by messages, and as large as a command can be", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: 4 * MiB });
  const { bytes, data } = machine.memory;
  const prps = [0, 1].map((half) => {
    const list = scratch(machine, half);
    const base = scratch(machine, 2 + half * 256);
    for (let n = 1; n < 256; n++) {
      data.setBigUint64(list.offset + (n - 1) * 8, BigInt(base.address + n * 4096), true);
    }
    bytes.fill(half * 7, base.offset, base.offset + MiB);
    return { prp1: base.address, prp2: list.address };
  });
  const dwords = [16, 0, 2047];
  const pair = () =>
    Promise.all([
      driver.io({ opcode: COMPARE, flags: FIRST, namespaceId: 1, ...prps[0], dwords }),
      driver.io({ opcode: WRITE, flags: SECOND, namespaceId: 1, ...prps[1], dwords }),
    ]);
  for (const { status } of await pair()) t.is(status, 0);
  const target = new Uint8Array(MiB);
  await driver.read(16, target);
  t.true(target.every((byte) => byte === 7));
  await driver.write(16, new Uint8Array(MiB));
  machine.leaveWindow();
  for (const { status } of await pair()) t.is(status, 0);
  await driver.read(16, target);
  t.true(target.every((byte) => byte === 7));
});

test("nothing comes between: who adds one by Compare and Write never loses one", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: MiB, queues: 3 });
  const { data } = machine.memory;
  let retries = 0;
  const add = async (queue: number): Promise<void> => {
    const [expected, wanted] = [scratch(machine, queue * 2), scratch(machine, queue * 2 + 1)];
    const io = (fields: CommandFields) => driver.io({ namespaceId: 1, dwords: [0, 0, 7], ...fields }, queue);
    for (let n = 0; n < 20; ) {
      t.is((await io({ opcode: READ, prp1: expected.address })).status, 0);
      const count = data.getUint32(expected.offset, true);
      machine.memory.bytes.copyWithin(wanted.offset, expected.offset, expected.offset + 4096);
      for (let at = 0; at < 4096; at += 4) data.setUint32(wanted.offset + at, count + 1, true);
      const [compared, written] = await Promise.all([
        io({ opcode: COMPARE, flags: FIRST, prp1: expected.address }),
        io({ opcode: WRITE, flags: SECOND, prp1: wanted.address }),
      ]);
      t.true(compared.status === 0 ? written.status === 0 : written.status === FAILED);
      if (compared.status === 0) n++;
      else retries++;
    }
  };
  await Promise.all([0, 1, 2].map(add));
  t.log(`${retries} retries`);
  const target = new Uint8Array(4096);
  await driver.read(0, target);
  const words = new Uint32Array(target.buffer);
  t.true(words.every((word) => word === 60));
});

test("reads and writes of the same blocks wait for a pair in flight, others do not", async (t) => {
  const { pair, storage, driver } = await setUp(t, { queues: 2 });
  storage.hold();
  const both = pair();
  await storage.whenHeld(1);
  const target = new Uint8Array(4096);
  const [same, other] = [driver.read(8, target), driver.read(64, new Uint8Array(512))];
  await storage.whenHeld(2);
  await settle();
  t.is(storage.held, 2);
  storage.release();
  t.deepEqual(await both, [0, 0]);
  await Promise.all([same, other]);
  t.true(target.every((byte) => byte === 9));
});

test("a pair that is none: other blocks, other commands, other namespaces", async (t) => {
  const { pair, isWritten, storage } = await setUp(t, { moreSizes: [MiB] });
  t.deepEqual(await pair({}, { dwords: [8, 0, 6] }), [INVALID_FIELD, INVALID_FIELD]);
  t.deepEqual(await pair({}, { dwords: [9, 0, 7] }), [INVALID_FIELD, INVALID_FIELD]);
  t.deepEqual(await pair({}, { namespaceId: 2 }), [INVALID_FIELD, INVALID_FIELD]);
  t.deepEqual(await pair({}, { opcode: READ }), [INVALID_FIELD, INVALID_FIELD]);
  t.deepEqual(await pair({ opcode: READ }), [INVALID_FIELD, FAILED]);
  t.deepEqual(await pair({ namespaceId: 3 }, { namespaceId: 3 }), [0x0b, FAILED]);
  t.deepEqual(await pair({ dwords: [2048, 0, 0] }, { dwords: [2048, 0, 0] }), [0x80, FAILED]);
  t.deepEqual(await pair({ prp1: 0x1000 }), [0x04, FAILED]);
  t.deepEqual(await pair({}, { prp1: 0x1000 }), [0, 0x04]);
  t.deepEqual(await pair({ flags: 5 }), [INVALID_FIELD, FAILED]);
  t.deepEqual(storage.calls, ["read", "read"]);
  storage.errors.read = "EIO";
  t.deepEqual(await pair(), [0x281, FAILED]);
  delete storage.errors.read;
  storage.errors.write = "EIO";
  t.deepEqual(await pair(), [0, 0x280]);
  delete storage.errors.write;
  t.false(isWritten());
  t.deepEqual(await pair(), [0, 0]);
});

test("half a pair is missing the other", async (t) => {
  const { driver, compare, write, pair, isWritten } = await setUp(t, { queues: 2 });
  t.like(await driver.io(compare, 0), { status: MISSING, doNotRetry: true });
  t.is((await driver.io(write, 0)).status, MISSING);
  const plain = { opcode: READ, namespaceId: 1, prp1: compare.prp1 };
  const mixed = await Promise.all([driver.io(compare, 0), driver.io(plain, 0), driver.io(write, 0)]);
  t.deepEqual(
    mixed.map(({ status }) => status),
    [MISSING, 0, MISSING],
  );
  const apart = await Promise.all([driver.io(compare, 0), driver.io(write, 1)]);
  t.deepEqual(
    apart.map(({ status }) => status),
    [MISSING, MISSING],
  );
  const twice = await Promise.all([driver.io(compare, 0), driver.io(compare, 0), driver.io(write, 0)]);
  t.deepEqual(
    twice.map(({ status }) => status),
    [MISSING, 0, 0],
  );
  t.true(isWritten());
  t.is((await driver.io({ ...write, flags: 3 }, 0)).status, INVALID_FIELD);
  t.is((await driver.admin({ opcode: 0x18, flags: 1 })).status, INVALID_FIELD);
  t.deepEqual(await pair(), [COMPARE_FAILURE, FAILED]);
});

for (const inWindow of [true, false]) {
  test(`a pair at the end and the beginning of its queue, ${inWindow ? "in the window" : "by messages"}`, async (t) => {
    const { machine, driver, pair } = await setUp(t, { entries: 5 });
    if (!inWindow) machine.leaveWindow();
    for (let n = 0; n < 7; n++) {
      t.deepEqual(await pair(), n === 0 ? [0, 0] : [COMPARE_FAILURE, FAILED], `${n}`);
      await driver.flush();
    }
  });
}

test("a completion queue without room for both keeps a pair waiting; one of two entries never has", async (t) => {
  const { machine, pair } = await setUp(t, { entries: 3 });
  for (let n = 0; n < 4; n++) t.deepEqual(await pair(), n === 0 ? [0, 0] : [COMPARE_FAILURE, FAILED]);
  await machine.reset();
  const again = await NvmeDriver.open(machine, { entries: 2 });
  t.is((await again.io({ opcode: COMPARE, flags: FIRST, namespaceId: 1 })).status, MISSING);
  t.is((await again.io({ opcode: WRITE, flags: SECOND, namespaceId: 1 })).status, MISSING);
  await again.flush();
});

for (const half of [0, 1]) {
  test(`an abort of ${half === 0 ? "the first" : "the second"} ends both`, async (t) => {
    const { driver, storage, pair, isWritten } = await setUp(t);
    storage.hold();
    const both = pair();
    await storage.whenHeld(1);
    t.like(await driver.admin({ opcode: ABORT, dwords: [1 | (half << 16)] }), { status: 0, result: 0 });
    t.deepEqual(await both, half === 0 ? [ABORTED, FAILED] : [FAILED, ABORTED]);
    storage.release();
    await settle();
    t.deepEqual(storage.calls, ["read"]);
    t.false(isWritten());
    t.deepEqual(await pair(), [0, 0]);
  });
}

test("a pair that waits for a write is dropped by a reset, and ended with its queue", async (t) => {
  const { machine, driver, storage, pair } = await setUp(t, { queues: 2 });
  storage.hold();
  const write = driver.io({ opcode: WRITE, namespaceId: 1, prp1: scratch(machine, 1).address, dwords: [8] }, 1);
  await storage.whenHeld(1);
  const both = pair();
  await settle();
  t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0);
  t.deepEqual(await both, [SQ_DELETION, SQ_DELETION]);
  storage.release();
  t.is((await write).status, 0);
  await disable(machine);
  t.deepEqual(storage.calls, ["write"]);
  await (await NvmeDriver.open(machine)).write(8, new Uint8Array(512));
});
