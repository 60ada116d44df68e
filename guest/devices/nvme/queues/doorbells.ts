/**
 * Doorbells (NVM Express 1.4, 3.1.24, 3.1.25): each is a word of memory, and how a driver comes to write it only
 * decides which memory that is. Trapped: the write comes as a message, and is stored here. Shared: BAR 0's doorbells
 * are memory that the driver VM's VMM maps. Shadow (7.13): of I/O queues, the driver writes to a buffer of its own,
 * and the register only if it passes the value that the controller left in the event index buffer.
 *
 * Whoever serves a queue reads its words, once each, and checks them: lanes (lanes.ts) theirs, the engine those of its
 * own queues.
 */
import type { Dma } from "../../../device.js";
import { DOORBELL_STRIDE } from "../registers.js";
import { newSegment, Words } from "./segments.js";

/** Which doorbell is whose: those of submission and completion queues take turns. */
export function tailNumber(id: number): number {
  return id * 2;
}
export function headNumber(id: number): number {
  return id * 2 + 1;
}

export class Doorbells {
  /** All words, `stride` words apart. */
  readonly words: Uint32Array;
  readonly stride: number;
  /** Nothing signals a write. */
  readonly isShared: boolean;
  shadow: ShadowDoorbells | undefined;

  /** `shared`: the doorbells' part of BAR 0, where they are shared; `stride`: bytes from one to the next. */
  constructor(queues: number, stride: number, shared: Uint8Array<ArrayBuffer> | undefined) {
    this.isShared = shared !== undefined;
    this.stride = shared === undefined ? 1 : stride / 4;
    const count = (queues + 1) * 2 * this.stride;
    this.words =
      shared === undefined
        ? new Uint32Array(count)
        : new Uint32Array(shared.buffer, shared.byteOffset, shared.length / 4);
  }

  /** Whether a doorbell's register says only that its word was written. */
  isShadowed(number: number): boolean {
    return this.shadow !== undefined && number >= 2;
  }

  /** Undefined where it cannot be reached now. */
  load(number: number): number | undefined {
    if (!this.isShadowed(number)) return Atomics.load(this.words, number * this.stride);
    return this.shadow?.locate() === true ? this.shadow.load(number) : undefined;
  }

  store(number: number, value: number): void {
    Atomics.store(this.words, number * this.stride, value);
  }

  /** A new queue begins at 0, whatever was there before. False when that cannot be said now. */
  reset(number: number): boolean {
    this.store(number, 0);
    if (this.shadow === undefined) return true;
    if (!this.shadow.locate()) return false;
    this.shadow.reset(number, 0);
    return true;
  }

  /** As after a reset. */
  clear(): void {
    this.words.fill(0);
    this.shadow = undefined;
  }
}

/** The two buffers. */
export class ShadowDoorbells {
  readonly #dma: Dma;
  /** Bytes of each buffer in use: both begin a page, so no map ends within them. */
  readonly #length: number;
  readonly #doorbells = new Words();
  readonly #events = new Words();
  readonly #segment = newSegment();

  /** Addresses of memory pages; `queues`: I/O queues of each kind at most. */
  constructor(
    dma: Dma,
    readonly doorbellAddress: number,
    readonly eventAddress: number,
    queues: number,
  ) {
    this.#dma = dma;
    this.#length = (queues + 1) * 2 * DOORBELL_STRIDE;
  }

  /** Finds them; what is below may be used until control goes back to the event loop. False: they cannot be reached. */
  locate(): boolean {
    return (
      this.#find(this.doorbellAddress, "read", this.#doorbells) &&
      this.#find(this.doorbellAddress, "write", this.#doorbells) &&
      this.#find(this.eventAddress, "write", this.#events)
    );
  }

  load(number: number): number {
    return this.#doorbells.load(number);
  }

  /** The driver goes on from this value, and is to write the register when it passes it. */
  reset(number: number, value: number): void {
    this.#doorbells.store(number, value);
    this.#events.store(number, value);
  }

  #find(address: number, access: "read" | "write", words: Words): boolean {
    if (this.#dma.locate(address, this.#length, access, this.#segment) < this.#length) return false;
    words.at(this.#segment, 0);
    return true;
  }
}
