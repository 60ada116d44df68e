/**
 * Real files under the controller, whose bytes the pool's threads move: two at once, what goes wrong, and the ends of a
 * driver VM with I/O in flight. The directory is a file system whose writes have to wait, where the machine has one.
 */
import { execFile } from "node:child_process";
import { readFileSync, truncateSync } from "node:fs";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import test, { type ExecutionContext } from "ava";
import { createNvme } from "../../../../../guest/devices/nvme/index.js";
import { FileIo } from "../../../../../guest/devices/nvme/storage/file-io.js";
import { ioBatch } from "../../../../../guest/devices/nvme/storage/io-batch.js";
import type { StorageError } from "../../../../../guest/devices/nvme/storage/storage.js";
import {
  close,
  createMemory,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  getAttribute,
} from "../../../../../native/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import type { VfioUserNvme } from "../../../../../scripts/drivers/nvme-over-vfio-user.js";
import { GiB, MiB } from "../../../../../shared/limits.js";
import { Machine } from "../machine.js";
import { MEMORY, serve } from "../on-socket.js";
import { Random } from "../random.js";
import { settle } from "../setup.js";

const DISK = 8 * MiB;
const WRITE = { opcode: 1, namespaceId: 1 };
const READ = { opcode: 2, namespaceId: 1 };

async function files(t: ExecutionContext, count: number, fill = 0): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const names = Array.from({ length: count }, (_, n) => join(directory, `${n}.img`));
  for (const name of names) {
    await writeFile(name, new Uint8Array(DISK).fill(fill));
  }
  return names;
}

test("two disks at once, 32 commands each: they agree with models", async (t) => {
  const random = new Random();
  t.log(`seed ${random.seed}`);
  const names = await files(t, 2);
  const machine = await Machine.start(await createNvme({ files: names, queues: 4 }));
  t.teardown(() => machine.stop());
  const driver = await NvmeDriver.open(machine, { queues: 4, entries: 33 });
  const models = names.map(() => new Uint8Array(DISK));
  for (let round = 0; round < 5; round++) {
    const operations: Promise<unknown>[] = [];
    for (let block = random.below(32); block < DISK / 512; block += random.below(300)) {
      const blocks = Math.min(DISK / 512 - block, 1 + random.below(random.below(8) === 0 ? 1024 : 24));
      for (const [n, model] of models.entries()) {
        const place = model.subarray(block * 512, (block + blocks) * 512);
        if (random.below(2) === 0) {
          random.fill(place);
          operations.push(driver.write(block, place.slice(), random.below(32) === 0, n + 1));
        } else {
          const [expected, target, start] = [place.slice(), new Uint8Array(place.length), block];
          const read = driver.read(block, target, n + 1);
          operations.push(
            read.then(() => t.is(Buffer.compare(target, expected), 0, `block ${start}, seed ${random.seed}`)),
          );
        }
      }
      block += blocks;
    }
    await Promise.all(operations);
    await driver.flush(1);
  }
  for (const [n, name] of names.entries()) t.is(Buffer.compare(readFileSync(name), models[n]), 0);
  t.like(machine.device.inspect(), { inFlight: 0, mediaErrors: 0 });
});

/** A device with a file on a socket, and a driver that has it mapped. */
async function serveFile(t: ExecutionContext, trustUnsealedMemory = false) {
  const [name] = await files(t, 1, OLD);
  const open = await serve(t, await createNvme({ files: [name] }), trustUnsealedMemory);
  const connect = async () => {
    const transport = await open();
    return { transport, driver: await NvmeDriver.open(transport, { queues: 2, entries: 64 }) };
  };
  return { name, connect };
}

/** Many writes of 1 MiB in flight, all of the same memory, which is all `value`. */
async function manyWrites({ transport, driver }: { transport: VfioUserNvme; driver: NvmeDriver }, value: number) {
  const { address, bytes, data } = transport.memory;
  const half = MEMORY / 2;
  bytes.fill(value, half);
  // A list of the pages behind the first.
  const list = half - 4096;
  for (let page = 1; page < 256; page++) {
    data.setBigUint64(list + (page - 1) * 8, BigInt(address + half + page * 4096), true);
  }
  const fields = { ...WRITE, prp1: address + half, prp2: address + list };
  const ends = Array.from({ length: 120 }, (_, n) =>
    driver.io({ ...fields, dwords: [(n % 8) * 2048, 0, 2047] }, n % 2).then(
      () => true,
      () => false,
    ),
  );
  // The doorbells are on their way, in front of all that is sent now.
  await new Promise((resolve) => setImmediate(resolve));
  return { bytes, half, ends };
}

/** What the file is made of at first. */
const OLD = 0x55;

