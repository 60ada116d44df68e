/**
 * Reads and writes of files that may have to wait: a pool of native threads, one for the whole process, that move bytes straight
 * between a file and memory. What is asked for between `cork` and `uncork` goes to the threads by one call, and what ends together
 * comes back by one event. In the steady state nothing is allocated.
 *
 * Left out: fdatasync and fallocate, which may take seconds. They have Node.js's own thread pool to themselves, so that no read
 * waits for a thread behind them.
 */
import { getSystemErrorName } from "node:util";
import {
  createIoPool,
  IO_ENDS as Ends,
  eventfd,
  type IO_OPERATION,
  type IoPool,
  close as nativeClose,
  IO_PIECE as Piece,
  POLL_READABLE,
  Poll,
  IO_REQUEST as Request,
} from "../../../native/index.js";
import { IoBuffers } from "../../../shared/io-buffers.js";

export type StorageError = Error & { readonly code?: string | undefined };
export type Ended = (error: StorageError | null) => void;
export type IoOperation = (typeof IO_OPERATION)["READ" | "WRITE"];

/** Places in memory, to be moved one after the other. */
export interface Pieces {
  /** How many of `segments`, from the first on. */
  readonly count: number;
  readonly segments: readonly { readonly bytes: Uint8Array; readonly offset: number; readonly length: number }[];
}

/** Requests under way at most; further ones wait here. A power of two. */
const REQUESTS = 1024;
/** As many reads of a device can wait at a time. */
const THREADS = 16;
/** Room for what is asked for in one go, in numbers; more takes more calls. */
const WORDS = 16384;
/** When nothing has ended for so long, those that wait behind it get threads of their own. */
const STALL_MS = 10;

/** A request that has no place yet. */
interface Waiting {
  readonly operation: IoOperation;
  readonly file: PooledFile;
  readonly pieces: Pieces;
  readonly position: number;
  readonly done: Ended;
}

export class FileIo {
  readonly #pool: IoPool;
  readonly #signal = eventfd(0);
  readonly #poll: Poll;
  readonly #words: Uint32Array;
  readonly #ends: Int32Array;
  /** By request number. */
  readonly #done: (Ended | undefined)[] = [];
  readonly #free: number[] = [];
  readonly #waiting: Waiting[] = [];
  readonly #requests: number;
  /** Numbers written for the next `submit`. */
  #used = 0;
  #corks = 0;
  /** Ends that were dealt with, modulo 2^32. */
  #seen = 0;
  /** Looks, while anything is under way, whether anything ends. */
  #watch: NodeJS.Timeout | undefined;
  #seenByWatch = 0;
  #ending = false;
  /** The first `#deferred` are to be called. An array that is made shorter would be made anew. */
  readonly #afterwards: (() => void)[] = [];
  #deferred = 0;

  constructor(requests = REQUESTS, threads = THREADS) {
    this.#requests = requests;
    this.#pool = createIoPool(requests, threads, WORDS, this.#signal);
    this.#words = this.#pool.requests;
    this.#ends = this.#pool.ends;
    for (let number = requests - 1; number >= 0; number--) this.#free.push(number);
    this.#poll = new Poll(this.#signal, () => this.#onSignal(), "eventfd");
    this.#poll.unref();
    this.#poll.start(POLL_READABLE);
  }

  /** What is asked for from now on may wait for `uncork`. Pairs may be nested. */
  cork(): void {
    this.#corks++;
  }

