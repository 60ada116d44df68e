/**
 * The device side of a split virtqueue (VIRTIO 1.2, 2.7), over memory that the driver can rewrite at any time.
 *
 * Ring indices go through Atomics; each field of a descriptor is read once, checked, then used. A chain may have at
 * most as many descriptors as the queue, so that a loop ends. Nothing is allocated per chain: the current chain is
 * kept in arrays of the queue's own. A ring that breaks the rules throws `QueueBroken` and stays unusable until
 * `start`.
 *
 * The driver is asked to notify only of what comes when `next` has found nothing, by the event index where that is
 * negotiated and by the flags otherwise: whoever leaves chains in the ring is to come back by itself. Left out:
 * indirect descriptors and packed rings, which are not offered.
 */
import { inBounds, isAligned, isPowerOfTwo } from "../bits.js";
import {
  AVAILABLE_ENTRY_SIZE,
  AvailableFlags,
  availableRingBytes,
  Descriptor,
  DescriptorFlags,
  descriptorTableBytes,
  RING_ENTRIES_OFFSET,
  RING_FLAGS_OFFSET,
  RING_INDEX_OFFSET,
  UsedEntry,
  UsedFlags,
  usedRingBytes,
} from "../spec/virtio.js";
import { struct } from "../struct/struct.js";
import { Chain } from "./chain.js";
import { passed } from "./event-index.js";
import { MISSING, type RingMemory } from "./memory.js";

/** The driver broke the ring; the device needs a reset. */
export class QueueBroken extends Error {
  override readonly name = "QueueBroken";
}

/**
 * Where a queue is: `size` descriptors, and the flat memory offset of each part (-1 where the address is not mapped).
 */
export interface QueueLayout {
  readonly size: number;
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  /** The available index from which to go on; undefined: behind the last chain that was given back, in their order. */
  readonly base: number | undefined;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex?: boolean;
}

/**
 * Where a ring stands, in memory that outlives the object where its owner wants that, and that C++ goes on with
 * (native/ring.h): whether it runs, the next place in both rings, whether the driver was asked to notify of the next
 * chain, and how many chains were completed since it was asked whether it wants to be interrupted. `call` is the
 * eventfd for that, or -1, and `owesCall` 1 when it wanted that and there was none: both are the queue's owner's.
 */
export const RingState = struct({
  running: "u32",
  nextAvailable: "u32",
  nextUsed: "u32",
  armed: "u32",
  uncalled: "u32",
  call: "u32",
  owesCall: "u32",
});
const RUNNING = RingState.offsets.running / 4;
const NEXT_AVAILABLE = RingState.offsets.nextAvailable / 4;
const NEXT_USED = RingState.offsets.nextUsed / 4;
const ARMED = RingState.offsets.armed / 4;
const UNCALLED = RingState.offsets.uncalled / 4;

const INDEX = RING_INDEX_OFFSET / 2;
const FLAGS = RING_FLAGS_OFFSET / 2;
const ENTRIES = RING_ENTRIES_OFFSET / AVAILABLE_ENTRY_SIZE;
/** More than any count of completions that the driver could have been signalled for: it is signalled for certain. */
const UNKNOWN = 0x1_0000;

export class DeviceQueue {
  /** The current chain. */
  readonly chain: Chain;
  /** RingState. */
  readonly state: Int32Array<ArrayBuffer>;
  #layout: QueueLayout = { size: 0, descriptors: -1, available: -1, used: -1, base: 0 };
  #size = 0;
  #descriptors: DataView = new DataView(new ArrayBuffer(0));
  readonly #descriptor = Descriptor.view();
  #available = new Uint16Array(0);
  #used = new Uint16Array(0);
  #usedEntries: DataView = this.#descriptors;
  readonly #usedEntry = UsedEntry.view();
  #eventIndex = false;
  /** Where usedIndexevent is in #available, and avail_event in #used. */
  #usedEvent = 0;
  #availableEvent = 0;
  /** The current chain: its head, or -1. */
  #head = -1;
  #isHeld = false;

  constructor(
    readonly memory: RingMemory,
    state = new Int32Array(RingState.size / 4),
  ) {
    this.chain = new Chain(memory);
    this.state = state;
  }

  get running(): boolean {
    return this.state[RUNNING] !== 0;
  }

  /** VIRTIO_F_EVENT_IDX was negotiated. */
  get eventIndex(): boolean {
    return this.#eventIndex;
  }

