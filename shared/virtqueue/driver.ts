/**
 * The driver side of a split virtqueue (VIRTIO 1.2, 2.7), for buffers whose first descriptor's number is the buffer's:
 * those of one descriptor (`add`), and chains that the caller lays out (`describe`, `offer`). What is in flight is kept
 * in a private shadow; what the device writes (the used ring) is read once and checked against it, and a device that
 * breaks the rules gets a PeerGone thrown. Nothing is allocated per buffer. Where the queue stands lies in memory that
 * C++ has as well (native/device_ring.h): whoever of the two runs goes on where the other one stopped.
 *
 * The device is asked to interrupt, if at all, only for what comes when `take` has found nothing, by the event index
 * where that is negotiated and by the flags otherwise: whoever leaves used buffers in the ring is to come back by
 * itself. Left out: indirect descriptors and packed rings.
 */
import { alignUp, inBounds, isPowerOfTwo } from "../bits.js";
import { PeerGone } from "../errors.js";
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
import { passed } from "./event-index.js";

/** Where a queue stands; native/device_ring.h has the same table. */
export const DriverState = {
  NEXT_AVAILABLE: 0,
  NEXT_USED: 1,
  /** Buffers added since `publish`. */
  UNPUBLISHED: 2,
  WANTS_INTERRUPT: 3,
  /** The device was asked to interrupt for the next buffer; of a ring of zeros either way of asking says so. */
  ARMED: 4,
  /** Buffers that the device has. */
  IN_FLIGHT: 5,
  SIZE: 6,
} as const;

const INDEX = RING_INDEX_OFFSET / 2;
const FLAGS = RING_FLAGS_OFFSET / 2;
const ENTRIES = RING_ENTRIES_OFFSET / AVAILABLE_ENTRY_SIZE;
/** 2.7: the descriptor table's alignment, the strictest of the three parts'. */
export const RING_ALIGNMENT = 16;

/** Memory that the device reaches at `address` on. */
export interface RingBuffer {
  readonly buffer: ArrayBuffer;
  readonly address: number;
}

const usedRingOffset = (size: number) => alignUp(descriptorTableBytes(size) + availableRingBytes(size), 4);

/** Bytes that a queue of `size` descriptors takes: all three parts, one behind the other. */
export function ringBytes(size: number): number {
  return usedRingOffset(size) + usedRingBytes(size);
}

export class DriverQueue {
  /** Where each part is for the device. */
  readonly descriptorAddress: number;
  readonly availableAddress: number;
  readonly usedAddress: number;
  /** Bytes that the device wrote into the buffer that `take` returned last. */
  usedLength = 0;
  /** See DriverState. */
  readonly state = new Int32Array(DriverState.SIZE);
  /**
   * Length of each buffer in flight that the device may write, READ_ONLY for one that it may only read; NOT_IN_FLIGHT
   * for the others.
   */
  readonly lengths: Float64Array<ArrayBuffer>;

  readonly #descriptors: DataView<ArrayBuffer>;
  readonly #descriptor = Descriptor.view();
  readonly #available: Uint16Array<ArrayBuffer>;
  readonly #used: Uint16Array<ArrayBuffer>;
  readonly #usedEntries: DataView;
  readonly #usedEntry = UsedEntry.view();
  readonly #usedEvent: number;
  readonly #availableEvent: number;

  /**
   * The ring takes ringBytes(size) of `memory` from `offset` on, a multiple of RING_ALIGNMENT; it is filled with zeros.
   */
  constructor(
    readonly size: number,
    memory: RingBuffer,
    offset: number,
    /** VIRTIO_F_EVENT_IDX was negotiated. */
    readonly eventIndex = false,
  ) {
    if (
      !isPowerOfTwo(size) ||
      offset % RING_ALIGNMENT !== 0 ||
      !inBounds(offset, ringBytes(size), memory.buffer.byteLength)
    ) {
      throw new RangeError(`no ring of ${size} descriptors at ${offset}`);
    }
    new Uint8Array(memory.buffer, offset, ringBytes(size)).fill(0);
    const available = offset + descriptorTableBytes(size);
    const used = offset + usedRingOffset(size);
    this.descriptorAddress = memory.address + offset;
    this.availableAddress = memory.address + available;
    this.usedAddress = memory.address + used;
    this.#descriptors = new DataView(memory.buffer, offset, descriptorTableBytes(size));
    this.#available = new Uint16Array(memory.buffer, available, availableRingBytes(size) / 2);
    this.#used = new Uint16Array(memory.buffer, used, usedRingBytes(size) / 2);
    this.#usedEvent = this.#available.length - 1;
    this.#availableEvent = this.#used.length - 1;
    this.#usedEntries = new DataView(memory.buffer, used + RING_ENTRIES_OFFSET, UsedEntry.size * size);
    this.lengths = new Float64Array(size).fill(NOT_IN_FLIGHT);
    this.#begin();
  }

  /** The device was reset: the ring is as at first. */
  reset(): void {
    for (const part of [this.#descriptors, this.#available, this.#used]) {
      new Uint8Array(part.buffer, part.byteOffset, part.byteLength).fill(0);
    }
    this.lengths.fill(NOT_IN_FLIGHT);
    this.usedLength = 0;
    this.#begin();
  }

  #begin(): void {
    this.state.fill(0);
    this.state[DriverState.WANTS_INTERRUPT] = 1;
    this.state[DriverState.ARMED] = 1;
  }

  /** Buffers that the device has. */
  get inFlight(): number {
    return this.state[DriverState.IN_FLIGHT];
  }

  /** Buffers added since `publish`. */
  get unpublished(): number {
    return this.state[DriverState.UNPUBLISHED];
  }

