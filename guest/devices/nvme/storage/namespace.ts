/**
 * A namespace: logical blocks over a storage, and its write cache. Says nothing of queues or driver-VM memory. What is
 * left at the end of the storage when it is cut into blocks belongs to none.
 *
 * The write cache is the kernel's page cache under the storage; `sync` writes it out. When that fails, Linux may have
 * dropped what was not written, and reports success from then on. So a failure is kept and every later sync fails too,
 * until all blocks are erased. Only a lack of space, reported to its driver with no invitation to retry, is over
 * when there is space again.
 */
import { KiB, MiB } from "../../../../shared/limits.js";
import { pageAligned } from "../../../../shared/page-aligned.js";
import { Status } from "../spec.js";
import { AtomicIo } from "./atomic-io.js";
import { DiskBuffers } from "./buffers.js";
import type { LaneDisk } from "./lane-disk.js";
import type { Storage, StorageError, Task } from "./storage.js";

export type StatusDone = (status: number) => void;

/** Bytes of a block in each LBA format, by the format's number. */
export const LBA_FORMATS: readonly number[] = [512, 4096];

/** Bytes of the largest disk: positions are exact up to here. */
const MAX_SIZE = Number.MAX_SAFE_INTEGER;

/** One write of zeros moves this much at most, in bytes: a piece, and how many of it. */
export const ZEROS = pageAligned(256 * KiB);
const ZERO_PIECES = 4;
/** What the storage makes zeros of in one go, in bytes: as much as takes about so long. */
const MIN_ZERO_SIZE = 64 * KiB;
const FIRST_ZERO_SIZE = 4 * MiB;
const ZERO_MS = 4;

/** What a namespace reports. */
export interface NamespaceEvents {
  /** Syncs fail from now on, or no longer (null). */
  onSyncFailed(namespace: Namespace, error: StorageError | null): void;
  /** The disk did not read or write: for the operator. */
  onFailed(namespace: Namespace, error: StorageError, direction: "read" | "write"): void;
  onResized(namespace: Namespace): void;
  /** Its file was removed; once. */
  onRemoved(namespace: Namespace): void;
  /** A callback threw. */
  onBug(error: unknown): void;
}

/** A call that takes time: made once at a time, and who asks while it is being made gets the result of the next one. */
class Coalesced<Result> {
  isRunning = false;
  readonly #call: (done: (result: Result) => void) => void;
  readonly #onBug: (error: unknown) => void;
  #waiting: ((result: Result) => void)[] = [];

  constructor(call: (done: (result: Result) => void) => void, onBug: (error: unknown) => void) {
    this.#call = call;
    this.#onBug = onBug;
  }

  request(done: (result: Result) => void): void {
    this.#waiting.push(done);
    if (!this.isRunning) this.#start();
  }

  #start(): void {
    const callers = this.#waiting;
    this.#waiting = [];
    this.isRunning = true;
    this.#call((result) => {
      this.isRunning = false;
      for (const done of callers) {
        try {
          done(result);
        } catch (error) {
          this.#onBug(error);
        }
      }
      if (this.#waiting.length > 0 && !this.isRunning) this.#start();
    });
  }
}

export class Namespace {
  #formatting = false;
  #disk: LaneDisk | undefined;
  /** What is written may stay in the write cache. */
  #mayCache = true;
  /** How the storage is read and written. */
  readonly io: AtomicIo;
  readonly buffers = new DiskBuffers();
  readonly #events: NamespaceEvents;
  readonly #syncs: Coalesced<number>;
  readonly #refreshes: Coalesced<void>;
  #blockSize: number;
  #blockCount: number;
  #zeroSize = FIRST_ZERO_SIZE;
  /** The storage has no such thing as zeros that are not written. */
  #mustWriteZeros = false;
  /** I/O commands in flight. */
  #active = 0;
  #onIdle: (() => void) | undefined;
  /** The status of a sync that failed; data that was acknowledged without FUA may be lost. */
  #syncFailure: number = Status.SUCCESS;
  #isRemoved = false;

  /** `id`: NSID. `blockSize`: one of LBA_FORMATS. */
  constructor(
    readonly id: number,
    readonly storage: Storage,
    blockSize: number,
    events: NamespaceEvents,
  ) {
    const onBug = (error: unknown): void => events.onBug(error);
    this.io = new AtomicIo(storage, onBug);
    this.#events = events;
    this.#blockSize = blockSize;
    this.#blockCount = this.#countBlocks();
    this.#syncs = new Coalesced((done) => storage.sync((error) => done(this.#noteSync(error))), onBug);
    this.#refreshes = new Coalesced((done) => storage.refresh((error) => done(this.#noteSize(error))), onBug);
  }

