/**
 * I/O of a disk's file, all of which may have to wait: native threads of the disk's own, so that one that hangs keeps
 * none of another's, move bytes between the file and memory, sync it, make zeros of parts of it, and keep attributes
 * with it. What is asked for in one go (io-batch.ts) is submitted by one call, and what is completed together comes
 * back by one event. In the steady state nothing is allocated.
 */
import { getSystemErrorName } from "node:util";
import { IO_OPERATION as Operation } from "../../../../native/index.js";
import { BufferTable } from "../../../../shared/buffer-table.js";
import { IoPoolClient } from "../../../../shared/io-pool.js";
import { MiB } from "../../../../shared/limits.js";
import { ioBatch } from "./io-batch.js";
import { type Done, NO_PIECES, type Pieces, type StorageError } from "./storage.js";

/** Requests in flight at most; further ones wait here. A power of two. */
const REQUESTS = 1024;
/** As many reads of a device can wait at a time. */
const THREADS = 16;
/** When nothing has been completed for so long, requests that wait behind others get threads of their own. */
const STALL_MS = 10;
/** Bytes of ranges that are put together. */
const MAX_RANGE = 4 * MiB;
const ENCODER = new TextEncoder();

export class FileIo {
  readonly #fd: number;
  readonly #client: IoPoolClient<Done>;
  readonly #buffers: BufferTable;
  /** Begin requests for which there was no room; as many are called as are completed. */
  readonly #waiting: (() => void)[] = [];
  readonly #attribute = new Uint8Array(256);
  /** The batch is going to call `submit`. */
  #isNoted = false;
  /** While anything is in flight: asks whether anything is completed. */
  #watch: NodeJS.Timeout | undefined;
  #completedBefore = 0;

  /** The fd stays the caller's. @throws SystemError */
  constructor(fd: number, { requests = REQUESTS, threads = THREADS } = {}) {
    this.#fd = fd;
    this.#client = new IoPoolClient<Done>(requests, threads, this.#onCompleted, () => ioBatch.complete(this.#reap));
    this.#buffers = new BufferTable(this.#client.pool);
  }

  /** Moves all of `pieces` (at least one), or fails. Until then they stay as they are, and their memory where it is. */
  read(pieces: Pieces, position: number, done: Done): void {
    this.#move(Operation.READ, pieces, position, done);
  }

  write(pieces: Pieces, position: number, done: Done): void {
    this.#move(Operation.WRITE, pieces, position, done);
  }

  /** fdatasync, or fsync. */
  sync(what: "data" | "all", done: Done): void {
    this.#move(what === "all" ? Operation.SYNC_ALL : Operation.SYNC, NO_PIECES, 0, done);
  }

  /**
   * fallocate; ENOTSUP where the file system has no such mode. What follows on the range before, and was asked for in
   * the same go, is done by the same call.
   */
  allocate(mode: number, position: number, length: number, done: Done): void {
    const join = (before: Done): Done => {
      return (error) => {
        before(error);
        done(error);
      };
    };
    if (this.#client.extendRange(mode, position, length, MAX_RANGE, join)) return;
    if (!this.#makeRoom(1)) {
      this.#waiting.push(() => this.allocate(mode, position, length, done));
      return;
    }
    this.#client.addRange(mode, length);
    this.#begin(Operation.ALLOCATE, position, done);
  }

  /** Sets an extended attribute, one at a time; both texts together have at most 254 bytes. */
  setAttribute(name: string, value: string, done: Done): void {
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
    this.#client.close();
    this.#buffers.clear();
  }

  /** For the batch. */
  submit(): void {
    this.#isNoted = false;
    this.#client.submit();
  }

  #move(operation: number, pieces: Pieces, position: number, done: Done): void {
    const { count, segments } = pieces;
    if (!this.#makeRoom(count)) {
      this.#moveLater(operation, pieces, position, done);
      return;
    }
    for (let n = 0; n < count; n++) {
      const { bytes, offset, length } = segments[n];
      this.#client.addPiece(this.#buffers, bytes, offset, length);
    }
    this.#begin(operation, position, done);
  }

  /** Apart, so that a request that need not wait makes no closure. */
  #moveLater(operation: number, pieces: Pieces, position: number, done: Done): void {
    this.#waiting.push(() => this.#move(operation, pieces, position, done));
  }

  /** For one more request; false when as many are in flight as may be. */
  #makeRoom(pieces: number): boolean {
    if (this.#client.hasRoom(pieces)) return true;
    this.#client.submit();
    return this.#client.hasRoom(pieces);
  }

  #begin(operation: number, position: number, done: Done): void {
    this.#client.begin(operation, this.#fd, position, done);
    if (this.#watch === undefined) this.#startWatch();
    if (this.#isNoted) return;
    this.#isNoted = true;
    ioBatch.note(this);
  }

  #startWatch(): void {
    this.#completedBefore = this.#client.completed;
    this.#watch = setTimeout(this.#onWatch, STALL_MS).unref();
  }

  /** A request that hangs must not keep the others, nor completions that would be signalled along with its own. */
  readonly #onWatch = (): void => {
    this.#watch = undefined;
    ioBatch.complete(this.#reap);
    if (this.#client.inFlight === 0) return;
    if (this.#client.completed === this.#completedBefore) this.#client.addWorkers();
    this.#startWatch();
  };

  readonly #reap = (): void => this.#client.reap();

  readonly #onCompleted = (done: Done, errno: number): void => {
    this.#waiting.shift()?.();
    done(errno === 0 ? null : failure(errno));
  };
}

function failure(errno: number): StorageError {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: I/O of a disk's file failed`), { code });
}
