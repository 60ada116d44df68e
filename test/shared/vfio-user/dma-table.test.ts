/** The table of DMA maps. */
import test from "ava";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { DmaTable } from "../../../shared/vfio-user/dma-table.js";

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
  const table = new DmaTable({ maxEntries: 2 });
  table.insert({ address: 0, size: PAGE });
  table.insert({ address: PAGE, size: PAGE });
  t.like(
    t.throws(() => table.insert({ address: 2 * PAGE, size: PAGE })),
    { errno: Errno.ENOSPC },
  );
  table.remove(0, PAGE);
  t.notThrows(() => table.insert({ address: 2 * PAGE, size: PAGE }));
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
