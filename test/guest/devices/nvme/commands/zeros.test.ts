/** Deallocate and Write Zeroes that are done at once, in memory and files of it, and those that are not. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme, type NvmeOptions } from "../../../../../guest/devices/nvme/index.js";
import { FileIo } from "../../../../../guest/devices/nvme/storage/file-io.js";
import { ioBatch } from "../../../../../guest/devices/nvme/storage/io-batch.js";
import { close, createMemory, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from "../../../../../native/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { KiB, MiB } from "../../../../../shared/limits.js";
import { Machine } from "../machine.js";
import { Random } from "../random.js";
import { bringUp, memoryDisk, scratch, settle } from "../setup.js";

const [WRITE_ZEROES, IDENTIFY] = [0x08, 0x06];
const DEAC = 1 << 25;
const DISK = 4 * MiB;
const BLOCKS = DISK / 512;

async function serve(t: ExecutionContext, options: NvmeOptions) {
  const machine = await Machine.start(await createNvme(options));
  t.teardown(() => machine.stop());
  return { machine, driver: await NvmeDriver.open(machine, { queues: 2 }) };
}

function diskFile(t: ExecutionContext, directory: string): string {
  const path = mkdtempSync(join(directory, "vvu-zeros-"));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  writeFileSync(join(path, "disk"), Buffer.alloc(DISK));
  return join(path, "disk");
}

const MEMORY_FILES = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

for (const [what, optionsOf] of [
  ["memory", () => ({ memory: [DISK] })],
  ["a file in memory", (t: ExecutionContext) => ({ files: [diskFile(t, MEMORY_FILES)] })],
  ["a file", (t: ExecutionContext) => ({ files: [diskFile(t, "build")] })],
] as const) {
  test(`random writes, zeros, holes and reads agree with a model: ${what}`, async (t) => {
    const random = new Random();
    t.log(`seed ${random.seed}`);
    const { driver } = await serve(t, optionsOf(t));
    const model = new Uint8Array(DISK);
    for (let round = 0; round < 6; round++) {
      const operations: Promise<unknown>[] = [];
      for (let block = random.below(64); block < BLOCKS; block += random.below(100)) {
        const blocks = Math.min(BLOCKS - block, 1 + random.below(random.below(8) === 0 ? 1000 : 40));
        const place = model.subarray(block * 512, (block + blocks) * 512);
        const kind = random.below(4);
        if (kind === 0) {
          random.fill(place);
          operations.push(driver.write(block, place.slice()));
        } else if (kind === 1) {
          place.fill(0);
          const deallocate = random.below(2) === 0 ? DEAC : 0;
          const dwords = [block, 0, (blocks - 1) | deallocate];
          operations.push(driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords }));
        } else if (kind === 2) {
          place.fill(0);
          const half = blocks >> 1;
          const ranges = [[block + half, blocks - half] as const, [block, half] as const];
          operations.push(driver.deallocate(ranges).then(({ status }) => t.is(status, 0)));
        } else {
          const expected = place.slice();
          const target = new Uint8Array(place.length);
          const read = driver.read(block, target);
          operations.push(read.then(() => t.is(Buffer.compare(target, expected), 0, `seed ${random.seed}`)));
        }
        block += blocks;
      }
      await Promise.all(operations);
    }
    const whole = new Uint8Array(DISK);
    await driver.read(0, whole);
    t.is(Buffer.compare(whole, model), 0, `seed ${random.seed}`);
  });
}

for (const [what, optionsOf] of [
  ["memory", () => ({ memory: [DISK] })],
  ["a file in memory", (t: ExecutionContext) => ({ files: [diskFile(t, MEMORY_FILES)] })],
] as const) {
  test(`NUSE counts what is deallocated, and Write Zeroes keeps its space: ${what}`, async (t) => {
    const { machine, driver } = await serve(t, optionsOf(t));
    const { address, offset } = scratch(machine);
    const inUse = async () => {
      await driver.checkAdmin({ opcode: IDENTIFY, namespaceId: 1, prp1: address, dwords: [0] });
      return Number(machine.memory.data.getBigUint64(offset + 16, true));
    };
    await driver.deallocate([[0, BLOCKS]]);
    t.is(await inUse(), 0);
    await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [0, 0, 255] });
    t.is(await inUse(), 256);
    await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [0, 0, 127 | DEAC] });
    t.is(await inUse(), 128);
    t.is(
      (
        await driver.deallocate([
          [128, 64],
          [192, 64],
        ])
      ).status,
      0,
    );
    t.is(await inUse(), 0);
  });
}

test("what is wrong with a command is said as by the longer way, and nothing is changed", async (t) => {
  const { machine, driver } = await memoryDisk(t, { size: DISK });
  const { address, offset } = scratch(machine);
  const { data } = machine.memory;
  const filled = new Random(3).filled(64 * KiB);
  await driver.write(0, filled);
  data.setUint32(offset + 4, 8, true);
  data.setUint32(offset + 16 + 4, 1, true);
  data.setBigUint64(offset + 16 + 8, BigInt(BLOCKS), true);
  const deallocate = { opcode: 9, namespaceId: 1, prp1: address, dwords: [1, 4] };
  t.like(await driver.io(deallocate), { status: 0x80, doNotRetry: true });
  t.is((await driver.io({ ...deallocate, namespaceId: 2 })).status, 0x0b);
  t.is((await driver.io({ ...deallocate, prp1: address + 1 })).status, 0x13);
  t.is((await driver.io({ ...deallocate, prp1: 0x1000 })).status, 0x04);
  for (const deac of [0, DEAC]) {
    const zeros = { opcode: WRITE_ZEROES, namespaceId: 1, dwords: [BLOCKS - 1, 0, 1 | deac] };
    t.like(await driver.io(zeros), { status: 0x80, doNotRetry: true });
    t.is((await driver.io({ ...zeros, namespaceId: 0 })).status, 0x0b);
  }
  const target = new Uint8Array(64 * KiB);
  await driver.read(0, target);
  t.is(Buffer.compare(target, filled), 0);
});

test("ranges that touch or overlap are one call, in whatever order they come", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  const ranges = [
    [16, 8],
    [0, 8],
    [8, 8],
    [20, 2],
    [40, 1],
  ] as const;
  t.is((await driver.deallocate(ranges)).status, 0);
  t.deepEqual(storage.calls, ["deallocate", "deallocate"]);
  t.true(storage.bytes.every((byte, n) => (byte === 0) === (n < 24 * 512 || (n >= 40 * 512 && n < 41 * 512))));
});

test("Deallocate waits for a write in flight that it overlaps, and for no other", async (t) => {
  const fd = createMemory("disk", MiB, false);
  t.teardown(() => close(fd));
  const direct = { kind: "file", fd, readFlags: undefined, writeFlags: undefined, mayPunch: true } as const;
  const { storage, driver } = await bringUp(t, { direct });
  storage.hold();
  const write = driver.write(8, new Uint8Array(512));
  await storage.whenHeld(1);
  const deallocated = driver.deallocate([[8, 1]]);
  await settle();
  t.deepEqual(storage.calls, ["write"]);
  storage.release();
  await Promise.all([write, deallocated]);
  t.deepEqual(storage.calls, ["write", "deallocate"]);
  t.is((await driver.deallocate([[8, 1]])).status, 0);
  t.is(storage.calls.length, 2, "at once");
});

test("a storage that asks for zeros to be written is asked once", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.errors.zero = "ENOTSUP";
  for (let n = 0; n < 2; n++) await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [0, 0, 7] });
  t.deepEqual(storage.calls, ["zero", "write", "write"]);
});

test("ranges of one go that follow each other are one call, and each has its end", async (t) => {
  const fd = createMemory("file", MiB, false);
  const io = new FileIo(fd);
  t.teardown(() => {
    io.close();
    close(fd);
  });
  const mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  const ended: number[] = [];
  const begin = (n: number, position: number, length: number, how = mode) =>
    new Promise<void>((resolve) =>
      io.allocate(how, position, length, (error) => {
        ended.push(error === null ? n : -n);
        resolve();
      }),
    );
  ioBatch.cork();
  const ends = [begin(1, 0, 4096), begin(2, 4096, 8192), begin(3, 12288, 4096), begin(4, 16384, 4096, 0x80)];
  ends.push(begin(5, 65536, 4096));
  ioBatch.uncork();
  await Promise.all(ends);
  t.deepEqual(
    ended.filter((n) => Math.abs(n) < 4),
    [1, 2, 3],
  );
  t.deepEqual(ended.filter((n) => Math.abs(n) > 3).sort(), [-4, 5]);
});
