/**
 * Transfers of one disk, so that none sees half of another (AWUN: a block is read as it was before a write or as it is after): one
 * that overlaps another, where either of them writes, begins when the other has ended. File systems do not promise that: ext4 reads a
 * page while it is written. All others begin at once, and in the steady state nothing is allocated.
 *
 * What is done at once (direct-io.ts) never overlaps in time with what is done at once, and asks `isFree` about the rest.
 */
import type { Ended, Pieces, StorageError } from "./file-io.js";
import type { Storage } from "./storage.js";

type Operation = "read" | "write" | "zero" | "deallocate";

const NO_PIECES: Pieces = { count: 0, segments: [] };

/** One transfer, under way or waiting for earlier ones; used again and again. */
class Transfer {
  operation: Operation = "read";
  start = 0;
  end = 0;
  pieces = NO_PIECES;
  done: Ended = () => {};
  /** Transfers that came before have smaller numbers. */
  number = 0;
  /** Earlier transfers that this one waits for. */
  blockers = 0;
  readonly ended: Ended;

  constructor(onEnd: (transfer: Transfer, error: StorageError | null) => void) {
    this.ended = (error) => onEnd(this, error);
  }

  get writes(): boolean {
    return this.operation !== "read";
  }
}

export class AtomicIo implements Pick<Storage, "read" | "write" | "zero"> {
  readonly #storage: Pick<Storage, "read" | "write" | "zero">;
  /** Under way and waiting, in no order. */
  readonly #transfers: Transfer[] = [];
  readonly #unused: Transfer[] = [];
  /** How many of `#transfers` write, and how many wait. */
  #writes = 0;
  #waiting = 0;
  #count = 0;

  constructor(storage: Pick<Storage, "read" | "write" | "zero">) {
    this.#storage = storage;
  }

  /** Whether a transfer of these bytes would begin at once. */
  isFree(position: number, length: number, isRead: boolean): boolean {
    if (isRead ? this.#writes === 0 : this.#transfers.length === 0) return true;
    const end = position + length;
    for (const transfer of this.#transfers) {
      if (transfer.start < end && position < transfer.end && !(isRead && !transfer.writes)) return false;
    }
    return true;
  }

  /** As Storage's. */
  read(pieces: Pieces, position: number, done: Ended): void {
    this.#add("read", pieces, position, lengthOf(pieces), done);
  }

  write(pieces: Pieces, position: number, done: Ended): void {
    this.#add("write", pieces, position, lengthOf(pieces), done);
  }

  zero(position: number, length: number, deallocate: boolean, done: Ended): void {
    this.#add(deallocate ? "deallocate" : "zero", NO_PIECES, position, length, done);
  }

  #add(operation: Operation, pieces: Pieces, position: number, length: number, done: Ended): void {
    const transfer = this.#unused.pop() ?? new Transfer(this.#onEnd);
    transfer.operation = operation;
    transfer.pieces = pieces;
    transfer.start = position;
    transfer.end = position + length;
    transfer.done = done;
    transfer.number = this.#count++;
    transfer.blockers = 0;
    if (!this.isFree(position, length, operation === "read")) {
      for (const other of this.#transfers) if (conflict(transfer, other)) transfer.blockers++;
    }
    this.#transfers.push(transfer);
    if (transfer.writes) this.#writes++;
    if (transfer.blockers > 0) this.#waiting++;
    else this.#begin(transfer);
  }

  #begin({ operation, pieces, start, end, ended }: Transfer): void {
    switch (operation) {
      case "read":
        this.#storage.read(pieces, start, ended);
        return;
      case "write":
        this.#storage.write(pieces, start, ended);
        return;
      default:
        this.#storage.zero(start, end - start, operation === "deallocate", ended);
    }
  }

  readonly #onEnd = (ended: Transfer, error: StorageError | null): void => {
    const transfers = this.#transfers;
    const last = transfers.pop() as Transfer;
    if (last !== ended) transfers[transfers.indexOf(ended)] = last;
    if (ended.writes) this.#writes--;
    if (this.#waiting > 0) this.#unblock(ended);
    const { done } = ended;
    ended.pieces = NO_PIECES;
    this.#unused.push(ended);
    done(error);
  };

  /** Each waits for earlier ones alone, so that none waits for ever. */
  #unblock(ended: Transfer): void {
    for (const transfer of [...this.#transfers]) {
      if (transfer.blockers === 0 || transfer.number < ended.number || !conflict(transfer, ended)) continue;
      if (--transfer.blockers > 0) continue;
      this.#waiting--;
      this.#begin(transfer);
    }
  }
}

function conflict(a: Transfer, b: Transfer): boolean {
  return a.start < b.end && b.start < a.end && (a.writes || b.writes);
}

function lengthOf({ count, segments }: Pieces): number {
  let length = 0;
  for (let n = 0; n < count; n++) length += segments[n].length;
  return length;
}
