/**
 * The queues at work: doorbells, fetching of commands in the order of doorbells, completions, interrupts. Commands go out to
 * `startAtOnce` and `execute`, and come back at once, or later by `complete`.
 *
 * A turn does TURN_WORK at most and then lets the event loop go on. A doorbell register makes a turn before its write is
 * answered; what is left, and what ends later, makes turns of its own. Queues that wait take turns, a burst each (4.13, round
 * robin). All completions of a turn share one interrupt for each completion queue. Doorbells in memory are looked at again and
 * again within a turn; when there is to be another one is in shadow-poll.ts and shared-poll.ts.
 */
import { KiB } from "../../../shared/limits.js";
import type { DeviceContext } from "../../device.js";
import { Command, type CommandHooks } from "./command.js";
import type { AdminQueues } from "./enable.js";
import { InFlight } from "./in-flight.js";
import { fetchByMessages, type RingUser, writeByMessages } from "./message-rings.js";
import { type CompletionQueue, Doorbell, type Ring, type SubmissionQueue } from "./queues.js";
import { MINIMUM_PAGE_SIZE } from "./registers.js";
import { newSegment } from "./segment.js";
import { ShadowPoll } from "./shadow-poll.js";
import { type SharedOptions, SharedPoll } from "./shared-poll.js";
import { COMPLETION_ENTRY_SIZE, DO_NOT_RETRY, isFinal, Status, SUBMISSION_ENTRY_SIZE } from "./spec.js";

/** Commands under way at most; the others stay in their queues. It bounds the memory that a driver can make us keep. */
export const MAX_COMMANDS = 1024;
/** What a turn may do: a command counts as one, and as one more for each 16 KiB that were copied for it. */
const TURN_WORK = 64;
const WORK_SHIFT = 14;
/** Of one queue, before others have their turn. */
const BURST = 16;
const BURST_BYTES = 256 * KiB;
/** Looks at doorbells in memory that found nothing, for each queue and turn: some tens of microseconds in all. */
const TURN_LOOKS = 1024;
/** The same while commands are under way, which end by the event loop. */
const BUSY_LOOKS = 64;

export interface EngineHooks {
  /** Commands that are over when `finish` returns, and went well. */
  readonly direct: DirectCommands;
  execute(command: Command): void;
  /** A command ended with an error: for the log pages. */
  onError(command: Command, status: number): void;
  /** A doorbell in memory has a value that makes no sense. */
  onInvalidDoorbell(): void;
  /** Queue memory cannot be reached (9.5). */
  onFatal(reason: unknown): void;
  onTransferred: CommandHooks["onTransferred"];
}

/** See memory-io.ts. */
export interface DirectCommands {
  /** Bytes that `finish` is going to copy. */
  readonly pending: number;
  /** False when the command is none of these. */
  start(command: Command, pageSize: number): boolean;
  finish(): void;
}

const segment = newSegment();

export class QueueEngine implements RingUser {
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
  /** Undefined where doorbells are not shared. */
  readonly shared: SharedPoll | undefined;
  readonly #context: DeviceContext;
  readonly #hooks: EngineHooks;
  readonly #commandHooks: CommandHooks;
  readonly #pool: Command[] = [];
  /** Submission queues with commands to fetch, the longest waiting first. */
  readonly #ready: SubmissionQueue[] = [];
  readonly #interrupting: CompletionQueue[] = [];
  #scheduled = false;
  #paused = false;
  /** Turns so far, but for 0: what was looked up in one is good in it. */
  #turn = 1;
  #inTurn = false;
  /** Identifiers of the commands of a burst that `direct` has started. */
  readonly #started = new Int32Array(BURST);
  #startedCount = 0;

