/**
 * NVM Express 1.4, section 7.13: doorbells in memory. The driver writes a queue's tail or head to the shadow doorbell
 * buffer, and the register only if it passes the value that the controller left in the event index buffer. So a
 * controller that polls the one buffer hears of commands without a register access, and before it sleeps it leaves in
 * the other where it stands.
 *
 * The admin queues have doorbells as ever: Linux and others leave their words alone.
 */
import type { Dma } from "../../device.js";
import type { DoorbellWords } from "./doorbell-poll.js";
import { DOORBELL_STRIDE } from "./registers.js";
import { newSegment, Words } from "./segment.js";

export class ShadowDoorbells implements DoorbellWords {
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

  /**
   * Finds the buffers; what is below may be used until control goes back to the event loop. False: not in the window.
   */
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

  /** A new queue begins here, whatever was there before. */
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
