/**
 * Where a namespace's bytes are: a small seam over a file or block device, so that its failures can be played by tests. All
 * work is done by Node's thread pool; callbacks, not promises, since there is one for each command.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { UserError } from "../../../shared/errors.js";

export type StorageError = NodeJS.ErrnoException;
/** `count`: bytes moved, which may be fewer than asked for. */
export type Moved = (error: StorageError | null, count: number) => void;

/** Positions, offsets and lengths are bytes. */
export interface Storage {
  readonly size: number;
  read(bytes: Uint8Array, offset: number, length: number, position: number, done: Moved): void;
  readv(views: readonly Uint8Array[], position: number, done: Moved): void;
  write(bytes: Uint8Array, offset: number, length: number, position: number, done: Moved): void;
  writev(views: readonly Uint8Array[], position: number, done: Moved): void;
  /** Puts all data written so far onto stable storage. */
  sync(done: (error: StorageError | null) => void): void;
  close(): Promise<void>;
}

/** A regular file or a block device. */
class FileStorage implements Storage {
  constructor(
    readonly fd: number,
    readonly size: number,
  ) {}
  read(bytes: Uint8Array, offset: number, length: number, position: number, done: Moved): void {
    fs.read(this.fd, bytes, offset, length, position, done);
  }
  readv(views: readonly Uint8Array[], position: number, done: Moved): void {
    fs.readv(this.fd, views, position, done);
  }
  write(bytes: Uint8Array, offset: number, length: number, position: number, done: Moved): void {
    fs.write(this.fd, bytes, offset, length, position, done);
  }
  writev(views: readonly Uint8Array[], position: number, done: Moved): void {
    fs.writev(this.fd, views, position, done);
  }
  sync(done: (error: StorageError | null) => void): void {
    fs.fdatasync(this.fd, done);
  }
  close(): Promise<void> {
    return promisify(fs.close)(this.fd);
  }
}

/** Opens a file or block device for reading and writing. @throws UserError when that is not possible */
export async function openStorage(path: string): Promise<Storage> {
  let fd: number;
  try {
    fd = await promisify(fs.open)(path, "r+");
  } catch (error) {
    throw new UserError(`cannot open the disk's file ${path}: ${reason(error)}`);
  }
  try {
    return new FileStorage(fd, await sizeOf(fd, path));
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

async function sizeOf(fd: number, path: string): Promise<number> {
  const status = await promisify(fs.fstat)(fd, { bigint: false });
  if (status.isFile()) return status.size;
  if (!status.isBlockDevice()) throw new UserError(`the disk's file ${path} is neither a file nor a block device`);
  // Linux's dev_t: 12 bits of major in the middle, minor around them.
  const major = (status.rdev >>> 8) & 0xfff;
  const minor = (status.rdev & 0xff) | ((status.rdev >>> 12) & 0xfff00);
  const name = `/sys/dev/block/${major}:${minor}/size`;
  try {
    return Number(await fs.promises.readFile(name, "ascii")) * 512;
  } catch (error) {
    throw new UserError(`cannot find the size of the block device ${path}: ${reason(error)}`);
  }
}

function reason(error: unknown): string {
  const { code } = error as StorageError;
  if (code === "ENOENT") return "there is no such file";
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") return "it may not be written";
  if (code === "EISDIR") return "it is a directory";
  return code ?? String(error);
}
