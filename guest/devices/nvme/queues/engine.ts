/**
 * The queues at work: doorbells, and turns in which commands are fetched in the order of the doorbells.
 *
 * A turn does TURN_WORK at most and then lets the event loop go on. A doorbell register makes a turn before its write
 * is answered; what is left then, and what is completed later, makes turns of its own. Queues are served a burst each
 * (4.13, round robin). Completions share interrupts. Doorbells in memory are polled again and again within a turn; when
 * the next one is due is in doorbell-poll.ts.
 *
 * Of this folder's files, in the order in which a command meets them: doorbell-words.ts and doorbell-poll.ts, doorbells
 * in memory; queues.ts, the rings; command-flow.ts, out of a submission queue; command.ts, one command;
 * data-pointer.ts, where its data is, and segments.ts, where that is in the window; in-flight.ts, what has to end
 * first; completions.ts, into a completion queue; queue-interrupts.ts.
 */
import type { DeviceContext } from "../../../device.js";
import { ErrorEvent, Status } from "../spec.js";
import { ioBatch } from "../storage/io-batch.js";
import { CommandFlow, type CommandFlowHooks } from "./command-flow.js";
import { AT_ONCE, NEVER, type PolledQueues, type Polling, ShadowPoll, SharedPoll } from "./doorbell-poll.js";
import type { SharedDoorbells } from "./doorbell-words.js";
import { QueueInterrupts } from "./queue-interrupts.js";
import type { AdminQueues, CompletionQueue, Ring, SubmissionQueue } from "./queues.js";

/** What a turn may do, as `CommandFlow.fetch` counts it. */
const TURN_WORK = 64;
/** Polls that find nothing, for each queue and turn: some tens of microseconds in all. */
const TURN_POLLS = 1024;
/** The same while commands are in flight, which are completed by the event loop, and while nothing is expected. */
const FEW_POLLS = 64;

export interface EngineHooks extends CommandFlowHooks {
  /** A doorbell in memory has an invalid value. */
  onInvalidDoorbell(): void;
  /** The driver took entries of the admin completion queue: there may be room for an event. */
  onAdminRoom(): void;
}

export class QueueEngine implements PolledQueues {
  /** By queue identifier; 0 is the admin queue. */
  readonly submissionQueues: (SubmissionQueue | undefined)[] = [];
  readonly completionQueues: (CompletionQueue | undefined)[] = [];
  readonly commands: CommandFlow;
  readonly interrupts: QueueInterrupts;
  readonly shadow: ShadowPoll;
  /** Undefined where doorbells are not shared. */
  readonly shared: SharedPoll | undefined;
  /** Submission queues with commands to fetch, the longest waiting first. */
  readonly #ready: SubmissionQueue[] = [];
  readonly #hooks: EngineHooks;
  #scheduled = false;
  #timer: NodeJS.Timeout | undefined;
  #paused = false;
  #inTurn = false;

  constructor(
    context: DeviceContext,
    hooks: EngineHooks,
    shared?: { readonly doorbells: SharedDoorbells; readonly polling: Polling },
  ) {
    this.#hooks = hooks;
    const onInvalid = () => hooks.onInvalidDoorbell();
    this.shadow = new ShadowPoll(this, onInvalid);
    this.shared = shared && new SharedPoll(this, onInvalid, shared.doorbells, shared.polling);
    this.interrupts = new QueueInterrupts(context.interrupts, this.completionQueues);
    this.commands = new CommandFlow(context, hooks, this);
  }

  /** The admin queues are there. */
  enable({ pageSize, completionQueue, submissionQueue }: AdminQueues): void {
    this.commands.pageSize = pageSize;
    this.completionQueues[0] = completionQueue;
    this.submissionQueues[0] = submissionQueue;
    if (this.shared === undefined) return;
    this.shared.start();
    this.schedule();
  }

