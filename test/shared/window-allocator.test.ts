/** Places in the window. */
import test from "ava";
import { GiB, LARGE_PAGE_SIZE, MiB } from "../../shared/limits.js";
import { WindowAllocator } from "../../shared/window-allocator.js";

const PAGE = 4096;

test("first fit, page by page, and back again", (t) => {
  const window = new WindowAllocator(4 * PAGE, 4 * PAGE);
  t.deepEqual([window.allocate(1), window.allocate(PAGE), window.allocate(2 * PAGE)], [0, PAGE, 2 * PAGE]);
  t.is(window.allocate(1), -1);
  window.free(PAGE);
  t.is(window.allocate(2 * PAGE), -1);
  window.free(0);
  t.is(window.allocate(2 * PAGE), 0);
  window.free(0);
  window.free(2 * PAGE);
  t.is(window.allocate(4 * PAGE), 0, "all in one again");
  t.is(window.count, 1);
});

test("a map of at most a piece does not cross from one to the next", (t) => {
  const window = new WindowAllocator(4 * GiB, GiB);
  t.is(window.allocate(600 * MiB), 0);
  t.is(window.allocate(600 * MiB), GiB);
  t.is(window.allocate(400 * MiB), 600 * MiB);
  t.is(window.allocate(GiB), 2 * GiB);
  t.is(window.allocate(1.5 * GiB), -1);
});

test("a map larger than a piece has its pages side by side", (t) => {
  const window = new WindowAllocator(4 * GiB, GiB);
  t.is(window.allocate(PAGE), 0);
  t.is(window.allocate(2.5 * GiB), LARGE_PAGE_SIZE);
});

test("large maps are aligned so that large pages can be used, and agree with the offset in their file", (t) => {
  const window = new WindowAllocator(4 * GiB, GiB);
  t.is(window.allocate(PAGE), 0);
  t.is(window.allocate(LARGE_PAGE_SIZE), LARGE_PAGE_SIZE);
  t.is(window.allocate(PAGE), PAGE);
  const offset = window.allocate(511 * MiB, 1 * MiB);
  t.is(offset % LARGE_PAGE_SIZE, 1 * MiB);
  t.is(window.allocate(GiB, 1 * MiB), GiB, "where that cannot be, anything is better than nothing");
});

test("pages of a file that are huge are at multiples of their size", (t) => {
  const window = new WindowAllocator(8 * GiB, GiB);
  t.is(window.allocate(PAGE), 0);
  t.is(window.allocate(3 * GiB, 5 * GiB, GiB), GiB);
  t.is(window.allocate(2 * MiB, 4 * MiB, 2 * MiB), 2 * MiB);
  t.is(window.allocate(GiB, GiB, GiB), 4 * GiB);
});

test("what is no size gets no place", (t) => {
  const window = new WindowAllocator(GiB, GiB);
  for (const size of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, GiB + 1]) t.is(window.allocate(size), -1);
});

test("freeing what is not allocated is a bug", (t) => {
  const window = new WindowAllocator(GiB, GiB);
  const offset = window.allocate(2 * PAGE);
  t.throws(() => window.free(offset + PAGE), { message: /not allocated/ });
  window.free(offset);
  t.throws(() => window.free(offset), { message: /not allocated/ });
});

test("random use never overlaps, never crosses, and ends empty", (t) => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  t.log(`SEED=${seed}`);
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * below);
  };
  const size = 256 * MiB;
  const piece = 32 * MiB;
  const window = new WindowAllocator(size, piece);
  const live = new Map<number, number>();
  for (let step = 0; step < 3000; step++) {
    if (random(2) === 0 && live.size > 0) {
      const offset = [...live.keys()][random(live.size)];
      window.free(offset);
      live.delete(offset);
      continue;
    }
    const length = PAGE * (1 + random(random(4) === 0 ? 12_000 : 40));
    const offset = window.allocate(length, PAGE * random(600));
    if (offset === -1) continue;
    t.true(offset % PAGE === 0 && offset >= 0 && offset + length <= size);
    if (length <= piece) t.is(Math.floor(offset / piece), Math.floor((offset + length - 1) / piece));
    for (const [other, otherLength] of live) t.true(offset + length <= other || other + otherLength <= offset);
    live.set(offset, length);
  }
  for (const offset of live.keys()) window.free(offset);
  t.is(window.allocate(size), 0);
});
