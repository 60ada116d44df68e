/**
 * Where a namespace's bytes are: a small seam over a file, block device or memory, so that its failures can be played
 * by tests. Callbacks, not promises, since there is one for each command.
 *
 * Of this folder's files, in the order in which a command meets them: namespaces.ts and namespace.ts, logical blocks
 * and their write cache; lane-disk.ts, the disk as lanes have it; buffers.ts, where data waits for a disk;
 * atomic-io.ts, transfers that overlap; this seam, and
 * behind it fd-storage.ts, a disk as a file descriptor, file-io.ts, its threads, and io-batch.ts, what goes to them
 * together. open-storage.ts opens one.
 */

export type StorageError = Error & { readonly code?: string | undefined };
export type Done = (error: StorageError | null) => void;

/**
 * What somebody asked for, and may have lost interest in: a reset, an abort or a queue's deletion ends it before its
 * work is done.
 */
export interface Task {
  /** Nobody waits for it any more. What is done for it stops at the next step, and reports to nobody. */
  readonly ended: boolean;
}

/** Pieces of memory, to be moved one after the other. */
export interface Pieces {
  /** How many of `segments`, from the first on. */
  readonly count: number;
  readonly segments: readonly { readonly bytes: Uint8Array; readonly offset: number; readonly length: number }[];
}

export const NO_PIECES: Pieces = { count: 0, segments: [] };

/** How the bytes can be moved by whoever does not want to wait; everything else works on the same bytes. */
export type DirectAccess =
  | {
      /** A file that is memory of this process's own, to be mapped; there is no stable storage under it. */
      readonly kind: "memory";
      readonly fd: number;
      readonly size: number;
    }
  | {
      readonly kind: "file";
      readonly fd: number;
      /** Flags of preadv2 and pwritev2 with which they do not wait for a device; undefined where there are none. */
      readonly readFlags: number | undefined;
      readonly writeFlags: number | undefined;
      /** Holes can be punched into it without waiting for a device. */
      readonly mayPunch?: boolean;
    };

/** Positions, offsets, sizes and lengths are bytes. */
export interface Storage {
  /** As it was found at the start, or by the last `refresh`. */
  readonly size: number;
  /** How much of it takes space, as roughly as the file system says; found along with `size`. */
  readonly allocated: number;
  /**
   * It was a file with a name, and no name leads to it any more: what is written is gone with the process. As `refresh`
   * found it.
   */
  readonly isRemoved?: boolean;
  /** The block size that `setBlockSize` kept with it, if any. */
  readonly blockSize: number | undefined;
  /**
   * The smallest block that can be read and written by itself. Where that is what O_DIRECT wants, memory begins at a
   * multiple of it, as pages do.
   */
  readonly smallestBlock: number;
  /** What is best read, written and given back as one; a power of two, at least a page. */
  readonly preferredSize: number;
  /** Nothing of it may be changed. */
  readonly readOnly: boolean;
  readonly direct?: DirectAccess | undefined;
  /**
   * Reads all of `pieces`, which stay as they are meanwhile, and their memory in place; EIO where the storage ends
   * early.
   */
  read(pieces: Pieces, position: number, done: Done): void;
  write(pieces: Pieces, position: number, done: Done): void;
  /**
   * Makes zeros of a range without writing it; `deallocate` also gives its space back. Fails where that cannot be done;
   * nothing is lost then.
   */
  zero(position: number, length: number, deallocate: boolean, done: Done): void;
  /** Puts all data written so far onto stable storage. */
  sync(done: Done): void;
  /** Asks again how large it is. */
  refresh(done: Done): void;
  /** Remembers a block size; after the next `sync` over a restart too. ENOTSUP where there is no place for it. */
  setBlockSize(bytes: number, done: Done): void;
  /** Makes it larger. Left out by what has the size that it has. Rejects with UserError or SystemError. */
  readonly grow?: ((size: number) => Promise<void>) | undefined;
  close(): Promise<void>;
}
