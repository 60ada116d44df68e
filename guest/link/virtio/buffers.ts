/**
 * Queues of the device with their buffers in DMA memory: those of the messages, and those that never get one, with
 * which register memory lies.
 */
import { KiB, MAX_REGISTER_MEMORY } from "../../../shared/limits.js";
import { DriverQueue, RING_ALIGNMENT, ringBytes } from "../../../shared/virtqueue/driver.js";
import type { DmaMemory, PciFunction } from "../../vfio/pci-function.js";

/** Buffers of each queue, where the device allows as many. */
const MAX_BUFFERS = 128;
/** Bytes of all buffers of a queue: more than the largest message, so that neither side needs to wait within one. */
const BUFFER_SPACE = 1536 * KiB;
const BUFFER_ALIGNMENT = 64;
const EMPTY_QUEUE_SIZE = 2;

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
    this.#start = Math.ceil(ringBytes(count) / BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT;
    this.#memory = pci.allocate(this.#start + count * this.size);
    this.queue = new DriverQueue(count, this.#memory, 0, eventIndex);
    this.bytes = new Uint8Array(this.#memory.buffer);
    this.data = new DataView(this.#memory.buffer);
  }

  offset(id: number): number {
    return this.#start + id * this.size;
  }

  add(id: number, length: number, deviceWrites: boolean): void {
    this.queue.add(id, this.#memory.address + this.offset(id), length, deviceWrites);
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
    this.registers = new Uint8Array(memory.buffer, 0, MAX_REGISTER_MEMORY);
    this.registersAddress = memory.address;
    this.queues = Array.from({ length: count }, (_, index) => {
      return new DriverQueue(EMPTY_QUEUE_SIZE, memory, MAX_REGISTER_MEMORY + index * stride);
    });
  }
}
