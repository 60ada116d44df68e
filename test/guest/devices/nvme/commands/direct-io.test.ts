/** Data that is moved at once: the same data and the same errors as by the longer way, whatever a driver does. */
import test, { type ExecutionContext } from "ava";
import { createController } from "../../../../../guest/devices/nvme/index.js";
import { SUBMISSION_ENTRY_SIZE } from "../../../../../guest/devices/nvme/spec.js";
import { close, createMemory } from "../../../../../native/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { type CommandFields, writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import { FakeStorage } from "../fake-storage.js";
import { Machine, MEMORY_ADDRESS } from "../machine.js";
import { Random } from "../random.js";
import { bringUp, memoryDisk, scratch, settle } from "../setup.js";

const DISK = 4 * 1024 * 1024;
const BLOCKS = DISK / 512;
const READ = { opcode: 2, namespaceId: 1 };
const WRITE = { opcode: 1, namespaceId: 1 };
const COMPARE = { opcode: 5, namespaceId: 1 };
const FUA = 1 << 30;
const SUBMISSION = 0x1000 + 8;

test("random reads and writes agree with a model, and so do the ways that are no copies", async (t) => {
  const random = new Random();
  t.log(`seed ${random.seed}`);
  const { driver } = await memoryDisk(t, { size: DISK, queues: 3 });
  const model = new Uint8Array(DISK);
  for (let round = 0; round < 8; round++) {
    const operations: Promise<unknown>[] = [];
    for (let block = random.below(64); block < BLOCKS; block += random.below(400)) {
      const blocks = Math.min(BLOCKS - block, 1 + random.below(random.below(4) === 0 ? 2048 : 40));
      const place = model.subarray(block * 512, (block + blocks) * 512);
      if (random.below(2) === 0) {
        random.fill(place);
        operations.push(driver.write(block, place.slice(), random.below(4) === 0));
      } else {
        const expected = place.slice();
        const target = new Uint8Array(place.length);
        const start = block;
        const read = driver.read(block, target);
        operations.push(
          read.then(() => t.is(Buffer.compare(target, expected), 0, `block ${start}, seed ${random.seed}`)),
        );
      }
      block += blocks;
    }
    await Promise.all(operations);
  }
  await driver.flush();
  const whole = new Uint8Array(DISK);
  await driver.read(0, whole);
  t.is(Buffer.compare(whole, model), 0, `seed ${random.seed}`);
});

test("a page that begins anywhere, and a second one", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: DISK });
  const { address, offset } = scratch(machine);
  const { bytes } = machine.memory;
  const source = new Random(5).filled(8192);
  await driver.write(100, source);
  for (const [start, blocks] of [
    [0, 1],
    [4, 8],
    [3584, 1],
    [4092, 8],
    [3584, 9],
  ]) {
    bytes.fill(0xee, offset, offset + 12288);
    const dwords = [100, 0, blocks - 1];
    await driver.check({ ...READ, prp1: address + start, prp2: address + 4096, dwords });
    const end = start + blocks * 512;
    t.is(Buffer.compare(bytes.subarray(offset + start, offset + end), source.subarray(0, blocks * 512)), 0, `${start}`);
    t.true(bytes.subarray(offset, offset + start).every((byte) => byte === 0xee));
    t.true(bytes.subarray(offset + end, offset + 12288).every((byte) => byte === 0xee));
    await driver.check({ ...WRITE, prp1: address + start, prp2: address + 4096, dwords: [1000, 0, blocks - 1] });
    await driver.check({ ...COMPARE, prp1: address + start, prp2: address + 4096, dwords: [1000, 0, blocks - 1] });
  }
});

