/** Reserved address space: maps come and go under ArrayBuffers that stay, and no truncated file ends the process. */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { isSystemError } from "../../shared/errors.js";
import { MiB, owned, PAGE, withAddressSpace } from "./helpers.js";

const RW = native.PROT_READ | native.PROT_WRITE;

/** A memory file whose every 32-bit word holds its page's number + 1. */
function numbered(t: ExecutionContext, size: number): number {
  const memory = owned(t, native.createMemory("numbered", size, false));
  const words = new Uint32Array(size / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.floor((i * 4) / PAGE) + 1;
  fs.writeSync(memory, words, 0, size, 0);
  return memory;
}

function reservation(t: ExecutionContext, size = 4 * MiB, pieceSize = MiB) {
  const made = new native.Reservation(size, pieceSize);
  t.teardown(() => made.release());
  return made;
}

const at = (reserved: native.Reservation, offset: number, pieceSize = MiB) =>
  new Uint32Array(reserved.piece(Math.floor(offset / pieceSize)), offset % pieceSize, 1)[0];

/** Mappings of this process in a piece. */
function mapsIn(reserved: native.Reservation, piece = 0): number {
  const buffer = reserved.piece(piece);
  const start = native.addressOf(buffer);
  const froms = fs
    .readFileSync("/proc/self/maps", "utf8")
    .split("\n")
    .map((line) => Number.parseInt(line, 16));
  return froms.filter((from) => from >= start && from < start + buffer.byteLength).length;
}

test("a new reservation is zeros, and its pieces are made once", (t) => {
  const reserved = reservation(t, 5 * MiB, 2 * MiB);
  t.is(reserved.size, 5 * MiB);
  t.deepEqual(
    [0, 1, 2].map((i) => reserved.piece(i).byteLength),
    [2 * MiB, 2 * MiB, MiB],
  );
  t.is(reserved.piece(1), reserved.piece(1));
  for (const index of [0, 1, 2]) t.is(native.addressOf(reserved.piece(index)) % (2 * MiB), 0);
  t.true(new BigUint64Array(reserved.piece(2)).every((word) => word === 0n));
  for (const index of [3, -1, 0.5]) t.throws(() => reserved.piece(index), { instanceOf: RangeError });
});

test("map, write, read back through the file, unmap: zeros again, and the file keeps its content", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  const before = reserved.piece(1);
  reserved.map(MiB, MiB, memory, 0, RW);
  t.is(at(reserved, MiB), 1);
  t.is(at(reserved, 2 * MiB - PAGE), 256);
  t.is(at(reserved, 2 * MiB), 0);
  new Uint32Array(before)[3] = 4711;
  const back = new Uint32Array(1);
  fs.readSync(memory, back, 0, 4, 12);
  t.is(back[0], 4711);
  reserved.unmap(MiB, MiB);
  t.true(new BigUint64Array(before).every((word) => word === 0n));
  new Uint32Array(before)[3] = 5;
  fs.readSync(memory, back, 0, 4, 12);
  t.is(back[0], 4711);
  reserved.map(MiB, PAGE, memory, 3 * PAGE, RW);
  t.is(at(reserved, MiB), 4);
});

test("maps may cross pieces, replace each other, and be unmapped in parts", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  reserved.map(MiB - 2 * PAGE, 4 * PAGE, memory, 0, RW);
  t.is(at(reserved, MiB - PAGE), 2);
  t.is(at(reserved, MiB), 3);
  reserved.map(MiB - PAGE, PAGE, memory, 9 * PAGE, RW);
  t.is(at(reserved, MiB - PAGE), 10);
  reserved.unmap(MiB, PAGE);
  t.deepEqual(
    [-2, -1, 0, 1, 2].map((page) => at(reserved, MiB + page * PAGE)),
    [1, 10, 0, 4, 0],
  );
});

test("a file that is truncated after it was mapped reads as zeros from there on", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  reserved.map(0, MiB, memory, 0, RW);
  reserved.map(MiB, MiB, numbered(t, MiB), 0, RW);
  t.is(at(reserved, 10 * PAGE), 11);
  fs.ftruncateSync(memory, 5 * PAGE);
  const words = new Uint32Array(reserved.piece(0));
  t.is(words[(10 * PAGE) / 4], 0);
  words[(10 * PAGE) / 4] = 1;
  t.is(at(reserved, 4 * PAGE), 5);
  t.is(at(reserved, 5 * PAGE), 0);
  t.is(at(reserved, MiB - PAGE), 0);
  t.is(at(reserved, MiB), 1);
  reserved.map(0, PAGE, memory, 0, RW);
  t.is(at(reserved, 0), 1);
});

