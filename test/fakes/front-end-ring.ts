/**
 * A split virtqueue's driver side, as plain as can be: tests put descriptors where they like, wrong ones included. The
 * buffer is a range of guest memory that starts at guest-physical address `base`.
 */
import {
  AVAILABLE_ENTRY_SIZE,
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
} from "../../shared/spec/virtio.js";
import { passed } from "../../shared/virtqueue/event-index.js";

const align = (value: number, to: number) => Math.ceil(value / to) * to;

export interface Buffer {
  address: number;
  length: number;
  writable?: boolean;
}

export class TestRing {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  /** First offset behind the ring. */
  readonly end: number;
  readonly view: DataView;
  /** The same bytes, for what the device looks at meanwhile. */
  readonly #words: Uint16Array;
  /** Chains offered since `shouldKick`. */
  #unkicked = 0;
  #nextAvailable = 0;
  #nextUsed = 0;

  /** Lays the ring out at `offset` of `buffer`, whose first byte has the guest-physical address `base`. */
  constructor(
    readonly buffer: ArrayBuffer,
    readonly base: number,
    offset: number,
    readonly size: number,
    /** VIRTIO_F_EVENT_IDX was negotiated. */
    readonly eventIndex = false,
  ) {
    this.view = new DataView(buffer);
    this.#words = new Uint16Array(buffer);
    this.descriptors = align(offset, 16);
    this.available = this.descriptors + descriptorTableBytes(size);
    this.used = align(this.available + availableRingBytes(size), 4);
    this.end = this.used + usedRingBytes(size);
  }

  /** Writes one descriptor, unchecked. */
  descriptor(index: number, address: number, length: number, flags: number, next = 0): void {
    Object.assign(Descriptor.view(this.view, this.descriptors + index * Descriptor.size), {
      address,
      length,
      flags,
      next,
    });
  }

  /** A chain of buffers in the descriptors from `index` on; makes it available. */
  add(index: number, ...buffers: Buffer[]): void {
    buffers.forEach((buffer, i) => {
      const more = i < buffers.length - 1 ? DescriptorFlags.NEXT : 0;
      const write = buffer.writable ? DescriptorFlags.WRITE : 0;
      this.descriptor(index + i, buffer.address, buffer.length, more | write, index + i + 1);
    });
    this.offer(index);
  }

  /** Makes a head available. */
  offer(head: number): void {
    const slot = this.#nextAvailable % this.size;
    this.view.setUint16(this.available + RING_ENTRIES_OFFSET + slot * AVAILABLE_ENTRY_SIZE, head, true);
    this.#nextAvailable = (this.#nextAvailable + 1) & 0xffff;
    this.#unkicked++;
    this.setAvailableIndex(this.#nextAvailable);
  }

  /** Whether the device wants to hear of what was offered since this was last asked. */
  shouldKick(): boolean {
    const count = this.#unkicked;
    this.#unkicked = 0;
    if (this.eventIndex) return passed(this.availableEvent, this.#nextAvailable, count);
    return (Atomics.load(this.#words, this.used / 2) & UsedFlags.NO_NOTIFY) === 0;
  }

  /** At which available index the device wants to be notified. */
  get availableEvent(): number {
    return Atomics.load(this.#words, (this.used + usedRingBytes(this.size)) / 2 - 1);
  }

  /** At which used index the device is to interrupt. */
  setUsedEvent(index: number): void {
    Atomics.store(this.#words, (this.available + availableRingBytes(this.size)) / 2 - 1, index);
  }

  setAvailableIndex(index: number): void {
    Atomics.store(this.#words, (this.available + RING_INDEX_OFFSET) / 2, index);
  }

  setAvailableFlags(flags: number): void {
    this.view.setUint16(this.available + RING_FLAGS_OFFSET, flags, true);
  }

  get usedIndex(): number {
    return Atomics.load(this.#words, (this.used + RING_INDEX_OFFSET) / 2);
  }

  /** The next used element, or undefined: then the device is to interrupt for the next one. */
  take(): { id: number; length: number } | undefined {
    if (this.#nextUsed === this.usedIndex) {
      if (this.eventIndex) this.setUsedEvent(this.#nextUsed);
      if (this.#nextUsed === this.usedIndex) return undefined;
    }
    const slot = this.#nextUsed % this.size;
    const entry = UsedEntry.view(this.view, this.used + RING_ENTRIES_OFFSET + slot * UsedEntry.size);
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
    return { id: entry.id, length: entry.length };
  }
}