  /** Kills all queues: nothing is fetched or posted any more. Commands in flight end now, without a completion. */
  stop(): void {
    for (const queue of [...this.submissionQueues, ...this.completionQueues])
      if (queue !== undefined) queue.alive = false;
    this.submissionQueues.length = 0;
    this.completionQueues.length = 0;
    this.#ready.length = 0;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.interrupts.clear();
    this.shadow.stop();
    this.shared?.stop();
    this.commands.cancel(() => true, Status.ABORT_REQUESTED);
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Resolves when nothing is in flight: until `resume` nothing is fetched or posted, and no interrupt is triggered. */
  async pause(): Promise<void> {
    this.#paused = true;
    await this.commands.inFlight.drained();
  }

  resume(): void {
    this.#paused = false;
    this.schedule();
  }

  /** Where doorbells in memory are polled. */
  get poll(): ShadowPoll | SharedPoll {
    return this.shared ?? this.shadow;
  }

  /**
   * A doorbell register was written by message (3.1.24, 3.1.25): those of submission and completion queues alternate.
   * `number`: which one, if it is whole. Returns what is wrong with it: one of ErrorEvent, or undefined.
   */
  ringDoorbell(number: number, size: number, value: number): number | undefined {
    // Before the controller is ready doorbells mean nothing.
    if (this.submissionQueues[0] === undefined) return undefined;
    const id = Math.floor(number / 2);
    const completion = number % 2 === 1 ? this.completionQueues[id] : undefined;
    const submission = number % 2 === 0 ? this.submissionQueues[id] : undefined;
    const queue = size < 2 ? undefined : (completion ?? submission);
    if (this.shared !== undefined || (queue !== undefined && this.poll.covers(queue))) {
      // What was written may be older than the word in memory, so that is what is taken and checked.
      this.poll.wake();
      this.serveNow();
      return queue === undefined ? ErrorEvent.INVALID_DOORBELL_REGISTER : undefined;
    }
    if (queue === undefined) return ErrorEvent.INVALID_DOORBELL_REGISTER;
    const isValid = completion
      ? this.takeHead(completion, value)
      : submission !== undefined && this.takeTail(submission, value);
    if (this.hasReady) this.serveNow();
    return isValid ? undefined : ErrorEvent.INVALID_DOORBELL_VALUE;
  }

  /** A submission queue's tail, wherever it came from. The caller makes a turn. */
  takeTail(queue: SubmissionQueue, tail: number): boolean {
    if (!queue.ring(tail)) return false;
    this.#enqueue(queue);
    return true;
  }

  /** Entries came free, so commands that waited for them can be fetched. */
  takeHead(queue: CompletionQueue, head: number): boolean {
    if (!queue.ring(head)) return false;
    for (const submission of queue.submissionQueues) this.#enqueue(submission);
    this.interrupts.acknowledge();
    if (queue.id === 0) this.#hooks.onAdminRoom();
    return true;
  }

  /** Puts a queue into the row, if it has commands that can be fetched, and makes a turn soon. */
  serve(queue: SubmissionQueue): void {
    this.#enqueue(queue);
    if (this.hasReady) this.schedule();
  }

  interrupt(queue: CompletionQueue): void {
    if (this.interrupts.request(queue)) this.schedule();
  }

  /** INTMS or INTMC was written: what is not masked any more goes out soon. */
  setInterruptMask(mask: number): void {
    this.interrupts.mask = mask;
    this.schedule();
  }

  /** Whether a queue waits to be served, and can be. */
  get hasReady(): boolean {
    for (const queue of this.#ready) if (!this.commands.isFull(queue)) return true;
    return false;
  }

  /** Makes a turn happen soon. */
  schedule(): void {
    if (this.#scheduled || this.#inTurn) return;
    this.#scheduled = true;
    ioBatch.defer(this.#onImmediate);
  }

  /** Makes a turn, unless this is one. */
  serveNow(): void {
    // `resume` makes up for it.
    if (this.#paused || this.#inTurn) return;
    this.commands.beginTurn();
    this.#inTurn = true;
    let work = 0;
    try {
      work = this.poll.poll() ? this.#pollAndServe() : this.#serveReady(TURN_WORK);
      this.interrupts.flush();
    } catch (error) {
      this.#hooks.onBug(error);
    } finally {
      this.#inTurn = false;
    }
    this.#scheduleNext(work > 0);
  }

  /** When no more commands may be in flight, the end of one of them is what makes the next turn. */
  #scheduleNext(worked: boolean): void {
    const delay = this.hasReady ? AT_ONCE : this.poll.delay(worked);
    if (delay === AT_ONCE || this.hasReady) this.schedule();
    else if (delay !== NEVER) this.#timer ??= setTimeout(this.#onTimer, delay).unref();
  }

  inspect(): object {
    const describe = (queue: Ring | undefined): unknown =>
      queue && { id: queue.id, size: queue.size, head: queue.head, tail: queue.tail };
    return {
      submissionQueues: this.submissionQueues.filter(Boolean).map(describe),
      completionQueues: this.completionQueues.filter(Boolean).map(describe),
      doorbellsInMemory: this.poll.active,
      resting: this.poll.resting,
      interruptsDue: this.interrupts.due,
      inFlight: this.commands.inFlight.count,
      commands: this.commands.count,
    };
  }

  readonly #onImmediate = (): void => {
    this.#scheduled = false;
    this.serveNow();
  };

  readonly #onTimer = (): void => {
    this.#timer = undefined;
    this.schedule();
  };

  #enqueue(queue: SubmissionQueue): void {
    if (queue.ready || !queue.servable) return;
    queue.ready = true;
    this.#ready.push(queue);
  }

  /** Serves what doorbells in memory ask for, and polls them again and again. Returns how much it did. */
  #pollAndServe(): number {
    const { poll } = this;
    let work = 0;
    let polls = poll.resting || this.commands.inFlight.count > 0 ? FEW_POLLS : TURN_POLLS;
    for (;;) {
      if (this.hasReady) {
        const done = this.#serveReady(TURN_WORK - work);
        this.interrupts.flush();
        work += done;
        if (done === 0 || work >= TURN_WORK) return work;
        if (this.commands.inFlight.count > 0) polls = Math.min(polls, FEW_POLLS);
      } else {
        polls -= 1 + this.submissionQueues.length;
        if (polls <= 0) return work;
      }
      poll.again();
    }
  }

  /** Returns how much it did, which may be more than `budget` by a burst. */
  #serveReady(budget: number): number {
    let work = 0;
    let full = 0;
    while (work < budget && full < this.#ready.length) {
      const queue = this.#ready.shift() as SubmissionQueue;
      if (this.commands.isFull(queue)) {
        this.#ready.push(queue);
        full++;
        continue;
      }
      full = 0;
      queue.ready = false;
      work += this.commands.fetch(queue);
      this.#enqueue(queue);
    }
    return work;
  }
}