  /** The memory of descriptor table, available and used ring. */
  get parts(): readonly [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>] {
    const bytes = ({ buffer, byteOffset, byteLength }: DataView<ArrayBuffer> | Uint16Array<ArrayBuffer>) =>
      new Uint8Array(buffer, byteOffset, byteLength);
    return [bytes(this.#descriptors), bytes(this.#available), bytes(this.#used)];
  }

  /** Puts buffer `id`, which must not be in flight, into the available ring; the device sees it after `publish`. */
  add(id: number, address: number, length: number, deviceWrites: boolean): void {
    this.describe(id, address, length, deviceWrites, -1);
    this.offer(id, deviceWrites ? length : READ_ONLY);
  }

  /** Writes descriptor `index` of a chain that is not in flight; `next` is the one that follows in the chain, or -1. */
  describe(index: number, address: number, length: number, deviceWrites: boolean, next: number): void {
    const descriptor = this.#descriptor.at(this.#descriptors, index * Descriptor.size);
    descriptor.address = address;
    descriptor.length = length;
    descriptor.flags = (deviceWrites ? DescriptorFlags.WRITE : 0) | (next < 0 ? 0 : DescriptorFlags.NEXT);
    descriptor.next = next < 0 ? 0 : next;
  }

  /**
   * Puts the chain from descriptor `id` on, of which the device may write `writable` bytes, into the available ring.
   */
  offer(id: number, writable: number): void {
    if (this.lengths[id] !== NOT_IN_FLIGHT) throw new Error(`buffer ${id} is not free`);
    this.lengths[id] = writable;
    const { state } = this;
    const next = state[DriverState.NEXT_AVAILABLE];
    this.#available[ENTRIES + (next & (this.size - 1))] = id;
    state[DriverState.NEXT_AVAILABLE] = (next + 1) & 0xffff;
    state[DriverState.UNPUBLISHED]++;
    state[DriverState.IN_FLIGHT]++;
  }

  /** Publishes all that was added. Returns whether it wants to be notified. */
  publish(): boolean {
    const count = this.state[DriverState.UNPUBLISHED];
    const next = this.state[DriverState.NEXT_AVAILABLE];
    this.state[DriverState.UNPUBLISHED] = 0;
    Atomics.store(this.#available, INDEX, next);
    if (this.eventIndex) return passed(Atomics.load(this.#used, this.#availableEvent), next, count);
    return (Atomics.load(this.#used, FLAGS) & UsedFlags.NO_NOTIFY) === 0;
  }

  /**
   * Whether the device should interrupt for what it used; a hint. Call `take` until it says -1 after switching it on.
   */
  set wantsInterrupt(wanted: boolean) {
    this.state[DriverState.WANTS_INTERRUPT] = wanted ? 1 : 0;
    if (wanted) {
      this.#arm();
      return;
    }
    this.state[DriverState.ARMED] = 0;
    // The place just passed is the one that the device gets to last.
    if (this.eventIndex) Atomics.store(this.#available, this.#usedEvent, this.state[DriverState.NEXT_USED] - 1);
    else Atomics.store(this.#available, FLAGS, AvailableFlags.NO_INTERRUPT);
  }

  /**
   * The next buffer that the device is done with, and `usedLength`; -1 when there is none: then the device will
   * interrupt for the next one, if that is wanted. @throws PeerGone
   */
  take(): number {
    let waiting = this.#waiting();
    const { state } = this;
    if (waiting === 0 && state[DriverState.WANTS_INTERRUPT] !== 0 && state[DriverState.ARMED] === 0) {
      this.#arm();
      // One that came before the device could see this brings no interrupt.
      waiting = this.#waiting();
    }
    if (waiting === 0) return -1;
    this.#disarm();
    if (waiting > state[DriverState.IN_FLIGHT]) {
      throw new PeerGone(`the device used ${waiting} buffers where it has ${state[DriverState.IN_FLIGHT]}`);
    }
    const entry = this.#usedEntry.at(
      this.#usedEntries,
      (state[DriverState.NEXT_USED] & (this.size - 1)) * UsedEntry.size,
    );
    const { id, length } = entry;
    const expected = id < this.size ? this.lengths[id] : NOT_IN_FLIGHT;
    if (expected === NOT_IN_FLIGHT) throw new PeerGone(`the device used buffer ${id}, which it does not have`);
    if (expected !== READ_ONLY && length > expected) {
      throw new PeerGone(`the device wrote ${length} bytes into a buffer of ${expected}`);
    }
    this.usedLength = expected === READ_ONLY ? 0 : length;
    this.lengths[id] = NOT_IN_FLIGHT;
    state[DriverState.NEXT_USED] = (state[DriverState.NEXT_USED] + 1) & 0xffff;
    state[DriverState.IN_FLIGHT]--;
    return id;
  }

  /** The device has done nothing that was not taken. Unlike `take`, this asks for no interrupt. */
  get isIdle(): boolean {
    return this.#waiting() === 0;
  }

  #waiting(): number {
    return (Atomics.load(this.#used, INDEX) - this.state[DriverState.NEXT_USED]) & 0xffff;
  }

  #arm(): void {
    this.state[DriverState.ARMED] = 1;
    if (this.eventIndex) Atomics.store(this.#available, this.#usedEvent, this.state[DriverState.NEXT_USED]);
    else Atomics.store(this.#available, FLAGS, 0);
  }

  /** An event index that the device has passed needs nothing. */
  #disarm(): void {
    if (this.state[DriverState.ARMED] === 0) return;
    this.state[DriverState.ARMED] = 0;
    if (!this.eventIndex) Atomics.store(this.#available, FLAGS, AvailableFlags.NO_INTERRUPT);
  }
}

const NOT_IN_FLIGHT = -2;
const READ_ONLY = -1;
