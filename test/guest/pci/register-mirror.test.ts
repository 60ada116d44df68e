/** The copy of registers in memory: what is in it, where, and that it is always what is stored. */
import test from "ava";
import { RegisterMirror } from "../../../guest/pci/register-mirror.js";
import { bytesAsRegisters, RegisterFile, type RegisterTable } from "../../../guest/pci/registers.js";
import { MAX_REGISTER_AREAS, MAX_REGISTER_MEMORY } from "../../../shared/limits.js";
import { RegisterMemoryHead } from "../../../shared/spec/link.js";

const HEAD = RegisterMemoryHead.size;
const nothing = () => false;
const computed = { onRead: () => 1 };

const file = () =>
  new RegisterFile(0x20, {
    FIRST: { offset: 0, size: 4, reset: 0x0102_0304, writable: 0xffff_ffff },
    COMPUTED: { offset: 4, size: 2, ...computed },
    WORD: { offset: 6, size: 2, writable: 0xffff, reset: 9 },
    BYTE: { offset: 9, size: 1, writeOneToClear: 0xff, reset: 0xf0 },
    SIDE: { offset: 0xc, size: 4, writable: 0xff, onWrite: (value) => registers.set("BYTE", value) },
    LAST: { offset: 0x1c, size: 4 },
  });
let registers = file();

test.serial("it is what is stored, whatever changes that", (t) => {
  registers = file();
  const buffer = new ArrayBuffer(0x40);
  registers.write(0, 4, 7);
  registers.mirror(buffer, 8);
  const isSame = () => t.deepEqual(new Uint8Array(buffer, 8, 0x20), registers.save());
  isSame();
  registers.write(0, 1, 0xee);
  registers.write(5, 4, 0xffff_ffff);
  isSame();
  registers.write(0xc, 4, 0xab);
  isSame();
  registers.set("LAST", 0xffff_ffff);
  registers.set("WORD", 0x1_2345);
  isSame();
  const image = registers.save();
  registers.reset();
  isSame();
  registers.load(image);
  isSame();
  t.deepEqual(new Uint8Array(buffer, 0, 8), new Uint8Array(8));
  t.deepEqual(new Uint8Array(buffer, 0x28), new Uint8Array(0x18));
});

test("what is computed, or hidden, has no place", (t) => {
  const { areas, size } = new RegisterMirror([
    { region: 0, file: file(), isHidden: (offset) => offset >= 0x10 && offset < 0x18 },
    { region: 7, file: new RegisterFile(12, { ONLY: { offset: 0, size: 4 } }), isHidden: nothing },
    { region: 9, file: new RegisterFile(4, { ONLY: { offset: 0, size: 4, ...computed } }), isHidden: nothing },
  ]);
  t.deepEqual(areas, [
    { region: 0, offset: 0, size: 4, place: HEAD },
    { region: 0, offset: 6, size: 10, place: HEAD + 6 },
    { region: 0, offset: 0x18, size: 8, place: HEAD + 0x18 },
    { region: 7, offset: 0, size: 12, place: HEAD + 0x20 },
  ]);
  t.is(size, HEAD + 0x20 + 12 + 4 + 4);
});

test("what finds no room is left out, and the rest is there", (t) => {
  const every: RegisterTable = Object.fromEntries(
    Array.from({ length: 100 }, (_, n) => [`R${n}`, { offset: 8 * n, size: 4, ...computed }]),
  );
  const one = bytesAsRegisters(0, Uint8Array.of(1, 2, 3, 4));
  const { areas, size } = new RegisterMirror([
    { region: 0, file: new RegisterFile(MAX_REGISTER_MEMORY, one), isHidden: nothing },
    { region: 1, file: new RegisterFile(4, one), isHidden: nothing },
    { region: 2, file: new RegisterFile(800, every), isHidden: nothing },
    { region: 3, file: new RegisterFile(4, one), isHidden: nothing },
  ]);
  t.is(areas.length, MAX_REGISTER_AREAS);
  t.deepEqual(areas[0], { region: 1, offset: 0, size: 4, place: HEAD });
  t.deepEqual([...new Set(areas.map(({ region }) => region))], [1, 2]);
  t.is(size, HEAD + 8 + 800 + 4);
});

test("the memory says when it counts", (t) => {
  const mirror = new RegisterMirror([{ region: 0, file: file(), isHidden: nothing }]);
  mirror.hold();
  mirror.writeDone();
  const memory = new Uint8Array(mirror.size);
  mirror.open(memory);
  const head = RegisterMemoryHead.view(new DataView(memory.buffer));
  t.is(head.valid, 0);
  mirror.release();
  t.is(head.valid, 1);
  mirror.writeDone();
  t.deepEqual([head.writesSent, head.writesDone], [0, 1]);
  mirror.hold();
  t.is(head.valid, 0);
});
