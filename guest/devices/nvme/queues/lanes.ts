/**
 * The lanes of a controller (native/lane.h): loops in C++ that serve I/O queues whose memory is in the window, each
 * with a thread of its own, or without one, and then in the event loop. A lane completes what it can do at once; every
 * other command comes up (`next`) with a slot of the lane's record, and its answer goes down by the same slot
 * (`answer`).
 *
 * A completion queue and the submission queues that complete there are in one lane, or in none. When their memory
 * leaves the window they are taken over (`release`) and served here, as all queues are that were never there.
 */
import { LANE_POLLING, LaneContext } from "../../../../native/lane.js";
import {
  LANE_SLOTS,
  LaneCount,
  LaneEvent,
  LaneRecord,
  LaneSlot,
  RingRecord,
  RingState,
  SLOT_LAST,
  SlotState,
} from "../../../../shared/lane-record.js";
import type { DeviceContext } from "../../../device.js";
import { MINIMUM_PAGE_SIZE } from "../registers.js";
import { Command } from "../spec.js";
import type { Doorbells } from "./doorbells.js";
import { type Counts, QueueLane } from "./queue-lane.js";
import { type CompletionQueue, NO_LANE, type Ring, type SubmissionQueue } from "./queues.js";

/** Of shared doorbells. "always": again and again while the controller is enabled, which takes a CPU for each lane. */
export type Polling = "adaptive" | "always";

export interface LaneChoices {
  /** Threads; 0: none, and one lane in the event loop. */
  readonly count: number;
  /** The CPU of each thread; undefined: any. */
  readonly cpus?: readonly number[] | undefined;
  readonly polling: Polling;
}

/** What lanes do by themselves. */
export interface LaneCounters {
  reads: number;
  writes: number;
  bytesRead: number;
  bytesWritten: number;
}

const record = LaneRecord.offsets;
const ring = RingRecord.view();
const slots = LaneSlot.view();

/** A command that came up; the same object each time. */
export interface LaneCommand {
  readonly queue: SubmissionQueue;
  readonly data: DataView;
  /** Of its entry in `data`. */
  readonly offset: number;
  readonly slot: number;
  /** Nothing followed it in its queue. */
  readonly isLast: boolean;
}

export class Lanes {
  readonly hasThreads: boolean;
  /** Whether the driver VM's memory is to be had; if not, lanes only look at doorbells. */
  readonly #hasMemory: boolean;
  readonly #lanes: readonly QueueLane[];
  readonly #polling: number;
  #pageSize = MINIMUM_PAGE_SIZE;
  #maxTransfer = MINIMUM_PAGE_SIZE;
  #isTraced = false;
  #sendsAllUp = false;
  readonly #counts: Counts = new Float64Array(LaneCount.SENT_UP + 1);
  readonly #doorbells: Doorbells;
  readonly #submissionQueues: readonly (SubmissionQueue | undefined)[];
  readonly #command: { -readonly [K in keyof LaneCommand]: LaneCommand[K] };

  /**
   * `queues`: all submission queues there are. `onSignal`: a thread has something for `next`, `takeEvents` or others.
   * @throws SystemError
   */
  constructor(
    context: LaneContext | undefined,
    doorbells: Doorbells,
    { count, cpus, polling }: LaneChoices,
    queues: readonly (SubmissionQueue | undefined)[],
    onSignal: () => void,
  ) {
    this.#doorbells = doorbells;
    this.#submissionQueues = queues;
    this.#polling = polling === "always" ? LANE_POLLING.ALWAYS : LANE_POLLING.ADAPTIVE;
    this.hasThreads = count > 0;
    this.#hasMemory = context !== undefined;
    const ours = context ?? new LaneContext(0);
    const nothing = new DataView(new ArrayBuffer(0));
    this.#command = { queue: undefined as never, data: nothing, offset: 0, slot: 0, isLast: false };
    const lanes: QueueLane[] = [];
    this.#lanes = lanes;
    for (let n = 0; n < Math.max(count, 1); n++) {
      const lane = new QueueLane(ours, doorbells, onSignal);
      lanes.push(lane);
      if (count > 0) lane.native.start(cpus?.[n % cpus.length]);
    }
  }