/** Whether each byte of the file was made by one of the writes, or by none. */
function holdsOnly(name: string, values: readonly number[]): boolean {
  return readFileSync(name).every((byte) => byte === OLD || values.includes(byte));
}

test("memory that DMA_UNMAP took away is read by no write that was in flight", async (t) => {
  const { name, connect } = await serveFile(t);
  for (let round = 1; round <= 4; round++) {
    const connected = await connect();
    const { bytes, half, ends } = await manyWrites(connected, round);
    await connected.transport.client.unmapAll();
    bytes.fill(0xee, half);
    connected.transport.client.close();
    await Promise.all(ends);
    t.true(holdsOnly(name, [1, 2, 3, 4]), `round ${round}`);
  }
});

test("a controller reset ends when no write is in flight any more", async (t) => {
  const { name, connect } = await serveFile(t);
  let { transport, driver } = await connect();
  for (let round = 1; round <= 4; round++) {
    const { bytes } = await manyWrites({ transport, driver }, round);
    await transport.writeRegister(0x14, 0);
    while (((await transport.readRegister(0x1c)) & 1) !== 0) await settle();
    bytes.fill(0xee);
    driver = await NvmeDriver.open(transport, { queues: 2, entries: 64 });
    // Behind whatever would still be in flight.
    for (let n = 0; n < 32; n++) await driver.write(0, new Uint8Array(512).fill(round));
    t.true(holdsOnly(name, [1, 2, 3, 4]), `round ${round}`);
  }
  await driver.close();
});

test("a driver VM that is gone in the middle of its writes, and the next one", async (t) => {
  const { name, connect } = await serveFile(t);
  for (let round = 1; round <= 4; round++) {
    const connected = await connect();
    const { ends } = await manyWrites(connected, round);
    connected.transport.client.close();
    await Promise.all(ends);
  }
  const { driver } = await connect();
  const source = new Random(4).filled(65536);
  await driver.write(0, source);
  t.is(Buffer.compare(readFileSync(name).subarray(0, 65536), source), 0);
  await driver.close();
});

test("a client that truncates the memory of its data: Data Transfer Error, and a device that goes on", async (t) => {
  const { name, connect } = await serveFile(t, true);
  const { transport, driver } = await connect();
  const DATA = 0x10_0000_0000;
  const fd = createMemory("driver's data", MiB, false);
  t.teardown(() => close(fd));
  await transport.client.mapMemory({ address: DATA, size: MiB, fd });
  const whole = { prp1: DATA + 4096, prp2: DATA + 8192, dwords: [0, 0, 15] };
  await driver.write(0, new Uint8Array(8192).fill(5));
  await driver.check({ ...READ, ...whole });
  truncateSync(`/proc/self/fd/${fd}`, 8192);
  for (const command of [READ, WRITE]) {
    t.is((await driver.io({ ...command, ...whole })).status, 0x04, `opcode ${command.opcode}`);
    t.is((await driver.io({ ...command, ...whole, prp1: DATA + 8192 })).status, 0x04);
    t.is((await driver.io({ ...command, ...whole, dwords: [0, 0, 7] })).status, 0);
  }
  await driver.close();
  t.true(holdsOnly(name, [5]));
});

/** Calls that are made and waited for on a pool of the test's own. */
async function pooled(t: ExecutionContext, requests: number, threads: number) {
  const [name] = await files(t, 1);
  const handle = await open(name, "r+");
  const io = new FileIo(handle.fd, { requests, threads });
  t.teardown(async () => {
    io.close();
    await handle.close();
  });
  const move = (operation: "READ" | "WRITE", bytes: Uint8Array, position: number): Promise<StorageError | null> =>
    new Promise((resolve) => {
      const segments = [
        { bytes, offset: 0, length: bytes.length - 10 },
        { bytes, offset: bytes.length - 10, length: 10 },
      ];
      if (operation === "READ") io.read({ count: 2, segments }, position, resolve);
      else io.write({ count: 2, segments }, position, resolve);
    });
  return { name, io, move };
}

test("more requests than there are places wait, in their order, corked or not", async (t) => {
  for (const [requests, threads] of [
    [1, 1],
    [4, 2],
    [64, 16],
  ] as const) {
    const { name, move } = await pooled(t, requests, threads);
    const model = new Random(requests).filled(1000 * 600);
    for (const corks of [0, 1]) {
      if (corks > 0) ioBatch.cork();
      const order: number[] = [];
      const ends = Array.from({ length: 1000 }, async (_, n) => {
        const error = await move("WRITE", model.slice(n * 600, (n + 1) * 600), n * 600);
        order.push(n);
        return error;
      });
      if (corks > 0) ioBatch.uncork();
      t.true((await Promise.all(ends)).every((error) => error === null));
      if (threads === 1)
        t.deepEqual(
          order,
          [...order].sort((a, b) => a - b),
        );
    }
    t.is(Buffer.compare(readFileSync(name).subarray(0, model.length), model), 0);
  }
});

