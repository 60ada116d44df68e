/**
 * Completions on their way into their queues (NVM Express 1.4, section 4.6): at once where the queue is in the window,
 * otherwise by messages to the driver VM's VMM, in order. Memory of a queue that cannot be reached is fatal for the
 * controller, unless the queue is gone by then.
 */
import type { Dma } from "../../../device.js";
import { DO_NOT_RETRY, isFinal } from "../spec.js";
import type { InFlight } from "./in-flight.js";
import type { QueueInterrupts } from "./queue-interrupts.js";
import type { CompletionQueue, SubmissionQueue } from "./queues.js";
import type { Reports } from "./reports.js";

/** Why queue memory in the window cannot be reached: it reads as zeros and swallows writes. */
export const FILE_TRUNCATED = "its file was made smaller";

export class Completions {
  readonly #dma: Dma;
  readonly #inFlight: InFlight;
  readonly #reports: Reports;
  readonly #interrupts: QueueInterrupts;
  readonly #schedule: () => void;

  /** `schedule`: makes a turn happen soon. */
  constructor(dma: Dma, inFlight: InFlight, reports: Reports, interrupts: QueueInterrupts, schedule: () => void) {
    this.#dma = dma;
    this.#inFlight = inFlight;
    this.#reports = reports;
    this.#interrupts = interrupts;
    this.#schedule = schedule;
  }

  /** Posts a completion; the queue has room for it. */
  post(queue: SubmissionQueue, commandId: number, status: number, result: number): void {
    const { completionQueue } = queue;
    if (completionQueue.post(this.#dma, result, queue.id, queue.head, commandId, statusField(status))) {
      this.#interrupt(completionQueue);
    } else if (completionQueue.unwritten.length === 1) {
      void this.#writeByMessages(completionQueue);
    }
  }

  #interrupt(queue: CompletionQueue): void {
    if (this.#interrupts.request(queue)) this.#schedule();
  }

  /** Writes all `unwritten` entries; the word with the phase after the rest of its entry. Never rejects. */
  async #writeByMessages(queue: CompletionQueue): Promise<void> {
    const group = this.#inFlight.begin();
    try {
      while (queue.alive && queue.unwritten.length > 0) {
        const { address, bytes } = queue.unwritten[0];
        const last = bytes.length - 4;
        await this.#dma.write(address, bytes.subarray(0, last));
        if (!queue.alive) return;
        await this.#dma.write(address + last, bytes.subarray(last));
        queue.unwritten.shift();
        if (queue.alive) this.#interrupt(queue);
      }
    } catch (error) {
      if (queue.alive) this.#reports.fatal ??= error;
      this.#schedule();
    } finally {
      this.#inFlight.end(group);
    }
  }
}

/** The status field of a completion, without the phase. */
export function statusField(status: number): number {
  return isFinal(status) ? status | DO_NOT_RETRY : status;
}
