/**
 * Where the bytes of a connection are, and how far it has come: in memory of its own, or in memory from which another
 * process goes on when this one is killed (native StreamMemory, docs/decisions/023-exactly-once.md).
 *
 * File descriptors that come with messages do not outlive the process by themselves. Where there is a keeper for them,
 * they are looked at first, given to it, and received then; a table says which message each belongs to.
 */
import * as native from "../../../native/index.js";
import { crashPoint } from "../../../native/supervision.js";
import { PeerGone } from "../../errors.js";
import { MAX_MESSAGE_FDS } from "../../limits.js";
import { closePeerFd } from "../../peer-fds.js";

const { StreamWord } = native;

/** Keeps file descriptors for the next process. */
export interface FdKeeper {
  /** Returns the number by which the next process asks for it, above 0. What it keeps is forgotten by closePeerFd. */
  keep(fd: number): number;
  /** In the next process: a descriptor for that number, -1 when it did not come. */
  take(id: number): number;
}

/** Room for a largest message, another one behind it, and commands that wait. */
const RECEIVED_SIZE = 2 ** 22;
/** Twice what may wait. */
const UNSENT_SIZE = 2 ** 23;
export const STREAM_SIZE = native.STREAM_CONTROL_SIZE + RECEIVED_SIZE + UNSENT_SIZE;

/** Whether position `a` is in front of `b`. */
export const isBefore = (a: number, b: number) => ((a - b) | 0) < 0;

/** The table of fds: an entry is a state, the position behind the bytes that it came with, its number, and a check. */
const ENTRY_WORDS = 4;
const TABLE_AT = 4096 / 4;
const ENTRIES = (native.STREAM_CONTROL_SIZE - 4096) / 4 / ENTRY_WORDS;
/** States; none is another one with a byte changed. PENDING: whether it was received is to be seen. */
const FREE = 0;
const PENDING = 0x50454e44;
const LIVE = 0x4c495645;

/** Fds that came along with bytes up to a position. */
export interface Arrival {
  readonly end: number;
  readonly fds: number[];
}

export class StreamMemory {
  /** StreamWord. */
  readonly words = new Int32Array(native.STREAM_WORDS);
  readonly native: native.StreamMemory;
  /** The ring of received bytes, twice. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #table: Uint32Array;
  readonly #keeper: FdKeeper | undefined;
  /** Kept, and not received yet, with their places in the table. */
  #coming: number[] = [];
  #comingIds: number[] = [];
  #comingAt: number[] = [];
  readonly #received = new Int32Array(1 + MAX_MESSAGE_FDS);
  /** Where the next free entry is looked for. */
  #cursor = 0;

  /** In a file from `offset` on, or in memory of its own. @throws SystemError */
  constructor(fd = -1, offset = 0, keeper?: FdKeeper) {
    this.native = new native.StreamMemory(this.words, fd, offset, RECEIVED_SIZE, UNSENT_SIZE);
    this.bytes = new Uint8Array(this.native.received);
    this.#table = new Uint32Array(this.native.control);
    this.#keeper = keeper;
    this.words[StreamWord.PEEKS] = keeper === undefined ? 0 : 1;
    this.words[StreamWord.MOST_FDS] = MAX_MESSAGE_FDS;
  }

  /** A new connection. */
  begin(): void {
    this.close();
    this.#table.fill(FREE, TABLE_AT);
    this.native.begin();
  }

  /**
   * Takes what another process left, and returns the fds of messages that were not dealt with, which are the caller's;
   * undefined when nobody can go on from it.
   */
  load(): Arrival[] | undefined {
    if (!this.native.load()) return undefined;
    const end = this.words[StreamWord.END] >>> 0;
    const tookFds = this.words[StreamWord.HAS_FDS] !== 0;
    this.words[StreamWord.HAS_FDS] = 0;
    const arrivals: Arrival[] = [];
    for (let entry = 0; entry < ENTRIES; entry++) {
      const at = TABLE_AT + entry * ENTRY_WORDS;
      const [state, itsEnd, id, check] = this.#table.subarray(at, at + ENTRY_WORDS);
      if (state === FREE) continue;
      if ((state !== PENDING && state !== LIVE) || check !== checkOf(itsEnd, id, entry)) return undefined;
      const isReceived = state === LIVE || (tookFds && itsEnd === end);
      if (!isReceived || !isBefore(this.words[StreamWord.HANDLED], itsEnd)) {
        this.#store(at, FREE);
        continue;
      }
      const fd = this.#keeper?.take(id) ?? -1;
      if (fd < 0) return undefined;
      this.#store(at, LIVE);
      const same = arrivals.find((arrival) => arrival.end === itsEnd);
      if (same) same.fds.push(fd);
      else arrivals.push({ end: itsEnd, fds: [fd] });
    }
    return arrivals.sort((a, b) => (a.end - b.end) | 0);
  }