test("every error is that of a disk that is a file", async (t) => {
  const [memory, file] = [await memoryDisk(t, { size: DISK }), await bringUp(t, { size: DISK })];
  const { address } = scratch(memory.machine);
  const list = address + 4 * 4096;
  const end = MEMORY_ADDRESS + memory.machine.memory.bytes.length;
  const wrong: Partial<CommandFields>[] = [
    { namespaceId: 0 },
    { namespaceId: 2 },
    { namespaceId: 0xffff_ffff },
    { flags: 1 },
    { flags: 0x40 },
    { dwords: [BLOCKS - 7, 0, 7] },
    { dwords: [BLOCKS, 0, 0] },
    { dwords: [0, 1, 0] },
    { dwords: [0xffff_ffff, 0xffff_ffff, 0] },
    { dwords: [0, 0, 0xffff] },
    { dwords: [0, 0, 2048] },
    { prp1: address + 2 },
    { prp1: address + 1, prp2: address },
    { prp1: 2n ** 63n },
    { prp1: 2n ** 64n - 4096n },
    { prp1: 0x1000 },
    { prp1: end },
    { prp1: end - 256 },
    { prp1: address, prp2: address + 8, dwords: [0, 0, 15] },
    { prp1: address, prp2: 2n ** 64n - 4096n, dwords: [0, 0, 15] },
    { prp1: address, prp2: end, dwords: [0, 0, 15] },
    { prp1: address, prp2: list + 4, dwords: [0, 0, 31] },
    { prp1: address, prp2: list, dwords: [0, 0, 31] },
    { prp1: address, prp2: end, dwords: [0, 0, 31] },
    { prp1: address, prp2: 2n ** 63n, dwords: [0, 0, 31] },
  ];
  for (const { machine } of [memory, file]) {
    // A list whose second entry is not the beginning of a page.
    const at = scratch(machine, 4).offset;
    machine.memory.data.setBigUint64(at, BigInt(address + 4096), true);
    machine.memory.data.setBigUint64(at + 8, BigInt(address + 4100), true);
  }
  for (const fields of wrong) {
    for (const command of [READ, WRITE]) {
      const sent = { ...command, prp1: address, ...fields };
      const expected = await file.driver.io(sent);
      t.not(expected.status, 0);
      t.deepEqual(
        await memory.driver.io(sent),
        expected,
        JSON.stringify(fields, (_, value) => `${value}`),
      );
    }
  }
});

test("memory that lies elsewhere: not readable, not writable, by messages, in two maps", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: DISK });
  const { address, offset } = scratch(machine);
  const { bytes } = machine.memory;
  const [map] = machine.dma.maps;
  const before = address - map.address;
  const split = (middle: object): void => {
    machine.dma.maps = [
      { ...map, size: before },
      { ...map, address, size: 4096, offset, ...middle },
      { ...map, address: address + 4096, offset: offset + 4096, size: map.size - before - 4096 },
    ];
  };
  const prp1 = address + 2048;
  const fields = { prp1, prp2: address + 4096, dwords: [0, 0, 7] };
  split({ readable: false });
  t.is((await driver.io({ ...WRITE, ...fields })).status, 4);
  t.is((await driver.io({ ...READ, ...fields })).status, 0);
  split({ writable: false });
  t.is((await driver.io({ ...READ, ...fields })).status, 4);
  for (const middle of [{}, { windowed: false }]) {
    split(middle);
    new Random(7).fill(bytes.subarray(offset, offset + 8192));
    const expected = bytes.slice(offset + 2048, offset + 2048 + 4096);
    await driver.check({ ...WRITE, ...fields });
    bytes.fill(0, offset, offset + 8192);
    await driver.check({ ...READ, ...fields });
    t.is(Buffer.compare(bytes.subarray(offset + 2048, offset + 2048 + 4096), expected), 0, JSON.stringify(middle));
  }
  t.true(machine.dma.messages > 0);
});

test("a disk as large as several ArrayBuffers, at their seam and at its end", async (t) => {
  const size = 2 ** 31 + 8192;
  const { driver } = await memoryDisk(t, { size });
  const source = new Random(3).filled(16384);
  for (const block of [2 ** 30 / 512 - 16, size / 512 - 32]) {
    await driver.write(block, source);
    const target = new Uint8Array(source.length);
    await driver.read(block, target);
    t.is(Buffer.compare(target, source), 0);
  }
  t.is((await driver.io({ ...READ, prp1: 0, dwords: [size / 512, 0, 0] })).status, 0x80);
});

/**
 * An I/O queue of its own that no lane serves, with one command in it; `meddle` is called at each look-up after the
 * entry was read.
 */
