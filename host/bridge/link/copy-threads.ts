/**
 * Copies by threads: two for the bridge, for copies that are so large that the others on the event loop should not wait
 * for them. A batch of copies is one request to a thread, and one event when it has ended.
 */
import {
  createIoPool,
  IO_ENDS as Ends,
  eventfd,
  IO_OPERATION,
  type IoPool,
  IO_PIECE as Piece,
  POLL_READABLE,
  Poll,
  IO_REQUEST as Request,
} from "../../../native/index.js";
import { isSystemError, UserError } from "../../../shared/errors.js";
import type { IoBuffers } from "../../../shared/io-buffers.js";

const THREADS = 2;
/** Batches in flight at most. */
const BATCHES = 64;
/** Room for one batch, in numbers. */
const WORDS = 16384;
const PAIR = 2 * Piece.SIZE;

export class CopyThreads {
  readonly pool: IoPool;
  readonly #words: Uint32Array;
  readonly #ends: Int32Array;
  readonly #ended: ((errno: number) => void)[] = [];
  readonly #free: number[] = [];
  #pairs = 0;
  /** Ends that were dealt with, modulo 2^32. */
  #seen = 0;

  constructor() {
    const signal = eventfd(0);
    this.pool = createIoPool(BATCHES, THREADS, WORDS, signal);
    this.#words = this.pool.requests;
    this.#ends = this.pool.ends;
    for (let batch = BATCHES - 1; batch >= 0; batch--) this.#free.push(batch);
    const poll = new Poll(signal, () => this.#look(), "eventfd");
    poll.unref();
    poll.start(POLL_READABLE);
  }

  /** Whether so many copies can be added to the batch that is being made. */
  hasRoom(copies: number): boolean {
    return this.#free.length > 0 && Request.SIZE + (this.#pairs + copies) * PAIR <= WORDS;
  }

  /** Adds a copy to the batch. One batch is made at a time, without a turn of the event loop in between. */
  add(
    buffers: IoBuffers,
    source: Uint8Array,
    sourceOffset: number,
    target: Uint8Array,
    targetOffset: number,
    length: number,
  ): void {
    const words = this.#words;
    const at = Request.SIZE + this.#pairs++ * PAIR;
    words[at + Piece.BUFFER] = buffers.numberOf(source);
    words[at + Piece.OFFSET] = buffers.start + sourceOffset;
    words[at + Piece.LENGTH] = length;
    words[at + Piece.SIZE + Piece.BUFFER] = buffers.numberOf(target);
    words[at + Piece.SIZE + Piece.OFFSET] = buffers.start + targetOffset;
    words[at + Piece.SIZE + Piece.LENGTH] = length;
  }

  /** Forgets the batch that is being made. */
  drop(): void {
    this.#pairs = 0;
  }

  /**
   * Hands the batch to a thread; `hasRoom` said that there is a place. Its memory has to stay where it is until `ended`
   * is called, with 0, or EFAULT when some of it is gone.
   */
  start(ended: (errno: number) => void): void {
    const batch = this.#free.pop() as number;
    const words = this.#words;
    words.fill(0, 0, Request.SIZE);
    words[Request.NUMBER] = batch;
    words[Request.OPERATION] = IO_OPERATION.COPY;
    words[Request.PIECES] = this.#pairs * 2;
    const used = Request.SIZE + this.#pairs * PAIR;
    this.#pairs = 0;
    this.#ended[batch] = ended;
    this.pool.submit(used);
  }

  /** Blocks until some batch has ended, one at least being in flight, and calls its `ended`. */
  wait(): void {
    this.pool.wait(this.#seen);
    this.#look();
  }

  #look(): void {
    const ends = this.#ends;
    Atomics.store(ends, Ends.TOLD, 0);
    while (Atomics.load(ends, Ends.COUNT) !== this.#seen) {
      const end = Ends.FIRST + (this.#seen & (BATCHES - 1)) * Ends.SIZE;
      const batch = ends[end];
      const errno = ends[end + 1];
      this.#seen = (this.#seen + 1) | 0;
      this.#free.push(batch);
      this.#ended[batch](errno);
    }
  }
}

let shared: CopyThreads | undefined;

/** Makes them when the process starts: later there may be no file descriptors left for them. @throws UserError */
export function startCopyThreads(): void {
  try {
    copyThreads();
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(`cannot make threads for copies: ${error.message}: raise LimitNOFILE`);
  }
}

/** Those of this process. */
export function copyThreads(): CopyThreads {
  shared ??= new CopyThreads();
  return shared;
}
