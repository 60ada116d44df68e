/**
 * Completions on their way into their queues (NVM Express 1.4, section 4.6): at once where the queue is in the window,
 * otherwise by messages to the driver VM's VMM, in order. Memory of a queue that cannot be reached is fatal for the
 * controller, unless the queue is gone by then.
 */
import { isLost } from "../../../../shared/lost-memory.js";
import type { Dma } from "../../../device.js";
import { COMPLETION_ENTRY_SIZE, DO_NOT_RETRY, isFinal, Status } from "../spec.js";
import type { InFlight } from "./in-flight.js";
import type { CompletionQueue, SubmissionQueue } from "./queues.js";

/** Why queue memory in the window cannot be reached: it reads as zeros and swallows writes. */
export const FILE_TRUNCATED = "its file was made smaller";

export class Completions {
  readonly #dma: Dma;
  readonly #inFlight: InFlight;
  readonly #hooks: { onFatal(reason: unknown): void };
  readonly #engine: { interrupt(queue: CompletionQueue): void };

  constructor(
    dma: Dma,
    inFlight: InFlight,
    hooks: { onFatal(reason: unknown): void },
    engine: { interrupt(queue: CompletionQueue): void },
  ) {
    this.#dma = dma;
    this.#inFlight = inFlight;
    this.#hooks = hooks;
    this.#engine = engine;
  }

  /** Posts a completion; the queue has room for it. */
  post(queue: SubmissionQueue, commandId: number, status: number, result: number): void {
    const { completionQueue } = queue;
    const field = isFinal(status) ? status | DO_NOT_RETRY : status;
    if (completionQueue.post(this.#dma, result, queue.id, queue.head, commandId, field)) {
      this.#engine.interrupt(completionQueue);
    } else if (completionQueue.unwritten.length === 1) {
      void this.#writeByMessages(completionQueue);
    }
  }

  /**
   * Posts a completion to where the ring is known to be, for `posted`. False when that was not possible, and it took
   * the other way.
   */
  postSuccess(queue: SubmissionQueue, commandId: number, turn: number): boolean {
    const { completionQueue } = queue;
    completionQueue.reserved--;
    if (!queue.alive || !completionQueue.alive) return false;
    if (
      completionQueue.unwritten.length > 0 ||
      !completionQueue.locate(this.#dma, turn, "write", COMPLETION_ENTRY_SIZE)
    ) {
      this.post(queue, commandId, Status.SUCCESS, 0);
      return false;
    }
    completionQueue.postSuccess(queue.id, queue.head, commandId);
    return true;
  }

  /** So many were posted by `postSuccess`. */
  posted(queue: CompletionQueue, count: number): void {
    const { bytes, offset, length } = queue.segment;
    if (isLost(bytes, offset, length)) this.#hooks.onFatal(FILE_TRUNCATED);
    this.#dma.account(0, count * COMPLETION_ENTRY_SIZE);
    this.#engine.interrupt(queue);
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
        if (queue.alive) this.#engine.interrupt(queue);
      }
    } catch (error) {
      if (queue.alive) this.#hooks.onFatal(error);
    } finally {
      this.#inFlight.end(group);
    }
  }
}