test("what is gone is known from its first touch until it is mapped anew, page by page and in one go", (t) => {
  const reserved = reservation(t, 4 * MiB, 4 * MiB);
  const memory = numbered(t, 2 * MiB);
  reserved.map(0, MiB, memory, 0, RW);
  reserved.map(MiB, 2 * MiB, memory, 0, RW);
  reserved.map(3 * MiB, MiB, numbered(t, MiB), 0, RW);
  const bytes = new Uint8Array(reserved.piece(0));
  const lost = (page: number, pages = 1) => native.isLost(bytes, page * PAGE, pages * PAGE);
  t.false(lost(0, 1024));
  fs.ftruncateSync(memory, PAGE);
  t.false(lost(0, 1024), "nobody has touched it");
  t.is(bytes[10 * PAGE], 0);
  t.is(native.anyLost[0], 1);
  t.deepEqual(
    [lost(9), lost(10), lost(11), lost(0, 10), lost(0, 11), lost(10, 5)],
    [false, true, false, false, true, true],
  );
  t.true(native.isLost(bytes, 11 * PAGE - 1, 1));
  t.false(native.isLost(bytes, 11 * PAGE, 1));
  // More single pages than are told apart: from the lowest that was touched then on, all of that map is gone.
  for (let page = 256 + 511; page > 256 + 300; page--) t.is(bytes[page * PAGE], 0);
  t.true(lost(256 + 301, 211));
  t.deepEqual([lost(256 + 300), lost(768, 256), lost(255), lost(11, 244)], [false, false, false, false]);
  fs.ftruncateSync(memory, 2 * MiB);
  t.true(lost(10), "it is zeros all the same");
  reserved.map(MiB, MiB, memory, 0, RW);
  t.deepEqual([lost(10), lost(256, 256), lost(512, 256)], [true, false, true]);
  reserved.map(0, MiB, memory, 0, RW);
  reserved.unmap(2 * MiB, MiB);
  t.false(lost(0, 1024));
  t.throws(() => native.isLost(bytes, 4 * MiB, 1), { instanceOf: RangeError });
});

test("page after page of a truncated file takes few maps of the process", (t) => {
  const reserved = reservation(t, 64 * MiB, 64 * MiB);
  const memory = owned(t, native.createMemory("truncated", 64 * MiB, false));
  reserved.map(0, 64 * MiB, memory, 0, RW);
  fs.ftruncateSync(memory, 0);
  const bytes = new Uint8Array(reserved.piece(0));
  // Backwards and every second page: the worst for whoever repairs page by page.
  for (let page = bytes.length - PAGE; page >= 0; page -= 2 * PAGE) t.is(bytes[page], 0);
  const inside = mapsIn(reserved);
  t.true(inside < 16, `${inside} maps`);
});

test("pages here and there in many pieces take few maps, too: truncated ones, and what was never mapped", (t) => {
  const [count, piece, touched] = [100, 2 * MiB, 64];
  const pages = (reserved: native.Reservation) => {
    for (let n = 0; n < count; n++) {
      const bytes = new Uint8Array(reserved.piece(n));
      for (let page = 1; page < 2 * touched; page += 2) {
        bytes[page * PAGE] = 7;
        t.is(bytes[(page + 1) * PAGE], 0);
      }
    }
    let maps = 0;
    for (let n = 0; n < count; n++) maps += mapsIn(reserved, n);
    return maps;
  };
  const truncated = reservation(t, count * piece, piece);
  const memory = owned(t, native.createMemory("truncated", count * piece, false));
  truncated.map(0, count * piece, memory, 0, RW);
  fs.ftruncateSync(memory, 0);
  const ofTruncated = pages(truncated);
  t.true(ofTruncated < 5000, `${ofTruncated} maps`);
  for (let n = 0; n < count; n++) t.true(native.isLost(new Uint8Array(truncated.piece(n)), PAGE, PAGE));
  truncated.unmap(0, count * piece);
  const empty = reservation(t, count * piece, piece);
  const ofEmpty = pages(empty);
  t.true(ofEmpty < 5000, `${ofEmpty} maps`);
  // Those of before count no more.
  const other = reservation(t);
  const small = owned(t, native.createMemory("truncated", MiB, false));
  other.map(0, MiB, small, 0, RW);
  fs.ftruncateSync(small, 0);
  const bytes = new Uint8Array(other.piece(0));
  t.is(bytes[PAGE], 0);
  t.deepEqual([native.isLost(bytes, PAGE, 1), native.isLost(bytes, 2 * PAGE, PAGE)], [true, false]);
});

