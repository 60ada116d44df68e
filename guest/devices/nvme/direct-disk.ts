/**
 * A disk as one side of copies that are done at once: pieces of memory, or a file that is read and written in place.
 */
import type { CopyList } from "../../../native/index.js";
import type { DirectAccess } from "./storage.js";

/** The file system has no such flag, as most have none for writes. */
const EOPNOTSUPP = 95;
const NONE = -1;

export class DirectDisk {
  /** Whether there are reads and writes that can be done at once. */
  reads: boolean;
  writes: boolean;
  /** There is no stable storage under it. */
  readonly isVolatile: boolean;
  /** What `find` found: a number of the list, and an offset, whose upper half is 0 for memory. */
  number = NONE;
  offset = 0;
  offsetHigh = 0;
  readonly #access: DirectAccess;
  readonly #list: CopyList;
  /** Of a file, by what is done to it. */
  readonly #readNumber: number;
  readonly #writeNumber: number;
  /** Of memory, by piece; made known at their first use. */
  readonly #pieceNumbers: number[] = [];

  constructor(access: DirectAccess, list: CopyList) {
    this.#access = access;
    this.#list = list;
    const isFile = access.kind === "file";
    const add = (flags: number | undefined) => (isFile && flags !== undefined ? list.addFile(access.fd, flags) : NONE);
    this.#readNumber = add(isFile ? access.readFlags : undefined);
    this.#writeNumber = add(isFile ? access.writeFlags : undefined);
    this.reads = !isFile || this.#readNumber !== NONE;
    this.writes = !isFile || this.#writeNumber !== NONE;
    this.isVolatile = !isFile;
  }

  /** Finds the place of `position`; returns how many of `length` bytes are in one piece from there on. */
  find(position: number, length: number, isRead: boolean): number {
    const access = this.#access;
    if (access.kind === "file") {
      this.number = isRead ? this.#readNumber : this.#writeNumber;
      this.offset = position >>> 0;
      this.offsetHigh = Math.floor(position / 0x1_0000_0000);
      return length;
    }
    // Not `%`, which is slow beyond 32 bits.
    const piece = Math.floor(position / access.pieceSize);
    this.offset = position - piece * access.pieceSize;
    this.number = this.#pieceNumbers[piece] ?? this.#open(piece);
    return Math.min(length, access.pieceSize - this.offset);
  }

  /** A copy failed: for good, where the file system cannot do it. */
  failed(isRead: boolean, errno: number): void {
    if (errno !== EOPNOTSUPP) return;
    if (isRead) this.reads = false;
    else this.writes = false;
  }

  #open(piece: number): number {
    if (this.#access.kind === "file") throw new Error("a file has no pieces");
    const number = this.#list.add(this.#access.piece(piece));
    this.#pieceNumbers[piece] = number;
    return number;
  }
}
