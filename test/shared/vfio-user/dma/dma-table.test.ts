/** The table of DMA maps. */
import test from "ava";
import { Errno, ProtocolError } from "../../../../shared/errors.js";
import { MAX_DMA_MAPS } from "../../../../shared/limits.js";
import { DmaTable } from "../../../../shared/vfio-user/dma/dma-table.js";

const PAGE = 4096;

function tableOf(...ranges: [number, number][]) {
  const table = new DmaTable<{ address: number; size: number }>();
  for (const [address, size] of ranges) table.insert({ address: address * PAGE, size: size * PAGE });
  return table;
}

test("finds what is within one range, and nothing else", (t) => {
  const table = tableOf([8, 2], [1, 1], [2, 3], [100, 1]);
  t.deepEqual(
    [...table].map(({ address }) => address / PAGE),
    [1, 2, 8, 100],
  );
  t.is(table.find(2 * PAGE, 3 * PAGE)?.address, 2 * PAGE);
  t.is(table.find(5 * PAGE - 1, 1)?.address, 2 * PAGE);
  t.is(table.find(5 * PAGE - 1, 2), undefined, "past the end");
  t.is(table.find(PAGE, 2 * PAGE), undefined, "two ranges that touch are two");
  t.is(table.find(0, 1), undefined);
  t.is(table.find(7 * PAGE, 1), undefined);
  t.is(table.find(101 * PAGE, 1), undefined);
  t.is(table.at(100 * PAGE)?.size, PAGE);
});

test("finds nothing for numbers that are none", (t) => {
  const table = tableOf([1, 1]);
  table.at(PAGE);
  for (const [address, length] of [
    [Number.NaN, 1],
    [PAGE, Number.NaN],
    [PAGE, -1],
    [PAGE, Number.POSITIVE_INFINITY],
    [Number.POSITIVE_INFINITY, 1],
    [-1, 1],
    [2 ** 60, 1],
  ]) {
    t.is(table.find(address, length), undefined, `${address} ${length}`);
  }
});

test("a removed range is not found, not even by the memory of the last hit", (t) => {
  const table = tableOf([1, 1], [5, 1]);
  const range = table.at(PAGE);
  t.truthy(range);
  t.true(table.remove(PAGE, PAGE) === range);
  t.is(table.at(PAGE), undefined);
  t.is(table.length, 1);
  table.insert({ address: PAGE, size: 2 * PAGE });
  t.is(table.find(2 * PAGE, PAGE)?.size, 2 * PAGE);
  table.clear();
  t.is(table.at(PAGE), undefined);
});

const refusals: readonly [string, number, number, number][] = [
  ["size 0", PAGE, 0, Errno.EINVAL],
  ["negative size", PAGE, -PAGE, Errno.EINVAL],
  ["unaligned address", PAGE + 1, PAGE, Errno.EINVAL],
  ["unaligned size", PAGE, PAGE + 512, Errno.EINVAL],
  ["past 2^53", 2 ** 53 - PAGE, 2 * PAGE, Errno.EINVAL],
  ["an address past 2^53", 2 ** 60, PAGE, Errno.EINVAL],
  ["an address below 2^64 - 2^53", -(2 ** 53) - PAGE, PAGE, Errno.EINVAL],
  ["past 2^64", -PAGE, 2 * PAGE, Errno.EINVAL],
  ["no number", Number.NaN, PAGE, Errno.EINVAL],
  ["the same again", 10 * PAGE, 2 * PAGE, Errno.EEXIST],
  ["overlaps the end", 11 * PAGE, 2 * PAGE, Errno.EEXIST],
  ["overlaps the beginning", 9 * PAGE, 2 * PAGE, Errno.EEXIST],
  ["within", 11 * PAGE, PAGE, Errno.EEXIST],
  ["around", 9 * PAGE, 9 * PAGE, Errno.EEXIST],
];
for (const [name, address, size, errno] of refusals) {
  test(`refuses ${name}`, (t) => {
    const table = tableOf([10, 2]);
    t.like(
      t.throws(() => table.insert({ address, size }), { instanceOf: ProtocolError }),
      { errno },
    );
    t.is(table.length, 1);
  });
}

test("refuses one more than it may hold", (t) => {
  const table = new DmaTable();
  for (let n = 0; n < MAX_DMA_MAPS; n++) table.insert({ address: n * PAGE, size: PAGE });
  const more = { address: MAX_DMA_MAPS * PAGE, size: PAGE };
  t.like(
    t.throws(() => table.insert(more)),
    { errno: Errno.ENOSPC },
  );
  table.remove(0, PAGE);
  t.notThrows(() => table.insert(more));
});

test("removes only what is there exactly", (t) => {
  const table = tableOf([10, 2]);
  for (const [address, size] of [
    [10, 1],
    [11, 1],
    [9, 3],
    [10, 3],
    [10, 0],
  ]) {
    t.like(
      t.throws(() => table.remove(address * PAGE, size * PAGE)),
      { errno: Errno.ENOENT },
    );
  }
  t.is(table.length, 1);
});

/** Pages, counted from address 0 in both directions. */
const pagesOf = (ranges: readonly { address: number; size: number }[]) =>
  ranges.map(({ address, size }) => [address / PAGE, size / PAGE]);