test("a truncated file of large pages reads as zeros", (t) => {
  const memory = owned(t, native.createMemory("large", 4 * MiB, true));
  const reserved = reservation(t, 8 * MiB, 8 * MiB);
  // None may be free on this machine: then touching one is the same signal.
  try {
    reserved.map(2 * MiB, 4 * MiB, memory, 0, RW);
  } catch (error) {
    t.true(isSystemError(error) && error.code === "ENOMEM");
    t.is(at(reserved, 2 * MiB, 8 * MiB), 0);
    return;
  }
  fs.ftruncateSync(memory, 0);
  t.is(at(reserved, 3 * MiB, 8 * MiB), 0);
  t.is(at(reserved, 2 * MiB, 8 * MiB), 0);
});

test("a map that fails leaves zeros", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  const reading = fs.openSync(`/proc/self/fd/${memory}`, "r");
  t.teardown(() => fs.closeSync(reading));
  const event = owned(t, native.eventfd(0));
  for (const [fd, code] of [
    [reading, "EACCES"],
    [event, "ENODEV"],
    [-1, "EBADF"],
  ] as const) {
    reserved.map(0, MiB, memory, 0, RW);
    const error = t.throws(() => reserved.map(0, MiB, fd, 0, RW));
    t.like(error, { code, syscall: "mmap" });
    t.is(at(reserved, 0), 0);
    t.is(at(reserved, MiB - PAGE), 0);
  }
  reserved.map(0, MiB, reading, 0, native.PROT_READ);
  t.is(at(reserved, PAGE), 2);
});

test("a write to what may only be read goes to a copy, is told, and is undone by mapping anew", (t) => {
  const stray = owned(t, native.eventfd(0));
  const reserved = new native.Reservation(4 * MiB, MiB, stray);
  t.teardown(() => reserved.release());
  const memory = numbered(t, MiB);
  const words = new Uint32Array(reserved.piece(1));
  reserved.map(MiB, MiB, memory, 0, native.PROT_READ);
  const index = (5 * PAGE) / 4;
  t.is(words[index], 6);
  t.is(native.eventfdRead(stray), 0);
  words[index + 1] = 4711;
  t.deepEqual([words[index], words[index + 1], words[index + 2]], [6, 4711, 6]);
  t.is(native.eventfdRead(stray), 1);
  words[index + 2] = 1;
  t.is(native.eventfdRead(stray), 0, "the page is a copy by now");
  const back = new Uint32Array(1);
  fs.readSync(memory, back, 0, 4, 5 * PAGE + 4);
  t.is(back[0], 6);
  reserved.map(MiB, MiB, memory, 0, native.PROT_READ);
  t.is(words[index + 1], 6);
  // The kernel writes nothing there, and says so.
  t.throws(() => fs.readSync(memory, words, index, 4, 0), { code: "EFAULT" });
});

test("what is not mapped is zeros and swallows writes, and system calls fail on it", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  const words = new Uint32Array(reserved.piece(2));
  t.throws(() => fs.readSync(memory, words, 0, 4096, 0), { code: "EFAULT" });
  words[2] = 9;
  t.is(words[1], 0);
  t.is(words[PAGE / 4], 0);
});

