import test from "ava";
import { bytesAsRegisters, RegisterFile } from "../../../guest/pci/registers.js";

const table = () => {
  const calls: unknown[][] = [];
  const onRead = () => {
    calls.push(["read"]);
    return 0xfedcba98;
  };
  const file = new RegisterFile(0x20, {
    capabilities: { offset: 0x00, size: 4, reset: 0x11223344 },
    control: { offset: 0x04, size: 4, reset: 0x80000001, writable: 0x00ffff00 },
    status: { offset: 0x08, size: 2, reset: 0xf00f, writeOneToClear: 0xf000, writable: 0x0001 },
    small: { offset: 0x0a, size: 1, writable: 0xff, onWrite: (...args) => calls.push(args) },
    live: { offset: 0x0c, size: 4, onRead },
    wide: { offset: 0x10, size: 4, writable: 0xffffffff, onWrite: (...args) => calls.push(args) },
  });
  return { file, calls };
};

test("reset values read back, whole and in parts", (t) => {
  const { file } = table();
  t.is(file.read(0, 4), 0x11223344);
  t.is(file.read(0, 2), 0x3344);
  t.is(file.read(2, 2), 0x1122);
  t.is(file.read(1, 1), 0x33);
  t.is(file.read(4, 4), 0x80000001);
});

test("an access over several registers puts them together, and calls each hook once", (t) => {
  const { file, calls } = table();
  t.is(file.read(0x08, 4), 0x0000f00f);
  t.is(file.read(0x02, 4), 0x00011122);
  t.is(file.read(0x0e, 4), 0xfedc);
  t.deepEqual(calls, [["read"]]);
});

test("bytes that no register covers read as zero and ignore writes", (t) => {
  const { file } = table();
  t.is(file.read(0x1c, 4), 0);
  file.write(0x1c, 4, 0xffffffff);
  t.is(file.read(0x1c, 4), 0);
  file.write(0x0b, 1, 0xff);
  t.is(file.read(0x08, 4), 0x0000f00f);
});

test("only writable bits change, only in the bytes that were written", (t) => {
  const { file } = table();
  file.write(0, 4, 0);
  t.is(file.read(0, 4), 0x11223344);
  file.write(4, 4, 0xffffffff);
  t.is(file.read(4, 4), 0x80ffff01);
  file.write(5, 1, 0);
  t.is(file.read(4, 4), 0x80ff0001);
  file.write(6, 2, 0x0012);
  t.is(file.read(4, 4), 0x80120001);
});

test("write-1-to-clear bits clear by ones, in the bytes that were written", (t) => {
  const { file } = table();
  file.write(8, 1, 0xff);
  t.is(file.get("status"), 0xf00f);
  file.write(9, 1, 0x30);
  t.is(file.get("status"), 0xc00f);
  file.write(8, 2, 0xf000);
  t.is(file.get("status"), 0x000e);
});

test("a write's hook gets the whole register, before and after", (t) => {
  const { file, calls } = table();
  file.write(0x10, 4, 0xa0b0c0d0);
  file.write(0x11, 1, 0x55);
  t.deepEqual(calls, [
    [0xa0b0c0d0, 0, 0xa0b0c0d0],
    [0xa0b055d0, 0xa0b0c0d0, 0x5500],
  ]);
});

test("a register may take another value than the one written, and its hook sees what it took", (t) => {
  const seen: number[] = [];
  const file = new RegisterFile(4, {
    level: {
      offset: 0,
      size: 4,
      writable: 0xf000000f,
      accept: (value, previous) => ((value & 0xf) > 9 ? previous : value),
      onWrite: (value) => seen.push(value),
    },
  });
  file.write(0, 4, 0xf0000009);
  file.write(0, 1, 0x0a);
  t.is(file.read(0, 4), 0xf0000009);
  t.deepEqual(seen, [0xf0000009, 0xf0000009]);
});

test("bytes as registers: a mask for each, and a hook that says which", (t) => {
  const calls: number[][] = [];
  const table = bytesAsRegisters(3, Uint8Array.of(1, 2, 0xf3), Uint8Array.of(0xff, 0x0f), (...call) =>
    calls.push(call),
  );
  const file = new RegisterFile(8, table);
  t.is(file.read(2, 4), 0xf3020100);
  file.write(2, 4, 0xaabbccdd);
  t.is(file.read(2, 4), 0xf30bcc00);
  t.deepEqual(calls, [
    [3, 0xcc],
    [4, 0x0b],
    [5, 0xf3],
  ]);
  t.deepEqual(Object.keys(table), ["0x3", "0x4", "0x5"]);
});

test("the device's own side knows no masks and no hooks", (t) => {
  const { file, calls } = table();
  file.set("capabilities", 0xffffffff);
  file.set("small", 3);
  t.is(file.read(0, 4), 0xffffffff);
  t.deepEqual(calls, []);
  file.reset();
  t.is(file.get("capabilities"), 0x11223344);
  t.is(file.get("small"), 0);
});

test("tables that contradict themselves are refused", (t) => {
  const bad = (offset: number, size: 1 | 2 | 4) =>
    new RegisterFile(8, { a: { offset: 2, size: 2 }, b: { offset, size } });
  t.throws(() => bad(3, 1), { message: /overlaps/ });
  t.throws(() => bad(0, 4), { message: /overlaps/ });
  t.throws(() => bad(5, 2), { message: /its offset must be/ });
  t.throws(() => bad(8, 1), { message: /its offset must be/ });
});
