/**
 * The device's side of a split virtqueue in driver-VM memory (VIRTIO 1.2, 2.7), with indirect descriptors and event
 * indices. Its three parts are looked at where they are, when the window has them; otherwise, with memory that is
 * reached by copies or messages, in copies of ours that `refresh` fetches and `flush` writes back.
 *
 * Everything in the rings is the driver's and may change at any moment: each value is read once, and then checked.
 */
import { dmaAddress } from "../../shared/address.js";
import { ProtocolError } from "../../shared/errors.js";
import {
  AvailableFlags,
  availableRingBytes,
  Descriptor,
  DescriptorFlags,
  descriptorTableBytes,
  RING_ENTRIES_OFFSET,
  RING_FLAGS_OFFSET,
  RING_INDEX_OFFSET,
  UsedEntry,
  usedRingBytes,
} from "../../shared/spec/virtio.js";
import { passed } from "../../shared/virtqueue/event-index.js";
import type { Dma, Segment } from "../device.js";
import { Chain } from "./chain.js";

/** Addresses are the driver VM's. */
export interface RingLayout {
  readonly size: number;
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  readonly eventIndex: boolean;
  readonly indirect: boolean;
}

/** One of a ring's parts: bytes from `offset` on, of which 16-bit words are seen whole. */
class Part {
  data: DataView = new DataView(new ArrayBuffer(0));
  offset = 0;
  #words: Uint16Array = new Uint16Array(0);
  /** A copy of ours, for memory that is not in the window. */
  readonly #copy: Uint8Array<ArrayBuffer>;
  readonly #copyData: DataView;
  readonly #segment: Segment = { bytes: new Uint8Array(0), data: this.data, offset: 0, length: 0 };
  readonly #dma: Dma;

  constructor(
    dma: Dma,
    readonly address: number,
    readonly size: number,
  ) {
    this.#dma = dma;
    this.#copy = new Uint8Array(size);
    this.#copyData = new DataView(this.#copy.buffer);
  }

