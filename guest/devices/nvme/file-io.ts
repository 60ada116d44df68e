/**
 * I/O of a disk's file, all of which may have to wait: native threads of the disk's own, so that one that hangs keeps
 * none of another's, move bytes between the file and memory, sync it, make zeros of parts of it, and keep attributes
 * with it. What is asked for in one go (io-batch.ts) goes to the threads by one call, and what ends together comes back
 * by one event. In the steady state nothing is allocated.
 */
import { getSystemErrorName } from "node:util";
import {
  createIoPool,
  IO_ENDS as Ends,
  eventfd,
  type IoPool,
  close as nativeClose,
  IO_OPERATION as Operation,
  IO_PIECE as Piece,
  POLL_READABLE,
  Poll,
  IO_RANGE as Range,
  IO_REQUEST as Request,
} from "../../../native/index.js";
import { IoBuffers } from "../../../shared/io-buffers.js";
import { ioBatch } from "./io-batch.js";

export type StorageError = Error & { readonly code?: string | undefined };
export type Ended = (error: StorageError | null) => void;

/** Places in memory, to be moved one after the other. */
export interface Pieces {
  /** How many of `segments`, from the first on. */
  readonly count: number;
  readonly segments: readonly { readonly bytes: Uint8Array; readonly offset: number; readonly length: number }[];
}

/** Requests in flight at most; further ones wait here. A power of two. */
const REQUESTS = 1024;
/** As many reads of a device can wait at a time. */
const THREADS = 16;
/** Room for what is asked for in one go, in numbers; more takes more calls. */
const WORDS = 16384;
/** When nothing has ended for so long, those that wait behind it get threads of their own. */
const STALL_MS = 10;
const ENCODER = new TextEncoder();
const NO_PIECES: Pieces = { count: 0, segments: [] };

export interface FileIoOptions {
  readonly requests?: number;
  readonly threads?: number;
}

export class FileIo {
  readonly #fd: number;
  readonly #pool: IoPool;
  readonly #buffers: IoBuffers;
  readonly #signal = eventfd(0);
  readonly #poll: Poll;
  readonly #words: Uint32Array;
  readonly #ends: Int32Array;
  /** By request number. */
  readonly #done: (Ended | undefined)[] = [];
  readonly #free: number[] = [];
  /** Requests that have no place yet; each is given a number and begins. */
  readonly #waiting: ((number: number) => void)[] = [];
  readonly #requests: number;
  readonly #attribute = new Uint8Array(256);
  /** Numbers written for the next `submit`, and whether that is to come. */
  #used = 0;
  #isNoted = false;
  /** Ends that were dealt with, modulo 2^32. */
  #seen = 0;
  /** Looks, while anything is in flight, whether anything ends. */
  #watch: NodeJS.Timeout | undefined;
  #seenByWatch = 0;

  /** The fd stays the caller's. @throws SystemError */
  constructor(fd: number, { requests = REQUESTS, threads = THREADS }: FileIoOptions = {}) {
    this.#fd = fd;
    this.#requests = requests;
    this.#pool = createIoPool(requests, threads, WORDS, this.#signal);
    this.#buffers = new IoBuffers(this.#pool);
    this.#words = this.#pool.requests;
    this.#ends = this.#pool.ends;
    for (let number = requests - 1; number >= 0; number--) this.#free.push(number);
    this.#poll = new Poll(this.#signal, () => this.#onSignal(), "eventfd");
    this.#poll.unref();
    this.#poll.start(POLL_READABLE);
  }

  /**
   * Moves all of `pieces` (at least one), or ends with an error. They must stay as they are until then, and the memory
   * in place.
   */
  read(pieces: Pieces, position: number, done: Ended): void {
    this.#move(Operation.READ, pieces, position, done);
  }

  write(pieces: Pieces, position: number, done: Ended): void {
    this.#move(Operation.WRITE, pieces, position, done);
  }

  /** fdatasync, or fsync. */
  sync(what: "data" | "all", done: Ended): void {
    this.#move(what === "all" ? Operation.SYNC_ALL : Operation.SYNC, NO_PIECES, 0, done);
  }

  /** fallocate; ENOTSUP where the file system has no such mode. */
  allocate(mode: number, position: number, length: number, done: Ended): void {
    const number = this.#free.pop();
    if (number === undefined) this.#waiting.push((next) => this.#noteRange(next, mode, position, length, done));
    else this.#noteRange(number, mode, position, length, done);
  }

  /** Sets an extended attribute, one at a time; both texts together have at most 254 bytes. */
  setAttribute(name: string, value: string, done: Ended): void {
    const bytes = this.#attribute;
    const { written: size } = ENCODER.encodeInto(`${name}\0`, bytes);
    const { written: length } = ENCODER.encodeInto(value, bytes.subarray(size));
    const segments = [
      { bytes, offset: 0, length: size },
      { bytes, offset: size, length },
    ];
    this.#move(Operation.SET_ATTRIBUTE, { count: 2, segments }, 0, done);
  }

