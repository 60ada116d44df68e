/**
 * A lane's record as a field table: native/lane_record.h, which says what it is. Both sides work on it; the lane's
 * `version` and `size` say whether it is this one.
 */
import { struct } from "./struct/struct.js";

export const LANE_MAGIC = 0x454e_414c;
export const LANE_VERSION = 1;
export const LANE_SLOTS = 1024;
export const LANE_QUEUES = 65;
export const LANE_ENTRY = 64;

/** Bits of `events`. */
export const LaneEvent = {
  /** A doorbell changed that is watched. */
  DOORBELL: 1,
  /** Completion queues, by `raised`, have entries that nobody was interrupted for. */
  RAISED: 2,
  /** A doorbell has an invalid value. */
  INVALID: 4,
  /** Queues are LOST: their memory is not in the window any more. */
  LOST: 8,
  /** Memory of a queue is gone: its file was truncated. */
  GONE: 16,
  /** Heads of completion queues moved. */
  HEADS: 32,
} as const;

/** By their index in `counts`, 64-bit floating-point numbers. */
export const LaneCount = {
  COMMANDS: 0,
  READS: 1,
  WRITES: 2,
  BYTES_READ: 3,
  BYTES_WRITTEN: 4,
  DMA_READ: 5,
  DMA_WRITTEN: 6,
  INTERRUPTS: 7,
  BUSY_NS: 8,
  SENT_UP: 9,
} as const;
export const LANE_COUNTS = 16;

/** Of a ring: not there, served, or left alone until somebody takes it over. */
export const RingState = { NONE: 0, SERVED: 1, LOST: 2 } as const;
export const RingRecord = struct({
  state: "u32",
  size: "u32",
  base: "i64",
  head: "u32",
  tail: "u32",
  phase: "u32",
  partner: "u32",
});

/** DONE: it was answered, and its completion could not be posted. */
export const SlotState = { FREE: 0, FETCHED: 1, DONE: 2 } as const;
/** Of a slot's flags: nothing followed the command in its queue. */
export const SLOT_LAST = 1;
export const LaneSlot = struct({
  state: "u32",
  queue: "u32",
  flags: "u32",
  status: "u32",
  result: "u32",
  reserved: 4,
  entry: LANE_ENTRY,
});

export const LaneRecord = struct({
  magic: "u32",
  version: "u32",
  size: "u32",
  slotCount: "u32",
  events: "u32",
  signalled: "u32",
  rests: "u32",
  due: "u32",
  upHead: "u32",
  upTail: "u32",
  downHead: "u32",
  downTail: "u32",
  raised: 16,
  counts: LANE_COUNTS * 8,
  up: LANE_SLOTS * 4,
  down: LANE_SLOTS * 4,
  submission: LANE_QUEUES * RingRecord.size,
  completion: LANE_QUEUES * RingRecord.size,
  slots: LANE_SLOTS * LaneSlot.size,
});

/** In the rings, in the place of a number: the command's queue is gone. */
export const NO_SLOT = 0xffff_ffff;
