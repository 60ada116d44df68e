/** A capture's file: whole blocks, bounded in size, and nobody's to read but its owner's. */
import { mkdtempSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { Capture } from "../../../shared/capture/capture.js";
import { KiB, MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { CaptureDirection, CaptureHead, LinkType } from "../../../shared/spec/capture.js";

function fileFor(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), "capture-"));
  t.teardown(() => rm(directory, { recursive: true }));
  return join(directory, "file.pcapng");
}

/** Blocks as the format has them: type, and what is between the lengths. */
interface Block {
  readonly type: number;
  readonly body: Buffer;
}

function blocks(path: string): Block[] {
  const bytes = readFileSync(path);
  const found: Block[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = bytes.readUInt32LE(at + 4);
    if (bytes.readUInt32LE(at + length - 4) !== length) throw new Error("a block's two lengths differ");
    found.push({ type: bytes.readUInt32LE(at), body: bytes.subarray(at + 8, at + length - 4) });
    at += length;
  }
  return found;
}

const SECTION = 0x0a0d0d0a;
const [INTERFACE, STATISTICS, PACKET] = [1, 5, 6];

test("a section, its interfaces, packets with times and directions, what was lost", async (t) => {
  const path = fileFor(t);
  const before = Date.now() * 1000;
  const capture = await Capture.open({ path, size: MiB, log: quietLog });
  const link = capture.interface("name", "VIRTIO_VFIO_USER");
  link.message(CaptureDirection.FROM_DEVICE, Buffer.from("xhellox"), 1, 5, 3);
  await capture.close();
  const found = blocks(path);
  t.deepEqual(
    found.map(({ type }) => type),
    [SECTION, INTERFACE, PACKET, STATISTICS],
  );
  t.is(found[1].body.readUInt16LE(0), LinkType.VIRTIO_VFIO_USER);
  t.true(found[1].body.includes("name"));
  const { body } = found[2];
  const time = body.readUInt32LE(4) * 2 ** 32 + body.readUInt32LE(8);
  t.true(time >= before - 1e6 && time <= Date.now() * 1000 + 1e6);
  t.is(body.readUInt32LE(12), CaptureHead.size + 5);
  t.deepEqual([...body.subarray(20, 24)], [1, CaptureDirection.FROM_DEVICE, 3, 0]);
  t.is(body.subarray(24, 29).toString(), "hello");
  t.is(statSync(path).mode & 0o777, 0o600);
});

test("two halves, both whole files, of the size that was given", async (t) => {
  const path = fileFor(t);
  const size = MiB;
  const capture = await Capture.open({ path, size, log: quietLog });
  const link = capture.interface("name", "VFIO_USER");
  const bytes = Buffer.alloc(10 * KiB);
  for (let n = 0; n < 400; n++) {
    bytes.writeUInt32LE(n);
    link.message(CaptureDirection.TO_DEVICE, bytes, 0, bytes.length, 0);
    if (n % 5 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await capture.close();
  const [older, newer] = [`${path}.1`, path].map((each) => ({ found: blocks(each), size: statSync(each).size }));
  t.true(older.size + newer.size <= size);
  t.true(older.size > size / 2 - 16 * KiB);
  for (const { found } of [older, newer])
    t.deepEqual(
      found.slice(0, 2).map(({ type }) => type),
      [SECTION, INTERFACE],
    );
  const numbers = [...older.found, ...newer.found]
    .filter(({ type }) => type === PACKET)
    .map(({ body }) => body.readUInt32LE(24));
  t.is(numbers.at(-1), 399);
  t.deepEqual(
    numbers,
    Array.from(numbers, (_, n) => numbers[0] + n),
  );
});

test("a long message is kept in part, and its length is told", async (t) => {
  const path = fileFor(t);
  const capture = await Capture.open({ path, size: 8 * MiB, log: quietLog });
  capture.interface("name", "VFIO_USER").message(CaptureDirection.TO_DEVICE, Buffer.alloc(MiB), 0, MiB, 0);
  await capture.close();
  const packet = blocks(path).find(({ type }) => type === PACKET);
  t.is(packet?.body.readUInt32LE(12), CaptureHead.size + 64 * KiB);
  t.is(packet?.body.readUInt32LE(16), CaptureHead.size + MiB);
});

test("what waits for the disk is bounded, and what is lost is counted", async (t) => {
  const path = fileFor(t);
  const capture = await Capture.open({ path, size: 256 * MiB, log: quietLog });
  const link = capture.interface("name", "VFIO_USER");
  const bytes = Buffer.alloc(60 * KiB);
  for (let n = 0; n < 1000; n++) link.message(CaptureDirection.TO_DEVICE, bytes, 0, bytes.length, 0);
  t.true(link.dropped > 500);
  await capture.close();
  const found = blocks(path);
  t.is(found.filter(({ type }) => type === PACKET).length, 1000 - link.dropped);
  const statistics = found.find(({ type }) => type === STATISTICS);
  t.is(Number(statistics?.body.readBigUInt64LE(16)), link.dropped);
});

test("a path that is a symbolic link, or none, is refused in one sentence", async (t) => {
  const path = fileFor(t);
  symlinkSync("/etc/passwd", path);
  for (const each of [path, "/nowhere/at/all"])
    await t.throwsAsync(Capture.open({ path: each, size: MiB, log: quietLog }), {
      name: "UserError",
      message: /^cannot write the capture /,
    });
});

test("a file that cannot be written ends the capture and nothing else", async (t) => {
  const lines: object[] = [];
  const log = { ...quietLog, error: (fields: object) => lines.push(fields) } as unknown as typeof quietLog;
  const capture = await Capture.open({ path: "/dev/full", size: MiB, log });
  capture.interface("name", "VFIO_USER").message(CaptureDirection.TO_DEVICE, Buffer.alloc(10), 0, 10, 0);
  await capture.close();
  t.is(lines.length, 1);
});
