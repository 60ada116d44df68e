/**
 * A disk as lanes have it (native/lane_disk.h): how its bytes can be moved without waiting, how it is cut into blocks,
 * whether lanes may begin anything, and which transfers of atomic-io.ts they have to keep off. A disk without such a
 * way is none for lanes, and nothing here does anything.
 */
import type { LaneContext } from "../../../../native/lane.js";
import type { DirectAccess, Storage } from "./storage.js";

const NO_FLAGS = -1;

/** No transfer that lanes were told of. */
export const NO_TRANSFER = -1;

export class LaneDisk {
  readonly #context: LaneContext;
  readonly #number: number;
  readonly #isThere: boolean;

  /** `number`: as commands name it (NSID). */
  constructor(context: LaneContext, number: number, direct: DirectAccess | undefined) {
    this.#context = context;
    this.#number = number;
    this.#isThere = direct !== undefined && this.#add(direct);
  }

  #add(direct: DirectAccess): boolean {
    if (direct.kind === "memory") return this.#context.addMemoryDisk(this.#number, direct.fd, direct.size);
    const { fd, readFlags = NO_FLAGS, writeFlags = NO_FLAGS, mayPunch = false } = direct;
    return this.#context.addFileDisk(this.#number, fd, readFlags, writeFlags, mayPunch);
  }

  /** `mayCache`: what is written need not be on stable storage. */
  set({ readOnly }: Storage, blockSize: number, blockCount: number, isOpen: boolean, mayCache: boolean): void {
    if (!this.#isThere) return;
    this.#context.setDisk(this.#number, Math.log2(blockSize), blockCount, isOpen, !readOnly, mayCache);
  }

  /** A transfer begins, or waits. Returns what `leave` wants. */
  enter(start: number, end: number, writes: boolean): number {
    return this.#isThere ? this.#context.enterDisk(this.#number, start, end, writes) : NO_TRANSFER;
  }

  leave(transfer: number): void {
    if (transfer !== NO_TRANSFER) this.#context.leaveDisk(this.#number, transfer);
  }

  close(): void {
    if (this.#isThere) this.#context.removeDisk(this.#number);
  }
}