  uncork(): void {
    if (--this.#corks === 0 && this.#used > 0) this.#submit();
  }

  /** Calls `callback` soon: when all that ended together is dealt with, or else in a turn of the event loop. */
  defer(callback: () => void): void {
    if (this.#ending) this.#afterwards[this.#deferred++] = callback;
    else setImmediate(callback);
  }

  /** Moves all of `pieces` (at least one), or ends with an error. They must stay as they are until then, and the memory in place. */
  move(operation: IoOperation, file: PooledFile, pieces: Pieces, position: number, done: Ended): void {
    const number = this.#free.pop();
    if (number === undefined) this.#waiting.push({ operation, file, pieces, position, done });
    else this.#note(number, operation, file, pieces, position, done);
  }

  /** Waits for the requests that threads are at, and drops the others. */
  close(): void {
    clearTimeout(this.#watch);
    this.#pool.close();
    this.#poll.close();
    nativeClose(this.#signal);
  }

  /** For PooledFile. */
  get pool(): Pick<IoPool, "add" | "remove"> {
    return this.#pool;
  }

  #note(
    number: number,
    operation: IoOperation,
    file: PooledFile,
    { count, segments }: Pieces,
    position: number,
    done: Ended,
  ): void {
    const words = this.#words;
    if (this.#used + Request.SIZE + count * Piece.SIZE > words.length) this.#submit();
    let at = this.#used;
    words[at + Request.NUMBER] = number;
    words[at + Request.OPERATION] = operation;
    words[at + Request.FD] = file.fd;
    words[at + Request.POSITION_LOW] = position >>> 0;
    words[at + Request.POSITION_HIGH] = Math.floor(position / 0x1_0000_0000);
    words[at + Request.PIECES] = count;
    at += Request.SIZE;
    for (let n = 0; n < count; n++) {
      const { bytes, offset, length } = segments[n];
      words[at + Piece.BUFFER] = file.buffers.numberOf(bytes);
      words[at + Piece.OFFSET] = file.buffers.start + offset;
      words[at + Piece.LENGTH] = length;
      at += Piece.SIZE;
    }
    this.#used = at;
    this.#done[number] = done;
    if (this.#free.length === this.#requests - 1) this.#poll.ref();
    if (this.#watch === undefined) this.#watchOn();
    if (this.#corks === 0) this.#submit();
  }

  #watchOn(): void {
    this.#seenByWatch = this.#seen;
    this.#watch = setTimeout(this.#onWatch, STALL_MS).unref();
  }

  /** A write that hangs must not keep those of another file, nor the ends that would be told of along with its own. */
  readonly #onWatch = (): void => {
    this.#watch = undefined;
    this.#onSignal();
    if (this.#free.length === this.#requests) return;
    if (this.#seen === this.#seenByWatch) this.#pool.hurry();
    this.#watchOn();
  };

  #submit(): void {
    const used = this.#used;
    this.#used = 0;
    this.#pool.submit(used);
  }

  #onSignal(): void {
    const ends = this.#ends;
    const mask = this.#requests - 1;
    Atomics.store(ends, Ends.TOLD, 0);
    this.cork();
    this.#ending = true;
    for (let count = Atomics.load(ends, Ends.COUNT); this.#seen !== count; count = Atomics.load(ends, Ends.COUNT)) {
      do {
        const at = Ends.FIRST + (this.#seen & mask) * Ends.SIZE;
        this.#seen = (this.#seen + 1) | 0;
        this.#end(ends[at], ends[at + 1]);
      } while (this.#seen !== count);
    }
    this.#ending = false;
    for (let n = 0; n < this.#deferred; n++) this.#afterwards[n]();
    this.#deferred = 0;
    this.uncork();
    if (this.#free.length === this.#requests) this.#poll.unref();
  }

  #end(number: number, errno: number): void {
    const done = this.#done[number];
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(number);
    else this.#note(number, next.operation, next.file, next.pieces, next.position, next.done);
    done?.(errno === 0 ? null : failure(errno));
  }
}

/** A file whose bytes a FileIo moves. */
export class PooledFile {
  readonly buffers: IoBuffers;
  readonly #io: FileIo;

  constructor(
    /** Stays the caller's. */
    readonly fd: number,
    io = fileIo(),
  ) {
    this.#io = io;
    this.buffers = new IoBuffers(io.pool);
  }

  move(operation: IoOperation, pieces: Pieces, position: number, done: Ended): void {
    this.#io.move(operation, this, pieces, position, done);
  }

  /** Nothing is under way, nor will be. */
  close(): void {
    this.buffers.clear();
  }
}

function failure(errno: number): StorageError {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: a file's bytes could not be moved`), { code });
}

let shared: FileIo | undefined;

/** The pool of this process. */
export function fileIo(): FileIo {
  shared ??= new FileIo();
  return shared;
}
