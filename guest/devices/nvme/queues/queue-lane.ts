/** One lane: its record, by which commands come up and answers go down, and what is counted and signalled there. */
import { eventfd, close as nativeClose, POLL_READABLE, Poll } from "../../../../native/index.js";
import { Lane, type LaneContext, NvmeLane } from "../../../../native/lane.js";
import { LANE_SLOTS, LaneCount, LaneRecord, LaneSlot, NO_SLOT } from "../../../../shared/lane-record.js";
import type { Doorbells } from "./doorbells.js";

const record = LaneRecord.offsets;
const slots = LaneSlot.view();

/** What a lane has counted since it was asked last, by LaneCount. */
export type Counts = Float64Array;

/** One lane. */
export class QueueLane {
  readonly native: Lane;
  readonly nvme: NvmeLane;
  /** Completion queues in it. */
  queues = 0;
  /** Answers went down, or a doorbell was written by message. */
  isWanted = false;
  readonly #buffer = new ArrayBuffer(LaneRecord.size);
  readonly words = new Uint32Array(this.#buffer);
  readonly data = new DataView(this.#buffer);
  readonly #counts = new Float64Array(this.#buffer, record.counts, LaneCount.SENT_UP + 1);
  readonly #counted: Counts = new Float64Array(LaneCount.SENT_UP + 1);
  readonly #signal: number;
  readonly #poll: Poll;

  constructor(context: LaneContext, doorbells: Doorbells, onSignal: () => void) {
    this.#signal = eventfd(0);
    this.native = new Lane(context, this.#buffer, this.#signal);
    this.nvme = new NvmeLane(this.native, doorbells.words, doorbells.stride);
    this.#poll = new Poll(
      this.#signal,
      () => {
        // Cleared before anything is looked at, so that what comes later signals again.
        Atomics.store(this.words, record.signalled / 4, 0);
        onSignal();
      },
      "eventfd",
    );
    this.#poll.start(POLL_READABLE);
    this.#poll.unref();
  }

  get hasCommands(): boolean {
    return this.words[record.upHead / 4] !== Atomics.load(this.words, record.upTail / 4);
  }

  /** The number of the slot of the next command that came up, or -1. */
  next(): number {
    for (;;) {
      const head = this.words[record.upHead / 4];
      if (head === Atomics.load(this.words, record.upTail / 4)) return -1;
      const slot = this.words[record.up / 4 + (head % LANE_SLOTS)];
      Atomics.store(this.words, record.upHead / 4, head + 1);
      if (slot !== NO_SLOT) return slot;
    }
  }

  answer(slot: number, status: number, result: number): void {
    const at = record.slots + slot * LaneSlot.size;
    slots.at(this.data, at);
    slots.status = status;
    slots.result = result;
    const tail = this.words[record.downTail / 4];
    this.words[record.down / 4 + (tail % LANE_SLOTS)] = slot;
    Atomics.store(this.words, record.downTail / 4, tail + 1);
    this.isWanted = true;
  }

  takeEvents(): number {
    const at = record.events / 4;
    return this.words[at] === 0 ? 0 : Atomics.exchange(this.words, at, 0);
  }

  takeRaised(word: number): number {
    const at = record.raised / 4 + word;
    return this.words[at] === 0 ? 0 : Atomics.exchange(this.words, at, 0);
  }

  /** Puts what was counted since the last time into `into`. */
  takeCounts(into: Counts): void {
    for (let n = 0; n < into.length; n++) {
      const count = this.#counts[n];
      into[n] += count - this.#counted[n];
      this.#counted[n] = count;
    }
  }

  get rests(): boolean {
    return Atomics.load(this.words, record.rests / 4) === 1;
  }

  close(): void {
    this.nvme.close();
    this.native.close();
    this.#poll.close();
    nativeClose(this.#signal);
  }
}
