/**
 * Opening a disk: what it is, whether it may be written, and that nobody else writes to it, for a disk that two processes write to is a
 * lost one.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { createMemory, lockFile, close as nativeClose } from "../../../native/index.js";
import { UserError } from "../../../shared/errors.js";
import { isReadOnlyDevice } from "./block-device.js";
import { FdStorage, MemoryStorage } from "./fd-storage.js";
import type { StorageError } from "./file-io.js";
import type { Storage } from "./storage.js";

export interface StorageOptions {
  /** Nothing is written, and others may read it too. What may not be written is read-only anyway. */
  readonly readOnly?: boolean | undefined;
}

/** <linux/magic.h>: tmpfs, ramfs, hugetlbfs. */
const MEMORY_FILE_SYSTEMS: ReadonlySet<number> = new Set([0x0102_1994, 0x8584_58f6, 0x9584_58f6]);
/** Nobody may write a file of these permissions; root could. */
const WRITE_PERMISSIONS = 0o222;

/**
 * Opens a file or block device, and locks it: for itself, or when it is read-only, against writers.
 * @throws UserError when that is not possible
 */
export async function openStorage(path: string, options: StorageOptions = {}): Promise<Storage> {
  let fd: number | undefined;
  try {
    const status = await fs.promises.stat(path);
    if (status.isDirectory()) throw new UserError(`cannot open the disk's file ${path}: it is a directory`);
    if (!status.isFile() && !status.isBlockDevice()) {
      throw new UserError(`the disk's file ${path} is neither a file nor a block device`);
    }
    const isFile = status.isFile();
    const wanted = options.readOnly === true || (isFile && (status.mode & WRITE_PERMISSIONS) === 0);
    const opened = await open(path, isFile, wanted);
    fd = opened.fd;
    const readOnly = opened.readOnly || (!isFile && isReadOnlyDevice(fd));
    if (!lockFile(fd, readOnly)) {
      throw new UserError(`the disk's file ${path} is in use: another process has locked it`);
    }
    const { type } = await fs.promises.statfs(path);
    const inMemory = isFile && MEMORY_FILE_SYSTEMS.has(type);
    return new FdStorage(fd, { kind: isFile ? "file" : "device", readOnly, inMemory });
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    throw error instanceof UserError ? error : new UserError(`cannot open the disk's file ${path}: ${reason(error)}`);
  }
}

/** For reading and writing, or for reading alone where that is wanted or nothing else is possible. @throws Error */
async function open(
  path: string,
  isFile: boolean,
  readOnly: boolean,
): Promise<{ readonly fd: number; readonly readOnly: boolean }> {
  const { O_RDONLY, O_RDWR, O_EXCL } = fs.constants;
  if (!readOnly) {
    try {
      // To a block device O_EXCL means that nothing else uses it: a mounted file system, a RAID.
      return { fd: await promisify(fs.open)(path, isFile ? O_RDWR : O_RDWR | O_EXCL), readOnly };
    } catch (error) {
      const { code } = error as StorageError;
      if (code !== "EACCES" && code !== "EPERM" && code !== "EROFS") throw error;
    }
  }
  return { fd: await promisify(fs.open)(path, O_RDONLY), readOnly: true };
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
  if (code === "EACCES" || code === "EPERM") return "it may not be read";
  if (code === "EBUSY") return "it is in use";
  return code ?? String(error);
}
