/**
 * The client of an IoPool, native threads that move bytes between files and memory or within memory (native/index.ts):
 * requests are written one behind the other and submitted by one call, completions are read from a ring in memory. In
 * the steady state nothing is allocated.
 */
import {
  createIoPool,
  eventfd,
  type IoPool,
  close as nativeClose,
  IO_OPERATION as Operation,
  IO_PIECE as Piece,
  POLL_READABLE,
  Poll,
  IO_RANGE as Range,
  IO_REQUEST as Request,
  IO_COMPLETIONS as Ring,
} from "../native/index.js";
import type { BufferTable } from "./buffer-table.js";

/** Room for requests that are submitted together, in numbers; more take more calls. */
const WORDS = 16384;

/** `Waiter` is who waits for a request. */
export class IoPoolClient<Waiter> {
  readonly pool: IoPool;
  readonly #requests: number;
  readonly #onCompleted: (waiter: Waiter, errno: number) => void;
  readonly #signal = eventfd(0);
  readonly #poll: Poll;
  readonly #words: Uint32Array;
  readonly #ring: Int32Array;
  /** By request number. */
  readonly #waiters: Waiter[] = [];
  readonly #free: number[] = [];
  /** Where in the words the request begins that is being made, and the pieces that it has. */
  #start = 0;
  #pieces = 0;
  #completed = 0;
  /** Of the request that was begun last, if it has a range and is not submitted yet: its number, and where it is. */
  #rangeNumber = -1;
  #rangeStart = 0;
  #rangeLength = 0;

  /**
   * `requests`: how many may be in flight, a power of two. `onCompleted` is called by `reap`, with 0 or an errno.
   * `onSignal` is called when there are completions, and has them reaped. @throws SystemError
   */
  constructor(
    requests: number,
    threads: number,
    onCompleted: (waiter: Waiter, errno: number) => void,
    onSignal: () => void,
  ) {
    this.#requests = requests;
    this.#onCompleted = onCompleted;
    this.pool = createIoPool(requests, threads, WORDS, this.#signal);
    this.#words = this.pool.requests;
    this.#ring = this.pool.completions;
    for (let number = requests - 1; number >= 0; number--) this.#free.push(number);
    this.#poll = new Poll(this.#signal, onSignal, "eventfd");
    this.#poll.unref();
    this.#poll.start(POLL_READABLE);
  }

  get inFlight(): number {
    return this.#requests - this.#free.length;
  }

  /** Completions so far, modulo 2^32. */
  get completed(): number {
    return this.#completed;
  }

  /** Whether a request may be begun, and the one that is being made may have so many pieces more. */
  hasRoom(pieces: number): boolean {
    const used = this.#start + Request.SIZE + (this.#pieces + pieces) * Piece.SIZE;
    return this.#free.length > 0 && used <= WORDS;
  }

  /** Adds memory to the request that is being made: one at a time, in one go of the event loop. */
  addPiece(buffers: BufferTable, bytes: Uint8Array, offset: number, length: number): void {
    const words = this.#words;
    const at = this.#start + Request.SIZE + this.#pieces++ * Piece.SIZE;
    words[at + Piece.BUFFER] = buffers.numberOf(bytes);
    words[at + Piece.OFFSET] = buffers.start + offset;
    words[at + Piece.LENGTH] = length;
  }

  /** The one piece of an ALLOCATE: fallocate's arguments. */
  addRange(mode: number, length: number): void {
    const words = this.#words;
    const at = this.#start + Request.SIZE + this.#pieces++ * Piece.SIZE;
    words[at + Range.MODE] = mode;
    words[at + Range.LENGTH_LOW] = length >>> 0;
    words[at + Range.LENGTH_HIGH] = Math.floor(length / 0x1_0000_0000);
  }

  /**
   * Makes the range of the last request longer, if that was begun with the same mode, ends at `position`, would not be
   * longer than `most`, and is not submitted yet. `join` makes one of its waiter and a further one. False when there is
   * no such request.
   */
  extendRange(mode: number, position: number, length: number, most: number, join: (waiter: Waiter) => Waiter): boolean {
    const number = this.#rangeNumber;
    const longer = this.#rangeLength + length;
    if (number < 0 || this.#rangeStart + this.#rangeLength !== position || longer > most) return false;
    const words = this.#words;
    const at = this.#start - Piece.SIZE;
    if (words[at + Range.MODE] !== mode) return false;
    words[at + Range.LENGTH_LOW] = longer >>> 0;
    words[at + Range.LENGTH_HIGH] = Math.floor(longer / 0x1_0000_0000);
    this.#rangeLength = longer;
    this.#waiters[number] = join(this.#waiters[number]);
    return true;
  }

  /** Drops the request that is being made. */
  drop(): void {
    this.#pieces = 0;
  }

  /**
   * The request that is being made is complete; `submit` hands it over. Its memory stays where it is until it is
   * completed.
   */
  begin(operation: number, fd: number, position: number, waiter: Waiter): void {
    const number = this.#free.pop() as number;
    const words = this.#words;
    const at = this.#start;
    words[at + Request.NUMBER] = number;
    words[at + Request.OPERATION] = operation;
    words[at + Request.FD] = fd;
    words[at + Request.POSITION_LOW] = position >>> 0;
    words[at + Request.POSITION_HIGH] = Math.floor(position / 0x1_0000_0000);
    words[at + Request.PIECES] = this.#pieces;
    this.#start = at + Request.SIZE + this.#pieces * Piece.SIZE;
    this.#pieces = 0;
    this.#rangeNumber = -1;
    if (operation === Operation.ALLOCATE) {
      const range = at + Request.SIZE;
      this.#rangeNumber = number;
      this.#rangeStart = position;
      this.#rangeLength = words[range + Range.LENGTH_LOW] + words[range + Range.LENGTH_HIGH] * 0x1_0000_0000;
    }
    this.#waiters[number] = waiter;
    if (this.#free.length === this.#requests - 1) this.#poll.ref();
  }

  submit(): void {
    const used = this.#start;
    this.#start = 0;
    this.#rangeNumber = -1;
    if (used > 0) this.pool.submit(used);
  }

  /** Nothing has been completed for a while: requests that wait behind others get threads of their own. */
  addWorkers(): void {
    this.pool.addWorkers();
  }

  /** Blocks until something has been completed, one request at least being in flight, and reaps it. */
  wait(): void {
    this.pool.wait(this.#completed);
    this.reap();
  }

  /** Has all completions handled; what one of them throws is thrown when all others have been. */
  reap(): void {
    const ring = this.#ring;
    const mask = this.#requests - 1;
    let failures: unknown[] | undefined;
    Atomics.store(ring, Ring.SIGNALLED, 0);
    while (this.#completed !== Atomics.load(ring, Ring.COUNT)) {
      const at = Ring.FIRST + (this.#completed & mask) * Ring.SIZE;
      this.#completed = (this.#completed + 1) | 0;
      const number = ring[at];
      this.#free.push(number);
      try {
        this.#onCompleted(this.#waiters[number], ring[at + 1]);
      } catch (error) {
        failures ??= [];
        failures.push(error);
      }
    }
    if (this.#free.length === this.#requests) this.#poll.unref();
    if (failures !== undefined) throw failures[0];
  }

  /** Waits for the requests that threads are at, and drops the others. */
  close(): void {
    this.pool.close();
    this.#poll.close();
    nativeClose(this.#signal);
  }
}
