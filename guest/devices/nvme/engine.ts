/**
 * The queues at work: doorbells, fetching of commands in the order of doorbells, completions, interrupts. Commands go out to
 * `execute`, and come back by `complete`, at once or later.
 *
 * A turn serves at most TURN_COMMANDS commands and then lets the event loop go on. Queues that wait take turns, a burst each
 * (4.13, round robin). All completions of a turn share one interrupt for each completion queue. Doorbells in memory are
 * looked at in shadow-poll.ts.
 */
import type { DeviceContext } from "../../device.js";
import { Command, type CommandHooks } from "./command.js";
import { InFlight } from "./in-flight.js";
import { type CompletionQueue, Doorbell, type Ring, type SubmissionQueue } from "./queues.js";
import { MINIMUM_PAGE_SIZE } from "./registers.js";
import { newSegment } from "./segment.js";
import { ShadowPoll } from "./shadow-poll.js";
import { DO_NOT_RETRY, isFinal, Status, SUBMISSION_ENTRY_SIZE } from "./spec.js";

/** Commands under way at most; the others stay in their queues. It bounds the memory that a driver can make us keep. */
export const MAX_COMMANDS = 1024;
const TURN_COMMANDS = 64;
const BURST = 16;

export interface EngineHooks {
  execute(command: Command): void;
  /** A command ended with an error: for the log pages. */
  onError(command: Command, status: number): void;
  /** A doorbell in memory has a value that makes no sense. */
  onInvalidDoorbell(): void;
  /** Queue memory cannot be reached (9.5). */
  onFatal(reason: unknown): void;
  onTransferred: CommandHooks["onTransferred"];
}

const segment = newSegment();

export class QueueEngine {
  readonly inFlight = new InFlight();
  /** By queue identifier; 0 is the admin queue. */
  readonly submissionQueues: (SubmissionQueue | undefined)[] = [];
  readonly completionQueues: (CompletionQueue | undefined)[] = [];
  /** INTMS and INTMC: a bit for each of the first 32 vectors. */
  interruptMask = 0;
  /** CC.MPS in bytes, as it was when the controller was enabled. */
  pageSize = MINIMUM_PAGE_SIZE;
  commandsExecuted = 0;
  readonly shadow: ShadowPoll;
  readonly #context: DeviceContext;
  readonly #hooks: EngineHooks;
  readonly #commandHooks: CommandHooks;
  readonly #pool: Command[] = [];
  /** Submission queues with commands to fetch, the longest waiting first. */
  readonly #ready: SubmissionQueue[] = [];
  readonly #interrupting: CompletionQueue[] = [];
  #scheduled = false;
  #paused = false;

