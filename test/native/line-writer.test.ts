/** Lines for a log: whatever is at the other end, the caller does not wait, and what is lost is counted and said. */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { setImmediate } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { folder, makeBlocking, owned, pair } from "./helpers.js";

const CAPACITY = 64 * 1024;
const NOTICE = '{"msg":"lost"';
const { O_RDONLY, O_WRONLY, O_RDWR, O_NONBLOCK, O_NOCTTY } = fs.constants;

interface Notice {
  readonly msg: "lost";
  readonly time: number;
  readonly lost: number;
  readonly reason: string;
}

function open(t: ExecutionContext, file: string, flags: number): number {
  const fd = fs.openSync(file, flags);
  t.teardown(() => fs.closeSync(fd));
  return fd;
}

/** A FIFO: the same as a pipe, and with a path to open an end of it once more. */
function fifo(t: ExecutionContext): string {
  const file = path.join(folder(t), "fifo");
  execFileSync("mkfifo", [file]);
  return file;
}

/** All that can be read from a non-blocking fd until `isAll` says so. */
async function readUntil(fd: number, isAll: (text: string) => boolean): Promise<string> {
  const bytes = Buffer.alloc(CAPACITY);
  let text = "";
  while (!isAll(text)) {
    try {
      text += bytes.toString("utf8", 0, fs.readSync(fd, bytes));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      await setImmediate();
    }
  }
  return text;
}

