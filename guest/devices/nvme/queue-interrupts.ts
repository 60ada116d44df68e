/** Interrupts of completion queues: one for all entries of a turn (NVM Express 1.4, 7.5), none while its vector is masked. */
import type { Interrupts } from "../../device.js";
import type { CompletionQueue } from "./queues.js";

export class QueueInterrupts {
  /** INTMS and INTMC: a bit for each of the first 32 vectors. */
  mask = 0;
  readonly #interrupts: Interrupts;
  /** Queues with entries that the driver was not told of. */
  readonly #due: CompletionQueue[] = [];

  constructor(interrupts: Interrupts) {
    this.#interrupts = interrupts;
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
      if (queue.vector < 32 && ((this.mask >>> queue.vector) & 1) !== 0) {
        this.#due[kept++] = queue;
        continue;
      }
      queue.interrupting = false;
      if (queue.alive) this.#interrupts.trigger(queue.vector);
    }
    this.#due.length = kept;
  }

  /** The queues are gone. */
  clear(): void {
    this.#due.length = 0;
  }
}
