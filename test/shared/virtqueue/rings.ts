/** Both sides of one queue over the same memory, which two threads may share. */
import { inBounds } from "../../../shared/bits.js";
import { DeviceQueue } from "../../../shared/virtqueue/device.js";
import { DriverQueue, ringBytes } from "../../../shared/virtqueue/driver.js";
import type { RingMemory } from "../../../shared/virtqueue/memory.js";

const ADDRESS = 0x1_0000;
const PIECE_SIZE = 0x1_0000;

/** One piece of memory at ADDRESS. */
class Memory implements RingMemory {
  readonly pieceSize = PIECE_SIZE;
  readonly #bytes: Uint8Array;
  constructor(buffer: ArrayBuffer) {
    this.#bytes = new Uint8Array(buffer);
  }
  locate(address: number, length: number): number {
    return inBounds(address - ADDRESS, length, PIECE_SIZE) ? address - ADDRESS : -1;
  }
  bytes(): Uint8Array {
    return this.#bytes;
  }
}

export const makeMemory = () => new ArrayBuffer(PIECE_SIZE);

/** TypeScript tells the two kinds of buffers apart; the queues, whose views are made with either, do not. */
export const makeSharedMemory = () => new SharedArrayBuffer(PIECE_SIZE) as unknown as ArrayBuffer;

/** The ring is at the memory's start: making it fills it with zeros. */
export function makeDriver(buffer: ArrayBuffer, size: number, eventIndex: boolean): DriverQueue {
  return new DriverQueue(size, { buffer, address: ADDRESS }, 0, eventIndex);
}

export const layoutOf = ({ size, descriptorAddress, availableAddress, usedAddress, eventIndex }: DriverQueue) => ({
  size,
  descriptors: descriptorAddress - ADDRESS,
  available: availableAddress - ADDRESS,
  used: usedAddress - ADDRESS,
  base: 0,
  eventIndex,
});

export function makeDevice(buffer: ArrayBuffer, layout: ReturnType<typeof layoutOf>): DeviceQueue {
  const queue = new DeviceQueue(new Memory(buffer));
  queue.start(layout);
  return queue;
}

/** Where buffers may be, behind the ring. */
export const bufferAddress = (queue: DriverQueue, id: number) => ADDRESS + ringBytes(queue.size) + 16 + id;
