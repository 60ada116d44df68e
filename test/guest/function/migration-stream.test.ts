/** The stream of a migration: what is put in comes out, and nothing that was not put in whole. */
import test from "ava";
import {
  encodeHeader,
  encodePiece,
  encodeState,
  parseStream,
  StreamBuffer,
} from "../../../guest/function/migration-stream.js";

const STATE = {
  config: Uint8Array.of(1, 2),
  msix: Uint8Array.of(3),
  interrupts: Uint8Array.of(4, 5, 6),
  registers: new Uint8Array(0),
  shared: Uint8Array.of(8, 9),
  device: Uint8Array.of(7),
};
const HEADER = "76 76 75 6d 01 00 00 00";
const hex = (text: string) => Buffer.from(text.replaceAll(/\s/g, ""), "hex");
const CONFIG = "02 00 00 00 02 00 00 00 01 02";
const MSIX = "03 00 00 00 01 00 00 00 03";
const INTERRUPTS = "04 00 00 00 03 00 00 00 04 05 06";
const REGISTERS = "05 00 00 00 00 00 00 00";
const SHARED = "06 00 00 00 02 00 00 00 08 09";
const DEVICE = "07 00 00 00 01 00 00 00 07";
const END = "08 00 00 00 00 00 00 00";
const PIECE = "01 00 00 00 02 00 00 00 aa bb";
const whole = (...parts: string[]) => hex([HEADER, ...parts].join(""));

test("byte for byte, and read back", (t) => {
  const pieces = [Uint8Array.of(0xaa, 0xbb), new Uint8Array(0)];
  const stream = Buffer.concat([encodeHeader(), ...pieces.flatMap(encodePiece), ...encodeState(STATE)]);
  t.is(
    stream.toString("hex"),
    whole(PIECE, "01 00 00 00 00 00 00 00", CONFIG, MSIX, INTERRUPTS, REGISTERS, SHARED, DEVICE, END).toString("hex"),
  );
  const parsed = parseStream(new Uint8Array(stream));
  t.deepEqual(parsed, { ...STATE, pieces });
  t.is(parseStream(whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, END)).msix, undefined);
});

test("a stream that is cut off anywhere is refused", (t) => {
  const stream = whole(PIECE, CONFIG, MSIX, INTERRUPTS, REGISTERS, SHARED, DEVICE, END);
  for (let length = 0; length < stream.length; length++) {
    t.throws(() => parseStream(stream.subarray(0, length)), { instanceOf: RangeError }, `${length} bytes`);
  }
  t.notThrows(() => parseStream(stream));
});

const BAD: readonly [string, Buffer][] = [
  ["another magic", hex(`76767500 01000000${CONFIG}${INTERRUPTS}${REGISTERS}${SHARED}${DEVICE}${END}`)],
  ["another version", hex(`7676756d 02000000${CONFIG}${INTERRUPTS}${REGISTERS}${SHARED}${DEVICE}${END}`)],
  ["something behind the end", whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, END, "00")],
  ["an end that is not empty", whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, "08 00 00 00 01 00 00 00 00")],
  ["no config space", whole(INTERRUPTS, REGISTERS, SHARED, DEVICE, END)],
  ["no interrupts", whole(CONFIG, REGISTERS, SHARED, DEVICE, END)],
  ["no registers", whole(CONFIG, INTERRUPTS, SHARED, DEVICE, END)],
  ["no shared parts", whole(CONFIG, INTERRUPTS, REGISTERS, DEVICE, END)],
  ["no device", whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, END)],
  ["config space twice", whole(CONFIG, CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, END)],
  ["another order", whole(INTERRUPTS, CONFIG, DEVICE, END)],
  ["a piece that comes late", whole(CONFIG, PIECE, INTERRUPTS, REGISTERS, SHARED, DEVICE, END)],
  ["section 0", whole("00 00 00 00 00 00 00 00", CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, END)],
  ["section 9", whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, DEVICE, "09 00 00 00 00 00 00 00", END)],
  ["a section of 2^32-1 bytes", whole(CONFIG, INTERRUPTS, REGISTERS, SHARED, "07 00 00 00 ff ff ff ff 07", END)],
];

for (const [name, stream] of BAD) {
  test(`refused: ${name}`, (t) => {
    t.throws(() => parseStream(stream), { instanceOf: RangeError });
  });
}

test("the buffer gives what was put in, in order, up to its limit", (t) => {
  const buffer = new StreamBuffer(10_000);
  const bytes = Uint8Array.from({ length: 10_000 }, (_, n) => n * 7);
  for (let at = 0; at < bytes.length; at += 1000) buffer.push(bytes.subarray(at, at + 1000));
  t.is(buffer.length, 10_000);
  const first = buffer.take(4097);
  t.deepEqual(first, bytes.slice(0, 4097));
  t.throws(() => buffer.push(Uint8Array.of(1)), { instanceOf: RangeError }, "what was taken counts");
  t.deepEqual(buffer.take(99_999), bytes.slice(4097));
  t.is(buffer.take(1).length, 0);
  buffer.clear();
  buffer.push(Uint8Array.of(9));
  t.deepEqual([...buffer.take(5)], [9]);
  t.is(first[0], 0, "what was taken is a copy");
});
