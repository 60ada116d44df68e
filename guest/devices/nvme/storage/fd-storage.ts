/**
 * A disk that is a file, a block device or memory. Whatever may wait for a device is done by threads of its own
 * (file-io.ts).
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  getAttribute,
  ioctl,
  close as nativeClose,
  RWF_NOWAIT,
  unlockFile,
} from "../../../../native/index.js";
import { isPowerOfTwo } from "../../../../shared/bits.js";
import { UserError } from "../../../../shared/errors.js";
import { MiB, PAGE_SIZE } from "../../../../shared/limits.js";
import { getU64 } from "../../../../shared/struct/struct.js";
import { FileIo } from "./file-io.js";
import type { DirectAccess, Done, Pieces, Storage, StorageError } from "./storage.js";

/** Kept with a file, so that a formatted disk has the same blocks whoever serves it next. */
const BLOCK_SIZE_ATTRIBUTE = "user.virtio-vfio-user.block-size";
/** stat's unit of `blocks`. */
const STAT_BLOCK = 512;

/** Of files: what file systems take, whatever the disk below has. */
const SECTOR = 512;

/** What Identify has room for, in blocks of any size. */
const MAX_PREFERRED_SIZE = MiB;

/** What an fd leads to. */
type Kind = "file" | "device" | "memory";

/** What is known of an fd when it is opened. */
export interface FdTraits {
  readonly kind: Kind;
  readonly readOnly?: boolean;
  /** The file system keeps its files in memory, so no access waits for a device. */
  readonly inMemory?: boolean;
  /** It was opened with O_DIRECT, and takes transfers of this size, and multiples of it. */
  readonly directSize?: number | undefined;
}

export class FdStorage implements Storage {
  size = 0;
  allocated = 0;
  isRemoved = false;
  /** Memory files have no name from the start. */
  #hadName = false;
  blockSize: number | undefined;
  readonly smallestBlock: number;
  readonly preferredSize: number;
  readonly kind: Kind;
  readonly readOnly: boolean;
  readonly direct: DirectAccess | undefined;
  readonly grow: ((size: number) => Promise<void>) | undefined;
  readonly #io: FileIo;
  /** Kept when no thread asks for the file's size any more. */
  #refreshed: Promise<void> | undefined;
  /** fdatasync need not write attributes. */
  #attributesChanged = false;

  /** The fd is this object's from now on, unless this throws. @throws SystemError */
  constructor(
    readonly fd: number,
    { kind, readOnly = false, inMemory = false, directSize }: FdTraits,
  ) {
    this.kind = kind;
    this.readOnly = readOnly;
    const flags = inMemory ? 0 : RWF_NOWAIT;
    // A write to a file waits for a file system that is frozen (fsfreeze, a snapshot), whatever its flags.
    const mayWrite = !readOnly && (kind !== "file" || inMemory);
    const writeFlags = mayWrite ? flags : undefined;
    if (kind === "memory") this.direct = { kind, fd, size: fs.fstatSync(fd).size };
    // What the page cache does not have would have to be waited for.
    else if (directSize === undefined) {
      this.direct = { kind: "file", fd, readFlags: flags, writeFlags, mayPunch: inMemory && !readOnly };
    }
    if (kind === "device") {
      const { logical, physical } = sectorSizes(fd);
      this.smallestBlock = logical;
      this.preferredSize = isPowerOfTwo(physical)
        ? Math.min(Math.max(physical, PAGE_SIZE), MAX_PREFERRED_SIZE)
        : PAGE_SIZE;
      this.size = this.allocated = deviceSize(fd);
    } else {
      this.smallestBlock = directSize ?? SECTOR;
      this.preferredSize = PAGE_SIZE;
      this.#take(fs.fstatSync(fd));
    }
    const kept = kind === "file" ? Number(getAttribute(fd, BLOCK_SIZE_ATTRIBUTE)) : Number.NaN;
    if (Number.isInteger(kept)) this.blockSize = kept;
    this.#io = new FileIo(fd);
    if (kind === "file" && !readOnly) this.grow = (size) => growFile(fd, size);
  }

