/**
 * When doorbells in memory (doorbell-words.ts) are polled, and what is read there, which is checked as a register write
 * is.
 *
 * Shadow doorbells: in each turn of the engine, turn after turn while commands keep coming, and no more once none has
 * come for SHADOW_SPIN_MS. Then the driver is asked to write the register, and the buffer is polled once more: the
 * driver may have written it before it could see that it is asked (NVM Express 1.4, 7.13).
 *
 * Shared doorbells: nothing signals a write to them, so they are polled for as long as the controller is enabled: turn
 * after turn while commands keep coming and for SHARED_SPIN_MS more, then by a timer, the less often the longer none
 * has come. It waits a share of how long nothing came, so a driver that sends now and then waits hardly longer than it
 * slept, and an idle device costs next to nothing.
 */
import type { DoorbellWords, ShadowDoorbells, SharedDoorbells } from "./doorbell-words.js";
import type { CompletionQueue, Ring, SubmissionQueue } from "./queues.js";

/** The queues, as the engine has them. */
export interface PolledQueues {
  /** By queue identifier. */
  readonly submissionQueues: readonly (SubmissionQueue | undefined)[];
  readonly completionQueues: readonly (CompletionQueue | undefined)[];
  /** Both take what was read in memory; false when it is invalid. */
  takeTail(queue: SubmissionQueue, tail: number): boolean;
  takeHead(queue: CompletionQueue, head: number): boolean;
}

/** `delay`'s answers, beside milliseconds. */
export const AT_ONCE = 0;
export const NEVER = Number.POSITIVE_INFINITY;

/** Completion queues with less room are polled along with the tails. */
const LITTLE_ROOM = 16;
const SHADOW_SPIN_MS = 1;
const SHARED_SPIN_MS = 2;
/** The buffers are not in the window, as while the driver VM's memory is mapped again. */
const RETRY_MS = 10;
/** The wait, as a share of the time since the last command, and its bounds. */
const IDLE_SHARE = 1 / 8;
const MIN_WAIT_MS = 1;
const MAX_WAIT_MS = 15;

/** Of shared doorbells. "always": turn after turn while the controller is enabled, which takes a CPU. */
export type Polling = "adaptive" | "always";

export abstract class DoorbellPoll<Words extends DoorbellWords = DoorbellWords> {
  /** A poll now and then is enough. */
  resting = false;
  protected readonly queues: PolledQueues;
  protected words: Words | undefined;
  /** When the last command came, or the driver said that there is one. */
  protected busyAt = 0;
  readonly #onInvalid: () => void;

  /** `onInvalid`: a doorbell in memory has a value that its register would not take either. */
  constructor(queues: PolledQueues, onInvalid: () => void) {
    this.queues = queues;
    this.#onInvalid = onInvalid;
  }

  stop(): void {
    this.words = undefined;
  }

  /** At the end of a turn: when the next is due. `worked`: it fetched commands. */
  abstract delay(worked: boolean): number;

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

  /** The driver said that there is something, or the controller was enabled. */
  wake(): void {
    this.busyAt = performance.now();
  }

  /**
   * Takes what the driver has written, at the beginning of a turn; true when `again` may be called in the same turn.
   */
  poll(): boolean {
    const { words } = this;
    if (!words?.locate()) return false;
    const { completionQueues } = this.queues;
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
    const { submissionQueues } = this.queues;
    for (let id = words.firstQueue; id < submissionQueues.length; id++) {
      const queue = submissionQueues[id];
      if (queue === undefined) continue;
      if (queue.completionQueue.room < LITTLE_ROOM) this.#takeHead(words, queue.completionQueue.id);
      const tail = words.tailOf(id);
      if (tail !== queue.tail) this.#check(queue, tail, this.queues.takeTail(queue, tail));
    }
  }

  #takeHead(words: DoorbellWords, id: number): void {
    const queue = this.queues.completionQueues[id];
    if (queue === undefined) return;
    const head = words.headOf(id);
    if (head !== queue.head) this.#check(queue, head, this.queues.takeHead(queue, head));
  }

  #check(queue: Ring, value: number, isValid: boolean): void {
    if (isValid) queue.invalidDoorbell = -1;
    else if (queue.invalidDoorbell !== value) {
      queue.invalidDoorbell = value;
      this.#onInvalid();
    }
  }
}

export class ShadowPoll extends DoorbellPoll<ShadowDoorbells> {
  /** Doorbell Buffer Config. False when the buffers are not in the window. */
  start(doorbells: ShadowDoorbells): boolean {
    if (!doorbells.locate()) return false;
    this.words = doorbells;
    const { submissionQueues, completionQueues } = this.queues;
    for (const queue of submissionQueues) if (queue !== undefined) doorbells.resetTail(queue.id, queue.tail);
    for (const queue of completionQueues) if (queue !== undefined) doorbells.resetHead(queue.id, queue.head);
    return true;
  }

  delay(worked: boolean): number {
    const doorbells = this.words;
    if (doorbells === undefined) return NEVER;
    const now = performance.now();
    if (worked) this.busyAt = now;
    if (now - this.busyAt < SHADOW_SPIN_MS) return AT_ONCE;
    if (!doorbells.locate()) return RETRY_MS;
    for (const queue of this.queues.submissionQueues) {
      if (queue === undefined || queue.id === 0) continue;
      doorbells.askForTail(queue.id, queue.tail);
      // Of a completion queue only what somebody waits for.
      const { completionQueue } = queue;
      if (queue.head !== queue.tail && completionQueue.room <= 0) {
        doorbells.askForHead(completionQueue.id, completionQueue.head);
      }
    }
    // What this finds makes a turn.
    this.poll();
    return NEVER;
  }
}

export class SharedPoll extends DoorbellPoll<SharedDoorbells> {
  readonly #polling: Polling;
  readonly #doorbells: SharedDoorbells;

  constructor(queues: PolledQueues, onInvalid: () => void, doorbells: SharedDoorbells, polling: Polling) {
    super(queues, onInvalid);
    this.#doorbells = doorbells;
    this.#polling = polling;
  }

  /** The controller is enabled: what was written to doorbells before meant nothing. */
  start(): void {
    this.#doorbells.clear();
    this.words = this.#doorbells;
    this.wake();
  }

  /** All doorbells are 0 again. */
  override stop(): void {
    this.#doorbells.clear();
    super.stop();
  }

  delay(worked: boolean): number {
    if (this.words === undefined) return NEVER;
    const now = performance.now();
    if (worked) this.busyAt = now;
    const idle = now - this.busyAt;
    this.resting = idle >= SHARED_SPIN_MS && this.#polling !== "always";
    return this.resting ? Math.min(MAX_WAIT_MS, Math.max(MIN_WAIT_MS, idle * IDLE_SHARE)) : AT_ONCE;
  }
}