  /** Waits for the requests that threads are at, and drops the others. */
  close(): void {
    clearTimeout(this.#watch);
    this.#pool.close();
    this.#poll.close();
    this.#buffers.clear();
    nativeClose(this.#signal);
  }

  /** For the batch. */
  submit(): void {
    this.#isNoted = false;
    const used = this.#used;
    this.#used = 0;
    if (used > 0) this.#pool.submit(used);
  }

  #move(operation: number, pieces: Pieces, position: number, done: Ended): void {
    const number = this.#free.pop();
    if (number === undefined) this.#waiting.push((next) => this.#notePieces(next, operation, pieces, position, done));
    else this.#notePieces(number, operation, pieces, position, done);
  }

  #notePieces(number: number, operation: number, { count, segments }: Pieces, position: number, done: Ended): void {
    let at = this.#noteHead(number, operation, position, count, Piece.SIZE);
    const words = this.#words;
    for (let n = 0; n < count; n++) {
      const { bytes, offset, length } = segments[n];
      words[at + Piece.BUFFER] = this.#buffers.numberOf(bytes);
      words[at + Piece.OFFSET] = this.#buffers.start + offset;
      words[at + Piece.LENGTH] = length;
      at += Piece.SIZE;
    }
    this.#begin(number, at, done);
  }

  #noteRange(number: number, mode: number, position: number, length: number, done: Ended): void {
    const at = this.#noteHead(number, Operation.ALLOCATE, position, 1, Range.SIZE);
    const words = this.#words;
    words[at + Range.MODE] = mode;
    words[at + Range.LENGTH_LOW] = length >>> 0;
    words[at + Range.LENGTH_HIGH] = Math.floor(length / 0x1_0000_0000);
    this.#begin(number, at + Range.SIZE, done);
  }

  /** Returns where `count` parts of `size` numbers follow. */
  #noteHead(number: number, operation: number, position: number, count: number, size: number): number {
    const words = this.#words;
    if (this.#used + Request.SIZE + count * size > words.length) {
      this.#pool.submit(this.#used);
      this.#used = 0;
    }
    const at = this.#used;
    words[at + Request.NUMBER] = number;
    words[at + Request.OPERATION] = operation;
    words[at + Request.FD] = this.#fd;
    words[at + Request.POSITION_LOW] = position >>> 0;
    words[at + Request.POSITION_HIGH] = Math.floor(position / 0x1_0000_0000);
    words[at + Request.PIECES] = count;
    return at + Request.SIZE;
  }

  #begin(number: number, used: number, done: Ended): void {
    this.#used = used;
    this.#done[number] = done;
    if (this.#free.length === this.#requests - 1) this.#poll.ref();
    if (this.#watch === undefined) this.#watchOn();
    if (this.#isNoted) return;
    this.#isNoted = true;
    ioBatch.note(this);
  }

  #watchOn(): void {
    this.#seenByWatch = this.#seen;
    this.#watch = setTimeout(this.#onWatch, STALL_MS).unref();
  }

  /** One that hangs must not keep the others, nor the ends that would be told of along with its own. */
  readonly #onWatch = (): void => {
    this.#watch = undefined;
    this.#onSignal();
    if (this.#free.length === this.#requests) return;
    if (this.#seen === this.#seenByWatch) this.#pool.hurry();
    this.#watchOn();
  };

  #onSignal(): void {
    try {
      ioBatch.end(this.#dealWithEnds);
    } finally {
      if (this.#free.length === this.#requests) this.#poll.unref();
    }
  }

  /** Deals with all of them, also when some callback throws: then with what it threw at the end. */
  readonly #dealWithEnds = (): void => {
    const ends = this.#ends;
    const mask = this.#requests - 1;
    let failures: unknown[] | undefined;
    Atomics.store(ends, Ends.TOLD, 0);
    for (let count = Atomics.load(ends, Ends.COUNT); this.#seen !== count; count = Atomics.load(ends, Ends.COUNT)) {
      do {
        const at = Ends.FIRST + (this.#seen & mask) * Ends.SIZE;
        this.#seen = (this.#seen + 1) | 0;
        try {
          this.#end(ends[at], ends[at + 1]);
        } catch (error) {
          failures ??= [];
          failures.push(error);
        }
      } while (this.#seen !== count);
    }
    if (failures !== undefined) throw failures[0];
  };

  #end(number: number, errno: number): void {
    const done = this.#done[number];
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(number);
    else next(number);
    done?.(errno === 0 ? null : failure(errno));
  }
}

function failure(errno: number): StorageError {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: I/O of a disk's file failed`), { code });
}