  constructor(context: DeviceContext, hooks: EngineHooks) {
    this.#context = context;
    this.#hooks = hooks;
    this.shadow = new ShadowPoll(this, () => hooks.onInvalidDoorbell());
    this.#commandHooks = {
      onComplete: (command, status) => this.complete(command, status),
      onTransferred: hooks.onTransferred,
    };
  }

  /** Kills all queues: nothing is fetched or posted any more. Commands under way end without a completion. */
  stop(): void {
    for (const queue of [...this.submissionQueues, ...this.completionQueues])
      if (queue !== undefined) queue.alive = false;
    this.submissionQueues.length = 0;
    this.completionQueues.length = 0;
    this.#ready.length = 0;
    this.#interrupting.length = 0;
    this.shadow.stop();
  }

  /** 3.1.24 */
  ringSubmission(queue: SubmissionQueue, tail: number): number {
    if (!this.shadow.covers(queue)) return this.takeTail(queue, tail);
    this.shadow.wake();
    return Doorbell.ACCEPTED;
  }

  /** 3.1.25 */
  ringCompletion(queue: CompletionQueue, head: number): number {
    if (!this.shadow.covers(queue)) return this.takeHead(queue, head);
    this.shadow.wake();
    return Doorbell.ACCEPTED;
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Resolves when nothing is under way: until `resume` nothing is fetched or posted, and no interrupt is triggered. */
  async pause(): Promise<void> {
    this.#paused = true;
    await this.inFlight.drained();
  }

  resume(): void {
    this.#paused = false;
    this.schedule();
  }

  /** A submission queue's tail, wherever it came from. */
  takeTail(queue: SubmissionQueue, tail: number): number {
    const result = queue.ring(tail);
    if (result === Doorbell.ACCEPTED) this.serve(queue);
    return result;
  }

  /** Places came free, so commands that waited for them can be fetched. */
  takeHead(queue: CompletionQueue, head: number): number {
    const result = queue.ring(head);
    if (result === Doorbell.ACCEPTED) for (const submission of queue.submissionQueues) this.serve(submission);
    return result;
  }

  /** Puts a queue into the row, if it has commands that can be fetched. */
  serve(queue: SubmissionQueue): void {
    if (queue.ready || !queue.servable) return;
    queue.ready = true;
    this.#ready.push(queue);
    this.schedule();
  }

  /** Ends a command: posts its completion, unless its queue is gone. The command must not be used afterwards. */
  complete(command: Command, status: number): void {
    const { queue } = command;
    if (status !== Status.SUCCESS) this.#hooks.onError(command, status);
    queue.completionQueue.reserved--;
    if (queue.alive && queue.completionQueue.alive) this.post(queue, command.id, status, command.result);
    this.#release(command);
  }

  /** Ends a command whose completion comes later, by `post` (Asynchronous Event Request). */
  detach(command: Command): void {
    command.queue.completionQueue.reserved--;
    this.#release(command);
  }

  /** Posts a completion; the queue has a place for it. */
  post(queue: SubmissionQueue, commandId: number, status: number, result: number): void {
    const { completionQueue } = queue;
    const field = isFinal(status) ? status | DO_NOT_RETRY : status;
    if (completionQueue.post(this.#context.dma, result, queue.id, queue.head, commandId, field)) {
      this.#interrupt(completionQueue);
    } else if (completionQueue.unwritten.length === 1) {
      void this.#writeByMessages(completionQueue);
    }
  }

  inspect(): object {
    const describe = (queue: Ring | undefined): unknown =>
      queue && { id: queue.id, size: queue.size, head: queue.head, tail: queue.tail };
    return {
      submissionQueues: this.submissionQueues.filter(Boolean).map(describe),
      completionQueues: this.completionQueues.filter(Boolean).map(describe),
      shadowDoorbells: this.shadow.active,
      inFlight: this.inFlight.count,
      commands: this.commandsExecuted,
    };
  }

  /** Whether a queue waits for its turn. */
  get hasReady(): boolean {
    return this.#ready.length > 0;
  }

  /** Makes a turn happen soon. */
  schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    this.#scheduled = false;
    // `resume` makes up for it.
    if (this.#paused) return;
    this.shadow.poll();
    let budget = TURN_COMMANDS;
    while (budget > 0 && this.#ready.length > 0 && this.inFlight.count < MAX_COMMANDS) {
      const queue = this.#ready.shift() as SubmissionQueue;
      queue.ready = false;
      budget -= this.#fetch(queue, Math.min(budget, BURST));
    }
    this.#flushInterrupts();
    // With MAX_COMMANDS under way the end of one of them is what makes the next turn.
    if (this.#ready.length > 0) {
      if (this.inFlight.count < MAX_COMMANDS) this.schedule();
    } else if (this.shadow.goesOn(budget < TURN_COMMANDS)) {
      this.schedule();
    }
  };

  /** Fetches and starts at most `limit` commands; returns how many. */
  #fetch(queue: SubmissionQueue, limit: number): number {
    const { dma } = this.#context;
    let count = 0;
    while (count < limit && queue.servable && this.inFlight.count < MAX_COMMANDS) {
      const address = queue.base + queue.head * SUBMISSION_ENTRY_SIZE;
      if (dma.locate(address, SUBMISSION_ENTRY_SIZE, "read", segment) < SUBMISSION_ENTRY_SIZE) {
        void this.#fetchByMessages(queue);
        return count;
      }
      dma.account(SUBMISSION_ENTRY_SIZE, 0);
      this.#start(queue, segment.data, segment.offset);
      count++;
    }
    this.serve(queue);
    return count;
  }

  /** Entries that are not in the window. */
  async #fetchByMessages(queue: SubmissionQueue): Promise<void> {
    const tillEnd = queue.tail > queue.head ? queue.tail - queue.head : queue.size - queue.head;
    const count = Math.min(tillEnd, queue.completionQueue.room, BURST);
    const bytes = new Uint8Array(count * SUBMISSION_ENTRY_SIZE);
    const data = new DataView(bytes.buffer);
    const epoch = this.inFlight.begin();
    queue.fetching = true;
    try {
      await this.#context.dma.read(queue.base + queue.head * SUBMISSION_ENTRY_SIZE, bytes);
      queue.fetching = false;
      // What is no longer wanted stays in the queue and is read again.
      for (let n = 0; n < count && queue.servable; n++) this.#start(queue, data, n * SUBMISSION_ENTRY_SIZE);
      this.serve(queue);
    } catch (error) {
      queue.fetching = false;
      if (queue.alive) this.#hooks.onFatal(error);
    } finally {
      this.inFlight.end(epoch);
    }
  }

  #start(queue: SubmissionQueue, data: DataView, offset: number): void {
    const command = this.#pool.pop() ?? new Command(this.#commandHooks);
    command.decode(data, offset);
    command.queue = queue;
    command.epoch = this.inFlight.begin();
    queue.head = queue.next(queue.head);
    queue.active++;
    queue.completionQueue.reserved++;
    this.commandsExecuted++;
    this.#hooks.execute(command);
  }

  #release(command: Command): void {
    const { queue } = command;
    command.namespace?.end();
    command.namespace = undefined;
    this.inFlight.end(command.epoch);
    this.#pool.push(command);
    if (--queue.active === 0) queue.onIdle?.();
    // Others may have waited for the place, or for MAX_COMMANDS.
    this.serve(queue);
    if (this.#ready.length > 0) this.schedule();
  }

  #interrupt(queue: CompletionQueue): void {
    if (!queue.interruptsEnabled || queue.interrupting) return;
    queue.interrupting = true;
    this.#interrupting.push(queue);
    this.schedule();
  }

  #flushInterrupts(): void {
    let kept = 0;
    for (const queue of this.#interrupting) {
      if (queue.vector < 32 && ((this.interruptMask >>> queue.vector) & 1) !== 0) {
        this.#interrupting[kept++] = queue;
        continue;
      }
      queue.interrupting = false;
      if (queue.alive) this.#context.interrupts.trigger(queue.vector);
    }
    this.#interrupting.length = kept;
  }

  /** Entries that are not in the window, in order; the word with the phase after the rest of its entry. */
  async #writeByMessages(queue: CompletionQueue): Promise<void> {
    const { dma } = this.#context;
    const epoch = this.inFlight.begin();
    try {
      while (queue.alive && queue.unwritten.length > 0) {
        const { address, bytes } = queue.unwritten[0];
        const last = bytes.length - 4;
        await dma.write(address, bytes.subarray(0, last));
        await dma.write(address + last, bytes.subarray(last));
        queue.unwritten.shift();
        if (queue.alive) this.#interrupt(queue);
      }
    } catch (error) {
      if (queue.alive) this.#hooks.onFatal(error);
    } finally {
      this.inFlight.end(epoch);
    }
  }
}
