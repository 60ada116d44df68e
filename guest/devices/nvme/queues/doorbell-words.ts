/**
 * Doorbells in memory, read as hostile words. Shadow doorbells (NVM Express 1.4, section 7.13): the driver writes a
 * queue's tail or head to the shadow doorbell buffer, and the register only if it passes the value that the controller
 * left in the event index buffer. So a controller that polls the one buffer hears of commands without a register
 * access, and before it sleeps it leaves in the other where it stands. And shared doorbells: the registers themselves
 * (3.1.24, 3.1.25) as memory that the driver VM's VMM maps.
 */
import type { Dma } from "../../../device.js";
import { DOORBELL_STRIDE } from "../registers.js";
import { newSegment, Words } from "./segments.js";

/** Where the words are. */
export interface DoorbellWords {
  /** The first queue whose words count. */
  readonly firstQueue: 0 | 1;
  /**
   * Finds them; what is below may be used until control goes back to the event loop. False: they cannot be reached now.
   */
  locate(): boolean;
  tailOf(id: number): number;
  headOf(id: number): number;
  /** A new queue begins here, whatever was there before. */
  resetTail(id: number, tail: number): void;
  resetHead(id: number, head: number): void;
}

export class ShadowDoorbells implements DoorbellWords {
  /** The admin queues have doorbells as ever: Linux and others leave their words alone. */
  readonly firstQueue = 1;
  readonly #dma: Dma;
  readonly #doorbellAddress: number;
  readonly #eventAddress: number;
  /** Bytes of each buffer in use: both begin a page, so no map ends within them. */
  readonly #length: number;
  readonly #doorbells = new Words();
  readonly #events = new Words();
  readonly #segment = newSegment();

  /** Addresses of memory pages; `queues`: I/O queues of each kind at most. */
  constructor(dma: Dma, doorbells: number, events: number, queues: number) {
    this.#dma = dma;
    this.#doorbellAddress = doorbells;
    this.#eventAddress = events;
    this.#length = (queues + 1) * 2 * DOORBELL_STRIDE;
  }

  locate(): boolean {
    return (
      this.#find(this.#doorbellAddress, "read", this.#doorbells) &&
      this.#find(this.#doorbellAddress, "write", this.#doorbells) &&
      this.#find(this.#eventAddress, "write", this.#events)
    );
  }

  tailOf(id: number): number {
    return this.#doorbells.load(id * 2);
  }

  headOf(id: number): number {
    return this.#doorbells.load(id * 2 + 1);
  }

  resetTail(id: number, tail: number): void {
    this.#doorbells.store(id * 2, tail);
    this.askForTail(id, tail);
  }

  resetHead(id: number, head: number): void {
    this.#doorbells.store(id * 2 + 1, head);
    this.askForHead(id, head);
  }

  /**
   * The driver is to write the register when its tail passes `tail`. What it wrote before this is seen by `tailOf`
   * after it.
   */
  askForTail(id: number, tail: number): void {
    this.#events.store(id * 2, tail);
  }

  askForHead(id: number, head: number): void {
    this.#events.store(id * 2 + 1, head);
  }

  #find(address: number, access: "read" | "write", words: Words): boolean {
    if (this.#dma.locate(address, this.#length, access, this.#segment) < this.#length) return false;
    words.at(this.#segment, 0);
    return true;
  }
}

export class SharedDoorbells implements DoorbellWords {
  readonly firstQueue = 0;
  readonly #words: Int32Array;
  /** Words from one doorbell to the next. */
  readonly #stride: number;

  /** `bytes`: the doorbells' part of BAR 0; `stride`: bytes from one to the next. */
  constructor(bytes: Uint8Array<ArrayBuffer>, stride: number) {
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    this.#stride = stride / 4;
  }

  locate(): boolean {
    return true;
  }

  tailOf(id: number): number {
    return Atomics.load(this.#words, id * 2 * this.#stride) >>> 0;
  }

  headOf(id: number): number {
    return Atomics.load(this.#words, (id * 2 + 1) * this.#stride) >>> 0;
  }

  resetTail(id: number, tail: number): void {
    Atomics.store(this.#words, id * 2 * this.#stride, tail);
  }

  resetHead(id: number, head: number): void {
    Atomics.store(this.#words, (id * 2 + 1) * this.#stride, head);
  }

  /** As after a reset. */
  clear(): void {
    this.#words.fill(0);
  }
}
