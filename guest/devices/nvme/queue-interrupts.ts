/**
 * Interrupts of completion queues (NVM Express 1.4, 7.5): one for all entries of a turn, none while its vector is masked.
 *
 * A message (MSI-X, MSI) is sent once for what was posted. INTA# is a level: asserted as long as a queue whose vector is not
 * masked has entries that the driver did not take. Where heads are memory that is looked at now and then, the level would stay
 * asserted long after the driver took the last entry; there INTA# is asserted for each posting and the driver VM's VMM ends it.
 */
import type { Interrupts } from "../../device.js";
import type { CompletionQueue } from "./queues.js";

export class QueueInterrupts {
  readonly #interrupts: Interrupts;
  readonly #queues: readonly (CompletionQueue | undefined)[];
  readonly #followsHeads: boolean;
  /** Queues with entries that the driver was not told of. */
  readonly #due: CompletionQueue[] = [];
  #mask = 0;
  #asserted = false;

  /** `queues`: all completion queues there are. `followsHeads`: each head doorbell is heard of when it is written. */
  constructor(interrupts: Interrupts, queues: readonly (CompletionQueue | undefined)[], followsHeads: boolean) {
    this.#interrupts = interrupts;
    this.#queues = queues;
    this.#followsHeads = followsHeads;
  }

  /** INTMS and INTMC: a bit for each of the first 32 vectors. */
  get mask(): number {
    return this.#mask;
  }

  /** Queues with entries that the driver was not told of. */
  get due(): number {
    return this.#due.length;
  }

  /** What is not masked any more goes out at the next `flush`. */
  set mask(mask: number) {
    this.#mask = mask;
    if (!this.#followsHeads || !this.#interrupts.byPin) return;
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

  /** The queue was deleted: its entries are told to nobody. */
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
    if (!this.#followsHeads || !this.#interrupts.byPin) {
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
