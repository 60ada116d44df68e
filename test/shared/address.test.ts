/** Addresses of 64 bits as numbers. */
import test from "ava";
import { dmaAddress, exactSpans, formatAddress, isAddressRange, isExact, meets, wraps } from "../../shared/address.js";

const PAGE = 4096;

test("an address from its halves, and for people", (t) => {
  for (const [low, high, address, text] of [
    [0, 0, 0, "0x0"],
    [0xffff_f000, 0, 0xffff_f000, "0xfffff000"],
    [1, 1, 2 ** 32 + 1, "0x100000001"],
    [0xffff_ffff, 0x1f_ffff, 2 ** 53 - 1, "0x1fffffffffffff"],
    [0xffff_f000, 0xffff_ffff, -PAGE, "0xfffffffffffff000"],
    [0xffff_ffff, 0xffff_ffff, -1, "0xffffffffffffffff"],
    [0, 0xffff_ffff, -(2 ** 32), "0xffffffff00000000"],
  ] as const) {
    t.is(dmaAddress(low, high), address);
    t.is(formatAddress(address), text);
  }
  t.false(Number.isSafeInteger(dmaAddress(1, 0x1000_0000)), "far from both ends");
  t.is(formatAddress(Number.NaN), "NaN");
});

test("the low bits of an address are there for `&`, in both halves", (t) => {
  for (const address of [-PAGE + 0x123, -(2 ** 40) + 0x123, 2 ** 40 + 0x123]) t.is(address & (PAGE - 1), 0x123);
});

test("what is exact, and what is a range", (t) => {
  for (const [address, size, exact, range] of [
    [0, 1, true, true],
    [0, 0, true, false],
    [2 ** 53 - PAGE - 1, PAGE, true, true],
    [2 ** 53 - PAGE, PAGE, false, false],
    [-(2 ** 53) + 2 * PAGE, PAGE, true, true],
    [-(2 ** 53), PAGE, false, false],
    [-PAGE, PAGE, true, true],
    [-PAGE, PAGE + 1, true, false],
    [2 ** 60, PAGE, false, false],
    [2 ** 64 - PAGE, PAGE, false, false],
    [0.5, 1, false, false],
    [0, -1, false, false],
    [Number.NaN, 1, false, false],
    [0, Number.NaN, false, false],
    [Number.POSITIVE_INFINITY, 1, false, false],
  ] as const) {
    t.is(isExact(address, size), exact, `${address}+${size}`);
    t.is(isAddressRange(address, size), range, `${address}+${size}`);
  }
});

test("the spans of a range in both halves", (t) => {
  const { deepEqual } = t;
  deepEqual(exactSpans(PAGE, PAGE), [{ start: PAGE, end: 2 * PAGE }]);
  deepEqual(exactSpans(-2 * PAGE, PAGE), [{ start: -2 * PAGE, end: -PAGE }]);
  deepEqual(exactSpans(0xfef0_0000, 2 ** 64 - 0xfef0_0000), [
    { start: -(2 ** 53), end: 0 },
    { start: 0xfef0_0000, end: 2 ** 53 },
  ]);
  deepEqual(exactSpans(0, 2 ** 63), [{ start: 0, end: 2 ** 53 }]);
  deepEqual(exactSpans(-(2 ** 63), 2 ** 63), [{ start: -(2 ** 53), end: 0 }]);
  deepEqual(exactSpans(2 ** 60, 2 ** 60), []);
  deepEqual(exactSpans(-(2 ** 60), 2 ** 59), []);
  const spans = exactSpans(0x10_0000, 2 ** 64 - 0x10_0000);
  t.true(meets(spans, -PAGE, PAGE));
  t.true(meets(spans, 0x10_0000 - 1, 2));
  t.false(meets(spans, 0x10_0000 - PAGE, PAGE));
  t.false(meets([], 0, PAGE));
  t.false(wraps(0, 2 ** 64));
  t.true(wraps(PAGE, 2 ** 64));
  t.true(wraps(-PAGE, 2 * PAGE));
  t.false(wraps(-PAGE, PAGE));
  t.true(wraps(-(2 ** 63), 2 ** 63 + PAGE));
});
