/**
 * Files that are mapped for many maps at once: what is shared, how long it stays, what is taken away by force, and who
 * frees it.
 */
import fs from "node:fs";
import { setTimeout as delay, setImmediate } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { close, createMemory, duplicate, isLost, Reservation } from "../../native/index.js";
import { type ChunkFile, FileChunks } from "../../shared/file-chunks.js";
import { GiB, MiB, PAGE_SIZE } from "../../shared/limits.js";
import { quietLog } from "../../shared/log.js";
import { closePeerFd, FdShare } from "../../shared/peer-fds.js";
import { WindowAllocator } from "../../shared/window-allocator.js";

const WINDOW = 8 * GiB;

function chunksOf(t: ExecutionContext, most = 4) {
  const reservation = new Reservation(WINDOW, GiB);
  const allocator = new WindowAllocator(WINDOW, GiB);
  const chunks = new FileChunks(reservation, allocator, most, quietLog);
  t.teardown(() => {
    chunks.clear();
    reservation.release();
  });
  const byteAt = (offset: number) => new Uint8Array(reservation.piece(Math.floor(offset / GiB)), offset % GiB, 1);
  return { chunks, allocator, byteAt };
}

function memory(
  t: ExecutionContext,
  size: number,
  writable = true,
): ChunkFile & { put(value: number, at: number): void } {
  const fd = createMemory("chunks", size, false);
  t.teardown(() => close(fd));
  const { dev, ino } = fs.fstatSync(fd);
  const put = (value: number, at: number) => void fs.writeSync(fd, Uint8Array.of(value), 0, 1, at);
  return { fd, device: dev, inode: ino, writable, put };
}

function mappings({ inode }: ChunkFile): string[] {
  const lines = fs.readFileSync("/proc/self/maps", "utf8").split("\n");
  return lines.filter((line) => line.includes("memfd:chunks") && line.split(/ +/)[4] === String(inode));
}

const page = (n: number): [number, number] => [n * PAGE_SIZE, (n + 1) * PAGE_SIZE];

/** Takes so many pages from the first on; returns their one chunk. */
function takePages(chunks: FileChunks, file: ChunkFile, count: number) {
  const taken = Array.from({ length: count }, (_, n) => chunks.take(file, ...page(n)));
  const chunk = taken[0];
  if (chunk === undefined || taken.some((one) => one !== chunk)) throw new Error("not one chunk");
  return chunk;
}

test("one mapping for all maps of a GiB, which stays for a moment without users", async (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, 2 * GiB);
  const chunk = takePages(chunks, file, 1000);
  t.is(mappings(file).length, 1);
  file.put(7, 999 * PAGE_SIZE);
  t.is(byteAt(chunk.offset + 999 * PAGE_SIZE)[0], 7);
  const other = chunks.take(file, GiB + PAGE_SIZE, GiB + 2 * PAGE_SIZE);
  t.is(other?.begin, GiB);
  for (let n = 0; n < 1000; n++) t.true(chunks.leave(chunk));
  t.is(mappings(file).length, 2);
  t.is(chunks.take(file, ...page(3)), chunk);
  chunks.leave(chunk);
  for (let waited = 0; mappings(file).length > 1 && waited < 10_000; waited += 50) await delay(50);
  t.deepEqual(
    mappings(file).map((line) => Number.parseInt(line.split(/ +/)[2], 16)),
    [GiB],
    "what nobody needs goes by itself, what somebody has stays",
  );
});

test("what is for reading only is mapped so, and what was written to it is undone", (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, MiB);
  const shared = takePages(chunks, file, 1);
  const readOnly = takePages(chunks, { ...file, writable: false }, 1);
  t.not(shared, readOnly);
  t.deepEqual(
    mappings(file)
      .map((line) => line.split(/ +/)[1])
      .sort(),
    ["r--s", "rw-s"],
  );
  byteAt(readOnly.offset)[0] = 5;
  t.is(byteAt(shared.offset)[0], 0);
  t.is(byteAt(readOnly.offset)[0], 5);
  chunks.restoreReadOnly();
  byteAt(shared.offset)[0] = 6;
  t.is(byteAt(readOnly.offset)[0], 6);
});

test("taken away by force: really, but for what others have; mapped again when nothing uses it", async (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, MiB);
  const chunk = takePages(chunks, file, 3);
  const run = (n: number) => ({ start: chunk.offset + n * PAGE_SIZE, end: chunk.offset + (n + 1) * PAGE_SIZE });
  let finish = () => {};
  const finished = new Promise<void>((resolve) => {
    finish = resolve;
  });
  chunks.hold(chunk, finished);
  chunks.leave(chunk);
  chunks.takeAway(chunk, [run(0), run(2)]);
  for (const n of [0, 1, 2]) byteAt(chunk.offset + n * PAGE_SIZE)[0] = 9;
  const inFile = () => [0, 1, 2].map((n) => fs.readFileSync(`/proc/self/fd/${file.fd}`)[n * PAGE_SIZE]);
  t.deepEqual(inFile(), [9, 0, 9]);
  t.is(chunks.take(file, ...page(1)), undefined, "what still uses it must not find it again");
  finish();
  await setImmediate();
  t.is(chunks.take(file, ...page(1)), chunk);
  t.is(mappings(file).length, 1);
  byteAt(chunk.offset + PAGE_SIZE)[0] = 8;
  t.deepEqual(inFile(), [9, 8, 9]);
});

test("a place is not used again while something may still use what was there", async (t) => {
  const { chunks, allocator } = chunksOf(t);
  const file = memory(t, MiB);
  const chunk = takePages(chunks, file, 1);
  let finish = () => {};
  chunks.hold(chunk, new Promise<void>((resolve) => (finish = resolve)));
  t.false(chunks.leave(chunk));
  chunks.takeAway(chunk, []);
  t.is(mappings(file).length, 0);
  const next = takePages(chunks, file, 1);
  t.not(next.offset, chunk.offset);
  t.is(allocator.count, 2);
  finish();
  await setImmediate();
  t.is(allocator.count, 1);
});