async function meddling(t: ExecutionContext, fields: CommandFields, meddle: (machine: Machine, entry: number) => void) {
  const { machine, driver } = await memoryDisk(t, { size: DISK, inLanes: false });
  const source = new Random(11).filled(65536);
  await driver.write(0, source);
  const [{ address: completion, offset: completionOffset }, submission] = [scratch(machine, 64), scratch(machine, 65)];
  await driver.checkAdmin({ opcode: 5, prp1: completion, dwords: [(15 << 16) | 2, 1] });
  await driver.checkAdmin({ opcode: 1, prp1: submission.address, dwords: [(15 << 16) | 2, (2 << 16) | 1] });
  writeCommand(machine.memory.data, submission.offset, 77, fields);
  const locate = machine.dma.locate.bind(machine.dma);
  let isFetched = false;
  machine.dma.locate = (address, length, access, into) => {
    const found = locate(address, length, access, into);
    const isRing = address >= completion && address < submission.address + 4096;
    if (isFetched && !isRing) meddle(machine, submission.offset);
    isFetched ||= address === submission.address;
    return found;
  };
  machine.write(SUBMISSION + 8, 1);
  await settle();
  machine.dma.locate = locate;
  const { data } = machine.memory;
  return {
    machine,
    source,
    id: data.getUint16(completionOffset + 12, true),
    status: data.getUint16(completionOffset + 14, true),
  };
}

test("a command that its driver rewrites while it is carried out is the one that was read", async (t) => {
  const prp1 = MEMORY_ADDRESS + 4 * 1024 * 1024;
  const { machine, source, id, status } = await meddling(t, { ...READ, prp1, dwords: [0, 0, 7] }, ({ memory }, entry) =>
    memory.bytes.fill(0xff, entry, entry + SUBMISSION_ENTRY_SIZE),
  );
  t.deepEqual([id, status], [77, 1]);
  const { offset } = scratch(machine);
  t.is(Buffer.compare(machine.memory.bytes.subarray(offset, offset + 4096), source.subarray(0, 4096)), 0);
  t.true(machine.memory.bytes.subarray(offset + 4096, offset + 8192).every((byte) => byte === 0));
});

test("a PRP list that its driver rewrites is followed as it was read", async (t) => {
  const page = (n: number): number => MEMORY_ADDRESS + 4 * 1024 * 1024 + n * 4096;
  const offset = (n: number): number => 4 * 1024 * 1024 + n * 4096;
  let looks = 0;
  const { machine, source, id, status } = await meddling(
    t,
    { ...READ, prp1: page(0), prp2: page(10), dwords: [0, 0, 31] },
    ({ memory }) => {
      const list = offset(10);
      if (looks++ === 0) {
        // The look-up of the list itself: it is read after this.
        for (const [n, to] of [2, 4, 6].entries()) memory.data.setBigUint64(list + n * 8, BigInt(page(to)), true);
      } else {
        memory.data.setBigUint64(list, 2n ** 64n - 1n, true);
        memory.data.setBigUint64(list + 8, BigInt(page(30)), true);
        memory.data.setBigUint64(list + 16, 0n, true);
      }
    },
  );
  t.deepEqual([id, status], [77, 1]);
  t.true(looks > 1);
  const { bytes } = machine.memory;
  for (const [n, to] of [0, 2, 4, 6].entries()) {
    const got = bytes.subarray(offset(to), offset(to) + 4096);
    t.is(Buffer.compare(got, source.subarray(n * 4096, (n + 1) * 4096)), 0, `page ${to}`);
  }
  t.true(bytes.subarray(offset(30), offset(31)).every((byte) => byte === 0));
});

test("one interrupt for all that one doorbell asks for, and the counters count", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: DISK });
  const { address } = scratch(machine, 8);
  const before = machine.interrupts.count;
  const { bytesRead, bytesWritten } = machine.dma;
  const ten = Array.from({ length: 10 }, (_, n) =>
    driver.io({ ...READ, prp1: address + n * 4096, dwords: [n * 8, 0, 7] }),
  );
  for (const { status } of await Promise.all(ten)) t.is(status, 0);
  t.is(machine.interrupts.count - before, 1);
  t.is(machine.dma.bytesRead - bytesRead, 10 * 64, "the entries");
  t.is(machine.dma.bytesWritten - bytesWritten, 10 * (4096 + 16));
  await driver.write(0, new Uint8Array(4096));
  t.like(machine.device.inspect(), { reads: 10, bytesRead: 10 * 4096, writes: 1, bytesWritten: 4096, inFlight: 0 });
});