test("an error has the code of its errno, and the next request works", async (t) => {
  const { name, move } = await pooled(t, 4, 2);
  truncateSync(name, 100);
  t.like(await move("READ", new Uint8Array(200), 0), { code: "EIO" });
  t.is(await move("READ", new Uint8Array(100), 0), null);
  const readOnly = await open(name, "r");
  const bad = new FileIo(readOnly.fd);
  t.teardown(async () => {
    bad.close();
    await readOnly.close();
  });
  const segments = [{ bytes: new Uint8Array(100), offset: 0, length: 100 }];
  const error = await new Promise((resolve) => bad.write({ count: 1, segments }, 0, resolve));
  t.like(error, { code: "EBADF" });
});

test("what is asked for while others end is done as well", async (t) => {
  const { move } = await pooled(t, 4, 1);
  const target = new Uint8Array(600);
  for (let n = 0; n < 200; n++) {
    t.is(await move("WRITE", new Uint8Array(600).fill(n), n * 600), null);
    t.is(await move("READ", target, n * 600), null);
    t.true(target.every((byte) => byte === (n & 0xff)));
  }
});

test("a write that takes long keeps none of another file", async (t) => {
  const { move } = await pooled(t, 8, 2);
  // Of a whole GiB, which nobody writes at once.
  const slowFile = createMemory("slow", GiB, false);
  const slow = new FileIo(slowFile);
  t.teardown(() => {
    slow.close();
    close(slowFile);
  });
  const segments = new Array(64).fill({ bytes: new Uint8Array(16 * MiB).fill(1), offset: 0, length: 16 * MiB });
  const order: string[] = [];
  const slowEnd = new Promise<StorageError | null>((resolve) => {
    slow.write({ count: segments.length, segments }, 0, resolve);
  }).then((error) => order.push(`slow ${error}`));
  const others = [1, 2, 3].map(async (n) => order.push(`${await move("WRITE", new Uint8Array(600), n * 600)}`));
  await Promise.all([slowEnd, ...others]);
  t.deepEqual(order, ["null", "null", "null", "slow null"]);
});

test("syncs, holes, zeros and attributes, and what goes wrong with them", async (t) => {
  const { name, io } = await pooled(t, 2, 1);
  await writeFile(name, new Uint8Array(MiB).fill(7));
  const did = (act: (done: (error: StorageError | null) => void) => void) => new Promise(act);
  const [KEEP, HOLE] = [FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE];
  // More at once than there are places.
  const all = [
    did((done) => io.allocate(HOLE, 4096, 65536, done)),
    did((done) => io.sync("data", done)),
    did((done) => io.sync("all", done)),
    did((done) => io.allocate(HOLE, 2 ** 33, 2 ** 32 + 4096, done)),
    did((done) => io.setAttribute("user.some", "größe", done)),
  ];
  t.deepEqual(await Promise.all(all), [null, null, null, null, null]);
  const expected = new Uint8Array(MiB).fill(7).fill(0, 4096, 4096 + 65536);
  t.is(Buffer.compare(readFileSync(name), expected), 0);
  const handle = await open(name);
  t.is(getAttribute(handle.fd, "user.some"), "größe");
  await handle.close();
  t.like(await did((done) => io.allocate(HOLE, 0, 0, done)), { code: "EINVAL" });
  t.like(await did((done) => io.allocate(KEEP | 0x4000_0000, 0, 4096, done)), { code: "ENOTSUP" });
  t.like(await did((done) => io.setAttribute("nonsense", "1", done)), { code: "ENOTSUP" });
});

test("a callback that throws takes nothing else along", async (t) => {
  const [name] = await files(t, 1);
  const imported = (path: string) =>
    JSON.stringify(new URL(`../../../../../guest/devices/nvme/storage/${path}`, import.meta.url));
  const script = `
    import { openSync } from "node:fs";
    const { FileIo } = await import(${imported("file-io.js")});
    const { ioBatch } = await import(${imported("io-batch.js")});
    process.on("uncaughtException", ({ message }) => console.log(message));
    const io = new FileIo(openSync(${JSON.stringify(name)}, "r+"), { threads: 1 });
    const synced = (n) => new Promise((resolve) => io.sync("data", (error) => resolve(console.log(n, error))));
    ioBatch.cork();
    io.sync("data", () => {
      throw new Error("a bug");
    });
    const others = [synced(1), synced(2)];
    ioBatch.uncork();
    await Promise.all(others);
    await synced(3);
    await new Promise((resolve) => ioBatch.defer(resolve));
    io.close();
  `;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script]);
  t.deepEqual(stdout.trim().split("\n").sort(), ["1 null", "2 null", "3 null", "a bug"]);
});
