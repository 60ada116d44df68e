/**
 * Where a namespace's bytes are: a small seam over a file, block device or memory, so that its failures can be played by
 * tests. Data is moved by threads of our own (file-io.ts), the rest is done by Node.js's; callbacks, not promises, since there is one
 * for each command.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import {
  createMemory,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  fallocate,
  getAttribute,
  IO_OPERATION,
  ioctl,
  lockFile,
  close as nativeClose,
  PROT_READ,
  PROT_WRITE,
  Reservation,
  RWF_NOWAIT,
  setAttribute,
  unlockFile,
} from "../../../native/index.js";
import { alignUp } from "../../../shared/bits.js";
import { UserError } from "../../../shared/errors.js";
import { GiB, PAGE_SIZE } from "../../../shared/limits.js";
import { getU64 } from "../../../shared/struct/struct.js";
import { type Ended, type Pieces, PooledFile, type StorageError } from "./file-io.js";

/** How the bytes can be moved by whoever does not want to wait; everything else works on the same bytes. */
export type DirectAccess =
  | {
      /** A row of ArrayBuffers that stay until the storage is closed. */
      readonly kind: "memory";
      /** Bytes of each piece but the last; a power of two. */
      readonly pieceSize: number;
      piece(index: number): ArrayBuffer;
    }
  | {
      readonly kind: "file";
      readonly fd: number;
      /** Flags of preadv2 and pwritev2 with which they do not wait for a device; undefined where there are none. */
      readonly readFlags: number | undefined;
      readonly writeFlags: number | undefined;
    };

/** Positions, offsets, sizes and lengths are bytes. */
export interface Storage {
  /** As it was found at the start, or by the last `refresh`. */
  readonly size: number;
  /** How much of it takes space, as roughly as the file system says; found along with `size`. */
  readonly allocated: number;
  /** The block size that `setBlockSize` kept with it, if any. */
  readonly blockSize: number | undefined;
  readonly direct?: DirectAccess | undefined;
  /** Reads all of `pieces`, which stay as they are meanwhile, and their memory in place; EIO where the storage ends early. */
  read(pieces: Pieces, position: number, done: Ended): void;
  write(pieces: Pieces, position: number, done: Ended): void;
  /** Makes zeros of a range without writing it; `deallocate` also gives its space back. ENOTSUP where that cannot be done. */
  zero(position: number, length: number, deallocate: boolean, done: Ended): void;
  /** Puts all data written so far onto stable storage. */
  sync(done: Ended): void;
  /** Looks again how large it is. */
  refresh(done: Ended): void;
  /** Remembers a block size; after the next `sync` over a restart too. ENOTSUP where there is no place for it. */
  setBlockSize(bytes: number, done: Ended): void;
  close(): Promise<void>;
}

/** Kept with a file, so that a formatted disk has the same blocks whoever serves it next. */
const BLOCK_SIZE_ATTRIBUTE = "user.virtio-vfio-user.block-size";
/** <linux/fs.h> */
const BLKGETSIZE64 = 0x8008_1272;
/** stat's unit of `blocks`. */
const STAT_BLOCK = 512;

/** <linux/magic.h>: tmpfs, ramfs, hugetlbfs. */
const MEMORY_FILE_SYSTEMS: ReadonlySet<number> = new Set([0x0102_1994, 0x8584_58f6, 0x9584_58f6]);

/** What an fd leads to. */
type Kind = "file" | "device" | "memory";

class FdStorage implements Storage {
  size = 0;
  allocated = 0;
  blockSize: number | undefined;
  readonly direct: DirectAccess | undefined;
  readonly #file: PooledFile;
  /** fdatasync need not write attributes. */
  #attributesChanged = false;