test("split into too many pieces, all of a chunk is gone for its users: not silently", (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, 40 * MiB);
  const chunk = takePages(chunks, file, 1);
  const rest = Array.from({ length: 5000 }, (_, n) => {
    const start = chunk.offset + 2 * n * PAGE_SIZE;
    return { start, end: start + PAGE_SIZE };
  });
  chunks.hold(chunk, new Promise(() => {}));
  chunks.takeAway(chunk, rest);
  t.is(mappings(file).length, 0);
  const bytes = byteAt(chunk.offset);
  t.is(bytes[0], 0);
  t.true(isLost(new Uint8Array(bytes.buffer), bytes.byteOffset, 1));
});

test("many chunks together are split into no more pieces; what was taken before is not taken again", (t) => {
  const { chunks, byteAt } = chunksOf(t, 8);
  const [files, pieces] = [[1, 2, 3, 4].map(() => memory(t, 40 * MiB)), 1500];
  for (const [n, file] of files.entries()) {
    const chunk = takePages(chunks, file, 1);
    const rest = Array.from({ length: pieces }, (_, m) => {
      const start = chunk.offset + 2 * m * PAGE_SIZE;
      return { start, end: start + PAGE_SIZE };
    });
    chunks.hold(chunk, new Promise(() => {}));
    chunks.takeAway(chunk, rest);
    t.is(mappings(file).length, n < 2 ? pieces : 0);
    chunks.takeAway(chunk, rest.slice(1));
    t.is(mappings(file).length, n < 2 ? pieces - 1 : 0);
    byteAt(chunk.offset)[0] = 1;
    t.is(fs.readFileSync(`/proc/self/fd/${file.fd}`)[0], 0);
  }
});

test("what is taken by force goes also where the file was shorter meanwhile", (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, MiB);
  const chunk = takePages(chunks, file, 1);
  chunks.take(file, MiB - PAGE_SIZE, MiB);
  fs.ftruncateSync(file.fd, MiB / 2);
  t.is(byteAt(chunk.offset + MiB / 2)[0], 0);
  t.is(chunks.take(file, ...page(2)), chunk, "mapped again");
  fs.ftruncateSync(file.fd, MiB);
  chunks.hold(chunk, new Promise(() => {}));
  chunks.leave(chunk);
  chunks.takeAway(chunk, [{ start: chunk.offset, end: chunk.offset + 3 * PAGE_SIZE }]);
  byteAt(chunk.offset + MiB - PAGE_SIZE)[0] = 9;
  t.is(fs.readFileSync(`/proc/self/fd/${file.fd}`)[MiB - PAGE_SIZE], 0);
});

test("cut short it is zeros, and memory again for who comes later; it grows with its file", (t) => {
  const { chunks, byteAt } = chunksOf(t);
  const file = memory(t, MiB);
  const chunk = takePages(chunks, file, 1);
  fs.ftruncateSync(file.fd, 0);
  t.is(byteAt(chunk.offset)[0], 0);
  fs.ftruncateSync(file.fd, 2 * MiB);
  file.put(3, 0);
  file.put(4, MiB);
  t.is(byteAt(chunk.offset)[0], 0);
  t.is(chunks.take(file, MiB, MiB + PAGE_SIZE), chunk);
  t.deepEqual([byteAt(chunk.offset)[0], byteAt(chunk.offset + MiB)[0]], [3, 4]);
});

test("no more than are permitted, than there is room for, and than the peer has descriptors for", (t) => {
  const { chunks } = chunksOf(t, 2);
  const files = [1, 2, 3].map(() => memory(t, MiB));
  t.truthy(chunks.take(files[0], ...page(0)));
  t.truthy(chunks.take(files[1], ...page(0)));
  t.is(chunks.take(files[2], ...page(0)), undefined);
  t.truthy(chunks.take(files[1], ...page(1)));

  const full = chunksOf(t);
  for (let n = 0; n < WINDOW / GiB; n++) full.allocator.allocate(GiB);
  t.is(full.chunks.take(files[0], ...page(0)), undefined);

  const poor = chunksOf(t);
  const share = new FdShare(() => 1);
  const fd = duplicate(files[0].fd);
  share.adopt(fd);
  t.is(poor.chunks.take({ ...files[0], fd }, ...page(0)), undefined);
  t.is(poor.allocator.count, 0);
  closePeerFd(fd);
  t.is(share.used, 0);
});

test("unmapping frees nothing: the memory goes with a descriptor, which a thread closes if it is much", async (t) => {
  const { chunks } = chunksOf(t);
  const share = new FdShare();
  const take = (size: number) => {
    const fd = createMemory("chunks", size, false);
    fs.writeSync(fd, new Uint8Array(size));
    const { dev, ino } = fs.fstatSync(fd);
    share.adopt(fd);
    const chunk = takePages(chunks, { fd, device: dev, inode: ino, writable: true }, 1);
    t.is(share.used, 2, "the chunk has one of its own");
    // The client's map goes first, and frees nothing either.
    chunks.leave(chunk);
    closePeerFd(fd, true);
    t.is(share.used, 1);
  };
  take(MiB);
  chunks.clear();
  t.is(share.used, 0, "at once, for a little");
  take(64 * MiB);
  chunks.clear();
  t.is(share.used, 1, "it is with a thread");
  // Who asks for more looks what threads have closed.
  const full = new FdShare(() => 0);
  while (share.used > 0) {
    full.left();
    await setImmediate();
  }
});