test("address space is taken piece by piece, and is no memory that the machine has promised", (t) => {
  const size = () => {
    const [, pages] = /^VmSize:\s+(\d+) kB/m.exec(fs.readFileSync("/proc/self/status", "utf8")) ?? [];
    return Number(pages) * 1024;
  };
  const GiB = 1024 * MiB;
  const before = size();
  const reserved = reservation(t, 1024 * GiB, GiB);
  t.true(size() - before < 4 * GiB);
  const at = native.addressOf(reserved.piece(700));
  const [, , protection] = fs
    .readFileSync("/proc/self/maps", "utf8")
    .split("\n")
    .map((line) => /^([0-9a-f]+)-([0-9a-f]+) (....)/.exec(line))
    .filter((found) => found !== null)
    .map(([, begin, end, flags]) => [Number.parseInt(begin, 16), Number.parseInt(end, 16), flags] as const)
    .find(([begin, end]) => begin <= at && at < end) ?? [0, 0, ""];
  t.is(protection, "---p");
});

test("without address space it is ENOMEM at once, or when more is needed", (t) => {
  const script = `
    import * as native from ${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)};
    const GiB = 2 ** 30;
    const reserved = new native.Reservation(64 * GiB, GiB);
    const codes = [];
    for (let n = 0; n < 8; n++) try { reserved.piece(n); } catch (error) { codes.push(error.code); break; }
    try { new native.Reservation(64 * GiB, 4 * GiB); } catch (error) { codes.push(error.code); }
    process.stdout.write(codes.join());`;
  const command = withAddressSpace(5000, "--input-type=module", "-e", script);
  t.is(execFileSync("bash", command, { encoding: "utf8", timeout: 60_000 }), "ENOMEM,ENOMEM");
});

test("nothing can be mapped outside, or off the pages", (t) => {
  const reserved = reservation(t);
  const memory = numbered(t, MiB);
  const bad = [
    [4 * MiB, PAGE, 0],
    [4 * MiB - PAGE, 2 * PAGE, 0],
    [-PAGE, PAGE, 0],
    [0, 0, 0],
    [1, PAGE, 0],
    [0, PAGE + 1, 0],
    [0, 2 ** 53, 0],
    [0, PAGE, 1],
    [0, PAGE, -PAGE],
    [Number.NaN, PAGE, 0],
  ] as const;
  for (const [offset, length, fdOffset] of bad) {
    t.throws(() => reserved.map(offset, length, memory, fdOffset, RW), { instanceOf: RangeError });
    if (fdOffset === 0) t.throws(() => reserved.unmap(offset, length), { instanceOf: RangeError });
  }
  t.throws(() => reserved.map(0, PAGE, memory, 0, 4), { instanceOf: RangeError });
  for (const [size, piece] of [
    [0, PAGE],
    [PAGE + 1, PAGE],
    [PAGE, 0],
    [PAGE, 100],
    [PAGE, 8 * 1024 * MiB],
    [2 ** 53, PAGE],
  ]) {
    t.throws(() => new native.Reservation(size!, piece!), { instanceOf: RangeError });
  }
});

test("released: its buffers stay and are zeros, and the file is let go", (t) => {
  const reserved = new native.Reservation(2 * MiB, MiB);
  const memory = numbered(t, MiB);
  reserved.map(0, MiB, memory, 0, RW);
  const piece = reserved.piece(0);
  t.is(new Uint32Array(piece)[0], 1);
  reserved.release();
  reserved.release();
  t.true(new BigUint64Array(piece).every((word) => word === 0n));
  t.throws(() => reserved.piece(0), { message: /released/ });
  t.throws(() => reserved.map(0, MiB, memory, 0, RW), { message: /released/ });
  t.throws(() => reserved.unmap(0, MiB), { message: /released/ });
});

test("64 GiB can be reserved, and the last byte is there", (t) => {
  const GiB = 1024 * MiB;
  const reserved = reservation(t, 64 * GiB, GiB);
  const last = new Uint8Array(reserved.piece(63));
  t.is(last.length, GiB);
  t.is(last[GiB - 1], 0);
  t.is(native.addressOf(reserved.piece(63)) % GiB, 0);
});

test("mapFile: content, bounds, and a truncated file", (t) => {
  const memory = numbered(t, MiB);
  const buffer = native.mapFile(memory, PAGE, 3 * PAGE - 8, RW);
  t.is(buffer.byteLength, 3 * PAGE - 8);
  const words = new Uint32Array(buffer);
  t.is(words[0], 2);
  words[0] = 99;
  const back = new Uint32Array(1);
  fs.readSync(memory, back, 0, 4, PAGE);
  t.is(back[0], 99);
  fs.ftruncateSync(memory, 0);
  t.is(words[0], 0);
  t.is(words[(3 * PAGE - 8) / 4 - 1], 0);
  t.like(
    t.throws(() => native.mapFile(memory, 1, PAGE, RW)),
    { code: "EINVAL", syscall: "mmap" },
  );
  t.throws(() => native.mapFile(-1, 0, PAGE, RW), { code: "EBADF" });
  t.throws(() => native.mapFile(memory, 0, 0, RW), { instanceOf: RangeError });
  t.throws(() => native.mapFile(memory, 0, 2 ** 32 + 1, RW), { instanceOf: RangeError });
});