  read(pieces: Pieces, position: number, done: Done): void {
    this.#io.read(pieces, position, done);
  }
  write(pieces: Pieces, position: number, done: Done): void {
    this.#io.write(pieces, position, done);
  }
  zero(position: number, length: number, deallocate: boolean, done: Done): void {
    const mode = FALLOC_FL_KEEP_SIZE | (deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    this.#io.allocate(mode, position, length, done);
  }
  sync(done: Done): void {
    if (this.readOnly) {
      process.nextTick(done, null);
      return;
    }
    if (!this.#attributesChanged) {
      this.#io.sync("data", done);
      return;
    }
    this.#attributesChanged = false;
    this.#io.sync("all", (error) => {
      if (error !== null) this.#attributesChanged = true;
      done(error);
    });
  }
  refresh(done: Done): void {
    if (this.kind === "device") {
      try {
        this.size = this.allocated = deviceSize(this.fd);
        process.nextTick(done, null);
      } catch (error) {
        process.nextTick(done, error);
      }
      return;
    }
    this.#refreshed = new Promise((resolve) => {
      fs.fstat(this.fd, (error, status) => {
        resolve();
        if (error === null) this.#take(status);
        done(error);
      });
    });
  }
  setBlockSize(bytes: number, done: Done): void {
    const kept = (error: StorageError | null): void => {
      if (error === null) this.blockSize = bytes;
      done(error);
    };
    switch (this.kind) {
      case "device":
        process.nextTick(kept, Object.assign(new Error("a block device keeps no block size"), { code: "ENOTSUP" }));
        return;
      case "memory":
        process.nextTick(kept, null);
        return;
      case "file":
        this.#attributesChanged = true;
        this.#io.setAttribute(BLOCK_SIZE_ATTRIBUTE, String(bytes), kept);
    }
  }
  async close(): Promise<void> {
    this.#io.close();
    await this.#refreshed;
    if (this.kind === "memory") {
      nativeClose(this.fd);
      return;
    }
    unlockFile(this.fd);
    await promisify(fs.close)(this.fd);
  }

  #take({ size, blocks, nlink }: fs.Stats): void {
    this.#hadName ||= nlink > 0;
    this.isRemoved = this.#hadName && nlink === 0;
    this.size = size;
    this.allocated = Math.min(size, blocks * STAT_BLOCK);
  }
}

/** Never smaller: what a driver VM has there would be gone, and it would not hear of it in time. */
async function growFile(fd: number, size: number): Promise<void> {
  const { size: before } = await promisify(fs.fstat)(fd);
  if (size < before) throw new UserError(`its file has ${before} bytes already: a disk can only become larger`);
  await promisify(fs.ftruncate)(fd, size);
}

// What Linux says of a block device, by <linux/fs.h>'s ioctls. All of them throw SystemError.
const BLKROGET = 0x125e;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x8008_1272;

/** Bytes; not exact above 2^53. */
function deviceSize(fd: number): number {
  return getU64(ask(fd, BLKGETSIZE64), 0);
}

/** Bytes of a sector: what can be read and written by itself, and what the device writes as one. */
export function sectorSizes(fd: number): { readonly logical: number; readonly physical: number } {
  return { logical: ask(fd, BLKSSZGET).getUint32(0, true), physical: ask(fd, BLKPBSZGET).getUint32(0, true) };
}

export function isReadOnlyDevice(fd: number): boolean {
  return ask(fd, BLKROGET).getUint32(0, true) !== 0;
}

function ask(fd: number, request: number): DataView {
  const bytes = new Uint8Array(8);
  ioctl(fd, request, bytes);
  return new DataView(bytes.buffer);
}
