/** The pool of threads: all bytes or an errno, requests that make no sense, memory that vanishes, and its end. */
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { Worker } from "node:worker_threads";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { fdsOfEventfd, folder, MiB, owned, PAGE, ready } from "./helpers.js";

const { IO_COMPLETIONS: Ring, IO_OPERATION: Operation, IO_PIECE: Piece, IO_REQUEST: Request } = native;
const ADDON = new URL("../../native/index.js", import.meta.url).href;
const EIO = 5;
const EBADF = 9;
const EFAULT = 14;
const EFBIG = 27;
const ENOSPC = 28;

/** [buffer, offset, length] */
type Part = readonly [number, number, number];

/** A pool and what a script makes of its numbers. */
class Pool {
  readonly native: native.IoPool;
  readonly signal: number;
  #used = 0;
  #seen = 0;

  constructor(
    t: ExecutionContext,
    readonly requests: number,
    threads = 3,
    words = 16384,
  ) {
    this.signal = owned(t, native.eventfd(0));
    this.native = native.createIoPool(requests, threads, words, this.signal);
    t.teardown(() => this.native.close());
  }

  /** Writes a request; fields that are left out are 0. */
  put(number: number, operation: number, fd: number, position: number, parts: readonly Part[]): this {
    const words = this.native.requests.subarray(this.#used);
    words[Request.NUMBER] = number;
    words[Request.OPERATION] = operation;
    words[Request.FD] = fd;
    words[Request.POSITION_LOW] = position >>> 0;
    words[Request.POSITION_HIGH] = Math.floor(position / 2 ** 32);
    words[Request.PIECES] = parts.length;
    for (const [n, part] of parts.entries()) words.set(part, Request.SIZE + n * Piece.SIZE);
    this.#used += Request.SIZE + parts.length * Piece.SIZE;
    return this;
  }

  submit(count = this.#used): this {
    this.#used = 0;
    this.native.submit(count);
    return this;
  }

  /** The next `count` completions: errnos by number. */
  async completions(count: number): Promise<Map<number, number>> {
    const { completions } = this.native;
    const result = new Map<number, number>();
    while (result.size < count) {
      Atomics.store(completions, Ring.SIGNALLED, 0);
      if (Atomics.load(completions, Ring.COUNT) === this.#seen) {
        await ready(this.signal);
        native.eventfdRead(this.signal);
        continue;
      }
      const at = Ring.FIRST + (this.#seen++ & (this.requests - 1)) * Ring.SIZE;
      result.set(completions[at], completions[at + 1]);
    }
    return result;
  }

  async one(operation: number, fd: number, position: number, parts: readonly Part[]): Promise<number | undefined> {
    return (await this.put(0, operation, fd, position, parts).submit().completions(1)).get(0);
  }
}

function file(t: ExecutionContext, size: number): number {
  const fd = fs.openSync(path.join(folder(t), "file"), "w+");
  t.teardown(() => fs.closeSync(fd));
  fs.ftruncateSync(fd, size);
  return fd;
}

const pattern = (length: number, seed: number): Uint8Array<ArrayBuffer> =>
  Uint8Array.from({ length }, (_, n) => (n * 31 + (n >> 8) * 7 + seed) & 0xff);

test("pieces in any order, from and to several buffers, above 4 GiB", async (t) => {
  const pool = new Pool(t, 16);
  const fd = file(t, 2 ** 33);
  const source = pattern(3 * PAGE, 1);
  const [from, to] = [pool.native.add(source.buffer), pool.native.add(new ArrayBuffer(PAGE))];
  const target = new Uint8Array(4 * PAGE);
  const other = pool.native.add(target.buffer);
  const position = 2 ** 32 + 12345;
  t.is(
    await pool.one(Operation.WRITE, fd, position, [
      [from, 2 * PAGE, PAGE],
      [from, 5, 1],
      [from, 0, PAGE - 1],
    ]),
    0,
  );
  t.is(
    await pool.one(Operation.READ, fd, position, [
      [other, PAGE, PAGE + 1],
      [to, 0, 7],
      [other, 0, PAGE - 8],
    ]),
    0,
  );
  const written = Buffer.concat([source.subarray(2 * PAGE), source.subarray(5, 6), source.subarray(0, PAGE - 1)]);
  const onDisk = Buffer.alloc(2 * PAGE);
  fs.readSync(fd, onDisk, 0, onDisk.length, position);
  t.is(Buffer.compare(onDisk, written), 0);
  t.is(Buffer.compare(target.subarray(PAGE, 2 * PAGE + 1), written.subarray(0, PAGE + 1)), 0);
  t.is(Buffer.compare(target.subarray(0, PAGE - 8), written.subarray(PAGE + 8)), 0);
});

test("more pieces than one system call takes", async (t) => {
  const pool = new Pool(t, 1);
  const fd = file(t, 4 * PAGE);
  const source = pattern(5000 * 3, 9);
  const from = pool.native.add(source.buffer);
  const target = new Uint8Array(source.length);
  const to = pool.native.add(target.buffer);
  const parts = (buffer: number) => Array.from({ length: 5000 }, (_, n): Part => [buffer, n * 3, 3]);
  t.is(await pool.one(Operation.WRITE, fd, 1, parts(from)), 0);
  t.is(await pool.one(Operation.READ, fd, 1, parts(to)), 0);
  t.deepEqual(target, source);
});

test("every request of a large batch ends once, whatever the threads", async (t) => {
  for (const threads of [1, 2, 16]) {
    const pool = new Pool(t, 512, threads);
    const fd = file(t, 512 * 512);
    const bytes = pattern(512 * 512, threads);
    const buffer = pool.native.add(bytes.buffer);
    for (let round = 0; round < 4; round++) {
      for (let n = 0; n < 512; n++) {
        const reads = round > 0 && n % 3 === 0;
        pool.put(n, reads ? Operation.READ : Operation.WRITE, fd, n * 512, [[buffer, n * 512, 512]]);
      }
      const ends = await pool.submit().completions(512);
      t.is(ends.size, 512);
      t.true([...ends.values()].every((errno) => errno === 0));
    }
    t.deepEqual(new Uint8Array(fs.readFileSync(fd)), pattern(512 * 512, threads));
  }
});

test("what goes wrong is the errno of the system call, and the end of the file EIO", async (t) => {
  const pool = new Pool(t, 4);
  const fd = file(t, PAGE);
  const buffer = pool.native.add(new ArrayBuffer(2 * PAGE));
  const [readOnly, full] = [fs.openSync("/dev/zero", "r"), fs.openSync("/dev/full", "r+")];
  const closed = native.eventfd(0);
  native.close(closed);
  t.teardown(() => {
    for (const opened of [readOnly, full]) fs.closeSync(opened);
  });
  t.is(await pool.one(Operation.WRITE, readOnly, 0, [[buffer, 0, PAGE]]), EBADF);
  t.is(await pool.one(Operation.READ, 2 ** 31 - 1, 0, [[buffer, 0, PAGE]]), EBADF);
  t.is(await pool.one(Operation.WRITE, full, 0, [[buffer, 0, PAGE]]), ENOSPC);
  t.is(await pool.one(Operation.READ, fd, PAGE, [[buffer, 0, PAGE]]), EIO);
  t.is(await pool.one(Operation.READ, fd, PAGE / 2, [[buffer, 0, PAGE]]), EIO, "all of it or nothing");
  t.is(await pool.one(Operation.READ, fd, 0, [[buffer, 0, PAGE]]), 0);
});

test("a write that ends beyond the end of its file is ENOSPC, and nothing is written", async (t) => {
  const pool = new Pool(t, 4);
  const fd = file(t, PAGE);
  const buffer = pool.native.add(pattern(2 * PAGE, 1).buffer);
  t.is(await pool.one(Operation.WRITE, fd, 0, [[buffer, 0, PAGE]]), 0);
  for (const position of [1, PAGE, 2 ** 40]) {
    t.is(
      await pool.one(Operation.WRITE, fd, position, [
        [buffer, PAGE, PAGE - 8],
        [buffer, 0, 8],
      ]),
      ENOSPC,
    );
  }
  t.is(fs.fstatSync(fd).size, PAGE);
  const bytes = new Uint8Array(PAGE);
  fs.readSync(fd, bytes, 0, PAGE, 0);
  t.deepEqual(bytes, pattern(2 * PAGE, 1).slice(0, PAGE));
});

test("memory whose file was truncated is EFAULT, before and within the data, and no signal", async (t) => {
  const pool = new Pool(t, 4);
  const memory = owned(t, native.createMemory("vanishing", 4 * PAGE, false));
  const reservation = new native.Reservation(MiB, MiB);
  reservation.map(0, 4 * PAGE, memory, 0, native.PROT_READ | native.PROT_WRITE);
  t.teardown(() => reservation.release());
  const buffer = pool.native.add(reservation.piece(0));
  const fd = file(t, 4 * PAGE);
  t.is(await pool.one(Operation.READ, fd, 0, [[buffer, 0, 4 * PAGE]]), 0);
  fs.ftruncateSync(memory, PAGE);
  for (const operation of [Operation.READ, Operation.WRITE]) {
    t.is(await pool.one(operation, fd, 0, [[buffer, 0, 4 * PAGE]]), EFAULT);
    t.is(await pool.one(operation, fd, 0, [[buffer, 2 * PAGE, PAGE]]), EFAULT);
    t.is(await pool.one(operation, fd, 0, [[buffer, 0, PAGE]]), 0);
  }
});

test("copies in pairs, within a buffer and between two; memory that vanished is EFAULT, and zeros", async (t) => {
  const pool = new Pool(t, 4);
  const source = pattern(3 * PAGE, 4);
  const target = new Uint8Array(3 * PAGE);
  const [from, to] = [pool.native.add(source.buffer), pool.native.add(target.buffer)];
  t.is(
    await pool.one(Operation.COPY, 0, 0, [
      [from, PAGE, 10],
      [to, 5, 10],
      [from, 2 * PAGE, PAGE],
      [to, 2 * PAGE, PAGE],
      [to, 5, 10],
      [to, 10, 10],
    ]),
    0,
  );
  t.deepEqual(target.slice(5, 10), source.slice(PAGE, PAGE + 5));
  t.deepEqual(target.slice(10, 20), source.slice(PAGE, PAGE + 10));
  t.deepEqual(target.slice(2 * PAGE), source.slice(2 * PAGE));

  const memory = owned(t, native.createMemory("vanishing", 4 * PAGE, false));
  const reservation = new native.Reservation(MiB, MiB);
  reservation.map(0, 4 * PAGE, memory, 0, native.PROT_READ | native.PROT_WRITE);
  t.teardown(() => reservation.release());
  const vanishing = pool.native.add(reservation.piece(0));
  new Uint8Array(reservation.piece(0)).fill(7, 0, 4 * PAGE);
  fs.ftruncateSync(memory, PAGE);
  const whole: readonly Part[] = [
    [vanishing, 0, 3 * PAGE],
    [to, 0, 3 * PAGE],
  ];
  t.is(await pool.one(Operation.COPY, 0, 0, whole), EFAULT);
  t.true(target.every((byte, n) => byte === (n < PAGE ? 7 : 0)));
  t.is(await pool.one(Operation.COPY, 0, 0, [...whole].reverse()), EFAULT);
  const there: readonly Part[] = [
    [vanishing, 0, PAGE],
    [to, 0, PAGE],
  ];
  t.is(await pool.one(Operation.COPY, 0, 0, there), 0);
});

test("waiting blocks until there is another end", (t) => {
  const pool = new Pool(t, 4);
  const source = new ArrayBuffer(16 * MiB);
  const [from, to] = [pool.native.add(source), pool.native.add(new ArrayBuffer(16 * MiB))];
  for (let n = 0; n < 4; n++) {
    const parts: readonly Part[] = [
      [from, 0, 16 * MiB],
      [to, 0, 16 * MiB],
    ];
    pool.put(n, Operation.COPY, 0, 0, parts).submit();
    pool.native.wait(n);
    t.is(Atomics.load(pool.native.completions, Ring.COUNT), n + 1);
  }
  pool.native.wait(0);
  t.throws(() => pool.native.wait(2 ** 32), { instanceOf: RangeError });
});

test("requests that make no sense are refused, those before them are done", async (t) => {
  const pool = new Pool(t, 4, 2, 64);
  const fd = file(t, PAGE);
  const buffer = pool.native.add(new ArrayBuffer(PAGE));
  const removed = pool.native.add(new ArrayBuffer(PAGE));
  pool.native.remove(removed);
  t.throws(() => pool.native.remove(removed), { instanceOf: RangeError });
  t.throws(() => pool.native.remove(7), { instanceOf: RangeError });
  const good: Part = [buffer, 0, 512];
  const wrong: readonly (() => void)[] = [
    () => pool.put(4, Operation.READ, fd, 0, [good]),
    () => pool.put(1, 3, fd, 0, [good]),
    () => pool.put(1, Operation.COPY, 0, 0, [good]),
    () => pool.put(1, Operation.COPY, 0, 0, [good, [buffer, 0, 511]]),
    () => pool.put(1, Operation.COPY, 0, 0, [good, [buffer, PAGE - 511, 512]]),
    () => pool.put(1, Operation.READ, -1, 0, [good]),
    () => pool.put(1, Operation.READ, fd, 2 ** 63, [good]),
    () => pool.put(1, Operation.READ, fd, 0, [[7, 0, 512]]),
    () => pool.put(1, Operation.READ, fd, 0, [[removed, 0, 512]]),
    () => pool.put(1, Operation.READ, fd, 0, [good, [buffer, PAGE - 511, 512]]),
    () => pool.put(1, Operation.READ, fd, 0, [[buffer, 2 ** 32 - 1, 2 ** 32 - 1]]),
    // The number of one that is in flight.
    () => pool.put(0, Operation.READ, fd, 0, [good]),
  ];
  for (const put of wrong) {
    pool.put(0, Operation.WRITE, fd, 0, [good]);
    put();
    t.throws(() => pool.submit(), { instanceOf: RangeError }, `${wrong.indexOf(put)}`);
    t.deepEqual([...(await pool.completions(1))], [[0, 0]]);
  }
  pool.put(0, Operation.READ, fd, 0, [good, good]);
  t.throws(() => pool.submit(Request.SIZE + Piece.SIZE), { instanceOf: RangeError });
  t.throws(() => pool.submit(Request.SIZE - 1), { instanceOf: RangeError });
  t.throws(() => pool.submit(65), { instanceOf: RangeError });
  t.throws(() => pool.submit(-1), { instanceOf: RangeError });
  pool.native.submit(0);
  t.is(Atomics.load(pool.native.completions, Ring.COUNT), wrong.length);
  t.is(await pool.one(Operation.READ, fd, 0, [good]), 0);
});

test("no pool of a strange size, nor on what is no fd", (t) => {
  const signal = owned(t, native.eventfd(0));
  for (const [requests, threads, words] of [
    [0, 1, 64],
    [3, 1, 64],
    [8192, 1, 64],
    [4, 0, 64],
    [4, 65, 64],
    [4, 1, 0],
  ] as const) {
    t.throws(() => native.createIoPool(requests, threads, words, signal), { instanceOf: RangeError });
  }
  t.throws(() => native.createIoPool(4, 1, 64, -1), { code: "EBADF" });
});

test("closing waits for what is in flight, gives the fd back, and leaves nothing to submit to", async (t) => {
  const pool = new Pool(t, 64, 2);
  const fd = file(t, 64 * MiB);
  const bytes = new Uint8Array(MiB).fill(3);
  const buffer = pool.native.add(bytes.buffer);
  for (let n = 0; n < 64; n++) pool.put(n, Operation.WRITE, fd, n * MiB, [[buffer, 0, MiB]]);
  pool.submit();
  t.is(fdsOfEventfd(pool.signal), 2);
  pool.native.close();
  t.is(fdsOfEventfd(pool.signal), 1);
  const ended = Atomics.load(pool.native.completions, Ring.COUNT);
  let written = 0;
  for (let n = 0; n < 64; n++) {
    fs.readSync(fd, bytes, 0, MiB, n * MiB);
    t.true(
      bytes.every((byte) => byte === bytes[0]),
      "all of it or nothing",
    );
    written += bytes[0] / 3;
  }
  t.is(written, ended);
  t.throws(() => pool.submit(0), { message: "the pool was closed" });
  pool.native.close();
});

/** A script that leaves a pool with requests in flight, and what it does then. */
const abandoning = (name: string, then: string): string => `
  const fs = await import("node:fs");
  const native = await import(${JSON.stringify(ADDON)});
  const fd = fs.openSync(${JSON.stringify(name)}, "w+");
  fs.ftruncateSync(fd, 64 << 20);
  const pool = native.createIoPool(16, 4, 1024, native.eventfd(0));
  const buffer = pool.add(new ArrayBuffer(64 << 20));
  let at = 0;
  for (let n = 0; n < 16; n++, at += 9) {
    pool.requests.set([n, 1, fd, 0, 0, 1, buffer, 0, 64 << 20], at);
  }
  pool.submit(at);
  ${then}
`;

test("a process that ends with requests in flight ends in order", (t) => {
  const name = path.join(folder(t), "file");
  for (const [then, status, signal] of [
    ["process.exit(3);", 3, null],
    ["", 0, null],
    ["process.kill(process.pid, 'SIGTERM'); setInterval(() => {}, 1000);", null, "SIGTERM"],
  ] as const) {
    const ended = spawnSync(process.execPath, ["--input-type=module", "-e", abandoning(name, then)]);
    t.like(ended, { status, signal });
  }
});

test("a worker that is stopped with requests in flight", async (t) => {
  const name = path.join(folder(t), "file");
  const then = 'require("node:worker_threads").parentPort.postMessage(0); setInterval(() => {}, 1000);';
  const script = `(async () => { ${abandoning(name, then)} })()`;
  const worker = new Worker(script, { eval: true });
  await new Promise((resolve) => worker.once("message", resolve));
  t.is(await worker.terminate(), 1);
});

test("a file that may not grow: EFBIG after what fits, and the signal hits nobody", (t) => {
  const name = path.join(folder(t), "file");
  const script = `
    const fs = await import("node:fs");
    const native = await import(${JSON.stringify(ADDON)});
    const fd = fs.openSync(${JSON.stringify(name)}, "r+");
    const signal = native.eventfd(0);
    const pool = native.createIoPool(1, 1, 64, signal);
    const buffer = pool.add(new Uint8Array(65536).fill(1).buffer);
    pool.requests.set([0, 1, fd, 0, 0, 1, buffer, 0, 65536]);
    pool.submit(9);
    const poll = new native.Poll(signal, () => {
      const end = fs.readFileSync(${JSON.stringify(name)}).indexOf(0);
      console.log(pool.completions[native.IO_COMPLETIONS.FIRST + 1], end);
      poll.close();
      pool.close();
    });
    poll.start(1);
  `;
  const command = `ulimit -f 16; exec "$0" --input-type=module -e "$1"`;
  fs.writeFileSync(name, new Uint8Array(65536));
  const output = execFileSync("bash", ["-c", command, process.execPath, script], { encoding: "utf8" });
  t.is(output, `${EFBIG} 16384\n`);
});
