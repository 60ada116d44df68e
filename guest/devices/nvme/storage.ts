/**
 * Where a namespace's bytes are: a small seam over a file, block device or memory (fd-storage.ts), so that its failures
 * can be played by tests. Callbacks, not promises, since there is one for each command.
 */
import type { Ended, Pieces } from "./file-io.js";

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
  read(pieces: Pieces, position: number, done: Ended): void;
  write(pieces: Pieces, position: number, done: Ended): void;
  /**
   * Makes zeros of a range without writing it; `deallocate` also gives its space back. Fails where that cannot be done;
   * nothing is lost then.
   */
  zero(position: number, length: number, deallocate: boolean, done: Ended): void;
  /** Puts all data written so far onto stable storage. */
  sync(done: Ended): void;
  /** Looks again how large it is. */
  refresh(done: Ended): void;
  /** Remembers a block size; after the next `sync` over a restart too. ENOTSUP where there is no place for it. */
  setBlockSize(bytes: number, done: Ended): void;
  close(): Promise<void>;
}