  /** The controller is enabled. */
  enable(pageSize: number, maxTransfer: number, isTraced: boolean): void {
    this.#pageSize = pageSize;
    this.#maxTransfer = maxTransfer;
    this.#isTraced = isTraced;
    this.sendAllUp(this.#sendsAllUp);
    for (const { native } of this.#lanes) {
      if (this.#doorbells.isShared) native.setPolling(this.#polling);
    }
  }

  /** Whether all commands are to come up, from now on. */
  sendAllUp(isOn: boolean): void {
    this.#sendsAllUp = isOn;
    for (const { nvme } of this.#lanes) nvme.set(this.#pageSize, this.#maxTransfer, isOn || this.#isTraced);
  }

  /** All queues are gone. */
  stop(): void {
    for (const lane of this.#lanes) {
      lane.nvme.removeAll();
      lane.native.setPolling(LANE_POLLING.SIGNALLED);
      lane.queues = 0;
    }
  }

  /** Doorbells of I/O queues are shadow doorbells from now on. */
  useShadow(doorbells: number, events: number): void {
    for (const lane of this.#lanes) {
      lane.nvme.setShadow(doorbells, events, true);
      lane.native.setPolling(LANE_POLLING.ARMED);
      lane.isWanted = true;
    }
  }

  setMask(mask: number): void {
    for (const lane of this.#lanes) {
      lane.nvme.setMask(mask >>> 0);
      lane.isWanted = true;
    }
  }

  setPaused(isPaused: boolean): void {
    for (const lane of this.#lanes) {
      lane.native.setPaused(isPaused);
      lane.isWanted = true;
    }
  }

  /** Posts what was answered so far. */
  settle(): void {
    for (const { native } of this.#lanes) native.settle();
  }

  /** Puts a new queue into the lane that has the fewest; where its memory is not in the window it is in none. */
  addCompletion(queue: CompletionQueue): void {
    if (!this.#hasMemory) return;
    const number = this.#lanes.reduce((least, { queues }, n) => (queues < this.#lanes[least].queues ? n : least), 0);
    const vector = queue.interruptsEnabled ? queue.vector : -1;
    if (!this.#lanes[number].nvme.addCompletion(queue.id, queue.base, queue.size, vector)) return;
    this.#lanes[number].queues++;
    queue.lane = number;
  }

  /** Puts a new queue into its completion queue's lane. */
  addSubmission({ id, base, size, completionQueue }: SubmissionQueue): void {
    this.#of(completionQueue)?.nvme.addSubmission(id, base, size, completionQueue.id);
  }

  removeSubmission({ id, completionQueue }: SubmissionQueue): void {
    this.#of(completionQueue)?.nvme.removeSubmission(id);
  }

  removeCompletion(queue: CompletionQueue): void {
    const lane = this.#of(queue);
    if (lane === undefined) return;
    lane.nvme.removeCompletion(queue.id);
    lane.queues--;
    queue.lane = NO_LANE;
  }

  /** The doorbell is of a queue that is in no lane: lanes look at it all the same, where nobody else would. */
  watch(number: number, value: number): void {
    this.#lanes[0].nvme.watch(number, value);
  }

  unwatch(number: number): void {
    this.#lanes[0].nvme.unwatch(number);
  }

  /** Ends a command of a lane's queue that was not fetched. */
  abort({ id, completionQueue }: SubmissionQueue, command: number, status: number): boolean {
    const lane = this.#of(completionQueue);
    if (lane === undefined) return false;
    lane.isWanted = true;
    return lane.nvme.abort(id, command, status);
  }

  /** A doorbell of the queue was written by message. */
  ring(queue: Ring & { readonly lane?: number; readonly completionQueue?: CompletionQueue }): void {
    const lane = this.#of(queue.completionQueue ?? (queue as CompletionQueue));
    if (lane !== undefined) lane.isWanted = true;
  }

  /** Something may have come for all of them. */
  ringAll(): void {
    for (const lane of this.#lanes) lane.isWanted = true;
  }

  /** Makes turns of lanes without a thread, and of others that something came for and that sleep. */
  kick(budget: number): number {
    let work = 0;
    for (const lane of this.#lanes) {
      if (this.hasThreads && !lane.isWanted) continue;
      lane.isWanted = false;
      work += lane.native.kick(budget);
    }
    return work;
  }

  /** Whether answers or doorbells wait for a kick. */
  get isWanted(): boolean {
    for (const lane of this.#lanes) if (lane.isWanted) return true;
    return false;
  }

  /** As Lane.delay, of the lane that is due first. */
  delay(): number {
    if (this.hasThreads) return -1;
    return this.#lanes[0].native.delay();
  }

  get hasCommands(): boolean {
    for (const lane of this.#lanes) if (lane.hasCommands) return true;
    return false;
  }

  /** The next command that came up; good until it is called again. */
  next(): LaneCommand | undefined {
    for (const lane of this.#lanes) {
      for (let slot = lane.next(); slot >= 0; slot = lane.next()) {
        const at = record.slots + slot * LaneSlot.size;
        slots.at(lane.data, at);
        const queue = this.#submissionQueues[slots.queue];
        if (queue === undefined || slots.state !== SlotState.FETCHED) continue;
        const command = this.#command;
        command.queue = queue;
        command.data = lane.data;
        command.offset = at + LaneSlot.offsets.entry;
        command.slot = slot;
        command.isLast = (slots.flags & SLOT_LAST) !== 0;
        return command;
      }
    }
    return undefined;
  }

  /** `status`: the status field without the phase. */
  answer({ completionQueue }: SubmissionQueue, slot: number, status: number, result: number): void {
    this.#of(completionQueue)?.answer(slot, status, result);
  }

  /** Bits of LaneEvent. */
  takeEvents(): number {
    let events = 0;
    for (const lane of this.#lanes) events |= lane.takeEvents();
    return events;
  }

  /** Whether entries were posted that nobody was interrupted for. */
  takeRaised(queues: readonly (CompletionQueue | undefined)[], raise: CompletionQueue[]): void {
    for (const lane of this.#lanes) {
      for (let word = 0; word < 4; word++) {
        for (let bits = lane.takeRaised(word); bits !== 0; ) {
          const bit = 31 - Math.clz32(bits);
          bits &= ~(1 << bit);
          const queue = queues[word * 32 + bit];
          if (queue !== undefined) raise.push(queue);
        }
      }
    }
  }

  /** Whether a lane cannot serve a queue of its own any more. */
  isLost(queue: CompletionQueue): boolean {
    const lane = this.#of(queue);
    if (lane === undefined) return false;
    const isLost = (at: number, id: number) => ring.at(lane.data, at + id * RingRecord.size).state === RingState.LOST;
    return (
      isLost(record.completion, queue.id) || queue.submissionQueues.some(({ id }) => isLost(record.submission, id))
    );
  }

  /** Where a lane's queues are: what is known of them here is as it was when this was called last. */
  refresh(queue: CompletionQueue): void {
    const lane = this.#of(queue);
    if (lane === undefined) return;
    const { head, tail, phase } = ring.at(lane.data, record.completion + queue.id * RingRecord.size);
    queue.restore(head, tail, phase);
    for (const submission of queue.submissionQueues) {
      ring.at(lane.data, record.submission + submission.id * RingRecord.size);
      submission.head = ring.head;
      submission.tail = ring.tail;
    }
  }

  /**
   * Takes a completion queue and those that complete there out of their lane, as they are. `next` was called until
   * nothing came. Returns what was answered and not posted.
   */
  release(queue: CompletionQueue): { submission: SubmissionQueue; id: number; status: number; result: number }[] {
    const lane = this.#of(queue);
    if (lane === undefined) return [];
    this.refresh(queue);
    const left: { submission: SubmissionQueue; id: number; status: number; result: number }[] = [];
    for (const submission of queue.submissionQueues) {
      for (let at = submission.head; at !== submission.tail; at = submission.next(at)) {
        if (lane.nvme.wasAborted(submission.id, at)) submission.aborted.add(at);
      }
      for (let slot = 0; slot < LANE_SLOTS; slot++) {
        const at = record.slots + slot * LaneSlot.size;
        slots.at(lane.data, at);
        if (slots.queue !== submission.id || slots.state !== SlotState.DONE) continue;
        const id = lane.data.getUint16(at + LaneSlot.offsets.entry + Command.offsets.CID, true);
        left.push({ submission, id, status: slots.status, result: slots.result });
      }
    }
    this.removeCompletion(queue);
    return left;
  }

  /** Nothing of the queue's lane goes on; see `release`. */
  stopCompletion(queue: CompletionQueue): void {
    this.#of(queue)?.nvme.stopCompletion(queue.id);
  }

  /** Moves what was counted since this was called last to where it belongs; returns how many commands that were. */
  account({ dma, lanes }: DeviceContext, counters: LaneCounters): number {
    const counts = this.#counts.fill(0);
    for (const lane of this.#lanes) lane.takeCounts(counts);
    dma.account(counts[LaneCount.DMA_READ], counts[LaneCount.DMA_WRITTEN]);
    lanes?.interrupted(counts[LaneCount.INTERRUPTS]);
    counters.reads += counts[LaneCount.READS];
    counters.writes += counts[LaneCount.WRITES];
    counters.bytesRead += counts[LaneCount.BYTES_READ];
    counters.bytesWritten += counts[LaneCount.BYTES_WRITTEN];
    return counts[LaneCount.COMMANDS];
  }

  get rest(): boolean {
    return this.#lanes.every(({ rests }) => rests);
  }

  /** Completion queues with entries that a mask keeps from interrupting. */
  get interruptsDue(): number {
    return this.#lanes.reduce((sum, { words }) => sum + Atomics.load(words, record.due / 4), 0);
  }

  close(): void {
    for (const lane of this.#lanes) lane.close();
  }

  #of({ lane }: CompletionQueue): QueueLane | undefined {
    return this.#lanes[lane];
  }
}

export { LaneEvent };
