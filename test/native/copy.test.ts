/**
 * Lists of copies: order, what is out of bounds, buffers that nothing else keeps; files, and what goes wrong with them.
 */
import { ftruncateSync, writeSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import test from "ava";
import {
  COPY_ENTRY,
  type CopyList,
  close,
  createCopyList,
  createMemory,
  PROT_READ,
  PROT_WRITE,
  Reservation,
  RWF_NOWAIT,
} from "../../native/index.js";

function put(list: CopyList, index: number, ...entry: number[]): void {
  list.entries.set(entry, index * COPY_ENTRY.SIZE);
}

test("copies in the order of the list, between any of its buffers", (t) => {
  const list = createCopyList(4);
  const [a, b] = [new Uint8Array(16), new Uint8Array(16)];
  a.set([1, 2, 3, 4, 5, 6, 7, 8]);
  t.is(list.add(a.buffer), 0);
  t.is(list.add(b.buffer), 1);
  put(list, 0, 0, 0, 1, 8, 8);
  put(list, 1, 1, 9, 0, 0, 2);
  list.run(2);
  t.deepEqual([...b], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
  t.deepEqual([...a.subarray(0, 4)], [2, 3, 3, 4]);
  list.run(0);
  put(list, 0, 1, 8, 1, 9, 4);
  list.run(1);
  t.deepEqual([...b.subarray(8)], [1, 1, 2, 3, 4, 6, 7, 8], "within a buffer the parts may overlap");
});

test("what is not within its buffers is refused, and those before it are done", (t) => {
  const list = createCopyList(2);
  const bytes = new Uint8Array(16).fill(7, 0, 8);
  list.add(bytes.buffer);
  for (const wrong of [
    [1, 0, 0, 0, 1],
    [0, 0, 1, 0, 1],
    [0xffff_ffff, 0, 0, 0, 1],
    [0, 16, 0, 0, 1],
    [0, 0, 0, 9, 8],
    [0, 0xffff_ffff, 0, 0, 2],
    [0, 0, 0, 0, 0xffff_ffff],
  ]) {
    bytes.fill(0, 8);
    put(list, 0, 0, 0, 0, 8, 8);
    put(list, 1, ...wrong);
    t.throws(() => list.run(2), { instanceOf: RangeError }, wrong.join());
    t.true(bytes.every((byte) => byte === 7));
  }
});

test("memory that is gone is EFAULT each time, and none of its zeros gets into a file", (t) => {
  const PAGE = 4096;
  const memory = createMemory("cut short", 4 * PAGE, false);
  const file = createMemory("file", PAGE, false);
  t.teardown(() => {
    close(memory);
    close(file);
  });
  const reserved = new Reservation(16 * PAGE, 16 * PAGE);
  t.teardown(() => reserved.release());
  reserved.map(0, 4 * PAGE, memory, 0, PROT_READ | PROT_WRITE);
  const bytes = new Uint8Array(PAGE).fill(7);
  writeSync(file, bytes);
  const list = createCopyList(5);
  const [there, own, disk] = [list.add(reserved.piece(0)), list.add(bytes.buffer), list.addFile(file, 0)];
  ftruncateSync(memory, PAGE);
  put(list, 0, there, PAGE, disk, 0, PAGE, 0);
  put(list, 1, there, PAGE, own, 0, PAGE);
  put(list, 2, own, 0, there, 2 * PAGE, PAGE);
  put(list, 3, there, PAGE, disk, 0, PAGE, 0);
  put(list, 4, disk, 0, there, 0, PAGE);
  for (let round = 0; round < 2; round++) {
    t.is(list.run(5), 4);
    t.deepEqual([...list.results], [14, 14, 14, 14, 0]);
    t.true(new Uint8Array(reserved.piece(0), 0, PAGE).every((byte) => byte === 7));
  }
});

test("between files and buffers, also above 4 GiB", (t) => {
  const fd = createMemory("copies", 2 ** 33, false);
  t.teardown(() => close(fd));
  const list = createCopyList(3);
  const bytes = Uint8Array.from({ length: 16 }, (_, n) => n);
  const buffer = list.add(bytes.buffer);
  const file = list.addFile(fd, 0);
  put(list, 0, buffer, 0, file, 0xffff_fffc, 8, 0);
  put(list, 1, file, 0, buffer, 8, 4, 1);
  put(list, 2, file, 0xffff_fffe, buffer, 12, 4, 0);
  t.is(list.run(3), 0);
  t.deepEqual([...bytes], [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 2, 3, 4, 5]);
});

test("copies that a file fails are told, and the others are done", (t) => {
  const fd = createMemory("copies", 12, false);
  const closed = createMemory("closed", 4096, false);
  close(closed);
  t.teardown(() => close(fd));
  const list = createCopyList(6);
  const bytes = new Uint8Array(16).fill(1);
  const buffer = list.add(bytes.buffer);
  const [file, gone, odd] = [list.addFile(fd, 0), list.addFile(closed, 0), list.addFile(fd, 0x4000_0000)];
  put(list, 0, file, 6, buffer, 0, 8, 0);
  put(list, 1, gone, 0, buffer, 0, 8, 0);
  put(list, 2, buffer, 0, odd, 0, 8, 0);
  put(list, 3, file, 0, file, 0, 4, 0);
  put(list, 4, file, 0, buffer, 8, 4, 0);
  put(list, 5, buffer, 0, file, 5, 8, 0);
  list.results.fill(99);
  t.is(list.run(6), 5);
  const [EIO, EBADF, EOPNOTSUPP, EINVAL, ENOSPC] = [5, 9, 95, 22, 28];
  t.deepEqual([...list.results], [EIO, EBADF, EOPNOTSUPP, EINVAL, 0, ENOSPC]);
  t.deepEqual([...bytes.subarray(8)], [0, 0, 0, 0, 1, 1, 1, 1]);
  put(list, 0, file, 0, buffer, 9, 8, 0);
  t.throws(() => list.run(1), { instanceOf: RangeError });
  for (const [wrong, flags] of [
    [-1, 0],
    [2 ** 31, 0],
    [fd, -1],
    [fd, 0.5],
  ]) {
    t.throws(() => list.addFile(wrong, flags), { instanceOf: RangeError });
  }
  t.is(typeof list.addFile(fd, RWF_NOWAIT), "number");
});

test("wrong arguments", (t) => {
  for (const capacity of [0, 65537, -1, 1.5, Number.NaN]) {
    t.throws(() => createCopyList(capacity), { instanceOf: RangeError }, `${capacity}`);
  }
  const list = createCopyList(3);
  t.is(list.entries.length, 3 * COPY_ENTRY.SIZE);
  t.throws(() => list.run(4), { instanceOf: RangeError });
  t.throws(() => Reflect.apply(list.run, undefined, []), { instanceOf: RangeError });
  t.throws(() => Reflect.apply(list.run, undefined, ["1"]), { instanceOf: RangeError });
  t.throws(() => Reflect.apply(list.add, undefined, [new Uint8Array(4)]), { instanceOf: TypeError });
  t.throws(() => Reflect.apply(list.add, undefined, []), { instanceOf: TypeError });
});

test("a list keeps its buffers, and each of its parts the list", (t) => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  const target = new Uint8Array(4096);
  const make = () => {
    const list = createCopyList(1);
    list.add(new Uint8Array(4096).fill(9).buffer);
    list.add(target.buffer);
    return { run: list.run, entries: list.entries };
  };
  const { run, entries } = make();
  for (let n = 0; n < 5; n++) gc();
  entries.set([0, 0, 1, 0, 4096]);
  run(1);
  t.true(target.every((byte) => byte === 9));
});