  constructor(context: DeviceContext, hooks: EngineHooks, shared?: SharedOptions) {
    this.#context = context;
    this.#hooks = hooks;
    const onNonsense = () => hooks.onInvalidDoorbell();
    this.shadow = new ShadowPoll(this, onNonsense);
    this.shared = shared && new SharedPoll(this, onNonsense, shared);
    this.#commandHooks = {
      onComplete: (command, status) => this.complete(command, status),
      onTransferred: hooks.onTransferred,
    };
  }

  /** The admin queues are there. */
  enable({ pageSize, completionQueue, submissionQueue }: AdminQueues): void {
    this.pageSize = pageSize;
    this.completionQueues[0] = completionQueue;
    this.submissionQueues[0] = submissionQueue;
    this.shared?.enable();
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
    this.shared?.stop();
  }

  /** Where doorbells in memory are looked for. */
  get poll(): ShadowPoll | SharedPoll {
    return this.shared ?? this.shadow;
  }

  /** 3.1.24 */
  ringSubmission(queue: SubmissionQueue, tail: number): number {
    const { poll } = this;
    if (poll.covers(queue)) {
      poll.wake();
      return Doorbell.ACCEPTED;
    }
    const result = this.takeTail(queue, tail);
    if (this.hasReady) this.serveNow();
    return result;
  }

  /** 3.1.25 */
  ringCompletion(queue: CompletionQueue, head: number): number {
    const { poll } = this;
    if (poll.covers(queue)) {
      poll.wake();
      return Doorbell.ACCEPTED;
    }
    const result = this.takeHead(queue, head);
    if (this.hasReady) this.serveNow();
    return result;
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

  /** A submission queue's tail, wherever it came from. The caller makes a turn. */
  takeTail(queue: SubmissionQueue, tail: number): number {
    const result = queue.ring(tail);
    if (result === Doorbell.ACCEPTED) this.#enqueue(queue);
    return result;
  }

  /** Places came free, so commands that waited for them can be fetched. */
  takeHead(queue: CompletionQueue, head: number): number {
    const result = queue.ring(head);
    if (result === Doorbell.ACCEPTED) for (const submission of queue.submissionQueues) this.#enqueue(submission);
    return result;
  }

  /** Puts a queue into the row, if it has commands that can be fetched. */
  #enqueue(queue: SubmissionQueue): void {
    if (queue.ready || !queue.servable) return;
    queue.ready = true;
    this.#ready.push(queue);
  }

  /** The same, and a turn soon. */
  serve(queue: SubmissionQueue): void {
    this.#enqueue(queue);
    if (this.hasReady) this.schedule();
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
      this.interrupt(completionQueue);
    } else if (completionQueue.unwritten.length === 1) {
      void writeByMessages(completionQueue, this.#context.dma, this);
    }
  }

  inspect(): object {
    const describe = (queue: Ring | undefined): unknown =>
      queue && { id: queue.id, size: queue.size, head: queue.head, tail: queue.tail };
    return {
      submissionQueues: this.submissionQueues.filter(Boolean).map(describe),
      completionQueues: this.completionQueues.filter(Boolean).map(describe),
      doorbellsInMemory: this.poll.active,
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
    if (this.#scheduled || this.#inTurn) return;
    this.#scheduled = true;
    setImmediate(this.#onImmediate);
  }

  readonly #onImmediate = (): void => {
    this.#scheduled = false;
    this.serveNow();
  };

  /** Makes a turn, unless one is under way. */
  serveNow(): void {
    // `resume` makes up for it.
    if (this.#paused || this.#inTurn) return;
    this.#beginTurn();
    this.#inTurn = true;
    let work = 0;
    try {
      work = this.poll.poll() ? this.#pollAndServe() : this.#serveReady(TURN_WORK);
      this.#flushInterrupts();
    } finally {
      this.#inTurn = false;
    }
    // With MAX_COMMANDS under way the end of one of them is what makes the next turn.
    if (this.hasReady ? this.inFlight.count < MAX_COMMANDS : this.poll.goesOn(work > 0)) this.schedule();
  }

  /** What was looked up before may not be where it was. */
  #beginTurn(): void {
    this.#turn = (this.#turn + 1) | 0 || 1;
  }

  /** Serves what doorbells in memory ask for, and looks at them again and again. Returns how much it did. */
  #pollAndServe(): number {
    const { poll } = this;
    let work = 0;
    // What is under way ends by the event loop.
    let looks = this.inFlight.count > 0 ? BUSY_LOOKS : TURN_LOOKS;
    for (;;) {
      if (this.hasReady) {
        const done = this.#serveReady(TURN_WORK - work);
        this.#flushInterrupts();
        work += done;
        if (done === 0 || work >= TURN_WORK) return work;
      } else {
        looks -= 1 + this.submissionQueues.length;
        if (looks <= 0) return work;
      }
      poll.again();
    }
  }

  /** Returns how much it did, which may be more than `budget` by a burst. */
  #serveReady(budget: number): number {
    let work = 0;
    while (work < budget && this.#ready.length > 0 && this.inFlight.count < MAX_COMMANDS) {
      const queue = this.#ready.shift() as SubmissionQueue;
      queue.ready = false;
      work += this.#fetch(queue);
    }
    return work;
  }

  /** Fetches and starts at most a burst of commands; returns how much work they were. */
  #fetch(queue: SubmissionQueue): number {
    const { dma } = this.#context;
    const { direct } = this.#hooks;
    const isLocated = queue.locate(dma, this.#turn, "read", SUBMISSION_ENTRY_SIZE);
    const { place } = isLocated ? queue : { place: segment };
    let count = 0;
    let bytes = 0;
    let byMessages = false;
    while (count < BURST && bytes < BURST_BYTES && queue.servable && this.inFlight.count < MAX_COMMANDS) {
      const inRing = queue.head * SUBMISSION_ENTRY_SIZE;
      byMessages =
        !isLocated && dma.locate(queue.base + inRing, SUBMISSION_ENTRY_SIZE, "read", segment) < SUBMISSION_ENTRY_SIZE;
      if (byMessages) break;
      this.#start(queue, place.data, isLocated ? place.offset + inRing : place.offset);
      bytes = Math.max(bytes, direct.pending);
      count++;
    }
    dma.account(count * SUBMISSION_ENTRY_SIZE, 0);
    this.#finishStarted(queue);
    if (byMessages) void fetchByMessages(queue, BURST, dma, this);
    else this.#enqueue(queue);
    return count + (bytes >>> WORK_SHIFT);
  }

  /** Starts a command that was read by itself. */
  start(queue: SubmissionQueue, data: DataView, offset: number): void {
    this.#beginTurn();
    this.#start(queue, data, offset);
    this.#finishStarted(queue);
  }

  #start(queue: SubmissionQueue, data: DataView, offset: number): void {
    const { log } = this.#context;
    const command = this.#pool.pop() ?? new Command(this.#commandHooks);
    command.decode(data, offset);
    command.queue = queue;
    queue.head = queue.next(queue.head);
    queue.completionQueue.reserved++;
    this.commandsExecuted++;
    if (log.isLevelEnabled("trace")) log.trace({ queue: queue.id, id: command.id, opcode: command.opcode }, "command");
    if (queue.id !== 0 && this.#hooks.direct.start(command, this.pageSize)) {
      this.#started[this.#startedCount++] = command.id;
      this.#pool.push(command);
      return;
    }
    // What comes before a Flush, for one, is done before it.
    this.#finishStarted(queue);
    command.epoch = this.inFlight.begin();
    queue.active++;
    this.#hooks.execute(command);
  }

  /** Ends the burst's commands that were started at once, all of them `queue`'s. */
  #finishStarted(queue: SubmissionQueue): void {
    const count = this.#startedCount;
    if (count === 0) return;
    this.#startedCount = 0;
    this.#hooks.direct.finish();
    const { completionQueue } = queue;
    const { dma } = this.#context;
    completionQueue.reserved -= count;
    if (!queue.alive || !completionQueue.alive) return;
    const isLocated =
      completionQueue.unwritten.length === 0 && completionQueue.locate(dma, this.#turn, "write", COMPLETION_ENTRY_SIZE);
    for (let n = 0; n < count; n++) {
      if (isLocated) completionQueue.postSuccess(queue.id, queue.head, this.#started[n]);
      else this.post(queue, this.#started[n], Status.SUCCESS, 0);
    }
    if (!isLocated) return;
    dma.account(0, count * COMPLETION_ENTRY_SIZE);
    this.interrupt(completionQueue);
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
  }

  /** An interrupt is due at the end of the turn. */
  interrupt(queue: CompletionQueue): void {
    if (!queue.interruptsEnabled || queue.interrupting) return;
    queue.interrupting = true;
    this.#interrupting.push(queue);
    this.schedule();
  }

  #flushInterrupts(): void {
    if (this.#interrupting.length === 0) return;
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

  onFatal(reason: unknown): void {
    this.#hooks.onFatal(reason);
  }
}
