/**
 * NVM Express 1.4, section 4.1: submission and completion queues as the controller sees them. A queue is a ring in
 * driver-VM memory; what is kept of it here is trusted, what the driver writes into it or into a doorbell is not. Of a
 * queue that a lane serves (lanes.ts) what is here is only where it was when that was asked for. A
 * command is only fetched when there is an entry for its completion (`CompletionQueue.reserved`), so a completion queue
 * never overflows.
 */
import { isLost } from "../../../../shared/lost-memory.js";
import type { Dma } from "../../../device.js";
import { COMPLETION_ENTRY_SIZE, Completion, SUBMISSION_ENTRY_SIZE } from "../spec.js";
import { newSegment, Words } from "./segments.js";

/** A queue that is in no lane (lanes.ts). */
export const NO_LANE = -1;

/** CID and STATUS share the last 32-bit word of an entry. */
const LAST_WORD = Completion.offsets.CID;

/** Bytes of the largest ring that a driver can ask for: an admin queue's. */
export const MAX_RING_SIZE = 4096 * SUBMISSION_ENTRY_SIZE;

/** What the registers describe (7.6.1). `pageSize`: CC.MPS in bytes. */
export interface AdminQueues {
  readonly pageSize: number;
  readonly completionQueue: CompletionQueue;
  readonly submissionQueue: SubmissionQueue;
}

/** What both kinds share. */
export class Ring {
  head = 0;
  tail = 0;
  /** False once deleted or reset: nothing may be posted or fetched any more. */
  alive = true;
  /** The invalid value that its doorbell had last: reported once, and nothing else until it is another. */
  invalidDoorbell = -1;
  /** Where the ring is in the window; good in the turn in which `locate` was true. */
  readonly segment = newSegment();
  #locatedIn = 0;

  constructor(
    readonly id: number,
    readonly base: number,
    /** Entries, at least 2. */
    readonly size: number,
  ) {}

  /**
   * Whether all of the ring lies in one piece of the window, `segment`. Looked up once in a turn, within which no map
   * changes: turns that follow each other have different numbers, none of which is 0.
   */
  locate(dma: Dma, turn: number, access: "read" | "write", entrySize: number): boolean {
    const length = this.size * entrySize;
    if (this.#locatedIn !== turn) {
      this.#locatedIn = turn;
      dma.locate(this.base, length, access, this.segment);
    }
    return this.segment.length === length;
  }

  /** Entries from head to tail. */
  get used(): number {
    return (this.tail - this.head + this.size) % this.size;
  }

  next(index: number): number {
    return index + 1 === this.size ? 0 : index + 1;
  }
}

const segment = newSegment();
const entry = Completion.view();

/** Fills all of an entry but its last word. */
function fill(data: DataView, offset: number, result: number, sqid: number, sqhd: number): void {
  entry.at(data, offset);
  entry.DW0 = result;
  entry.DW1 = 0;
  entry.SQHD = sqhd;
  entry.SQID = sqid;
}

export class CompletionQueue extends Ring {
  /** Entries reserved for commands in flight. */
  reserved = 0;
  /** The lane that serves it, and the submission queues that complete here. */
  lane = NO_LANE;
  /** An interrupt is due at the end of this turn. */
  interrupting = false;
  /** Entries that could not be written at once, as they are not in the window: written in order by messages. */
  readonly unwritten: { readonly address: number; readonly bytes: Uint8Array }[] = [];
  /** The submission queues that complete here. */
  readonly submissionQueues: SubmissionQueue[] = [];
  #phase = 1;
  readonly #lastWord = new Words();

  constructor(
    id: number,
    base: number,
    size: number,
    /** Create I/O Completion Queue's IV and IEN. */
    readonly vector: number,
    readonly interruptsEnabled: boolean,
  ) {
    super(id, base, size);
  }

  /** Entries for further commands. A ring of n entries holds n-1. */
  get room(): number {
    return this.size - 1 - this.used - this.reserved;
  }

  /** Doorbell CQyHDBL, 3.1.25: takes entries away. False when the value is invalid. */
  ring(head: number): boolean {
    if (head >= this.size || head === this.head) return false;
    if ((head - this.head + this.size) % this.size > this.used) return false;
    this.head = head;
    return true;
  }

  /**
   * Puts an entry at the tail, which `room` or `reserved` counted. `status` is the status field without the
   * phase. True when it is in memory; false when it went to `unwritten`.
   */
  post(dma: Dma, result: number, sqid: number, sqhd: number, cid: number, status: number): boolean {
    const address = this.base + this.tail * COMPLETION_ENTRY_SIZE;
    const last = this.#advance(cid, status);
    const located = this.unwritten.length === 0 ? dma.locate(address, COMPLETION_ENTRY_SIZE, "write", segment) : 0;
    if (located === COMPLETION_ENTRY_SIZE) {
      fill(segment.data, segment.offset, result, sqid, sqhd);
      // The phase makes the entry valid, so its word goes last and as one.
      this.#lastWord.at(segment, LAST_WORD).store(0, last);
      dma.account(0, COMPLETION_ENTRY_SIZE);
      // Of memory that is gone the messages say so.
      if (!isLost(segment.bytes, segment.offset, COMPLETION_ENTRY_SIZE)) return true;
    }
    const bytes = new Uint8Array(COMPLETION_ENTRY_SIZE);
    const data = new DataView(bytes.buffer);
    fill(data, 0, result, sqid, sqhd);
    data.setUint32(LAST_WORD, last, true);
    this.unwritten.push({ address, bytes });
    return false;
  }

  /** Where it is, as a lane had it. */
  restore(head: number, tail: number, phase: number): void {
    this.head = head;
    this.tail = tail;
    this.#phase = phase;
  }

  /** Takes the entry at the tail; returns the last word of its entry. */
  #advance(cid: number, status: number): number {
    const last = ((((status << 1) | this.#phase) << 16) | cid) >>> 0;
    this.tail = this.next(this.tail);
    if (this.tail === 0) this.#phase ^= 1;
    return last;
  }
}

export class SubmissionQueue extends Ring {
  /** It is in the engine's row of queues to serve. */
  ready = false;
  /** Entries are being read by messages. */
  fetching = false;
  /** Entries that were read by messages, from that of `fetchedAt` on. */
  fetched: DataView | undefined;
  fetchedAt = 0;
  /** Entries that the next command wants in the completion queue: two for a pair, none where they are reserved. */
  wanted = 1;
  /** Entries of commands that were aborted before they were fetched, by index. */
  readonly aborted = new Set<number>();

  constructor(
    id: number,
    base: number,
    size: number,
    readonly completionQueue: CompletionQueue,
  ) {
    super(id, base, size);
    completionQueue.submissionQueues.push(this);
  }

  /** Whether a command can be fetched now, and by whom is not a lane. */
  get servable(): boolean {
    return (
      this.completionQueue.lane === NO_LANE &&
      this.alive &&
      !this.fetching &&
      this.head !== this.tail &&
      this.completionQueue.room >= this.wanted
    );
  }

  /** Whether the entry at the head is that of a command that was aborted: it is fetched then. */
  skipAborted(): boolean {
    if (this.aborted.size === 0 || !this.aborted.delete(this.head)) return false;
    this.head = this.next(this.head);
    return true;
  }

  /** Doorbell SQyTDBL, 3.1.24: adds entries. False when the value is invalid. */
  ring(tail: number): boolean {
    if (tail >= this.size || tail === this.tail) return false;
    if ((tail - this.tail + this.size) % this.size > this.size - 1 - this.used) return false;
    this.tail = tail;
    return true;
  }
}
