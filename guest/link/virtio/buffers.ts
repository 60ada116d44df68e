/**
 * DMA memory of the device VM's: queues with their buffers, those of the messages and those that never get one, with
 * which register memory lies; and memory for data that the bridge copies.
 */
import { KiB, LARGE_PAGE_SIZE, MAX_REGISTER_MEMORY, PAGE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import { DriverQueue, RING_ALIGNMENT, ringBytes } from "../../../shared/virtqueue/driver.js";
import type { DmaMemory, PciFunction } from "../../vfio/pci-function.js";

/** Buffers of each queue, where the device allows as many. */
const MAX_BUFFERS = 128;
/** Bytes of all buffers of a queue: more than the largest message, so that neither side needs to wait within one. */
const BUFFER_SPACE = 1536 * KiB;
const BUFFER_ALIGNMENT = 64;
const EMPTY_QUEUE_SIZE = 2;
/** So that no two parts share a cache line. */
const DATA_ALIGNMENT = 64;

/** A queue and its buffers, all of one size, in one piece of DMA memory behind the ring. */
export class Buffers {
  readonly queue: DriverQueue;
  readonly size: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly data: DataView<ArrayBuffer>;
  readonly #memory: DmaMemory;
  readonly #start: number;

  constructor(pci: PciFunction, maxQueueSize: number, eventIndex: boolean) {
    const count = 2 ** Math.floor(Math.log2(Math.max(1, Math.min(maxQueueSize, MAX_BUFFERS))));
    this.size = Math.floor(BUFFER_SPACE / count / BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT;
    const ring = Math.ceil(ringBytes(count) / BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT;
    this.#memory = pci.allocate(ring + count * this.size);
    this.#start = this.#memory.start + ring;
    this.queue = new DriverQueue(count, this.#memory, this.#memory.start, eventIndex);
    this.bytes = new Uint8Array(this.#memory.buffer);
    this.data = new DataView(this.#memory.buffer);
  }

  offset(id: number): number {
    return this.#start + id * this.size;
  }

  /** Where it is for the device. */
  address(id: number): number {
    return this.#memory.address + this.offset(id);
  }

  add(id: number, length: number, deviceWrites: boolean): void {
    this.queue.add(id, this.address(id), length, deviceWrites);
  }
}

/** Rings for `count` queues that never get a buffer, and register memory, in one piece of DMA memory. */
export class SmallMemory {
  readonly queues: readonly DriverQueue[];
  /** MAX_REGISTER_MEMORY bytes, zeros, and where they are for the device. */
  readonly registers: Uint8Array<ArrayBuffer>;
  readonly registersAddress: number;

  constructor(pci: PciFunction, count: number) {
    const stride = Math.ceil(ringBytes(EMPTY_QUEUE_SIZE) / RING_ALIGNMENT) * RING_ALIGNMENT;
    const memory = pci.allocate(MAX_REGISTER_MEMORY + count * stride);
    this.registers = new Uint8Array(memory.buffer, memory.start, MAX_REGISTER_MEMORY);
    this.registersAddress = memory.address + memory.start;
    this.queues = Array.from({ length: count }, (_, index) => {
      return new DriverQueue(EMPTY_QUEUE_SIZE, memory, memory.start + MAX_REGISTER_MEMORY + index * stride);
    });
  }
}

/**
 * Memory that the bridge can reach, for data that it copies, handed out permanently. Where there is no more of it, as
 * no huge page is left or no more may be locked, it is other memory, which works as well and costs one more copy.
 */
export class DmaBuffers {
  readonly #pci: PciFunction;
  readonly #log: Log;
  /** Where each buffer is for the bridge. */
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  /** What is handed out now: a part of a buffer, from `#used` to `#end`. */
  #buffer = new ArrayBuffer(0);
  #used = 0;
  #end = 0;
  #isOut = false;

  constructor(pci: PciFunction, log: Log) {
    this.#pci = pci;
    this.#log = log;
  }

  /**
   * `length` bytes of zeros; from a page's size on they begin at a page. Never more than 2 MiB of the bridge's reach.
   */
  allocate(length: number): Uint8Array<ArrayBuffer> {
    const alignment = length >= PAGE_SIZE ? PAGE_SIZE : DATA_ALIGNMENT;
    const start = Math.ceil(this.#used / alignment) * alignment;
    if (start + length <= this.#end) {
      this.#used = start + length;
      return new Uint8Array(this.#buffer, start, length);
    }
    if (length > LARGE_PAGE_SIZE || !this.#takePage()) return pageAligned(length);
    return this.allocate(length);
  }

  /** Where bytes are for the bridge; -1 when it does not reach them. */
  addressOf(bytes: Uint8Array): number {
    const address = this.#addresses.get(bytes.buffer);
    return address === undefined ? -1 : address + bytes.byteOffset;
  }

  #takePage(): boolean {
    if (this.#isOut) return false;
    let memory: DmaMemory;
    try {
      memory = this.#pci.allocate(LARGE_PAGE_SIZE);
    } catch (error) {
      this.#isOut = true;
      this.#log.warn(
        { reason: (error as Error).message },
        "no more memory that the bridge reaches: more is copied twice",
      );
      return false;
    }
    this.#buffer = memory.buffer;
    this.#used = memory.start;
    this.#end = memory.start + LARGE_PAGE_SIZE;
    this.#addresses.set(memory.buffer, memory.address);
    return true;
  }
}
