/**
 * Opening a disk: what it is, whether it may be written, and that nobody else writes to it, for a disk that two
 * processes write to is a lost one.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { createMemory, directAlignment, lockFile, close as nativeClose } from "../../../../native/index.js";
import { UserError } from "../../../../shared/errors.js";
import { GiB, PAGE_SIZE } from "../../../../shared/limits.js";
import { pageAligned } from "../../../../shared/page-aligned.js";
import { FdStorage, isReadOnlyDevice, sectorSizes } from "./fd-storage.js";
import type { Storage, StorageError } from "./storage.js";

export interface StorageOptions {
  /** Nothing is written, and others may read it too. What may not be written is read-only anyway. */
  readonly readOnly?: boolean | undefined;
  /** "none": opened with O_DIRECT, past the page cache of this machine; "writeback" when left out. */
  readonly cache?: Cache | undefined;
}

/** What `cache` may be, the usual first. */
export const CACHES = ["writeback", "none"] as const;
export type Cache = (typeof CACHES)[number];

// To a block device O_EXCL means that nothing else uses it: a mounted file system, a RAID.
const { O_DIRECT, O_EXCL, O_RDONLY, O_RDWR } = fs.constants;
const SECTOR = 512;
/** Address space that one may take; its memory comes as it is written. */
const MAX_MEMORY_DISK = 16 * 1024 * GiB;
/** <linux/magic.h>: tmpfs, ramfs, hugetlbfs. */
const MEMORY_FILE_SYSTEMS: ReadonlySet<number> = new Set([0x0102_1994, 0x8584_58f6, 0x9584_58f6]);
/** Nobody may write a file of these permissions; root could. */
const WRITE_PERMISSIONS = 0o222;

/**
 * Opens a file or block device, and locks it: for itself, or when it is read-only, against writers.
 * @throws UserError when that is not possible
 */
export async function openStorage(path: string, options: StorageOptions = {}): Promise<Storage> {
  if (path === "") throw new UserError("the path of a disk's file is empty", 2);
  let fd: number | undefined;
  try {
    const status = await fs.promises.stat(path);
    if (status.isDirectory()) throw new UserError(`cannot open the disk's file ${path}: it is a directory`);
    if (!status.isFile() && !status.isBlockDevice()) {
      throw new UserError(`the disk's file ${path} is neither a file nor a block device`);
    }
    const isFile = status.isFile();
    const wanted = options.readOnly === true || (isFile && (status.mode & WRITE_PERMISSIONS) === 0);
    const isDirect = options.cache === "none";
    const opened = await open(path, wanted, (isFile ? 0 : O_EXCL) | (isDirect ? O_DIRECT : 0));
    fd = opened.fd;
    const readOnly = opened.readOnly || (!isFile && isReadOnlyDevice(fd));
    if (!lockFile(fd, readOnly)) {
      throw new UserError(`the disk's file ${path} is in use: another process has locked it`);
    }
    const { type } = await fs.promises.statfs(path);
    const inMemory = isFile && MEMORY_FILE_SYSTEMS.has(type);
    const directSize = isDirect ? (isFile ? directSizeOf(fd) : sectorSizes(fd).logical) : undefined;
    return new FdStorage(fd, { kind: isFile ? "file" : "device", readOnly, inMemory, directSize });
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    if (error instanceof UserError) throw error;
    const noDirect = options.cache === "none" && (error as StorageError).code === "EINVAL";
    const why = noDirect ? "its file system has no direct I/O, which --cache none needs" : reason(error);
    throw new UserError(`cannot open the disk's file ${path}: ${why}`);
  }
}

/** The smallest transfer that a file takes that was opened with O_DIRECT. @throws SystemError */
function directSizeOf(fd: number): number {
  const aligned = directAlignment(fd);
  if (aligned !== undefined && aligned > 0) return Math.max(aligned, SECTOR);
  const bytes = pageAligned(PAGE_SIZE);
  for (let size = SECTOR; size < PAGE_SIZE; size *= 2) {
    try {
      fs.readSync(fd, bytes, 0, size, 0);
      return size;
    } catch (error) {
      if ((error as StorageError).code !== "EINVAL") throw error;
    }
  }
  return PAGE_SIZE;
}

/** For reading and writing, or for reading alone where that is wanted or nothing else is possible. @throws Error */
async function open(
  path: string,
  readOnly: boolean,
  flags: number,
): Promise<{ readonly fd: number; readonly readOnly: boolean }> {
  if (!readOnly) {
    try {
      return { fd: await promisify(fs.open)(path, O_RDWR | flags), readOnly };
    } catch (error) {
      const { code } = error as StorageError;
      if (code !== "EACCES" && code !== "EPERM" && code !== "EROFS") throw error;
    }
  }
  return { fd: await promisify(fs.open)(path, O_RDONLY | (flags & ~O_EXCL)), readOnly: true };
}

/** A disk that is gone with the process. @throws UserError */
export function openMemory(size: number): Storage {
  if (size > MAX_MEMORY_DISK) {
    throw new UserError(`a disk of ${size} bytes in memory is more than the ${MAX_MEMORY_DISK} that are possible`, 2);
  }
  let fd: number | undefined;
  try {
    fd = createMemory("nvme", size, false);
    return new FdStorage(fd, { kind: "memory" });
  } catch (error) {
    if (fd !== undefined) nativeClose(fd);
    throw new UserError(`cannot make a disk of ${size} bytes in memory: ${reason(error)}`);
  }
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "what should be its directory is none",
  ELOOP: "its symbolic links go round in circles",
  EACCES: "it may not be read",
  EPERM: "it may not be read",
  EBUSY: "it is in use",
  ENXIO: "there is no such device",
  ENOMEDIUM: "there is no medium in it",
  EMFILE: "this process may have no more file descriptors (LimitNOFILE=, ulimit -n)",
  ENOMEM: "there is no memory for it, or this process may have no more address space (ulimit -v)",
  EFBIG: "this process may have no files as large (ulimit -f)",
};

function reason(error: unknown): string {
  const { code } = error as StorageError;
  return code === undefined ? String(error) : (REASONS[code] ?? code);
}
