/**
 * Lanes: loops that serve queues without JavaScript (lane.h). Identifiers, addresses and sizes are checked; what goes
 * through a lane's record (shared/lane-record.ts) is written by both sides.
 */
import { loadAddon } from "./platform.js";

/** When a lane looks at doorbells while none comes. */
export const LANE_POLLING = {
  /** Not at all: each comes with a `kick`. */
  SIGNALLED: 0,
  /** For a while, and then their writer is asked to signal. */
  ARMED: 1,
  /** For a while, and then now and then. */
  ADAPTIVE: 2,
  ALWAYS: 3,
} as const;

/**
 * What the lanes of one function share. Each change is made between two commands of every lane, and nothing of what it
 * takes away is used any more when it returns. Addresses are as in shared/address.ts.
 */
export interface LaneContext {
  /** The bytes of `buffer`, which must stay, are driver-VM memory. False when a map is in the way. */
  map(
    address: number,
    size: number,
    buffer: ArrayBuffer,
    offset: number,
    readable: boolean,
    writable: boolean,
  ): boolean;
  /** Takes away all maps that lie in a range. */
  unmap(address: number, size: number): void;
  unmapAll(): void;
  /** Whether any DMA may be done. */
  permit(isPermitted: boolean): void;
  /** What lanes write from now on is noted, by pages of 2^`pageShift` bytes. */
  startLog(pageShift: number): void;
  stopLog(): void;
  /** Takes what was noted: an address and a length each. Undefined when it was too much: all counts as written. */
  takeLog(): Float64Array | undefined;
  /** Lanes signal a vector by an eventfd, of which this takes a duplicate. */
  setEventfd(vector: number, fd: number): void;
  /** Lanes signal a vector by writing 16 bits to a device's register; the buffer must stay. */
  setRegister(vector: number, buffer: ArrayBuffer, offset: number, value: number): void;
  /** Lanes report that a vector is due, and leave the rest to others. */
  clearVector(vector: number): void;
  /** A disk by its number; this takes a duplicate of the fd. False where that cannot be had. */
  addMemoryDisk(number: number, fd: number, size: number): boolean;
  /** Flags of preadv2 and pwritev2 with which they do not wait; -1 where there are none. */
  addFileDisk(number: number, fd: number, readFlags: number, writeFlags: number, punches: boolean): boolean;
  removeDisk(number: number): void;
  setDisk(
    number: number,
    blockShift: number,
    blockCount: number,
    isOpen: boolean,
    isWritable: boolean,
    mayCache: boolean,
  ): void;
  /** A transfer of somebody else's begins, or waits: no lane overlaps it. Returns what `leaveDisk` wants. */
  enterDisk(number: number, start: number, end: number, writes: boolean): number;
  leaveDisk(number: number, transfer: number): void;
}

export interface Lane {
  /** Gives it a thread of its own, on one CPU if one is named. */
  start(cpu?: number): void;
  /**
   * Something came for it: makes a turn of about `budget` commands, unless its thread is awake and finds it. Returns
   * how much was done.
   */
  kick(budget: number): number;
  /**
   * After a turn of a lane without a thread: milliseconds until the next one is due, 0: at once, below 0: when there is
   * something for it. Always the last with a thread.
   */
  delay(): number;
  /** One of LANE_POLLING. */
  setPolling(polling: number): void;
  /** Whether nothing new is begun. */
  setPaused(isPaused: boolean): void;
  /** Posts the answers that were given so far. */
  settle(): void;
  /** Ends its thread. */
  close(): void;
}

/** NVMe queues in a lane; by identifiers below the number that there are doorbells for. */
export interface NvmeLane {
  /** `sendsAllUp`: it does nothing by itself. */
  set(pageSize: number, maxTransfer: number, sendsAllUp: boolean): void;
  /** Vectors that are masked, of the first 32. */
  setMask(mask: number): void;
  /** New queues, from 0 on. False when they are not in the window. `vector`: -1 for no interrupts. */
  addCompletion(id: number, base: number, size: number, vector: number): boolean;
  addSubmission(id: number, base: number, size: number, completion: number): boolean;
  removeCompletion(id: number): void;
  removeSubmission(id: number): void;
  removeAll(): void;
  /** It and its submission queues are not served any more. What was answered and cannot be posted stays in its slot. */
  stopCompletion(id: number): void;
  /** The doorbell with this number is somebody else's, who is told when it is another than `value`. */
  watch(number: number, value: number): void;
  unwatch(number: number): void;
  /** Doorbells of all but the first queues are shadow doorbells, at these addresses. */
  setShadow(doorbells: number, events: number, isWanted: boolean): void;
  /** Ends a command that was not fetched. False where there is none, or no room for its completion. */
  abort(id: number, command: number, status: number): boolean;
  /** Whether the entry at an index was ended so. */
  wasAborted(id: number, index: number): boolean;
  /**
   * For tests: where a command's data is, an address and a length each; undefined where a lane leaves that to others.
   */
  resolve(entry: Uint8Array, length: number): Float64Array | undefined;
  close(): void;
}

/** The addon's exports for them. */
interface LaneExports {
  /** For a function with so many interrupt vectors. */
  LaneContext: new (
    vectors: number,
  ) => LaneContext;
  /**
   * `record`: zeros, or what a lane left, for as long as the lane lives. `signal`: an eventfd, the caller's, that is
   * signalled when a lane's thread has something for it.
   */
  Lane: new (
    context: LaneContext,
    record: ArrayBuffer,
    signal: number,
  ) => Lane;
  /** Doorbells are words, `stride` words apart, of submission and completion queues in turns. */
  NvmeLane: new (
    lane: Lane,
    doorbells: Uint32Array,
    stride: number,
  ) => NvmeLane;
}

export const { LaneContext, Lane, NvmeLane } = loadAddon() as LaneExports;