test("large commands let others have their turn", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: DISK, queues: 2 });
  const order: string[] = [];
  const all: Promise<unknown>[] = [];
  // 3 MiB on the first queue, a block on the second, sent in one turn.
  for (let n = 0; n < 3; n++) all.push(transferOn(driver, machine, 0, n).then(() => order.push("large")));
  all.push(transferOn(driver, machine, 1, 0, 0).then(() => order.push("small")));
  await Promise.all(all);
  t.not(order[3], "small");
});

/** A read of 1 MiB, or of one block, to the same scratch memory, which is in one run. */
async function transferOn(
  driver: NvmeDriver,
  machine: Machine,
  queue: number,
  n: number,
  blocks = 2047,
): Promise<void> {
  const { address, offset } = scratch(machine, 8);
  const list = offset - 4 * 4096;
  for (let page = 1; page < 256; page++) {
    machine.memory.data.setBigUint64(list + (page - 1) * 8, BigInt(address + page * 4096), true);
  }
  const prp2 = address - 4 * 4096;
  const { status } = await driver.io({ ...READ, prp1: address, prp2, dwords: [n * 2048, 0, blocks] }, queue);
  if (status !== 0) throw new Error(`status ${status}`);
}

/**
 * A disk whose file may be read and written at once with these flags; where that is not possible a fake one takes over.
 */
async function fileDisk(
  t: ExecutionContext,
  { readFlags, writeFlags, size = DISK }: { readFlags?: number; writeFlags?: number; size?: number },
) {
  const fd = createMemory("disk", size, false);
  const storage = new FakeStorage(DISK);
  storage.direct = { kind: "file", fd, readFlags, writeFlags };
  const machine = await Machine.start(createController([{ name: "a disk", storage }], { serial: "S", lanes: 0 }));
  t.teardown(async () => {
    await machine.stop();
    close(fd);
  });
  return { driver: await NvmeDriver.open(machine), storage, machine };
}

test("a file is read and written at once, unless it has to be stable", async (t) => {
  const { driver, storage } = await fileDisk(t, { readFlags: 0, writeFlags: 0 });
  const source = new Random(2).filled(40 * 512);
  await driver.write(3, source);
  const target = new Uint8Array(source.length);
  await driver.read(3, target);
  t.is(Buffer.compare(target, source), 0);
  t.deepEqual(storage.calls, []);
  await driver.write(3, source, true);
  t.deepEqual(storage.calls, ["write", "sync"]);
  storage.calls.length = 0;
  await driver.check({ ...READ, prp1: MEMORY_ADDRESS + DISK, dwords: [3, 0, FUA] });
  t.deepEqual(storage.calls, ["sync", "read"]);
  await driver.checkAdmin({ opcode: 9, dwords: [6, 0] });
  storage.calls.length = 0;
  await driver.write(3, source);
  t.deepEqual(storage.calls, ["write", "sync"], "the write cache is off");
});

test("what a file cannot do at once takes the longer way: no such flags, an early end, one direction", async (t) => {
  const UNKNOWN = 0x4000_0000;
  for (const [options, calls] of [
    [{ readFlags: UNKNOWN, writeFlags: UNKNOWN }, ["write", "write", "read", "read"]],
    [{ readFlags: 0, writeFlags: UNKNOWN }, ["write", "write"]],
    [{ writeFlags: UNKNOWN }, ["write", "write", "read", "read"]],
    [{ readFlags: 0, size: 4096 }, ["write", "write", "read", "read"]],
    [{}, ["write", "write", "read", "read"]],
  ] as const) {
    const { driver, storage, machine } = await fileDisk(t, options);
    const source = new Random(4).filled(8192);
    await Promise.all([driver.write(512, source), driver.write(1024, source)]);
    const targets = [new Uint8Array(8192), new Uint8Array(8192)];
    await Promise.all([driver.read(512, targets[0]), driver.read(1024, targets[1])]);
    t.deepEqual(storage.calls, [...calls], JSON.stringify(options));
    if (calls.length === 4) for (const target of targets) t.is(Buffer.compare(target, source), 0);
    t.like(machine.device.inspect(), { reads: 2, bytesRead: 16384, writes: 2, bytesWritten: 16384, inFlight: 0 });
  }
});