test("addresses of the upper half: found like others, up to 2^64", (t) => {
  const table = tableOf([-1, 1], [-10, 4], [0, 2], [-(2 ** 40), 1]);
  t.is(table.at(-1)?.address, -PAGE);
  t.is(table.find(-PAGE, PAGE)?.address, -PAGE);
  t.is(table.find(-PAGE, PAGE + 1), undefined, "past 2^64 is another range");
  t.is(table.at(0)?.address, 0);
  t.is(table.at(-5 * PAGE), undefined);
  t.is(table.find(-7 * PAGE + 5, 100)?.address, -10 * PAGE);
  t.is(table.start, -10 * PAGE);
  t.like(
    t.throws(() => table.insert({ address: -7 * PAGE, size: 2 * PAGE })),
    { errno: Errno.EEXIST },
  );
  t.like(
    t.throws(() => table.insert({ address: -3 * PAGE, size: 3 * PAGE })),
    { errno: Errno.EEXIST },
  );
});

test("within a range: all of those that lie in it, also across both halves", (t) => {
  const table = tableOf([-1, 1], [-10, 4], [0, 2], [5, 1], [6, 2], [100, 10]);
  const within = (page: number, pages: number) => pagesOf(table.within(page * PAGE, pages * PAGE));
  const all = 2 ** 52;
  t.deepEqual(within(2, 3), []);
  t.deepEqual(within(0, 2), [[0, 2]]);
  t.deepEqual(within(2, 98), [
    [5, 1],
    [6, 2],
  ]);
  t.deepEqual(within(6, 2), [[6, 2]]);
  t.deepEqual(within(-12, 12), [
    [-10, 4],
    [-1, 1],
  ]);
  t.deepEqual(within(8, all - 8), [
    [-10, 4],
    [-1, 1],
    [100, 10],
  ]);
  t.deepEqual(within(8, all - 8 - 6), [
    [-10, 4],
    [100, 10],
  ]);
  t.is(within(0, all).length, 6);
  t.deepEqual(within(2 ** 48, 2 ** 48), [], "far from both ends");
  t.deepEqual(within(-(2 ** 51), 2 ** 51), [
    [-10, 4],
    [-1, 1],
  ]);
  t.is(within(0, 2 ** 51).length, 4);
  t.deepEqual(within(2 ** 51 + 1 - 2 ** 52, 2 ** 50), []);
  for (const [page, pages] of [
    [1, 1],
    [0, 1],
    [-1, 2],
    [1, 5],
    [3, 4],
    [101, 2],
    [101, all - 101],
    [8, 93],
    [8, all - 8 - 7],
    [-9, 9],
  ] as const) {
    if (page + pages > 0 && page < 0) continue;
    t.like(
      t.throws(() => within(page, pages), { instanceOf: ProtocolError }, `${page}+${pages}`),
      { errno: Errno.EINVAL },
    );
  }
  t.is(table.length, 6);
});

test("within agrees with a plain model, wherever ranges are", (t) => {
  const seed = Date.now() % 1e6;
  let state = seed;
  const below = (most: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % most;
  };
  for (let round = 0; round < 300; round++) {
    const table = tableOf();
    for (let n = 0; n < 20; n++) {
      try {
        table.insert({ address: (below(40) - 20) * PAGE, size: (1 + below(4)) * PAGE });
      } catch {}
    }
    const first = BigInt(below(44) - 22);
    const count = BigInt(1 + below(44)) + (below(3) === 0 ? 2n ** 52n - 60n : 0n);
    const start = BigInt.asUintN(52, first);
    const end = start + count;
    if (end > 2n ** 52n) continue;
    const spans = [...table].map((range) => {
      const from = BigInt.asUintN(52, BigInt(range.address / PAGE));
      return { range, from, to: from + BigInt(range.size / PAGE) };
    });
    const touched = spans.filter(({ from, to }) => from < end && to > start);
    const isCut = touched.some(({ from, to }) => from < start || to > end);
    const what = `seed ${seed}, round ${round}: ${first}+${count}`;
    const run = () => table.within(Number(first) * PAGE, Number(count) * PAGE);
    if (isCut) t.throws(run, { instanceOf: ProtocolError }, what);
    else
      t.deepEqual(
        run(),
        touched.map(({ range }) => range),
        what,
      );
  }
});

test("many are removed in one go, and no memory of them stays", (t) => {
  const table = tableOf([-3, 1], [1, 1], [3, 1], [5, 2], [9, 1]);
  const last = table.at(5 * PAGE);
  t.truthy(last);
  table.removeAll(table.within(2 * PAGE, 5 * PAGE));
  t.deepEqual(pagesOf([...table]), [
    [-3, 1],
    [1, 1],
    [9, 1],
  ]);
  t.is(table.at(5 * PAGE), undefined);
  t.is(table.at(9 * PAGE)?.address, 9 * PAGE);
  table.removeAll([]);
  table.removeAll(table.within(0, 2 ** 64));
  t.is(table.length, 0);
  t.is(table.at(PAGE), undefined);
  table.insert({ address: PAGE, size: PAGE });
  t.is(table.at(PAGE)?.size, PAGE);
});