  /** The byte at a position of what was received, as an index in `bytes`. */
  at(position: number): number {
    return (position - this.words[StreamWord.BASE]) & (RECEIVED_SIZE - 1);
  }

  /**
   * Receives up to ROOM bytes, which are behind END then: the count, 0 at the end of the stream, -1 when nothing waits.
   * `fds` as in native `receive`. @throws SystemError
   */
  receive(fd: number, fds: Int32Array): number {
    const { words } = this;
    const count = this.native.peek(fd, fds);
    if (fds[0] <= native.LOST_FDS) this.close();
    if (count <= 0 || words[StreamWord.HAS_FDS] === 0) return count;
    words[StreamWord.HAS_FDS] = 0;
    this.#keep(fds, (words[StreamWord.END] + count) >>> 0);
    const received = this.#received;
    const length = this.native.receive(fd, count, received);
    for (let n = 1; n <= received[0]; n++) native.close(received[n]);
    if (received[0] === 0) {
      // Those that were seen belong to a message behind these bytes.
      fds[0] = 0;
      return length;
    }
    for (const at of this.#comingAt) this.#store(at, LIVE);
    fds[0] = this.#coming.length;
    fds.set(this.#coming, 1);
    this.#coming = [];
    this.#comingAt = [];
    return length;
  }

  /** The connection ends: closes what was kept and not received. */
  close(): void {
    for (const fd of this.#coming.splice(0)) closePeerFd(fd);
    for (const at of this.#comingAt.splice(0)) this.#store(at, FREE);
  }

  /**
   * Nobody needs it any more: it is unmapped as soon as no callback is running that may still use it. The garbage
   * collector would do so much later, and dozens of them would be there for each that is in use.
   */
  release(): void {
    setImmediate(() => this.native.release());
  }

  /** Keeps fds that were looked at, unless they were seen before. */
  #keep(fds: Int32Array, end: number): void {
    const seen = [...fds.subarray(1, 1 + fds[0])];
    if (this.#coming.length === seen.length) {
      for (const fd of seen) native.close(fd);
      for (const at of this.#comingAt) this.#store(at, FREE);
    } else {
      this.close();
      this.#coming = seen;
      this.#comingIds = seen.map((fd) => this.#keeper?.keep(fd) ?? 0);
    }
    this.#comingAt = this.#comingIds.map((id) => this.#add(end, id));
  }

  #add(end: number, id: number): number {
    const entry = this.#freeEntry();
    const at = TABLE_AT + entry * ENTRY_WORDS;
    this.#table.set([end, id, checkOf(end, id, entry)], at + 1);
    this.#store(at, PENDING);
    return at;
  }

  /** One that is free, or whose message is dealt with. */
  #freeEntry(): number {
    const handled = this.words[StreamWord.HANDLED];
    for (let n = 0; n < ENTRIES; n++) {
      const entry = this.#cursor;
      this.#cursor = (entry + 1) % ENTRIES;
      const at = TABLE_AT + entry * ENTRY_WORDS;
      const state = this.#table[at];
      if (state === FREE || (state === LIVE && !isBefore(handled, this.#table[at + 1]))) return entry;
    }
    throw new PeerGone("too many fds wait");
  }

  #store(at: number, state: number): void {
    Atomics.store(this.#table, at, state);
    crashPoint?.();
  }
}

function checkOf(end: number, id: number, entry: number): number {
  const check = Math.imul(end ^ 0x811c9dc5, 0x01000193) ^ Math.imul(id ^ entry, 0x85ebca6b);
  return (check ^ (check >>> 15)) >>> 0;
}
