import test from "ava";
import { struct } from "../../../shared/struct/struct.js";

const Example = struct({ data: "u8", pad: 1, offset: "u16", size: "u32", address: "u64", bits: "u64big" });

test("fields called offset and data are fields, wherever the view rests", (t) => {
  const bytes = new Uint8Array(4 + Example.size);
  const view = Example.view(new DataView(bytes.buffer), 4);
  view.data = 0x12;
  view.offset = 0x3456;
  view.size = 0xfedcba98;
  view.address = 2 ** 53 - 1;
  view.bits = 0x8000_0000_0000_0001n;
  t.is(Buffer.from(bytes).toString("hex"), "000000001200563498badcfeffffffffffff1f000100000000000080");
  t.is(view.data, 0x12);
  t.is(view.offset, 0x3456);
  t.is(view.size, 0xfedcba98);
  t.is(view.address, 2 ** 53 - 1);
  t.is(view.bits, 0x8000_0000_0000_0001n);
  t.is(view.at(new DataView(new ArrayBuffer(Example.size))).offset, 0);
});

test("encode sets what is given and leaves zeros", (t) => {
  t.deepEqual([...Example.encode({ offset: 0x0102 })].slice(0, 8), [0, 0, 2, 1, 0, 0, 0, 0]);
});

test("a number that is not exact is refused by a 64-bit field", (t) => {
  const view = Example.view();
  for (const value of [-1, 2 ** 53 + 2, 2 ** 64, 0.5, Number.NaN, Number.POSITIVE_INFINITY])
    t.throws(() => (view.address = value), { instanceOf: RangeError });
});

test("a 64-bit field above 2^53-1 reads as no safe integer", (t) => {
  const view = Example.view();
  view.bits = 0n;
  const data = new DataView(new Uint8Array(Example.size).fill(0xff).buffer);
  t.false(Number.isSafeInteger(view.at(data).address));
});

const Addresses = struct({ address: "i64", size: "u64" });

for (const [hex, address, size] of [
  ["0000000000000000" + "0000000000000000", 0, 0],
  ["ffffffffffff1f00" + "ffffffffffff1f00", 2 ** 53 - 1, 2 ** 53 - 1],
  ["ffffffffffffffff" + "00f0ffffffffffff", -1, 2 ** 64 - 4096],
  ["0000f0fe00000000" + "00001001ffffffff", 0xfef0_0000, 2 ** 64 - 0xfef0_0000],
  ["010000000000e0ff" + "0010000000000080", -(2 ** 53) + 1, 2 ** 63 + 4096],
  ["0000000000000080" + "0000000000000080", -(2 ** 63), 2 ** 63],
] as const) {
  test(`addresses are two's complement, and pages exact up to 2^64: ${hex}`, (t) => {
    t.is(Buffer.from(Addresses.encode({ address, size })).toString("hex"), hex);
    const view = Addresses.view(new DataView(Uint8Array.from(Buffer.from(hex, "hex")).buffer));
    t.is(view.address, address);
    t.is(view.size, size);
  });
}

test("an address that is not exact is refused by its field, and read as no safe integer", (t) => {
  const view = Addresses.view();
  for (const value of [2 ** 53 + 2, -(2 ** 53) - 2, 2 ** 63, -(2 ** 63) - 4096, 0.5, Number.NaN])
    t.throws(() => (view.address = value), { instanceOf: RangeError }, `${value}`);
  for (const value of [2n ** 53n, 2n ** 60n + 1n, 2n ** 64n - 2n ** 53n]) {
    const data = new DataView(new ArrayBuffer(Addresses.size));
    data.setBigUint64(0, value, true);
    t.false(Number.isSafeInteger(view.at(data).address), `${value}`);
  }
});
