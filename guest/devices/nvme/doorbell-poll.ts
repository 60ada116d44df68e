/**
 * Doorbells that a driver writes in memory: what is common to those of a buffer in its own memory (shadow-poll.ts) and
 * to the registers themselves, mapped by its VMM (shared-poll.ts). What is read there is checked as a register write
 * is.
 */
import type { QueueEngine } from "./engine.js";
import { Doorbell, type Ring } from "./queues.js";

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

/** Completion queues with fewer places are looked at along with the tails. */
const FEW_PLACES = 16;

export abstract class DoorbellPoll<Words extends DoorbellWords> {
  protected readonly engine: QueueEngine;
  protected words: Words | undefined;
  /** When the last command came, or the driver said that there is one. */
  protected busyAt = 0;
  readonly #onNonsense: () => void;

  /** `onNonsense`: a doorbell in memory has a value that its register would not take either. */
  constructor(engine: QueueEngine, onNonsense: () => void) {
    this.engine = engine;
    this.#onNonsense = onNonsense;
  }

  /** Whether a look now and then is enough. */
  abstract readonly resting: boolean;

  abstract stop(): void;

  /** At the end of a turn: whether there is to be another at once. `worked`: it fetched commands. */
  abstract goesOn(worked: boolean): boolean;

  get active(): boolean {
    return this.words !== undefined;
  }

  /** Whether the queue's doorbells are in memory. */
  covers(queue: Ring): boolean {
    return this.words !== undefined && queue.id >= this.words.firstQueue;
  }

  /** Queue `id` is about to be created. False when its words cannot be reached, so that it cannot be. */
  prepare(id: number, kind: "submission" | "completion"): boolean {
    const { words } = this;
    if (words === undefined) return true;
    if (!words.locate()) return false;
    if (kind === "submission") words.resetTail(id, 0);
    else words.resetHead(id, 0);
    return true;
  }

  /** A driver said that there is something: what it said may be older than the word in memory, so that is looked at. */
  wake(): void {
    this.busyAt = performance.now();
    this.engine.serveNow();
  }

  /**
   * Takes what the driver has written, at the beginning of a turn; true when `again` may be called in the same turn.
   */
  poll(): boolean {
    const { words } = this;
    if (!words?.locate()) return false;
    const { completionQueues } = this.engine;
    for (let id = words.firstQueue; id < completionQueues.length; id++) {
      const queue = completionQueues[id];
      if (queue !== undefined) this.#takeHead(words, queue.id);
    }
    this.again();
    return true;
  }

  /** Takes new tails, and heads where they are waited for. */
  again(): void {
    const words = this.words;
    if (words === undefined) return;
    const { submissionQueues } = this.engine;
    for (let id = words.firstQueue; id < submissionQueues.length; id++) {
      const queue = submissionQueues[id];
      if (queue === undefined) continue;
      if (queue.completionQueue.room < FEW_PLACES) this.#takeHead(words, queue.completionQueue.id);
      const tail = words.tailOf(id);
      if (tail !== queue.tail) this.#check(queue, tail, this.engine.takeTail(queue, tail));
    }
  }

  #takeHead(words: DoorbellWords, id: number): void {
    const queue = this.engine.completionQueues[id];
    if (queue === undefined) return;
    const head = words.headOf(id);
    if (head !== queue.head) this.#check(queue, head, this.engine.takeHead(queue, head));
  }

  #check(queue: Ring, value: number, result: number): void {
    if (result === Doorbell.ACCEPTED) queue.nonsense = -1;
    else if (queue.nonsense !== value) {
      queue.nonsense = value;
      this.#onNonsense();
    }
  }
}
