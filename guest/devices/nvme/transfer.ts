/**
 * One move of bytes between storage and a row of segments, by as few system calls as it takes: one, unless the file system
 * moves less than asked for. The callback is made once for each object, so that a command costs no closure.
 */
import type { SegmentList } from "./segment.js";
import type { Storage, StorageError } from "./storage.js";

export type Direction = "read" | "write";
/** `error` is undefined when all bytes were moved. */
export type TransferDone = (error: StorageError | undefined) => void;

export class Transfer {
  #storage: Storage | undefined;
  readonly #list: SegmentList;
  readonly #done: TransferDone;
  #direction: Direction = "read";
  #position = 0;
  /** The segment to go on with, and how many of its bytes were moved. */
  #index = 0;
  #moved = 0;

  constructor(list: SegmentList, done: TransferDone) {
    this.#list = list;
    this.#done = done;
  }

  /** Moves the whole list (at least one segment) from or to `position` bytes into `storage`. One at a time. */
  start(direction: Direction, storage: Storage, position: number): void {
    this.#storage = storage;
    this.#direction = direction;
    this.#position = position;
    this.#index = 0;
    this.#moved = 0;
    this.#step();
  }

  #step(): void {
    const { segments, count } = this.#list;
    const storage = this.#storage as Storage;
    if (this.#index === count - 1) {
      const { bytes, offset, length } = segments[this.#index];
      storage[this.#direction](bytes, offset + this.#moved, length - this.#moved, this.#position, this.#onMoved);
      return;
    }
    const views: Uint8Array[] = [];
    let skip = this.#moved;
    for (let index = this.#index; index < count; index++) {
      const { bytes, offset, length } = segments[index];
      views.push(bytes.subarray(offset + skip, offset + length));
      skip = 0;
    }
    if (this.#direction === "read") storage.readv(views, this.#position, this.#onMoved);
    else storage.writev(views, this.#position, this.#onMoved);
  }

  readonly #onMoved = (error: StorageError | null, count: number): void => {
    if (error !== null) {
      this.#done(error);
      return;
    }
    // Nothing moved is the end of a file that somebody has cut short.
    if (count === 0) {
      this.#done(Object.assign(new Error("the storage ends early"), { code: "EIO" }));
      return;
    }
    this.#position += count;
    let left = count + this.#moved;
    const { segments, count: total } = this.#list;
    while (this.#index < total && left >= segments[this.#index].length) left -= segments[this.#index++].length;
    this.#moved = left;
    if (this.#index === total) this.#done(undefined);
    else this.#step();
  };
}