  /** Finds it in the window; whether it is there. */
  locate(access: "read" | "write"): boolean {
    const segment = this.#segment;
    if (this.#dma.locate(this.address, this.size, access, segment) < this.size) return false;
    this.#rest(segment.data, segment.offset);
    return true;
  }

  async fetch(): Promise<void> {
    await this.#dma.read(this.address, this.#copy);
    this.useCopy();
  }

  useCopy(): void {
    this.#rest(this.#copyData, 0);
  }

  /** Writes bytes [from, from + length) of the copy back. */
  store(from: number, length: number): Promise<void> {
    return this.#dma.write(this.address + from, this.#copy.subarray(from, from + length));
  }

  /** A word at a multiple of two, ordered with what comes before and after. */
  load(offset: number): number {
    return Atomics.load(this.#words, (this.offset + offset) / 2);
  }

  put(offset: number, value: number): void {
    Atomics.store(this.#words, (this.offset + offset) / 2, value);
  }

  #rest(data: DataView, offset: number): void {
    this.offset = offset;
    if (data === this.data) return;
    this.data = data;
    this.#words = new Uint16Array(data.buffer, data.byteOffset, Math.floor(data.byteLength / 2));
  }
}

export class SplitRing {
  /** The next entries of the available and of the used ring, modulo 2^16. */
  nextAvailable = 0;
  nextUsed = 0;
  readonly #dma: Dma;
  readonly #layout: RingLayout;
  readonly #descriptors: Part;
  readonly #available: Part;
  readonly #used: Part;
  readonly #descriptor = Descriptor.view();
  readonly #usedEntry = UsedEntry.view();
  readonly #table: Segment = { bytes: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), offset: 0, length: 0 };
  /** Completed since `shouldInterrupt` was last asked. */
  #uncalled = 0;
  /** What is completed in our copy and not written back: from this entry on. */
  #stored = 0;
  #isOutside = false;
  /** Indirect tables of chains that wait, by their addresses: outside of the window they have to be fetched before. */
  readonly #tables = new Map<number, DataView>();

  constructor(dma: Dma, layout: RingLayout) {
    this.#dma = dma;
    this.#layout = layout;
    const { size, descriptors, available, used } = layout;
    this.#descriptors = new Part(dma, descriptors, descriptorTableBytes(size));
    this.#available = new Part(dma, available, availableRingBytes(size));
    this.#used = new Part(dma, used, usedRingBytes(size));
  }

  /** Goes on at these positions. */
  begin(nextAvailable: number, nextUsed: number): void {
    this.nextAvailable = nextAvailable;
    this.nextUsed = this.#stored = nextUsed;
  }

  /**
   * To be called before anything below, in the same turn of the event loop; undefined when it is done at once.
   * @throws DmaError, or rejects with it, when the ring is not in driver-VM memory
   */
  refresh(): Promise<void> | undefined {
    const isInside = this.#descriptors.locate("read") && this.#available.locate("read") && this.#used.locate("write");
    this.#isOutside = !isInside;
    // It is ours alone to write.
    if (!isInside) this.#used.useCopy();
    return isInside ? undefined : this.#fetch();
  }

  /** Writes back what was completed, where the ring is not in the window; undefined when there is nothing to do. */
  flush(): Promise<void> | undefined {
    return this.#isOutside && this.#stored !== this.nextUsed ? this.#store() : undefined;
  }

  /** Chains that wait. @throws ProtocolError when the index is further ahead than the queue is long */
  waiting(): number {
    const count = (this.#available.load(RING_INDEX_OFFSET) - this.nextAvailable) & 0xffff;
    if (count > this.#layout.size) {
      throw new ProtocolError(`the available index is ${count} ahead in a queue of ${this.#layout.size}`);
    }
    return count;
  }

  /** Takes the next chain. @throws ProtocolError */
  next(): Chain | undefined {
    if (this.waiting() === 0) return undefined;
    const { size } = this.#layout;
    const head = this.#headAt(this.nextAvailable);
    const chain = new Chain(this.#dma, head);
    this.#walk(chain, this.#descriptors.data, this.#descriptors.offset, size, head, this.#layout.indirect);
    this.nextAvailable = (this.nextAvailable + 1) & 0xffff;
    return chain;
  }

  /** Gives a chain back, `written` bytes long. */
  complete(head: number, written: number): void {
    const { size } = this.#layout;
    const at = this.#used.offset + RING_ENTRIES_OFFSET + (this.nextUsed & (size - 1)) * UsedEntry.size;
    const entry = this.#usedEntry.at(this.#used.data, at);
    entry.id = head;
    entry.length = written;
    this.nextUsed = (this.nextUsed + 1) & 0xffff;
    this.#uncalled++;
    this.#used.put(RING_INDEX_OFFSET, this.nextUsed);
  }

  /** Asks to be notified of the next chain; whether one came before the driver could see that. */
  arm(): boolean | Promise<boolean> {
    const { eventIndex, size } = this.#layout;
    if (!eventIndex) return this.waiting() > 0;
    const at = RING_ENTRIES_OFFSET + UsedEntry.size * size;
    this.#used.put(at, this.nextAvailable);
    return this.#isOutside ? this.#armOutside(at) : this.waiting() > 0;
  }

  async #armOutside(at: number): Promise<boolean> {
    await this.#used.store(at, 2);
    await this.#available.fetch();
    return this.waiting() > 0;
  }

  /** Whether the driver wants to hear of what was completed since this was last asked. */
  shouldInterrupt(): boolean {
    const count = this.#uncalled;
    this.#uncalled = 0;
    if (count === 0) return false;
    const { eventIndex, size } = this.#layout;
    if (!eventIndex) return (this.#available.load(RING_FLAGS_OFFSET) & AvailableFlags.NO_INTERRUPT) === 0;
    return passed(this.#available.load(RING_ENTRIES_OFFSET + 2 * size), this.nextUsed, count);
  }

  #headAt(index: number): number {
    return this.#available.load(RING_ENTRIES_OFFSET + 2 * (index & (this.#layout.size - 1)));
  }

  /**
   * Follows a chain in a table of `size` descriptors. @throws ProtocolError for a chain that 2.7.5 does not permit
   */
  #walk(chain: Chain, data: DataView, offset: number, size: number, first: number, mayBeIndirect: boolean): void {
    const { readable, writable } = chain;
    let index = first;
    for (let count = 1; ; count++) {
      if (index >= size) throw new ProtocolError(`descriptor ${index} of a table of ${size}`);
      if (count > size) throw new ProtocolError(`a chain longer than its table of ${size}: a loop`);
      const descriptor = this.#descriptor.at(data, offset + index * Descriptor.size);
      const { length, flags, next } = descriptor;
      const address = addressAt(data, offset + index * Descriptor.size);
      if (flags & DescriptorFlags.INDIRECT) {
        if (!mayBeIndirect) throw new ProtocolError("an indirect descriptor, where none may be");
        if (flags & (DescriptorFlags.NEXT | DescriptorFlags.WRITE)) {
          throw new ProtocolError(`an indirect descriptor with flags ${flags}`);
        }
        this.#walkIndirect(chain, address, length);
        return;
      }
      const isWritable = (flags & DescriptorFlags.WRITE) !== 0;
      if (!isWritable && writable.count > 0) throw new ProtocolError("a readable descriptor behind a writable one");
      if (length > 0) (isWritable ? writable : readable).add(address, length);
      if (Math.max(readable.length, writable.length) > MAX_CHAIN_LENGTH) {
        throw new ProtocolError("a chain of more than 4 GiB");
      }
      if (!(flags & DescriptorFlags.NEXT)) return;
      index = next;
    }
  }

  #walkIndirect(chain: Chain, address: number, length: number): void {
    const size = this.#tableSize(length);
    const fetched = this.#tables.get(address);
    if (fetched !== undefined && fetched.byteLength >= length) {
      this.#tables.delete(address);
      this.#walk(chain, fetched, 0, size, 0, false);
      return;
    }
    const table = this.#table;
    if (this.#dma.locate(address, length, "read", table) < length) {
      // In two pieces of the window, or gone since it was fetched.
      const copy = new Uint8Array(length);
      this.#dma.readSync(address, copy);
      this.#walk(chain, new DataView(copy.buffer), 0, size, 0, false);
      return;
    }
    this.#walk(chain, table.data, table.offset, size, 0, false);
  }

  /** Descriptors of an indirect table, which has as many as the queue at most (2.7.5.3.1). */
  #tableSize(length: number): number {
    const size = length / Descriptor.size;
    if (Number.isInteger(size) && size > 0 && size <= this.#layout.size) return size;
    throw new ProtocolError(`an indirect table of ${length} bytes`);
  }

  async #fetch(): Promise<void> {
    await this.flush();
    // The index first: what it says is there is in the entries that are fetched after it.
    await this.#available.fetch();
    await this.#descriptors.fetch();
    this.#tables.clear();
    if (!this.#layout.indirect) return;
    for (let n = 0, count = this.waiting(); n < count; n++) await this.#fetchTable(this.nextAvailable + n);
  }

  async #fetchTable(position: number): Promise<void> {
    const head = this.#headAt(position);
    if (head >= this.#layout.size) return;
    const at = this.#descriptors.offset + head * Descriptor.size;
    const { length, flags } = this.#descriptor.at(this.#descriptors.data, at);
    if (!(flags & DescriptorFlags.INDIRECT)) return;
    this.#tableSize(length);
    const address = addressAt(this.#descriptors.data, at);
    const copy = new Uint8Array(length);
    await this.#dma.read(address, copy);
    this.#tables.set(address, new DataView(copy.buffer));
  }

  /** Entries, and then the index. */
  async #store(): Promise<void> {
    const { size } = this.#layout;
    const end = this.nextUsed;
    while (this.#stored !== end) {
      const slot = this.#stored & (size - 1);
      const count = Math.min((end - this.#stored) & 0xffff, size - slot);
      await this.#used.store(RING_ENTRIES_OFFSET + slot * UsedEntry.size, count * UsedEntry.size);
      this.#stored = (this.#stored + count) & 0xffff;
    }
    await this.#used.store(RING_INDEX_OFFSET, 2);
    // What it wants to be interrupted for, as it is when it may have seen that.
    await this.#available.fetch();
  }
}

const MAX_CHAIN_LENGTH = 2 ** 32;

/** The address at the beginning of a descriptor: exact above 2^53 as well. */
const addressAt = (data: DataView, at: number) => dmaAddress(data.getUint32(at, true), data.getUint32(at + 4, true));
