/**
 * When the queues of a driver with shadow doorbells are looked at: in each turn of the engine, turn after turn while commands
 * keep coming, and no more once none has come for POLL_MS. Then the driver is asked to write the register, and the buffer
 * is looked at once more: the driver may have written it before it could see that it is asked (NVM Express 1.4, 7.13).
 */
import type { QueueEngine } from "./engine.js";
import { Doorbell, type Ring } from "./queues.js";
import type { ShadowDoorbells } from "./shadow.js";

/** Turns go on for so long without a command. */
const POLL_MS = 1;
/** The buffers are not in the window, as while the driver VM's memory is mapped anew: they are looked for again. */
const RETRY_MS = 10;

export class ShadowPoll {
  readonly #engine: QueueEngine;
  readonly #onNonsense: () => void;
  #doorbells: ShadowDoorbells | undefined;
  /** When the last command came. */
  #busyAt = 0;
  #retry: NodeJS.Timeout | undefined;

  /** `onNonsense`: a shadow doorbell has a value that its register would not take either. */
  constructor(engine: QueueEngine, onNonsense: () => void) {
    this.#engine = engine;
    this.#onNonsense = onNonsense;
  }

  /** Doorbell Buffer Config. False when the buffers are not in the window. */
  start(doorbells: ShadowDoorbells): boolean {
    if (!doorbells.locate()) return false;
    this.stop();
    this.#doorbells = doorbells;
    const { submissionQueues, completionQueues } = this.#engine;
    for (const queue of submissionQueues) if (queue !== undefined) doorbells.resetTail(queue.id, queue.tail);
    for (const queue of completionQueues) if (queue !== undefined) doorbells.resetHead(queue.id, queue.head);
    return true;
  }

  stop(): void {
    this.#doorbells = undefined;
    clearTimeout(this.#retry);
    this.#retry = undefined;
  }

  get active(): boolean {
    return this.#doorbells !== undefined;
  }

  /** Whether the queue's doorbells are in memory. */
  covers(queue: Ring): boolean {
    return this.#doorbells !== undefined && queue.id !== 0;
  }

  /** Queue `id` is about to be created. False when its words cannot be reached, so that it cannot be. */
  prepare(id: number, kind: "submission" | "completion"): boolean {
    const doorbells = this.#doorbells;
    if (doorbells === undefined) return true;
    if (!doorbells.locate()) return false;
    if (kind === "submission") doorbells.resetTail(id, 0);
    else doorbells.resetHead(id, 0);
    return true;
  }

  /** A register was written: its value may be older than the word in memory, so it only says that there is something. */
  wake(): void {
    this.#busyAt = performance.now();
    this.#engine.schedule();
  }

  /** Takes what the driver has written. */
  poll(): void {
    const doorbells = this.#doorbells;
    if (!doorbells?.locate()) return;
    const { submissionQueues, completionQueues } = this.#engine;
    for (let id = 1; id < completionQueues.length; id++) {
      const queue = completionQueues[id];
      if (queue === undefined) continue;
      const head = doorbells.headOf(id);
      if (head !== queue.head) this.#check(queue, head, this.#engine.takeHead(queue, head));
    }
    for (let id = 1; id < submissionQueues.length; id++) {
      const queue = submissionQueues[id];
      if (queue === undefined) continue;
      const tail = doorbells.tailOf(id);
      if (tail !== queue.tail) this.#check(queue, tail, this.#engine.takeTail(queue, tail));
    }
  }

  /** At the end of a turn: whether there is to be another at once. `worked`: it fetched commands. */
  goesOn(worked: boolean): boolean {
    const doorbells = this.#doorbells;
    if (doorbells === undefined) return false;
    const now = performance.now();
    if (worked) this.#busyAt = now;
    if (now - this.#busyAt < POLL_MS) return true;
    if (!doorbells.locate()) {
      this.#retry ??= setTimeout(() => {
        this.#retry = undefined;
        this.#engine.schedule();
      }, RETRY_MS);
      return false;
    }
    for (const queue of this.#engine.submissionQueues) {
      if (queue === undefined || queue.id === 0) continue;
      doorbells.askForTail(queue.id, queue.tail);
      // Of a completion queue only what somebody waits for.
      const { completionQueue } = queue;
      if (queue.head !== queue.tail && completionQueue.room <= 0) {
        doorbells.askForHead(completionQueue.id, completionQueue.head);
      }
    }
    this.poll();
    if (!this.#engine.hasReady) return false;
    this.#busyAt = now;
    return true;
  }

  #check(queue: Ring, value: number, result: number): void {
    if (result === Doorbell.ACCEPTED) queue.nonsense = -1;
    else if (queue.nonsense !== value) {
      queue.nonsense = value;
      this.#onNonsense();
    }
  }
}