  /** `inMemory`: the file system keeps its files in memory, so no access waits for a device. */
  constructor(
    readonly fd: number,
    readonly kind: Kind,
    inMemory = false,
  ) {
    const flags = inMemory ? { readFlags: 0, writeFlags: 0 } : { readFlags: RWF_NOWAIT, writeFlags: RWF_NOWAIT };
    this.#file = new PooledFile(fd);
    if (kind !== "memory") this.direct = { kind: "file", fd, ...flags };
    if (kind !== "device") this.#take(fs.fstatSync(fd));
    else this.size = this.allocated = deviceSize(fd);
    const kept = kind === "file" ? Number(getAttribute(fd, BLOCK_SIZE_ATTRIBUTE)) : Number.NaN;
    if (Number.isInteger(kept)) this.blockSize = kept;
  }
  read(pieces: Pieces, position: number, done: Ended): void {
    this.#file.move(IO_OPERATION.READ, pieces, position, done);
  }
  write(pieces: Pieces, position: number, done: Ended): void {
    this.#file.move(IO_OPERATION.WRITE, pieces, position, done);
  }
  zero(position: number, length: number, deallocate: boolean, done: Ended): void {
    const mode = FALLOC_FL_KEEP_SIZE | (deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    fallocate(this.fd, mode, position, length, done);
  }
  sync(done: Ended): void {
    if (!this.#attributesChanged) {
      fs.fdatasync(this.fd, done);
      return;
    }
    this.#attributesChanged = false;
    fs.fsync(this.fd, (error) => {
      if (error !== null) this.#attributesChanged = true;
      done(error);
    });
  }
  refresh(done: Ended): void {
    if (this.kind === "device") {
      try {
        this.size = this.allocated = deviceSize(this.fd);
        process.nextTick(done, null);
      } catch (error) {
        process.nextTick(done, error);
      }
      return;
    }
    fs.fstat(this.fd, (error, status) => {
      if (error === null) this.#take(status);
      done(error);
    });
  }
  setBlockSize(bytes: number, done: Ended): void {
    try {
      if (this.kind === "device")
        throw Object.assign(new Error("a block device keeps no block size"), { code: "ENOTSUP" });
      if (this.kind === "file") setAttribute(this.fd, BLOCK_SIZE_ATTRIBUTE, String(bytes));
      this.#attributesChanged = this.kind === "file";
      this.blockSize = bytes;
      process.nextTick(done, null);
    } catch (error) {
      process.nextTick(done, error);
    }
  }
  async close(): Promise<void> {
    this.#file.close();
    if (this.kind === "memory") {
      nativeClose(this.fd);
      return;
    }
    unlockFile(this.fd);
    await promisify(fs.close)(this.fd);
  }

  #take({ size, blocks }: fs.Stats): void {
    this.size = size;
    this.allocated = Math.min(size, blocks * STAT_BLOCK);
  }
}

/** One ArrayBuffer of a disk in memory. */
const PIECE_SIZE = GiB;

class MemoryStorage extends FdStorage {
  readonly #reservation: Reservation;
  override readonly direct: DirectAccess;

  /** @throws SystemError, RangeError */
  constructor(fd: number, size: number) {
    super(fd, "memory");
    const mapped = alignUp(Math.max(size, 1), PAGE_SIZE);
    const reservation = new Reservation(mapped, PIECE_SIZE);
    reservation.map(0, mapped, fd, 0, PROT_READ | PROT_WRITE);
    this.#reservation = reservation;
    this.direct = { kind: "memory", pieceSize: PIECE_SIZE, piece: (index) => reservation.piece(index) };
  }

  override async close(): Promise<void> {
    this.#reservation.release();
    await super.close();
  }
}

/** @throws SystemError */
function deviceSize(fd: number): number {
  const bytes = new Uint8Array(8);
  ioctl(fd, BLKGETSIZE64, bytes);
  return getU64(new DataView(bytes.buffer), 0);
}

/**
 * Opens a file or block device for reading and writing, and locks it: a disk that two processes write to is a lost one.
 * @throws UserError when that is not possible
 */
export async function openStorage(path: string): Promise<Storage> {
  let fd: number | undefined;
  try {
    const status = await fs.promises.stat(path);
    if (status.isDirectory()) throw new UserError(`cannot open the disk's file ${path}: it is a directory`);
    if (!status.isFile() && !status.isBlockDevice()) {
      throw new UserError(`the disk's file ${path} is neither a file nor a block device`);
    }
    // To a block device O_EXCL means that nothing else uses it: a mounted file system, a RAID.
    const flags = fs.constants.O_RDWR | (status.isBlockDevice() ? fs.constants.O_EXCL : 0);
    fd = await promisify(fs.open)(path, flags);
    if (!lockFile(fd)) throw new UserError(`the disk's file ${path} is in use: another process has locked it`);
    const { type } = await fs.promises.statfs(path);
    return new FdStorage(fd, status.isFile() ? "file" : "device", status.isFile() && MEMORY_FILE_SYSTEMS.has(type));
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    throw error instanceof UserError ? error : new UserError(`cannot open the disk's file ${path}: ${reason(error)}`);
  }
}

/** A disk that is gone with the process. @throws UserError */
export function openMemory(size: number): Storage {
  let fd: number | undefined;
  try {
    fd = createMemory("nvme", size, false);
    return new MemoryStorage(fd, size);
  } catch (error) {
    if (fd !== undefined) nativeClose(fd);
    throw new UserError(`cannot make a disk of ${size} bytes in memory: ${reason(error)}`);
  }
}

function reason(error: unknown): string {
  const { code } = error as StorageError;
  if (code === "ENOENT") return "there is no such file";
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") return "it may not be written";
  if (code === "EBUSY") return "it is in use";
  return code ?? String(error);
}