const line = (n: number) => `${JSON.stringify({ n, text: "x".repeat(n % 300) })}\n`;
const hasNotice = (text: string) => /\{"msg":"lost"[^\n]*\n/.test(text);

const isNotice = (each: object): each is Notice => "lost" in each;
const objects = (text: string): object[] => {
  const whole = text.replaceAll("\r\n", "\n").split("\n").slice(0, -1);
  return whole.map((each) => JSON.parse(each));
};

/**
 * Writes more than there is room for, and checks that what comes out is whole lines, in order, and the number of the
 * rest.
 */
async function overflow(t: ExecutionContext, writeEnd: number, readEnd: number): Promise<void> {
  const writer = new native.LineWriter(writeEnd, CAPACITY, NOTICE);
  const count = 20_000;
  for (let n = 0; n < count; n++) writer.write(line(n));
  t.false(writer.flush(1), "nobody reads");
  const told = (text: string) => objects(text).reduce((sum, each) => sum + (isNotice(each) ? each.lost : 1), 0);
  const all = objects(
    await readUntil(readEnd, (text) => text.endsWith("\n") && hasNotice(text) && told(text) >= count),
  );
  const numbers = all.filter((each): each is { n: number } => "n" in each).map(({ n }) => n);
  t.deepEqual(
    numbers,
    [...numbers].sort((a, b) => a - b),
  );
  t.is(new Set(numbers).size, numbers.length);
  const notices = all.filter(isNotice);
  t.is(notices.reduce((sum, { lost }) => sum + lost, 0) + numbers.length, count);
  for (const { reason, time } of notices) {
    t.is(reason, "not written fast enough");
    t.true(Math.abs(time - Date.now()) < 60_000);
  }
  writer.write("again\n");
  t.regex(await readUntil(readEnd, (each) => each.includes("\n")), /^again\r?\n$/);
  t.true(writer.flush(60_000));
}

test("a file: all lines, in order, also long ones", (t) => {
  const file = path.join(folder(t), "log");
  const writer = new native.LineWriter(open(t, file, O_WRONLY | fs.constants.O_CREAT), CAPACITY, NOTICE);
  const lines = [line(1), `${"y".repeat(3 * CAPACITY)}\n`];
  for (let n = 2; n < 100; n++) lines.push(line(n), "über\n");
  for (const each of lines) {
    writer.write(each);
    t.true(writer.flush(60_000));
  }
  t.is(fs.readFileSync(file, "utf8"), lines.join(""));
});

test("a pipe that nobody reads", async (t) => {
  const file = fifo(t);
  const readEnd = open(t, file, O_RDWR | O_NONBLOCK);
  await overflow(t, open(t, file, O_WRONLY), readEnd);
});

test("a pipe that nobody reads, and that somebody made non-blocking", async (t) => {
  const file = fifo(t);
  const readEnd = open(t, file, O_RDWR | O_NONBLOCK);
  await overflow(t, open(t, file, O_WRONLY | O_NONBLOCK), readEnd);
});

test("a socket that nobody reads", async (t) => {
  const [a, b] = pair(t);
  makeBlocking(a);
  await overflow(t, a, b);
});

test("a terminal that nobody reads", async (t) => {
  const [TIOCGPTN, TIOCSPTLCK] = [0x80045430, 0x40045431];
  const readEnd = open(t, "/dev/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY);
  native.ioctl(readEnd, TIOCSPTLCK, new Uint8Array(4));
  const number = new Uint8Array(4);
  native.ioctl(readEnd, TIOCGPTN, number);
  const terminal = `/dev/pts/${new DataView(number.buffer).getUint32(0, true)}`;
  await overflow(t, open(t, terminal, O_RDWR | O_NOCTTY), readEnd);
});

test("a pipe without a reader loses lines, and says so once there is one", async (t) => {
  const file = fifo(t);
  const first = fs.openSync(file, O_RDONLY | O_NONBLOCK);
  const writer = new native.LineWriter(open(t, file, O_WRONLY), CAPACITY, NOTICE);
  fs.closeSync(first);
  for (let n = 0; n < 10; n++) writer.write(line(n));
  t.true(writer.flush(60_000));
  const readEnd = open(t, file, O_RDONLY | O_NONBLOCK);
  writer.write(line(10));
  const [written, notice] = (await readUntil(readEnd, hasNotice)).split("\n");
  t.is(`${written}\n`, line(10));
  t.like(JSON.parse(notice), { lost: 10, reason: "EPIPE" });
});

test("a full disk, and a descriptor that is none", (t) => {
  for (const fd of [open(t, "/dev/full", O_WRONLY), -1, 1_000_000]) {
    const writer = new native.LineWriter(fd, CAPACITY, NOTICE);
    for (let n = 0; n < 1000; n++) writer.write(line(n));
    t.true(writer.flush(60_000));
  }
});

test("a line that was cut off ends before the next", (t) => {
  const [blocks, blockSize] = [4, 4096];
  const file = path.join(folder(t), "log");
  const script = `
    const { LineWriter } = await import(${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)});
    const writer = new LineWriter(2, 1 << 20, '{"msg":"lost"');
    const write = (text) => { writer.write(text); writer.flush(60000); };
    for (let n = 0; n < 3; n++) write(String(n).repeat(${blockSize * 1.5}) + "\\n");
    (await import("node:child_process")).execFileSync("prlimit", ["--pid", String(process.pid), "--fsize=unlimited"]);
    write("after\\n");`;
  execFileSync(
    "prlimit",
    [`--fsize=${blocks * blockSize}:unlimited`, process.execPath, "--input-type=module", "-e", script],
    {
      stdio: ["ignore", "inherit", owned(t, fs.openSync(file, "w"))],
    },
  );
  const lines = fs.readFileSync(file, "utf8").split("\n");
  t.deepEqual(
    lines.slice(0, 3).map((each) => [each[0], each.length]),
    [
      ["0", blockSize * 1.5],
      ["1", blockSize * 1.5],
      ["2", blockSize - 2],
    ],
  );
  t.is(lines[3], "after");
  t.like(JSON.parse(lines[4]), { lost: 1, reason: "EFBIG" });
});

test("what is no line, or no room, is refused", (t) => {
  t.throws(() => new native.LineWriter(2, 0, NOTICE), { instanceOf: RangeError });
  t.throws(() => new native.LineWriter(2, 1, 3 as unknown as string), { instanceOf: TypeError });
  const writer = new native.LineWriter(2, CAPACITY, NOTICE);
  t.throws(() => writer.write(3 as unknown as string), { instanceOf: TypeError });
  t.throws(() => writer.flush(-1), { instanceOf: RangeError });
});
