import test from "ava";
import { inBounds } from "../../../shared/bits.js";
import { DescriptorFlags } from "../../../shared/spec/virtio.js";
import { DeviceQueue, QueueBroken } from "../../../shared/virtqueue/device.js";
import type { RingMemory } from "../../../shared/virtqueue/memory.js";
import { TestRing } from "../../fakes/front-end-ring.js";

const BASE = 0x10_0000;
const PIECE = 0x1_0000;
const DATA = 0x8000;

/** Two pieces of memory, so that buffers can cross from one to the other. */
class TwoPieces implements RingMemory {
  readonly pieceSize = PIECE;
  readonly pieces = [new ArrayBuffer(PIECE), new ArrayBuffer(PIECE)];
  locate(address: number, length: number): number {
    return inBounds(address - BASE, length, 2 * PIECE) ? address - BASE : -1;
  }
  bytes(piece: number): Uint8Array {
    return new Uint8Array(this.pieces[piece]);
  }
}

function setUp(size = 8, base = 0) {
  const memory = new TwoPieces();
  const ring = new TestRing(memory.pieces[0], BASE, 0x100, size);
  const queue = new DeviceQueue(memory);
  queue.start({ size, descriptors: ring.descriptors, available: ring.available, used: ring.used, base });
  return { memory, ring, queue };
}

const fill = (bytes: Uint8Array, at: number, length: number) => {
  for (let i = 0; i < length; i++) bytes[at + i] = (i * 7 + 1) & 0xff;
};
const pattern = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7 + 1) & 0xff);

test("a chain's readable bytes are gathered and its writable ones scattered", (t) => {
  const { memory, ring, queue } = setUp();
  fill(memory.bytes(0), DATA, 300);
  ring.add(
    0,
    { address: BASE + DATA, length: 100 },
    { address: BASE + DATA + 100, length: 0 },
    { address: BASE + DATA + 100, length: 200 },
    { address: BASE + 0x9000, length: 10, writable: true },
    { address: BASE + 0x9100, length: 190, writable: true },
  );
  t.true(queue.next());
  t.is(queue.readable, 300);
  t.is(queue.writable, 200);
  const got = new Uint8Array(300);
  queue.read(0, got, 0, 300);
  t.deepEqual(got, pattern(300));
  const part = new Uint8Array(20);
  queue.read(95, part, 5, 10);
  t.deepEqual(part.subarray(5, 15), pattern(300).subarray(95, 105));
  queue.write(0, pattern(200), 0, 200);
  queue.complete(200);
  t.deepEqual(memory.bytes(0).slice(0x9000, 0x900a), pattern(200).slice(0, 10));
  t.deepEqual(memory.bytes(0).slice(0x9100, 0x9100 + 190), pattern(200).slice(10));
  t.deepEqual(ring.take(), { id: 0, length: 200 });
  t.false(queue.next());
});

test("a buffer across the end of a memory piece is copied whole", (t) => {
  const { memory, ring, queue } = setUp();
  const address = BASE + PIECE - 70;
  ring.add(0, { address, length: 140, writable: true });
  t.true(queue.next());
  queue.write(0, pattern(140), 0, 140);
  queue.complete(140);
  t.deepEqual(memory.bytes(0).slice(PIECE - 70), pattern(140).slice(0, 70));
  t.deepEqual(memory.bytes(1).slice(0, 70), pattern(140).slice(70));
  ring.add(0, { address, length: 140 });
  t.true(queue.next());
  const got = new Uint8Array(140);
  queue.read(0, got, 0, 140);
  t.deepEqual(got, pattern(140));
});

test("the indices wrap at 65536 and a restart goes on where the stop left off", (t) => {
  const { ring, queue, memory } = setUp(4, 0xfffe);
  ring.setAvailableIndex(0xfffe);
  const layout = { size: 4, descriptors: ring.descriptors, available: ring.available, used: ring.used };
  ring.descriptor(3, BASE + DATA, 16, 0);
  for (let slot = 0; slot < 4; slot++) new DataView(memory.pieces[0]).setUint16(ring.available + 4 + slot * 2, 3, true);
  ring.setAvailableIndex(1);
  t.is(queue.waiting(), 3);
  for (let i = 0; i < 3; i++) {
    t.true(queue.next());
    if (i < 2) queue.complete(i);
  }
  t.is(queue.stop(), 0, "the chain under way was not taken");
  t.false(queue.running);
  t.is(queue.waiting(), 0);
  queue.start({ ...layout, base: 0 });
  t.is(queue.waiting(), 1);
  t.is(ring.usedIndex, 2);
});

test("chains that are detached end later, in any order, unless the ring has stopped", (t) => {
  const { memory, ring, queue } = setUp();
  ring.add(0, { address: BASE + DATA, length: 5, writable: true });
  ring.add(2, { address: BASE + PIECE - 4, length: 10 }, { address: BASE + DATA, length: 7, writable: true });
  ring.add(5, { address: BASE + DATA, length: 5 });
  t.throws(() => queue.detach(), { message: /no chain/ });
  t.true(queue.next());
  const first = queue.detach();
  t.true(queue.next());
  const { chain } = queue;
  chain.seek(false, 1);
  t.deepEqual([chain.next(9), chain.offset, chain.bytes.buffer], [3, PIECE - 3, memory.pieces[0]]);
  t.deepEqual([chain.next(6), chain.offset, chain.bytes.buffer], [6, 0, memory.pieces[1]]);
  chain.seek(true, 2);
  t.deepEqual([chain.next(100), chain.offset], [5, DATA + 2]);
  const second = queue.detach();
  t.true(queue.next());
  queue.complete(0);
  queue.completeLater(second, 7);
  t.deepEqual([ring.take(), ring.take(), ring.take()], [{ id: 5, length: 0 }, { id: 2, length: 7 }, undefined]);
  t.is(queue.stop(), 3);
  queue.completeLater(first, 5);
  t.is(ring.take(), undefined);
});

