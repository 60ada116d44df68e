/**
 * The queues at work. Those that lanes serve need this only for what a lane leaves to TypeScript; the admin queue, and
 * I/O queues whose memory is not in the window, are served here.
 *
 * Work is done in turns, which are the controller's: `begin` looks at doorbells and lanes, `next` gives command after
 * command, `end` signals what is due. A turn does TURN_WORK at most and then lets the event loop go on. A doorbell that
 * comes as a message makes a turn before its write is answered; what is left then, and what is completed later, makes
 * turns of its own. Queues are served a burst each (4.13, round robin). Completions share interrupts.
 *
 * Of this folder's files, in the order in which a command meets them: doorbells.ts and own-doorbells.ts; lanes.ts
 * and queue-lane.ts, the queues of C++, with lane-table.ts, what is checked there; queues.ts, the rings;
 * command-flow.ts, out of a submission queue; command.ts, one command; data-pointer.ts, where its data is, and
 * segments.ts, where that is in the window; in-flight.ts, what has to end first; completions.ts, into a completion
 * queue; queue-interrupts.ts; reports.ts, what the controller has to know.
 */
import type { DeviceContext } from "../../../device.js";
import { ErrorEvent, Status } from "../spec.js";
import { ioBatch } from "../storage/io-batch.js";
import type { Command } from "./command.js";
import { CommandFlow } from "./command-flow.js";
import { FILE_TRUNCATED } from "./completions.js";
import { type Doorbells, headNumber, type ShadowDoorbells, tailNumber } from "./doorbells.js";
import { type LaneChoices, type LaneCounters, LaneEvent, Lanes } from "./lanes.js";
import { OwnDoorbells } from "./own-doorbells.js";
import { QueueInterrupts } from "./queue-interrupts.js";
import { type AdminQueues, type CompletionQueue, NO_LANE, type Ring, type SubmissionQueue } from "./queues.js";
import { Reports } from "./reports.js";

/** What a turn may do: a command counts as one, and as one more for each 16 KiB that were moved for it. */
const TURN_WORK = 64;
const WORK_SHIFT = 14;
/** Of one queue, before others are served. */
const BURST = 16;

export class QueueEngine {
  /** By queue identifier; 0 is the admin queue. */
  readonly submissionQueues: (SubmissionQueue | undefined)[] = [];
  readonly completionQueues: (CompletionQueue | undefined)[] = [];
  readonly reports = new Reports();
  readonly lanes: Lanes;
  readonly commands: CommandFlow;
  readonly interrupts: QueueInterrupts;
  readonly doorbells: Doorbells;
  readonly #context: DeviceContext;
  readonly #turn: () => void;
  readonly #own: OwnDoorbells;
  /** Submission queues of ours with commands to fetch, the longest waiting first. */
  readonly #ready: SubmissionQueue[] = [];
  readonly #raised: CompletionQueue[] = [];
  /** Commands that lanes sent up, and whose queues changed hands before they were carried out. */
  readonly #adopted: Command[] = [];
  readonly #counters: LaneCounters;
  #laneCommands = 0;
  #scheduled = false;
  #timer: NodeJS.Timeout | undefined;
  #paused = false;
  #inTurn = false;
  /** Of this turn: what was done, the command that was given last, and how many of the queue's before. */
  #work = 0;
  #given: Command | undefined;
  #burst = 0;

  /** `counters`: where lanes' work is counted. `turn`: makes a turn, when one is due. @throws SystemError */
  constructor(
    context: DeviceContext,
    doorbells: Doorbells,
    choices: LaneChoices,
    counters: LaneCounters,
    turn: () => void,
  ) {
    this.#context = context;
    this.#counters = counters;
    this.#turn = turn;
    this.doorbells = doorbells;
    this.interrupts = new QueueInterrupts(context.interrupts, this.completionQueues);
    this.lanes = new Lanes(context.lanes?.context, doorbells, choices, this.submissionQueues, turn);
    this.#own = new OwnDoorbells(this);
    const serve = (queue?: SubmissionQueue) => this.#serve(queue);
    this.commands = new CommandFlow(context, this.reports, this.interrupts, this.lanes, serve);
  }

