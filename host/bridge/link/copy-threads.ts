/**
 * Copies by threads: two for the bridge, for copies that are so large that the others on the event loop should not wait
 * for them. A batch of copies is one request to a thread, and one completion.
 */
import { IO_OPERATION } from "../../../native/index.js";
import type { BufferTable } from "../../../shared/buffer-table.js";
import { isSystemError, UserError } from "../../../shared/errors.js";
import { IoPoolClient } from "../../../shared/io-pool.js";

const THREADS = 2;
/** Batches in flight at most. */
const BATCHES = 64;

export class CopyThreads {
  readonly #client = new IoPoolClient<(errno: number) => void>(
    BATCHES,
    THREADS,
    (done, errno) => done(errno),
    () => this.#client.reap(),
  );
  readonly pool = this.#client.pool;

  /** Whether so many copies can be added to the batch that is being made. */
  hasRoom(copies: number): boolean {
    return this.#client.hasRoom(2 * copies);
  }

  /** Adds a copy to the batch. One batch is made at a time, in one go of the event loop. */
  add(
    buffers: BufferTable,
    source: Uint8Array,
    sourceOffset: number,
    target: Uint8Array,
    targetOffset: number,
    length: number,
  ): void {
    this.#client.addPiece(buffers, source, sourceOffset, length);
    this.#client.addPiece(buffers, target, targetOffset, length);
  }

  /** Drops the batch that is being made. */
  drop(): void {
    this.#client.drop();
  }

  /**
   * Hands the batch to a thread; `hasRoom` was true. Its memory has to stay where it is until `done` is called, with 0,
   * or EFAULT when some of it is gone.
   */
  start(done: (errno: number) => void): void {
    this.#client.begin(IO_OPERATION.COPY, 0, 0, done);
    this.#client.submit();
  }

  /** Blocks until some batch has been copied, one at least being in flight, and calls its `done`. */
  wait(): void {
    this.#client.wait();
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
