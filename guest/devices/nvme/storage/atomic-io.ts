/**
 * Transfers of one disk, so that none sees half of another (AWUN: a block is read as it was before a write or as it is
 * after): one that overlaps another, where either of them writes, begins when the other has ended. File systems do not
 * promise that: ext4 reads a page while it is written. All others begin at once, and in the steady state nothing is
 * allocated.
 *
 * A transfer whose task has ended goes on when it has begun, as nobody can stop the kernel; so what comes after a reset
 * waits for what it overlaps of before. When it has not begun it never does.
 *
 * Lanes, which move data at once and by themselves, do not see these transfers: they are told of each (lane-disk.ts),
 * and overlap none.
 */
import { type LaneDisk, NO_TRANSFER } from "./lane-disk.js";
import { type Done, NO_PIECES, type Pieces, type Storage, type StorageError, type Task } from "./storage.js";

const CANCELED: StorageError = Object.assign(new Error("the transfer was cancelled"), { code: "ECANCELED" });

type Operation = "read" | "write" | "zero" | "deallocate" | "hold";

const NOTHING = (): void => {};
const NO_TASK: Task = { ended: false };

/** One transfer, in flight or waiting for earlier ones; reused. */
class Transfer {
  operation: Operation = "read";
  start = 0;
  end = 0;
  pieces = NO_PIECES;
  task = NO_TASK;
  use: (release: Done) => void = NOTHING;
  done: Done = NOTHING;
  /** Transfers that came before have smaller numbers. */
  number = 0;
  /** Earlier transfers that this one waits for. */
  blockers = 0;
  /** Lanes' name for it. */
  laneTransfer = NO_TRANSFER;
  readonly ended: Done;

  constructor(onEnd: (transfer: Transfer, error: StorageError | null) => void) {
    this.ended = (error) => onEnd(this, error);
  }

  get writes(): boolean {
    return this.operation !== "read";
  }
}

export class AtomicIo {
  readonly #storage: Pick<Storage, "read" | "write" | "zero">;
  /** In flight and waiting, in no order. */
  readonly #transfers: Transfer[] = [];
  readonly #unused: Transfer[] = [];
  /** How many of `#transfers` write, and how many wait. */
  #writes = 0;
  #waiting = 0;
  #count = 0;
  readonly #onBug: (error: unknown) => void;
  /** Where lanes hear of transfers, if there are any. */
  disk: LaneDisk | undefined;
  /** Called when something has ended. */
  readonly #onProgress: (() => void)[] = [];

  /** `onBug`: a `done` threw. */
  constructor(storage: Pick<Storage, "read" | "write" | "zero">, onBug: (error: unknown) => void) {
    this.#storage = storage;
    this.#onBug = onBug;
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

  /** As Storage's; ECANCELED where the task ends before the transfer has begun. */
  read(pieces: Pieces, position: number, task: Task, done: Done): void {
    this.#add("read", pieces, position, lengthOf(pieces), task, done);
  }

  write(pieces: Pieces, position: number, task: Task, done: Done): void {
    this.#add("write", pieces, position, lengthOf(pieces), task, done);
  }

  zero(position: number, length: number, deallocate: boolean, task: Task, done: Done): void {
    this.#add(deallocate ? "deallocate" : "zero", NO_PIECES, position, length, task, done);
  }

  /**
   * Keeps all others off these bytes, as a write does, from when `use` is called, which has them for itself on the
   * storage, until that calls what it was given. `done` follows; it alone gets ECANCELED.
   */
  hold(position: number, length: number, task: Task, use: (release: Done) => void, done: Done): void {
    this.#add("hold", NO_PIECES, position, length, task, done, use);
  }

  /** Tasks have ended: those of their transfers that wait for others end too. */
  purge(): void {
    const dead = this.#transfers.filter(({ blockers, task }) => blockers > 0 && task.ended);
    // The last first: none of them may begin because another ends.
    for (const transfer of dead.sort((a, b) => b.number - a.number)) {
      if (transfer.blockers === 0 || !transfer.task.ended) continue;
      this.#waiting--;
      transfer.ended(CANCELED);
    }
  }

  isIdle(kind: "all" | "writes"): boolean {
    return (kind === "all" ? this.#transfers.length : this.#writes) === 0;
  }

  /** Resolves when nothing that is in flight or waits now, or writes only, does so any more. */
  async settled(kind: "all" | "writes"): Promise<void> {
    const last = this.#count;
    const concerns = ({ number, writes }: Transfer) => number < last && (kind === "all" || writes);
    while (this.#transfers.some(concerns)) {
      await new Promise<void>((resolve) => this.#onProgress.push(resolve));
    }
  }

  #add(
    operation: Operation,
    pieces: Pieces,
    position: number,
    length: number,
    task: Task,
    done: Done,
    use: (release: Done) => void = NOTHING,
  ): void {
    const transfer = this.#unused.pop() ?? new Transfer(this.#onEnd);
    transfer.operation = operation;
    transfer.pieces = pieces;
    transfer.start = position;
    transfer.end = position + length;
    transfer.task = task;
    transfer.done = done;
    transfer.use = use;
    transfer.number = this.#count++;
    transfer.blockers = 0;
    if (!this.isFree(position, length, operation === "read")) {
      for (const other of this.#transfers) if (conflict(transfer, other)) transfer.blockers++;
    }
    this.#transfers.push(transfer);
    transfer.laneTransfer = this.disk?.enter(transfer.start, transfer.end, transfer.writes) ?? NO_TRANSFER;
    if (transfer.writes) this.#writes++;
    if (transfer.blockers > 0) this.#waiting++;
    else this.#begin(transfer);
  }

  #begin({ operation, pieces, start, end, ended, use }: Transfer): void {
    switch (operation) {
      case "hold":
        use(ended);
        return;
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
    this.disk?.leave(ended.laneTransfer);
    if (this.#waiting > 0) this.#unblock(ended);
    const { done } = ended;
    ended.pieces = NO_PIECES;
    ended.task = NO_TASK;
    ended.use = NOTHING;
    this.#unused.push(ended);
    for (const resolve of this.#onProgress.splice(0)) resolve();
    try {
      done(error);
    } catch (bug) {
      this.#onBug(bug);
    }
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