  /** The admin queues are there. `maxTransfer`: bytes of one command's data. */
  enable({ pageSize, completionQueue, submissionQueue }: AdminQueues, maxTransfer: number): void {
    this.commands.pageSize = pageSize;
    this.completionQueues[0] = completionQueue;
    this.submissionQueues[0] = submissionQueue;
    // What was written to doorbells before meant nothing.
    this.doorbells.clear();
    this.lanes.enable(pageSize, maxTransfer, this.#context.log.isLevelEnabled("trace"));
    this.#own.watch(submissionQueue);
    this.schedule();
  }

  /** A new queue's doorbell begins at 0. False when it cannot be reached, so that the queue cannot be created. */
  prepare(id: number, kind: "submission" | "completion"): boolean {
    return this.doorbells.reset(kind === "submission" ? tailNumber(id) : headNumber(id));
  }

  addCompletion(queue: CompletionQueue): void {
    this.completionQueues[queue.id] = queue;
    this.lanes.addCompletion(queue);
  }

  addSubmission(queue: SubmissionQueue): void {
    this.submissionQueues[queue.id] = queue;
    if (queue.completionQueue.lane !== NO_LANE) this.lanes.addSubmission(queue);
    else this.#own.watch(queue);
  }

  /** The queue's commands end now, by completions; those that were not fetched are dropped. */
  removeSubmission(queue: SubmissionQueue): void {
    this.#adopt();
    this.submissionQueues[queue.id] = undefined;
    this.commands.cancel((other) => other.queue === queue, Status.ABORTED_SQ_DELETION);
    this.lanes.removeSubmission(queue);
    this.lanes.unwatch(tailNumber(queue.id));
    queue.alive = false;
    const { submissionQueues: others } = queue.completionQueue;
    others.splice(others.indexOf(queue), 1);
  }

  removeCompletion(queue: CompletionQueue): void {
    queue.alive = false;
    this.completionQueues[queue.id] = undefined;
    this.lanes.removeCompletion(queue);
    this.lanes.unwatch(headNumber(queue.id));
    this.interrupts.forget(queue);
  }

  /** Kills all queues: nothing is fetched or posted any more. Commands in flight end now, without a completion. */
  stop(): void {
    this.lanes.stop();
    this.account();
    for (const queue of [...this.submissionQueues, ...this.completionQueues])
      if (queue !== undefined) queue.alive = false;
    this.submissionQueues.length = 0;
    this.completionQueues.length = 0;
    this.#ready.length = this.#adopted.length = 0;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.interrupts.clear();
    this.doorbells.clear();
    this.commands.cancel(() => true, Status.ABORT_REQUESTED);
    this.reports.clear();
  }

  /** No further turn is made. */
  close(): void {
    this.stop();
    this.#paused = true;
    this.lanes.close();
  }

  get paused(): boolean {
    return this.#paused;
  }
  /** Resolves when nothing is in flight: until `resume` nothing is fetched or posted, and no interrupt is triggered. */
  async pause(): Promise<void> {
    this.#paused = true;
    this.lanes.setPaused(true);
    await this.commands.inFlight.drained();
    this.lanes.settle();
    this.#takeEvents();
    this.interrupts.flush();
  }

  resume(): void {
    this.#paused = false;
    this.lanes.setPaused(false);
    this.schedule();
  }

  /** Doorbell Buffer Config. False when the buffers are not in the window. */
  useShadow(shadow: ShadowDoorbells): boolean {
    if (!shadow.locate()) return false;
    this.#refresh();
    for (const queue of this.submissionQueues) {
      if (queue !== undefined && queue.id > 0) shadow.reset(tailNumber(queue.id), queue.tail);
    }
    for (const queue of this.completionQueues) {
      if (queue !== undefined && queue.id > 0) shadow.reset(headNumber(queue.id), queue.head);
    }
    this.doorbells.shadow = shadow;
    this.lanes.useShadow(shadow.doorbellAddress, shadow.eventAddress);
    for (const queue of this.submissionQueues) {
      if (queue !== undefined && queue.completionQueue.lane === NO_LANE) this.#own.watch(queue);
    }
    return true;
  }

  /**
   * A doorbell register was written by message (3.1.24, 3.1.25): which one, if `number` is whole. Returns what is wrong
   * with it, as one of ErrorEvent, or undefined; an invalid value is reported by whoever serves the queue.
   */
  ringDoorbell(number: number, size: number, value: number): number | undefined {
    // Before the controller is ready doorbells mean nothing.
    if (this.submissionQueues[0] === undefined) return undefined;
    const id = Math.floor(number / 2);
    const found =
      number % 2 === 1 ? this.completionQueues[id] : number % 2 === 0 ? this.submissionQueues[id] : undefined;
    const queue = size < 2 ? undefined : found;
    if (queue !== undefined) this.lanes.ring(queue);
    if (this.doorbells.isShared || this.doorbells.isShadowed(number)) {
      // What was written may be older than the word in memory, so that is what is taken and checked.
      this.#turn();
      return queue === undefined ? ErrorEvent.INVALID_DOORBELL_REGISTER : undefined;
    }
    if (queue === undefined) return ErrorEvent.INVALID_DOORBELL_REGISTER;
    // A word that stays as it is tells nobody anything; and a queue never comes to where it is by less than its size.
    const isSubmission = number % 2 === 0;
    this.lanes.refresh("completionQueue" in queue ? queue.completionQueue : queue);
    if (value === (isSubmission ? queue.tail : queue.head) || value === this.doorbells.load(number)) {
      return ErrorEvent.INVALID_DOORBELL_VALUE;
    }
    this.doorbells.store(number, value);
    this.#turn();
    return undefined;
  }

  /** INTMS or INTMC was written: what is not masked any more goes out soon. */
  setInterruptMask(mask: number): void {
    this.interrupts.mask = mask;
    this.lanes.setMask(mask);
    this.schedule();
  }

  /** Makes a turn happen soon. */
  schedule(): void {
    if (this.#scheduled || this.#inTurn) return;
    this.#scheduled = true;
    ioBatch.defer(this.#onImmediate);
  }

  /** A turn begins, unless this is one, or the controller is paused: then `resume` makes up for it. */
  begin(): boolean {
    if (this.#paused || this.#inTurn) return false;
    this.#inTurn = true;
    this.#work = this.#burst = 0;
    this.#given = undefined;
    this.commands.beginTurn();
    ioBatch.cork();
    this.#own.take(this.#enqueueOwn);
    this.lanes.kick(TURN_WORK);
    this.#takeEvents();
    return true;
  }

  /** The next command that is to be carried out; undefined: the turn is over. */
  next(): Command | undefined {
    if (this.#given !== undefined) {
      this.#work += 1 + (this.#given.length >>> WORK_SHIFT);
      this.commands.started(this.#given);
      this.#given = undefined;
    }
    for (this.#given = this.#adopted.shift(); this.#given !== undefined; this.#given = this.#adopted.shift()) {
      if (!this.#given.ended) return this.#given;
    }
    while (this.#work < TURN_WORK) {
      const taken = this.lanes.next();
      if (taken === undefined) break;
      this.#given = this.commands.take(taken);
      if (this.#given !== undefined) return this.#given;
      this.#work++;
    }
    for (let full = 0; this.#work < TURN_WORK && full < this.#ready.length; ) {
      const [queue] = this.#ready;
      this.#given = this.#burst < BURST && !this.commands.isFull(queue) ? this.commands.fetch(queue) : undefined;
      if (this.#given !== undefined) {
        this.#burst++;
        return this.#given;
      }
      full = this.#burst === 0 ? full + 1 : 0;
      this.#burst = 0;
      this.#ready.shift();
      queue.ready = false;
      if (this.commands.isFull(queue)) {
        queue.ready = true;
        this.#ready.push(queue);
      } else this.#enqueue(queue);
    }
    return undefined;
  }

  /** The turn ends: what is due goes out, and another turn is made when it has to be. */
  end(): void {
    // A queue that was at it has had its share.
    if (this.#burst > 0 && this.#ready.length > 1) this.#ready.push(this.#ready.shift() as SubmissionQueue);
    this.#burst = 0;
    try {
      if (this.lanes.isWanted) this.lanes.kick(TURN_WORK);
      this.#takeEvents();
      this.interrupts.flush();
      this.account();
    } finally {
      this.#inTurn = false;
      ioBatch.uncork();
    }
    this.#scheduleNext();
  }

  /** Moves what lanes have counted to where it belongs. */
  account(): void {
    this.#laneCommands += this.lanes.account(this.#context, this.#counters);
  }

  inspect(): object {
    this.#refresh();
    this.account();
    const describe = (queue: Ring | undefined): unknown =>
      queue && { id: queue.id, size: queue.size, head: queue.head, tail: queue.tail };
    return {
      submissionQueues: this.submissionQueues.filter(Boolean).map(describe),
      completionQueues: this.completionQueues.filter(Boolean).map(describe),
      doorbellsInMemory: this.#isPolled,
      resting: this.lanes.rest,
      interruptsDue: this.interrupts.due + this.lanes.interruptsDue,
      inFlight: this.commands.inFlight.count,
      commands: this.commands.count + this.#laneCommands,
    };
  }

  readonly #onImmediate = (): void => {
    this.#scheduled = false;
    this.#turn();
  };
  get #isPolled(): boolean {
    return this.doorbells.shadow !== undefined || (this.doorbells.isShared && this.submissionQueues[0] !== undefined);
  }

  #scheduleNext(): void {
    const isReady = this.#ready.some((queue) => !this.commands.isFull(queue));
    if (isReady || this.#adopted.length > 0 || this.lanes.hasCommands || this.lanes.isWanted) {
      this.schedule();
      return;
    }
    clearTimeout(this.#timer);
    const delay = this.lanes.delay();
    if (delay === 0) this.schedule();
    else if (delay > 0) this.#timer = setTimeout(this.#onImmediate, delay).unref();
  }

  /** Puts a queue of ours into the row, if it has commands that can be fetched, and makes a turn soon. */
  #serve(queue: SubmissionQueue | undefined): void {
    if (queue !== undefined) this.#enqueue(queue);
    this.schedule();
  }

  readonly #enqueueOwn = (queue: SubmissionQueue): void => this.#enqueue(queue);

  #enqueue(queue: SubmissionQueue): void {
    if (queue.ready || !queue.servable) return;
    queue.ready = true;
    this.#ready.push(queue);
  }

  #takeEvents(): void {
    const events = this.lanes.takeEvents();
    if (events === 0) return;
    if ((events & LaneEvent.DOORBELL) !== 0) this.#own.take(this.#enqueueOwn);
    if ((events & LaneEvent.INVALID) !== 0) this.reports.invalidDoorbell = true;
    if ((events & LaneEvent.GONE) !== 0) this.reports.fatal ??= FILE_TRUNCATED;
    if ((events & LaneEvent.LOST) !== 0) {
      for (const queue of this.completionQueues) {
        if (queue !== undefined && this.lanes.isLost(queue)) this.#takeOver(queue);
      }
    }
    if ((events & (LaneEvent.RAISED | LaneEvent.HEADS)) === 0) return;
    this.#refresh();
    this.lanes.takeRaised(this.completionQueues, this.#raised);
    for (const queue of this.#raised) this.interrupts.request(queue);
    this.#raised.length = 0;
    this.interrupts.acknowledge();
  }

  #refresh(): void {
    for (const queue of this.completionQueues) if (queue !== undefined) this.lanes.refresh(queue);
  }

  /** Commands that lanes have sent up become ours, without their being carried out yet. */
  #adopt(): void {
    for (let taken = this.lanes.next(); taken !== undefined; taken = this.lanes.next()) {
      const command = this.commands.take(taken);
      if (command !== undefined) this.#adopted.push(command);
    }
  }

  /** A queue's memory is not in the window any more: it is served here from now on, by messages. */
  #takeOver(queue: CompletionQueue): void {
    this.lanes.stopCompletion(queue);
    this.#adopt();
    const left = this.lanes.release(queue);
    this.commands.takeOver(queue);
    for (const { submission, id, status, result } of left)
      this.commands.completions.post(submission, id, status, result);
    for (const submission of queue.submissionQueues) {
      this.#own.watch(submission);
      this.#enqueue(submission);
    }
  }
}