  /** The memory of the three parts. */
  get parts(): readonly [descriptors: Uint8Array, available: Uint8Array, used: Uint8Array] {
    const bytes = (part: ArrayBufferView) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
    return [bytes(this.#descriptors), bytes(this.#available), bytes(this.#used)];
  }

  /** It has started, and stands still for now: see `hold`. */
  get held(): boolean {
    return this.#isHeld;
  }

  /** Where the ring is, for diagnostics. */
  inspect(): object {
    const waiting = this.running ? (Atomics.load(this.#available, INDEX) - this.state[NEXT_AVAILABLE]) & 0xffff : 0;
    return {
      running: this.running,
      held: this.#isHeld,
      size: this.#size,
      available: this.state[NEXT_AVAILABLE],
      used: this.state[NEXT_USED],
      waiting,
    };
  }

  /** Bytes of the current chain that the device may read. */
  get readable(): number {
    return this.chain.readable;
  }

  /** The same, and may write. */
  get writable(): number {
    return this.chain.writable;
  }

  /** @throws QueueBroken when the layout is not one that VIRTIO allows, or not mapped */
  start(layout: QueueLayout): void {
    this.stop();
    const { size } = layout;
    if (!isPowerOfTwo(size) || size > 32768) throw new QueueBroken(`a split queue cannot have ${size} descriptors`);
    const { pieceSize } = this.memory;
    const place = (name: string, offset: number, length: number, alignment: number) => {
      if (offset < 0) throw new QueueBroken(`the ${name} is not in mapped memory`);
      if (!isAligned(offset, alignment)) throw new QueueBroken(`the ${name} is not aligned to ${alignment} bytes`);
      const start = offset % pieceSize;
      const whole = this.memory.bytes(Math.floor(offset / pieceSize));
      if (!inBounds(start, length, whole.length)) throw new QueueBroken(`the ${name} crosses a memory piece's end`);
      return [whole.buffer as ArrayBuffer, whole.byteOffset + start] as const;
    };
    const descriptors = place("descriptor table", layout.descriptors, descriptorTableBytes(size), 16);
    const available = place("available ring", layout.available, availableRingBytes(size), 2);
    const used = place("used ring", layout.used, usedRingBytes(size), 4);

    this.#descriptors = new DataView(...descriptors, descriptorTableBytes(size));
    this.#available = new Uint16Array(...available, ENTRIES + size + 1);
    this.#used = new Uint16Array(...used, usedRingBytes(size) / 2);
    this.#usedEvent = this.#available.length - 1;
    this.#availableEvent = this.#used.length - 1;
    this.#usedEntries = new DataView(used[0], used[1] + RING_ENTRIES_OFFSET, UsedEntry.size * size);
    this.#layout = layout;
    this.#size = size;
    this.chain.reserve(size);
    const usedIndex = Atomics.load(this.#used, INDEX);
    this.state[NEXT_AVAILABLE] = (layout.base ?? usedIndex) & 0xffff;
    this.state[NEXT_USED] = usedIndex;
    this.#eventIndex = layout.eventIndex === true;
    this.state[UNCALLED] = UNKNOWN;
    this.state[RUNNING] = 1;
    this.#arm();
  }

  /** Whether the parts of the running queue are where `layout` has them; the base is not compared. */
  isAt(layout: QueueLayout): boolean {
    const { descriptors, available, used } = this.#layout;
    return descriptors === layout.descriptors && available === layout.available && used === layout.used;
  }

  /** Its memory is not here for now: until `goOn` nothing is touched. No chain may be in flight. */
  hold(): void {
    if (!this.running) return;
    this.#isHeld = true;
    this.state[RUNNING] = 0;
  }

  /** Its memory is where it was. */
  goOn(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.state[RUNNING] = 1;
  }

  /** Stops, and returns the available index at which a new start is to go on. A current chain counts as not taken. */
  stop(): number {
    const base = this.#head < 0 ? this.state[NEXT_AVAILABLE] : (this.state[NEXT_AVAILABLE] - 1) & 0xffff;
    this.state[RUNNING] = 0;
    this.#isHeld = false;
    this.#head = -1;
    return base;
  }

  /** Chains that wait; 0 when stopped. @throws QueueBroken when the index jumped further than the queue is long */
  waiting(): number {
    if (!this.running) return 0;
    const count = (Atomics.load(this.#available, INDEX) - this.state[NEXT_AVAILABLE]) & 0xffff;
    if (count > this.#size) this.#break(`the available index is ${count} ahead in a queue of ${this.#size}`);
    return count;
  }

  /**
   * Takes the next chain: `readable` and `writable` tell its sizes. False when none waits: of the next one the driver
   * will notify. Also false where memory of the next one is MISSING. @throws QueueBroken
   */
  next(): boolean {
    if (this.#head >= 0) throw new Error("the previous chain was not completed");
    if (this.waiting() === 0) {
      if (this.state[ARMED] !== 0 || !this.running) return false;
      this.#arm();
      // One that came before the driver could see this is not notified of.
      if (this.waiting() === 0) return false;
    }
    this.#disarm();
    const head = this.#available[ENTRIES + (this.state[NEXT_AVAILABLE] & (this.#size - 1))];
    const { chain } = this;
    chain.clear();
    let index = head;
    for (;;) {
      if (index >= this.#size) this.#break(`descriptor ${index} is outside a queue of ${this.#size}`);
      if (chain.segments === this.#size)
        this.#break(`the chain from descriptor ${head} is longer than the queue: a loop`);
      const descriptor = this.#descriptor.at(this.#descriptors, index * Descriptor.size);
      const { address, length, flags } = descriptor;
      index = descriptor.next;
      if (flags & DescriptorFlags.INDIRECT) this.#break("an indirect descriptor, which is not negotiated");
      const offset = this.memory.locate(address, length);
      // It stays in the ring, and whoever has the queue comes back for it.
      if (offset === MISSING) return false;
      if (offset < 0) this.#break(`a buffer at 0x${address.toString(16)} of ${length} bytes is not in mapped memory`);
      if (!chain.add(offset, length, (flags & DescriptorFlags.WRITE) !== 0)) {
        this.#break("a readable descriptor follows a writable one");
      }
      if (!(flags & DescriptorFlags.NEXT)) break;
    }
    this.state[NEXT_AVAILABLE] = (this.state[NEXT_AVAILABLE] + 1) & 0xffff;
    this.#head = head;
    return true;
  }

  /** Copies from the chain's readable bytes. @throws RangeError when it has fewer */
  read(from: number, target: Uint8Array, to: number, length: number): void {
    if (!inBounds(from, length, this.readable) || !inBounds(to, length, target.length)) {
      throw new RangeError(`read of ${length} bytes at ${from} of ${this.readable}`);
    }
    this.chain.seek(false, from);
    this.chain.copyTo(target, to, length);
  }

  /** Copies into the chain's writable bytes. @throws RangeError when it has fewer */
  write(to: number, source: Uint8Array, from: number, length: number): void {
    if (!inBounds(to, length, this.writable) || !inBounds(from, length, source.length)) {
      throw new RangeError(`write of ${length} bytes at ${to} of ${this.writable}`);
    }
    this.chain.seek(true, to);
    this.chain.copyFrom(source, from, length);
  }

  /** Whether there is a current chain. */
  get hasChain(): boolean {
    return this.#head >= 0;
  }

  /** The used index that gives the current chain back. */
  get nextUsed(): number {
    return (this.state[NEXT_USED] + 1) & 0xffff;
  }

  /** Gives the chain back with the number of bytes that were written into it. */
  complete(written: number): void {
    if (this.#head < 0) throw new Error("no chain was taken");
    const entry = this.#usedEntry.at(this.#usedEntries, (this.state[NEXT_USED] & (this.#size - 1)) * UsedEntry.size);
    entry.id = this.#head;
    entry.length = written;
    this.#head = -1;
    this.state[NEXT_USED] = (this.state[NEXT_USED] + 1) & 0xffff;
    this.state[UNCALLED]++;
    Atomics.store(this.#used, INDEX, this.state[NEXT_USED]);
  }

  /**
   * The current chain is carried out later, and ended by `completeLater`. Returns its head; the next chain may be
   * taken.
   */
  detach(): number {
    const head = this.#head;
    if (head < 0) throw new Error("no chain was taken");
    this.#head = -1;
    return head;
  }

  /** Gives a chain back that was detached. Nothing happens when the ring has stopped. */
  completeLater(head: number, written: number): void {
    if (!this.running) return;
    this.#head = head;
    this.complete(written);
  }

  /** Whether the driver wants to be interrupted for what was completed since this was last asked. */
  shouldCall(): boolean {
    if (!this.running) return false;
    const count = this.state[UNCALLED];
    this.state[UNCALLED] = 0;
    if (this.#eventIndex) return passed(Atomics.load(this.#available, this.#usedEvent), this.state[NEXT_USED], count);
    return (Atomics.load(this.#available, FLAGS) & AvailableFlags.NO_INTERRUPT) === 0;
  }

  #arm(): void {
    this.state[ARMED] = 1;
    if (this.#eventIndex) Atomics.store(this.#used, this.#availableEvent, this.state[NEXT_AVAILABLE]);
    else Atomics.store(this.#used, FLAGS, 0);
  }

  /** An event index that the driver has passed needs nothing. */
  #disarm(): void {
    if (this.state[ARMED] === 0) return;
    this.state[ARMED] = 0;
    if (!this.#eventIndex) Atomics.store(this.#used, FLAGS, UsedFlags.NO_NOTIFY);
  }

  #break(why: string): never {
    this.state[RUNNING] = 0;
    this.#head = -1;
    throw new QueueBroken(why);
  }
}