  /** Lanes work on it as well, from now on. */
  giveTo(disk: LaneDisk): void {
    this.#disk = disk;
    this.io.disk = disk;
    this.#showLanes();
  }

  /** Lanes have ended. */
  takeBack(): void {
    this.#disk?.close();
    this.#disk = this.io.disk = undefined;
  }

  /** Whether what is written may stay in the write cache, where nothing else was asked for. */
  setCache(isOn: boolean): void {
    if (this.#mayCache === isOn) return;
    this.#mayCache = isOn;
    this.#showLanes();
  }

  #showLanes(): void {
    this.#disk?.set(this.storage, this.#blockSize, this.#blockCount, !this.#formatting, this.#mayCache);
  }

  /** A Format NVM is in progress: nothing else may begin. */
  get formatting(): boolean {
    return this.#formatting;
  }

  #setFormatting(isFormatting: boolean): void {
    this.#formatting = isFormatting;
    this.#showLanes();
  }

  /** Bytes. */
  get blockSize(): number {
    return this.#blockSize;
  }

  get blockCount(): number {
    return this.#blockCount;
  }

  /** Blocks that take space (NUSE). */
  get blocksInUse(): number {
    return Math.min(this.#blockCount, Math.ceil(this.storage.allocated / this.#blockSize));
  }

  get syncFailed(): boolean {
    return this.#syncFailure !== Status.SUCCESS;
  }

  /**
   * Where in the storage, in bytes, `blocks` blocks (at least 1) begin whose first has an LBA of two halves; -1 when
   * not all are there.
   */
  positionOf(lbaLow: number, lbaHigh: number, blocks: number): number {
    // Inexact above 2^53, and then far above every size.
    const lba = lbaLow + lbaHigh * 0x1_0000_0000;
    return lba + blocks <= this.#blockCount ? lba * this.#blockSize : -1;
  }

  /** An I/O command begins; `end` when it is completed. */
  begin(): void {
    this.#active++;
  }

  end(): void {
    if (--this.#active > 0) return;
    const onIdle = this.#onIdle;
    this.#onIdle = undefined;
    onIdle?.();
  }

  /** The status of an I/O that failed. What is not the driver VM's doing is reported. */
  failed(error: StorageError, direction: "read" | "write"): number {
    if (error.code !== "EFAULT" && error.code !== "ECANCELED") this.#events.onFailed(this, error, direction);
    return statusOf(error, direction);
  }

  /** Flush: everything that was written before is on stable storage when `done` gets SUCCESS. */
  sync(done: StatusDone): void {
    this.#syncs.request(done);
  }

  #noteSync(error: StorageError | null): number {
    const before = this.#syncFailure;
    if (before === Status.SUCCESS || before === Status.CAPACITY_EXCEEDED) {
      this.#syncFailure = error === null ? Status.SUCCESS : statusOf(error, "write");
      if (this.#syncFailure !== before) this.#events.onSyncFailed(this, error);
    }
    return this.#syncFailure;
  }

  /** Tasks have ended: nothing waits for their sake any longer. */
  purge(): void {
    this.buffers.purge();
    this.io.purge();
  }

  /**
   * Write Zeroes; position and length in bytes. Where the storage does not do it by itself, for whatever reason, zeros
   * are written.
   */
  writeZeroes(position: number, length: number, deallocate: boolean, task: Task, done: StatusDone): void {
    const end = position + length;
    if (!deallocate && this.#mustWriteZeros) {
      this.#writeZeros(position, end, task, done);
      return;
    }
    this.#zero(position, end, deallocate, task, (error, at) => {
      if (error?.code === "ENOTSUP" && !deallocate) this.#mustWriteZeros = true;
      if (error === null || task.ended) done(Status.SUCCESS);
      else if (error.code === "EIO") done(this.failed(error, "write"));
      else this.#writeZeros(at, end, task, done);
    });
  }

  /** In pieces, after each of which the task may have ended. `done` gets where it got to. */
  #zero(
    start: number,
    end: number,
    deallocate: boolean,
    task: Task,
    done: (error: StorageError | null, at: number) => void,
  ): void {
    const step = (at: number): void => {
      const begun = performance.now();
      const size = Math.min(end - at, this.#zeroSize);
      this.io.zero(at, size, deallocate, task, (error) => {
        const took = performance.now() - begun;
        if (took > 2 * ZERO_MS) this.#zeroSize = Math.max(MIN_ZERO_SIZE, this.#zeroSize / 2);
        else if (took < ZERO_MS && size === this.#zeroSize) this.#zeroSize *= 2;
        if (error !== null || task.ended || at + size === end) done(error, at);
        else step(at + size);
      });
    };
    step(start);
  }

  #writeZeros(start: number, end: number, task: Task, done: StatusDone): void {
    const step = (at: number): void => {
      const segments: { bytes: Uint8Array; offset: number; length: number }[] = [];
      let next = at;
      while (next < end && segments.length < ZERO_PIECES) {
        const length = Math.min(end - next, ZEROS.length);
        segments.push({ bytes: ZEROS, offset: 0, length });
        next += length;
      }
      this.io.write({ count: segments.length, segments }, at, task, (error) => {
        if (error !== null) done(this.failed(error, "write"));
        else if (next === end || task.ended) done(Status.SUCCESS);
        else step(next);
      });
    };
    step(start);
  }

  /**
   * Dataset Management's Deallocate, a hint: blocks keep their data where space is not given back, for whatever reason.
   */
  deallocate(position: number, length: number, task: Task, done: StatusDone): void {
    this.#zero(position, position + length, true, task, (error) => {
      done(error?.code === "EIO" ? this.failed(error, "write") : Status.SUCCESS);
    });
  }

  /** Whether `format` can make blocks of that size: the storage has such, and room for at least one. */
  canHaveBlocksOf(blockSize: number): boolean {
    return this.storage.size >= blockSize && blockSize >= this.storage.smallestBlock;
  }

  /**
   * Format NVM: when the commands in flight have ended, all blocks become zeros, of `blockSize` bytes each. The size is
   * kept first: where there is no place for it, nothing is erased. What a failed sync may have lost is erased as well.
   *
   * When the task ends before, the blocks are of the size that they have by then; what was erased is.
   */
  format(blockSize: number, task: Task, done: StatusDone): void {
    this.#setFormatting(true);
    let lost: number = Status.SUCCESS;
    const finish = (status: number): void => {
      this.#blockCount = this.#countBlocks();
      this.#setFormatting(false);
      if (status !== Status.SUCCESS && !this.syncFailed) this.#syncFailure = lost;
      else if (status === Status.SUCCESS && lost !== Status.SUCCESS) this.#events.onSyncFailed(this, null);
      done(status);
    };
    const erase = (): void =>
      this.writeZeroes(0, Math.min(this.storage.size, MAX_SIZE), true, task, (status) => {
        if (task.ended) finish(Status.ABORT_REQUESTED);
        else if (status === Status.SUCCESS) this.sync(finish);
        else finish(status);
      });
    const start = (): void => {
      if (task.ended) {
        this.#setFormatting(false);
        return;
      }
      lost = this.#syncFailure;
      this.#syncFailure = Status.SUCCESS;
      if (blockSize === this.#blockSize) erase();
      else this.#keepBlockSize(blockSize, task, (status) => (status === Status.SUCCESS ? erase() : finish(status)));
    };
    if (this.#active === 0) start();
    else this.#onIdle = start;
  }

  /** The blocks are of that size from now on, over a restart too, or else as before. */
  #keepBlockSize(blockSize: number, task: Task, done: StatusDone): void {
    this.storage.setBlockSize(blockSize, (error) => {
      if (error !== null) {
        done(Status.INVALID_FORMAT);
        return;
      }
      this.sync((synced) => {
        // The next driver has found the blocks as they were.
        const status = task.ended ? Status.ABORT_REQUESTED : synced;
        if (status !== Status.SUCCESS) {
          this.storage.setBlockSize(this.#blockSize, () => this.sync(() => done(status)));
          return;
        }
        this.#blockSize = blockSize;
        done(status);
      });
    });
  }

  get isRefreshing(): boolean {
    return this.#refreshes.isRunning;
  }

  /** Asks how large the storage is now, and how much of it takes space: as it is at this moment or later. */
  refresh(done: () => void): void {
    this.#refreshes.request(done);
  }

  #noteSize(error: StorageError | null): void {
    const before = this.#blockCount;
    // A format in progress settles it at its end.
    if (error === null && !this.formatting) this.#blockCount = this.#countBlocks();
    if (this.#blockCount !== before) {
      this.#showLanes();
      this.#events.onResized(this);
    }
    if (this.storage.isRemoved !== true || this.#isRemoved) return;
    this.#isRemoved = true;
    this.#events.onRemoved(this);
  }

  #countBlocks(): number {
    return Math.floor(Math.min(this.storage.size, MAX_SIZE) / this.#blockSize);
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
    case "EROFS":
    case "EPERM":
      return direction === "read" ? Status.INTERNAL_ERROR : Status.NAMESPACE_WRITE_PROTECTED;
    // The driver VM truncated its memory.
    case "EFAULT":
      return Status.DATA_TRANSFER_ERROR;
    default:
      return Status.INTERNAL_ERROR;
  }
}
