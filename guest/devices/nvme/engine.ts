/**
 * The queues at work: doorbells, and turns in which commands are fetched (command-flow.ts) in the order of the
 * doorbells.
 *
 * A turn does TURN_WORK at most and then lets the event loop go on. A doorbell register makes a turn before its write
 * is answered; what is left then, and what ends later, makes turns of its own. Queues that wait take turns, a burst
 * each (4.13, round robin). Completions share interrupts. Doorbells in memory are looked at again and again within a
 * turn; when there is to be another one is in shadow-poll.ts and shared-poll.ts.
 */
import type { DeviceContext } from "../../device.js";
import { CommandFlow, type CommandFlowHooks } from "./command-flow.js";
import type { AdminQueues } from "./enable.js";
import { QueueInterrupts } from "./queue-interrupts.js";
import { type CompletionQueue, Doorbell, type Ring, type SubmissionQueue } from "./queues.js";
import { ShadowPoll } from "./shadow-poll.js";
import { type SharedOptions, SharedPoll } from "./shared-poll.js";
import { Status } from "./spec.js";

/** What a turn may do, as `CommandFlow.fetch` counts it. */
const TURN_WORK = 64;
/** Looks at doorbells in memory that found nothing, for each queue and turn: some tens of microseconds in all. */
const TURN_LOOKS = 1024;
/** The same while commands are under way, which end by the event loop, and while nothing is expected. */
const FEW_LOOKS = 64;

export interface EngineHooks extends CommandFlowHooks {
  /** A doorbell in memory has a value that makes no sense. */
  onInvalidDoorbell(): void;
  /** The driver took entries of the admin completion queue: there may be room for an event. */
  onAdminRoom(): void;
}

export class QueueEngine {
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
  readonly #onBug: (error: unknown) => void;
  readonly #onAdminRoom: () => void;
  readonly #files: CommandFlowHooks["files"];
  #scheduled = false;
  #paused = false;
  #inTurn = false;

  constructor(context: DeviceContext, hooks: EngineHooks, shared?: SharedOptions) {
    this.#onBug = (error) => hooks.onBug(error);
    this.#onAdminRoom = () => hooks.onAdminRoom();
    this.#files = hooks.files;
    const onNonsense = () => hooks.onInvalidDoorbell();
    this.shadow = new ShadowPoll(this, onNonsense);
    this.shared = shared && new SharedPoll(this, onNonsense, shared);
    this.interrupts = new QueueInterrupts(context.interrupts, this.completionQueues);
    this.commands = new CommandFlow(context, hooks, this);
  }

  /** The admin queues are there. */
  enable({ pageSize, completionQueue, submissionQueue }: AdminQueues): void {
    this.commands.pageSize = pageSize;
    this.completionQueues[0] = completionQueue;
    this.submissionQueues[0] = submissionQueue;
    this.shared?.enable();
  }

  /** Kills all queues: nothing is fetched or posted any more. Commands under way end now, without a completion. */
  stop(): void {
    for (const queue of [...this.submissionQueues, ...this.completionQueues])
      if (queue !== undefined) queue.alive = false;
    this.submissionQueues.length = 0;
    this.completionQueues.length = 0;
    this.#ready.length = 0;
    this.interrupts.clear();
    this.shadow.stop();
    this.shared?.stop();
    this.commands.cancel(() => true, Status.ABORT_REQUESTED);
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Resolves when nothing is under way: until `resume` nothing is fetched or posted, and no interrupt is triggered. */
  async pause(): Promise<void> {
    this.#paused = true;
    await this.commands.inFlight.drained();
  }

  resume(): void {
    this.#paused = false;
    this.schedule();
  }

  /** Where doorbells in memory are looked for. */
  get poll(): ShadowPoll | SharedPoll {
    return this.shared ?? this.shadow;
  }

  /** A register was written (3.1.24). Returns one of Doorbell. */
  ringSubmission(queue: SubmissionQueue, tail: number): number {
    if (this.poll.covers(queue)) {
      this.poll.wake();
      return Doorbell.ACCEPTED;
    }
    const result = this.takeTail(queue, tail);
    if (this.hasReady) this.serveNow();
    return result;
  }

  /** The same (3.1.25). */
  ringCompletion(queue: CompletionQueue, head: number): number {
    if (this.poll.covers(queue)) {
      this.poll.wake();
      return Doorbell.ACCEPTED;
    }
    const result = this.takeHead(queue, head);
    if (this.hasReady) this.serveNow();
    return result;
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
    if (result !== Doorbell.ACCEPTED) return result;
    for (const submission of queue.submissionQueues) this.#enqueue(submission);
    this.interrupts.acknowledge();
    if (queue.id === 0) this.#onAdminRoom();
    return result;
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

  /** Whether a queue waits for its turn, and can have it. */
  get hasReady(): boolean {
    for (const queue of this.#ready) if (!this.commands.isFull(queue)) return true;
    return false;
  }

  /** Makes a turn happen soon. */
  schedule(): void {
    if (this.#scheduled || this.#inTurn) return;
    this.#scheduled = true;
    this.#files.defer(this.#onImmediate);
  }

  /** Makes a turn, unless one is under way. */
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
      this.#onBug(error);
    } finally {
      this.#inTurn = false;
    }
    // When no more may be under way the end of one of them is what makes the next turn.
    if (this.hasReady || this.poll.goesOn(work > 0)) this.schedule();
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

  #enqueue(queue: SubmissionQueue): void {
    if (queue.ready || !queue.servable) return;
    queue.ready = true;
    this.#ready.push(queue);
  }

  /** Serves what doorbells in memory ask for, and looks at them again and again. Returns how much it did. */
  #pollAndServe(): number {
    const { poll } = this;
    let work = 0;
    let looks = poll.resting || this.commands.inFlight.count > 0 ? FEW_LOOKS : TURN_LOOKS;
    for (;;) {
      if (this.hasReady) {
        const done = this.#serveReady(TURN_WORK - work);
        this.interrupts.flush();
        work += done;
        if (done === 0 || work >= TURN_WORK) return work;
        if (this.commands.inFlight.count > 0) looks = Math.min(looks, FEW_LOOKS);
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
