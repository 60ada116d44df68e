/**
 * Interrupts of completion queues (NVM Express 1.4, 7.5): one for all entries of a turn, none while its vector is
 * masked.
 *
 * A message (MSI-X, MSI) is sent once for what was posted. INTA# is a level: asserted as long as a queue whose vector
 * is not masked has entries that the driver did not take. An interrupt without an entry must not be: QEMU without KVM
 * ends one at the driver's next access to a BAR, and a driver that finds nothing makes none. (While it is asserted QEMU
 * maps no doorbells.)
 */
import type { Interrupts } from "../../../device.js";
import type { CompletionQueue } from "./queues.js";

export class QueueInterrupts {
  readonly #interrupts: Interrupts;
  readonly #queues: readonly (CompletionQueue | undefined)[];
  /** Queues with entries that the driver was not interrupted for. */
  readonly #due: CompletionQueue[] = [];
  #mask = 0;
  #asserted = false;

  /** `queues`: all completion queues there are. */
  constructor(interrupts: Interrupts, queues: readonly (CompletionQueue | undefined)[]) {
    this.#interrupts = interrupts;
    this.#queues = queues;
  }

  /** INTMS and INTMC: a bit for each of the first 32 vectors. */
  get mask(): number {
    return this.#mask;
  }

  /** Queues with entries that the driver was not interrupted for. */
  get due(): number {
    return this.#due.length;
  }

  /** What is not masked any more goes out at the next `flush`. */
  set mask(mask: number) {
    this.#mask = mask;
    if (!this.#interrupts.byPin) return;
    for (const queue of this.#queues) if (queue !== undefined && queue.used > 0) this.request(queue);
    this.acknowledge();
  }

  /** An entry was posted; false when that changes nothing. */
  request(queue: CompletionQueue): boolean {
    if (!queue.interruptsEnabled || queue.interrupting) return false;
    queue.interrupting = true;
    this.#due.push(queue);
    return true;
  }

  /** Sends what is due. */
  flush(): void {
    if (this.#due.length === 0) return;
    let kept = 0;
    for (const queue of this.#due) {
      if (this.#isMasked(queue)) {
        this.#due[kept++] = queue;
        continue;
      }
      queue.interrupting = false;
      if (queue.alive) this.#send(queue);
    }
    this.#due.length = kept;
  }

  /** The queue was deleted: its entries interrupt nobody. */
  forget(queue: CompletionQueue): void {
    const at = this.#due.indexOf(queue);
    if (at >= 0) this.#due.splice(at, 1);
    this.acknowledge();
  }

  /** A head moved, a queue was deleted or a vector masked: INTA# is deasserted when no entry is left. */
  acknowledge(): void {
    if (!this.#asserted) return;
    for (const queue of this.#queues) {
      if (queue?.interruptsEnabled && queue.used > 0 && !this.#isMasked(queue)) return;
    }
    this.#asserted = false;
    this.#interrupts.lower();
  }

  /** The queues are gone. */
  clear(): void {
    this.#due.length = 0;
    this.acknowledge();
  }

  #send(queue: CompletionQueue): void {
    if (!this.#interrupts.byPin) {
      this.#interrupts.trigger(queue.vector);
    } else if (queue.used > 0) {
      // What a driver that polls has taken meanwhile needs no interrupt.
      this.#asserted = true;
      this.#interrupts.raise(queue.vector);
    }
  }

  #isMasked({ vector }: CompletionQueue): boolean {
    return vector < 32 && ((this.#mask >>> vector) & 1) !== 0;
  }
}
