/** The log of written pages, by examples and against a plain model of it. */
import test from "ava";
import { DirtyLog, loggedPageSize } from "../../../guest/function/dirty-log.js";
import { KiB, MiB } from "../../../shared/limits.js";
import { bitmapSize, setBits } from "../../../shared/vfio-user/dma/dma-ranges.js";

const PAGE = 4 * KiB;

/** The numbers of the bits that a report sets. */
function report(log: DirtyLog, address: number, length: number, pageSize = PAGE, forget: "nothing" | "all" = "all") {
  const bitmap = new Uint8Array(bitmapSize(address, length, pageSize));
  log.settle();
  log.report(address, length, pageSize, bitmap, forget);
  return bits(bitmap);
}

function bits(bitmap: Uint8Array): number[] {
  return Array.from({ length: bitmap.length * 8 }, (_, n) => n).filter((n) => (bitmap[n >> 3] >> (n & 7)) & 1);
}

test("bitmap sizes: whole words of 64 bits; what cannot be is -1", (t) => {
  t.is(bitmapSize(0, PAGE, PAGE), 8);
  t.is(bitmapSize(PAGE, 64 * PAGE, PAGE), 8);
  t.is(bitmapSize(0, 64 * PAGE + 1, PAGE), 16);
  for (const [address, length, pageSize] of [
    [0, 0, PAGE],
    [0, PAGE, 0],
    [0, PAGE, 2048],
    [0, 4 * PAGE, 3 * PAGE],
    [0, PAGE, 2 * PAGE],
    [-PAGE, 2 * PAGE, PAGE],
    [2 ** 53 - PAGE, 2 * PAGE, PAGE],
    [0, 2 ** 63, PAGE],
    [0, 2 ** 63, 2 ** 62],
    [0, 2 ** 53 - 1, 2 ** 52 + 1],
    [Number.NaN, PAGE, PAGE],
  ]) {
    t.is(bitmapSize(address, length, pageSize), -1, `${length} bytes at ${address}, pages of ${pageSize}`);
  }
});

test("every run of bits", (t) => {
  for (let first = 0; first < 40; first++) {
    for (let last = first; last < 40; last++) {
      const bitmap = new Uint8Array(5);
      setBits(bitmap, first, last);
      t.deepEqual(
        bits(bitmap),
        Array.from({ length: last - first + 1 }, (_, n) => first + n),
      );
    }
  }
});

test("what is written is reported once, page by page, also over the border of chunks", (t) => {
  const log = new DirtyLog(PAGE);
  log.mark(5 * PAGE + 4095, 2);
  log.mark(128 * MiB - 1, 2);
  log.mark(2 ** 52, 1);
  t.deepEqual(report(log, 0, 8 * PAGE), [5, 6]);
  t.deepEqual(report(log, 0, 8 * PAGE), []);
  t.deepEqual(report(log, 128 * MiB - PAGE, 2 * PAGE), [0, 1]);
  t.deepEqual(report(log, 2 ** 52, PAGE), [0]);
  log.mark(7 * PAGE, PAGE);
  t.deepEqual(report(log, 0, 8 * PAGE), [7], "marks go on after a report that emptied a chunk");
});

test("larger pages join bits, a coarser log repeats them, and ranges need not be on its pages", (t) => {
  const log = new DirtyLog(PAGE);
  log.mark(3 * PAGE, 1);
  log.mark(16 * PAGE, 1);
  t.deepEqual(report(log, 0, 32 * PAGE, 4 * PAGE, "nothing"), [0, 4]);
  t.deepEqual(report(log, PAGE, 24 * PAGE, 8 * PAGE, "nothing"), [0, 1]);
  t.deepEqual(report(log, 0, 32 * PAGE, 32 * PAGE), [0]);
  const coarse = new DirtyLog(4 * PAGE);
  coarse.mark(5 * PAGE, 1);
  t.deepEqual(report(coarse, 0, 16 * PAGE, PAGE, "nothing"), [4, 5, 6, 7]);
  t.deepEqual(report(coarse, 6 * PAGE, 16 * PAGE, PAGE), [0, 1], "only a part of the page");
  t.deepEqual(report(coarse, 0, 16 * PAGE, PAGE), [4, 5, 6, 7], "and so it stays");
  t.deepEqual(report(coarse, 0, 16 * PAGE, PAGE), []);
});

