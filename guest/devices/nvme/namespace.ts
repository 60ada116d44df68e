/**
 * A namespace: logical blocks over a storage, and its write cache. Says nothing of queues or driver-VM memory.
 *
 * The write cache is the kernel's page cache under the storage; `sync` writes it out. When that fails once, Linux may have
 * dropped the unwritten pages and reports success from then on, so the failure is kept and every later sync fails too.
 */
import { Status } from "./spec.js";
import type { Storage, StorageError } from "./storage.js";

export type StatusDone = (status: number) => void;

/** One writev of zeros moves this much at most, in bytes: a piece, and how many of it. */
const ZEROS = new Uint8Array(256 * 1024);
const ZERO_PIECES = 4;

export class Namespace {
  readonly blockCount: number;
  /** A sync failed; data that was acknowledged without FUA may be lost. */
  syncFailed = false;
  #syncing = false;
  /** Callers that came while a sync was under way: what they want synced may have been written after it began. */
  #waiting: StatusDone[] = [];

  constructor(
    readonly storage: Storage,
    /** Bytes; a power of two. */
    readonly blockSize: number,
    readonly onSyncFailed: (error: StorageError) => void,
  ) {
    this.blockCount = Math.floor(storage.size / blockSize);
  }

  /** Flush: everything that was written before is on stable storage when `done` gets SUCCESS. */
  sync(done: StatusDone): void {
    this.#waiting.push(done);
    if (!this.#syncing) this.#startSync();
  }

  #startSync(): void {
    const callers = this.#waiting;
    this.#waiting = [];
    this.#syncing = true;
    this.storage.sync((error) => {
      this.#syncing = false;
      if (error !== null && !this.syncFailed) {
        this.syncFailed = true;
        this.onSyncFailed(error);
      }
      const status = this.syncFailed ? Status.WRITE_FAULT : Status.SUCCESS;
      for (const done of callers) done(status);
      if (this.#waiting.length > 0 && !this.#syncing) this.#startSync();
    });
  }

  /** Writes zeros; position and length in bytes. */
  writeZeroes(position: number, length: number, done: StatusDone): void {
    const end = position + length;
    const step = (at: number): void => {
      const views: Uint8Array[] = [];
      for (let left = end - at; left > 0 && views.length < ZERO_PIECES; left -= ZEROS.length) {
        views.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
      }
      this.storage.writev(views, at, (error, count) => {
        if (error !== null || count === 0) done(error === null ? Status.WRITE_FAULT : statusOf(error, "write"));
        else if (at + count >= end) done(Status.SUCCESS);
        else step(at + count);
      });
    };
    step(position);
  }
}

/** The NVMe status of a failed system call. */
export function statusOf({ code }: StorageError, direction: "read" | "write"): number {
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
    case "EFBIG":
      return Status.CAPACITY_EXCEEDED;
    case "EIO":
      return direction === "read" ? Status.UNRECOVERED_READ_ERROR : Status.WRITE_FAULT;
    default:
      return Status.INTERNAL_ERROR;
  }
}