test("interrupts are suppressed when the driver says so", (t) => {
  const { ring, queue } = setUp();
  t.true(queue.shouldCall());
  ring.setAvailableFlags(1);
  t.false(queue.shouldCall());
});

test("reads and writes outside the chain are refused", (t) => {
  const { ring, queue } = setUp();
  ring.add(0, { address: BASE + DATA, length: 16 }, { address: BASE + DATA, length: 16, writable: true });
  t.true(queue.next());
  const bytes = new Uint8Array(64);
  t.throws(() => queue.read(0, bytes, 0, 17), { instanceOf: RangeError });
  t.throws(() => queue.read(16, bytes, 0, 1), { instanceOf: RangeError });
  t.throws(() => queue.read(0, bytes, 60, 8), { instanceOf: RangeError });
  t.throws(() => queue.write(1, bytes, 0, 16), { instanceOf: RangeError });
  t.throws(() => queue.write(0, bytes, 64, 1), { instanceOf: RangeError });
});

const { NEXT, WRITE, INDIRECT } = DescriptorFlags;
const hostile: Record<string, [RegExp, (ring: TestRing) => void]> = {
  "a loop": [
    /loop/,
    (ring) => {
      ring.descriptor(0, BASE, 16, NEXT, 1);
      ring.descriptor(1, BASE, 16, NEXT, 0);
      ring.offer(0);
    },
  ],
  "a head outside the table": [/descriptor 8 is outside/, (ring) => ring.offer(8)],
  "a next index outside the table": [
    /descriptor 65535 is outside/,
    (ring) => {
      ring.descriptor(0, BASE, 16, NEXT, 0xffff);
      ring.offer(0);
    },
  ],
  "an address outside memory": [/not in mapped memory/, (ring) => ring.add(0, { address: 0x1000, length: 16 })],
  "a length past the region's end": [
    /not in mapped memory/,
    (ring) => ring.add(0, { address: BASE + 2 * PIECE - 8, length: 9 }),
  ],
  "a huge length": [/not in mapped memory/, (ring) => ring.add(0, { address: BASE, length: 0xffffffff })],
  "an address above 2^53": [
    /not in mapped memory/,
    (ring) => {
      ring.descriptor(0, 0, 16, 0);
      ring.view.setUint32(ring.descriptors + 4, 0xffffffff, true);
      ring.offer(0);
    },
  ],
  "an indirect descriptor": [
    /indirect/,
    (ring) => {
      ring.descriptor(0, BASE, 16, INDIRECT);
      ring.offer(0);
    },
  ],
  "a readable buffer behind a writable one": [
    /readable descriptor follows/,
    (ring) => {
      ring.descriptor(0, BASE, 16, NEXT | WRITE, 1);
      ring.descriptor(1, BASE, 16, 0);
      ring.offer(0);
    },
  ],
  "an available index that jumps": [/9 ahead in a queue of 8/, (ring) => ring.setAvailableIndex(9)],
  "an available index that goes back": [/65535 ahead/, (ring) => ring.setAvailableIndex(0xffff)],
};
for (const [name, [message, act]] of Object.entries(hostile)) {
  test(`${name} breaks the queue and nothing else`, (t) => {
    const { ring, queue } = setUp();
    act(ring);
    t.throws(() => queue.next(), { instanceOf: QueueBroken, message });
    t.false(queue.running);
    t.false(queue.next(), "it stays stopped");
    t.is(ring.usedIndex, 0);
  });
}

test("layouts that VIRTIO does not allow are refused", (t) => {
  const { ring, queue } = setUp();
  const good = { size: 8, descriptors: ring.descriptors, available: ring.available, used: ring.used, base: 0 };
  const refuse = (change: Partial<typeof good>, message: RegExp) =>
    t.throws(() => queue.start({ ...good, ...change }), { instanceOf: QueueBroken, message });
  refuse({ size: 0 }, /0 descriptors/);
  refuse({ size: 6 }, /6 descriptors/);
  refuse({ size: 65536 }, /65536 descriptors/);
  refuse({ descriptors: -1 }, /descriptor table is not in mapped/);
  refuse({ used: -1 }, /used ring is not in mapped/);
  refuse({ descriptors: 8 }, /not aligned to 16/);
  refuse({ available: 0x201 }, /not aligned to 2/);
  refuse({ used: 0x202 }, /not aligned to 4/);
  refuse({ available: PIECE - 8 }, /crosses/);
  queue.start(good);
  t.true(queue.running);
});

test("notifications are asked for when nothing is left; a queue that is stopped asks for nothing", (t) => {
  const { ring, queue } = setUp();
  const flags = () => ring.view.getUint16(ring.used, true);
  ring.add(0, { address: BASE + DATA, length: 16 });
  t.is(flags(), 0);
  t.true(queue.next());
  queue.complete(0);
  t.is(flags(), 1);
  t.false(queue.next());
  t.is(flags(), 0);
  ring.add(0, { address: BASE + DATA, length: 16 });
  t.true(queue.next());
  queue.stop();
  t.false(queue.next());
  t.is(flags(), 1);
});