test("what is marked after a settling is reported, and again the next time", (t) => {
  const log = new DirtyLog(PAGE);
  const take = () => {
    const bitmap = new Uint8Array(8);
    log.report(0, 64 * PAGE, PAGE, bitmap, "settled");
    return bits(bitmap);
  };
  log.mark(PAGE, 1);
  log.settle();
  log.mark(2 * PAGE, 1);
  t.deepEqual(take(), [1, 2]);
  log.settle();
  t.deepEqual(take(), [2]);
  log.settle();
  t.deepEqual(take(), []);
});

test("the ranges that were named bound what is covered; neighbours are one", (t) => {
  const log = new DirtyLog(PAGE, [
    { address: 8 * PAGE, size: PAGE },
    { address: 0, size: PAGE },
    { address: PAGE, size: PAGE },
  ]);
  t.true(log.covers(0, 2 * PAGE));
  t.true(log.covers(8 * PAGE, PAGE));
  t.false(log.covers(0, 3 * PAGE));
  t.false(log.covers(2 * PAGE, PAGE));
  t.false(log.covers(7 * PAGE, 2 * PAGE));
  t.true(new DirtyLog(PAGE).covers(2 ** 52, PAGE));
});

test("a log that is full says that all was written", (t) => {
  const log = new DirtyLog(PAGE, [], 2 * 4096);
  log.mark(0, 1);
  log.mark(1024 * MiB, 1);
  t.deepEqual(report(log, 0, 4 * PAGE, PAGE, "nothing"), [0]);
  log.mark(2048 * MiB, 1);
  t.deepEqual(report(log, 0, 4 * PAGE), [0, 1, 2, 3]);
  log.mark(0, 1);
  t.deepEqual(report(log, 0, 4 * PAGE), [0, 1, 2, 3], "and goes on saying so");
});

test("the page size is kept within reason", (t) => {
  t.deepEqual([1, 2048, 4096, 8192, 2 * MiB, 2 ** 40].map(loggedPageSize), [4096, 4096, 4096, 8192, 2 * MiB, 2 * MiB]);
});

test("random marks and reports are as a plain list of pages has them", (t) => {
  const seed = Math.floor(Math.random() * 2 ** 32);
  t.log(`seed ${seed}`);
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const log = new DirtyLog(PAGE);
  const model = new Set<number>();
  const base = 128 * MiB - 200 * PAGE;
  for (let n = 0; n < 2000; n++) {
    const address = base + random(400 * PAGE);
    if (random(4) > 0) {
      const length = 1 + random(random(2) ? 20 * PAGE : 10);
      log.mark(address, length);
      for (let at = Math.floor(address / PAGE); at <= Math.floor((address + length - 1) / PAGE); at++) model.add(at);
      continue;
    }
    const first = Math.floor(address / PAGE);
    const pages = 1 + random(100);
    const expected = Array.from({ length: pages }, (_, i) => i).filter((i) => model.has(first + i));
    t.deepEqual(report(log, first * PAGE, pages * PAGE), expected);
    for (const i of expected) model.delete(first + i);
  }
});

test("pages right below 2^64 are logged like any others", (t) => {
  const log = new DirtyLog(PAGE, [{ address: -MiB, size: MiB }]);
  log.mark(-1, 1);
  log.mark(-MiB, 1);
  log.mark(0, 1);
  log.mark(-3 * PAGE - 1, 2);
  t.true(log.covers(-MiB, MiB));
  t.false(log.covers(0, PAGE));
  t.deepEqual(report(log, -8 * PAGE, 8 * PAGE, PAGE, "nothing"), [4, 5, 7]);
  t.deepEqual(report(log, -MiB, MiB), [0, 252, 253, 255]);
  t.deepEqual(report(log, -MiB, MiB), []);
  log.mark(-PAGE, PAGE);
  t.deepEqual(report(log, -PAGE, PAGE), [0]);
});
