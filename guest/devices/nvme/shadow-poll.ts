/**
 * When the queues of a driver with shadow doorbells are looked at: in each turn of the engine, turn after turn while
 * commands keep coming, and no more once none has come for POLL_MS. Then the driver is asked to write the register, and
 * the buffer is looked at once more: the driver may have written it before it could see that it is asked (NVM Express
 * 1.4, 7.13).
 */
import { DoorbellPoll } from "./doorbell-poll.js";
import type { ShadowDoorbells } from "./shadow.js";

/** Turns go on for so long without a command. */
const POLL_MS = 1;
/** The buffers are not in the window, as while the driver VM's memory is mapped anew: they are looked for again. */
const RETRY_MS = 10;

export class ShadowPoll extends DoorbellPoll<ShadowDoorbells> {
  readonly resting = false;
  #retry: NodeJS.Timeout | undefined;

  /** Doorbell Buffer Config. False when the buffers are not in the window. */
  start(doorbells: ShadowDoorbells): boolean {
    if (!doorbells.locate()) return false;
    this.stop();
    this.words = doorbells;
    const { submissionQueues, completionQueues } = this.engine;
    for (const queue of submissionQueues) if (queue !== undefined) doorbells.resetTail(queue.id, queue.tail);
    for (const queue of completionQueues) if (queue !== undefined) doorbells.resetHead(queue.id, queue.head);
    return true;
  }

  stop(): void {
    this.words = undefined;
    clearTimeout(this.#retry);
    this.#retry = undefined;
  }

  goesOn(worked: boolean): boolean {
    const doorbells = this.words;
    if (doorbells === undefined) return false;
    const now = performance.now();
    if (worked) this.busyAt = now;
    if (now - this.busyAt < POLL_MS) return true;
    if (!doorbells.locate()) {
      this.#retry ??= setTimeout(() => {
        this.#retry = undefined;
        this.engine.schedule();
      }, RETRY_MS);
      return false;
    }
    for (const queue of this.engine.submissionQueues) {
      if (queue === undefined || queue.id === 0) continue;
      doorbells.askForTail(queue.id, queue.tail);
      // Of a completion queue only what somebody waits for.
      const { completionQueue } = queue;
      if (queue.head !== queue.tail && completionQueue.room <= 0) {
        doorbells.askForHead(completionQueue.id, completionQueue.head);
      }
    }
    this.poll();
    if (!this.engine.hasReady) return false;
    this.busyAt = now;
    return true;
  }
}
