/**
 * The device side of a split virtqueue against a driver that writes anything at any time: also between two reads of one
 * chain, since the memory lookup, which the queue calls for each descriptor, is where this driver strikes.
 */
import assert from "node:assert/strict";
import { inBounds } from "../../../shared/bits.js";
import {
  AVAILABLE_ENTRY_SIZE,
  Descriptor,
  DescriptorFlags,
  RING_ENTRIES_OFFSET,
  RING_INDEX_OFFSET,
} from "../../../shared/spec/virtio.js";
import { DeviceQueue, QueueBroken } from "../../../shared/virtqueue/device.js";
import type { RingMemory } from "../../../shared/virtqueue/memory.js";
import { TestRing } from "../../fakes/front-end-ring.js";
import type { Choices } from "../choices.js";
import { oddNumber, spoil } from "../mutate.js";
import { CANARY, type Context, checkCanary, type Instance } from "../target.js";

const PIECE = 0x1_0000;
const PIECES = 4;
/**
 * Guest addresses, sizes and places of what is mapped; the rest of the memory is canaries. The first crosses a piece's
 * end.
 */
const LOW = { address: 0x10_0000, offset: 0x1000, size: 0x1_7000 };
const HIGH = { address: 0x8000_0000, offset: 0x2_0000, size: 0x1_0000 };
const MAX_TRANSFER = 0x4000;
const RING_OFFSETS = [0x1000, 0x2000];

class Memory implements RingMemory {
  readonly pieceSize = PIECE;
  readonly pieces = Array.from({ length: PIECES }, () => new Uint8Array(PIECE).fill(CANARY));
  /** Called in the middle of the queue's work. */
  strike: () => void = () => {};

  constructor() {
    for (const { offset, size } of [LOW, HIGH]) {
      for (let at = offset; at < offset + size; at++) this.pieces[Math.floor(at / PIECE)][at % PIECE] = 0;
    }
  }

  locate(address: number, length: number): number {
    this.strike();
    for (const region of [LOW, HIGH]) {
      if (inBounds(address - region.address, length, region.size)) return region.offset + address - region.address;
    }
    return -1;
  }

  bytes(piece: number): Uint8Array {
    assert.ok(piece >= 0 && piece < PIECES, `piece ${piece}`);
    return this.pieces[piece];
  }

  check(): void {
    checkCanary(this.pieces[0], 0, LOW.offset, "memory in front of the first region");
    checkCanary(this.pieces[1], (LOW.offset + LOW.size) % PIECE, PIECE, "memory between the regions");
    checkCanary(this.pieces[3], 0, PIECE, "memory behind the last region");
  }
}

const isBroken = (error: unknown) => error instanceof QueueBroken;

/** @throws what is not QueueBroken */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (!isBroken(error)) throw error;
    return undefined;
  }
}