test("loads and stores of one width, aligned and within bounds", (t) => {
  const buffer = new ArrayBuffer(16);
  native.store32(buffer, 4, 0x80818283);
  t.deepEqual([...new Uint8Array(buffer, 4, 4)], [0x83, 0x82, 0x81, 0x80]);
  t.is(native.load32(buffer, 4), 0x80818283);
  t.is(native.load16(buffer, 6), 0x8081);
  t.is(native.load8(buffer, 7), 0x80);
  native.store16(buffer, 14, 0xffff);
  native.store8(buffer, 13, 0xfe);
  t.deepEqual([...new Uint8Array(buffer, 12)], [0, 0xfe, 0xff, 0xff]);
  const widths = [
    [1, native.load8, native.store8],
    [2, native.load16, native.store16],
    [4, native.load32, native.store32],
  ] as const;
  for (const [width, load, store] of widths) {
    for (const offset of [16, 16 - width + 1, -width, 2 ** 53 - 1, Number.NaN, 0.5]) {
      t.throws(() => load(buffer, offset), { instanceOf: RangeError });
      t.throws(() => store(buffer, offset, 0), { instanceOf: RangeError });
    }
    if (width > 1) t.throws(() => load(buffer, width + 1), { instanceOf: RangeError });
    for (const value of [2 ** (8 * width), -1, 1.5]) {
      t.throws(() => store(buffer, 0, value), { instanceOf: RangeError });
    }
    t.throws(() => load(new ArrayBuffer(0), 0), { instanceOf: RangeError });
  }
  t.throws(() => native.load8(new Uint8Array(4) as never, 0), { instanceOf: TypeError });
});

test("what nobody holds any more is unmapped: maps of files, and reservations with their pieces", (t) => {
  const script = `
    import * as native from ${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)};
    import fs from "node:fs";
    const memory = native.createMemory("collected", 8192, false);
    const mapped = () => fs.readFileSync("/proc/self/maps", "utf8").split("/memfd:collected").length - 1;
    const collect = async () => { gc(); await new Promise((resolve) => setImmediate(resolve)); };
    const counts = [];
    let file = native.mapFile(memory, 0, 4096, 3);
    let reservation = new native.Reservation(1 << 21, 1 << 20);
    reservation.map(0, 8192, memory, 0, 3);
    let piece = reservation.piece(0);
    reservation.piece(1);
    counts.push(mapped());
    file = undefined;
    while (mapped() > 1) await collect();
    reservation = undefined;
    for (let i = 0; i < 4; i++) await collect();
    counts.push(mapped());
    new Uint8Array(piece)[5000] = 5;
    piece = undefined;
    while (mapped() > 0) await collect();
    for (let i = 0; i < 2000; i++) {
      new native.Reservation(1 << 21, 1 << 20).piece(0);
      if (i % 100 === 0) await collect();
    }
    process.stdout.write(counts.join());`;
  const options = ["--expose-gc", "--input-type=module", "-e", script];
  t.is(execFileSync(process.execPath, options, { encoding: "utf8", timeout: 60_000 }), "2,1");
});

test("a part of a huge page is not mapped: all of it would be, over what is next to the place", (t) => {
  const reserved = reservation(t);
  const memory = owned(t, native.createMemory("huge", 4 * MiB, true));
  const neighbour = numbered(t, PAGE);
  reserved.map(MiB / 2, PAGE, neighbour, 0, RW);
  for (const [offset, length] of [
    [0, MiB / 2],
    [MiB, 2 * MiB],
    [0, 3 * MiB],
  ]) {
    const error = t.throws(() => reserved.map(offset, length, memory, 0, RW));
    t.true(isSystemError(error) && error.code === "EINVAL");
  }
  t.is(at(reserved, MiB / 2), 1);
});