export function createTarget({ trace }: Context): Instance {
  const memory = new Memory();
  const buffer = new Uint8Array(MAX_TRANSFER);
  const queue = new DeviceQueue(memory);

  /** Descriptors as a driver writes them, one in four with a mistake. */
  function offer(random: Choices, ring: TestRing): void {
    const count = random.between(1, 4);
    const first = random.below(ring.size);
    for (let n = 0; n < count; n++) {
      const region = random.pick([LOW, HIGH]);
      const length = random.below(0x300);
      const address = region.address + random.below(region.size - length);
      const flags = (n < count - 1 ? DescriptorFlags.NEXT : 0) | (n >= count / 2 ? DescriptorFlags.WRITE : 0);
      const index = (first + n) % ring.size;
      ring.descriptor(index, address, length, flags, (index + 1) % ring.size);
    }
    if (random.chance(25)) damage(random, ring);
    ring.offer(random.chance(95) ? first : oddNumber(random, 2));
  }

  /** Rewrites something of the ring. */
  function damage(random: Choices, ring: TestRing): void {
    const bytes = new Uint8Array(ring.buffer);
    const index = random.below(ring.size);
    switch (random.below(5)) {
      case 0:
      case 1:
        spoil(random, bytes, Descriptor, ring.descriptors + index * Descriptor.size);
        break;
      case 2: {
        const entry = ring.available + RING_ENTRIES_OFFSET + index * AVAILABLE_ENTRY_SIZE;
        ring.view.setUint16(entry, oddNumber(random, 2, ring.view.getUint16(entry, true)), true);
        break;
      }
      case 3:
        ring.setUsedEvent(oddNumber(random, 2, ring.usedIndex));
        break;
      default: {
        const at = random.pick([ring.available, ring.used]) + random.pick([0, RING_INDEX_OFFSET]);
        ring.view.setUint16(at, oddNumber(random, 2, ring.view.getUint16(at, true)), true);
      }
    }
  }

  function serve(random: Choices): void {
    while (attempt(() => queue.next())) {
      const { readable, writable } = queue;
      assert.ok(Number.isSafeInteger(readable) && Number.isSafeInteger(writable));
      for (const [total, transfer] of [
        [readable, (from: number, length: number) => queue.read(from, buffer, 0, length)],
        [writable, (from: number, length: number) => queue.write(from, buffer, 0, length)],
      ] as const) {
        const from = random.below(total + 1);
        transfer(from, Math.min(total - from, MAX_TRANSFER));
        if (random.chance(10)) assert.throws(() => transfer(oddNumber(random, 4), total + 1), RangeError);
      }
      queue.complete(random.chance(90) ? writable : oddNumber(random, 4));
    }
  }

  return {
    round(random) {
      const size = random.pick([1, 2, 8, 64]);
      const ring = new TestRing(memory.pieces[0].buffer, LOW.address - LOW.offset, random.pick(RING_OFFSETS), size);
      new Uint8Array(ring.buffer, ring.descriptors, ring.end - ring.descriptors).fill(0);
      const { descriptors, available, used } = ring;
      const layout = { size, descriptors, available, used, base: 0, eventIndex: random.chance(60) };
      if (random.chance(10)) {
        const key = random.pick(["size", "descriptors", "available", "used", "base"] as const);
        layout[key] = random.chance(30)
          ? random.below(PIECE * PIECES)
          : oddNumber(random, random.pick([2, 4]), layout[key]);
        // The back-end looks parts up before: what comes is -1, or lies in a region.
        if (key !== "size" && key !== "base" && layout[key] >= LOW.offset + 0x4000) layout[key] = -1;
        if (key !== "size" && layout[key] < LOW.offset && key !== "base") layout[key] = -1;
        if (key === "size" && layout.size > 256) layout.size = 32769;
      }
      trace.note("start", JSON.stringify(layout));
      attempt(() => queue.start(layout));
      const strikes = random.chance(60) ? random.fork() : undefined;
      memory.strike = () => {
        if (strikes?.chance(15)) damage(strikes, ring);
      };
      for (let step = random.between(1, 40); step > 0; step--) {
        trace.note("offer");
        for (let n = random.below(4); n > 0; n--) offer(random, ring);
        serve(random);
        attempt(() => queue.waiting());
        queue.shouldCall();
        assert.equal(layout.eventIndex && queue.shouldCall(), false, "an interrupt for nothing");
        if (random.chance(5) || !queue.running) {
          const base = queue.stop();
          attempt(() => queue.start({ ...layout, base: random.chance(80) ? base : oddNumber(random, 2) }));
        }
      }
      queue.stop();
      memory.strike = () => {};
      memory.check();
    },
    probe() {
      const ring = new TestRing(memory.pieces[0].buffer, LOW.address - LOW.offset, RING_OFFSETS[0], 8);
      new Uint8Array(ring.buffer, ring.descriptors, ring.end - ring.descriptors).fill(0);
      queue.start({ ...ring, base: 0 });
      memory.pieces[0].fill(0x11, 0x8000, 0x8064);
      ring.add(
        0,
        { address: LOW.address - LOW.offset + 0x8000, length: 100 },
        { address: HIGH.address, length: 100, writable: true },
      );
      assert.ok(queue.next());
      assert.deepEqual([queue.readable, queue.writable], [100, 100]);
      queue.read(0, buffer, 0, 100);
      queue.write(0, buffer, 0, 100);
      queue.complete(100);
      assert.deepEqual(ring.take(), { id: 0, length: 100 });
      assert.ok(memory.pieces[2].subarray(0, 100).every((byte) => byte === 0x11));
      queue.stop();
    },
    close() {},
  };
}
