/**
 * Buffers of our own for data that comes from a disk or goes there, since a disk may hang: nothing that waits for one
 * has driver-VM memory in its hands. Each disk has its own, so one that hangs keeps none from the others. There are so
 * many and no more, whatever the driver asks for: who finds none waits.
 */
import { KiB, MiB } from "../../../../shared/limits.js";
import type { Dma } from "../../../device.js";
import type { Pieces, Task } from "./storage.js";

/** Bytes of a buffer for the pieces of long commands. */
export const PIECE_SIZE = 256 * KiB;
/** Bytes of the largest buffer: a Compare of 1 MiB has two halves. */
const LARGEST = 2 * MiB;

/** Sizes and numbers of buffers, and how many are made at once. */
const KINDS = [
  { size: 4 * KiB, most: 1024, together: 128 },
  { size: 64 * KiB, most: 32, together: 16 },
  { size: PIECE_SIZE, most: 16, together: 8 },
  { size: LARGEST, most: 4, together: 1 },
] as const;
type Kind = (typeof KINDS)[number];

export class DiskBuffer {
  readonly #segment: { readonly bytes: Uint8Array; offset: number; length: number };
  readonly #pieces: Pieces;
  readonly #start: number;

  constructor(
    readonly kind: Kind,
    memory: Uint8Array,
    start: number,
  ) {
    this.#start = start;
    this.#segment = { bytes: memory, offset: start, length: 0 };
    this.#pieces = { count: 1, segments: [this.#segment] };
  }

  bytes(length: number, from = 0): Uint8Array {
    const start = this.#start + from;
    return this.#segment.bytes.subarray(start, start + length);
  }

  /** The same as something to be moved, until the next call. */
  pieces(length: number, from = 0): Pieces {
    this.#segment.offset = this.#start + from;
    this.#segment.length = length;
    return this.#pieces;
  }
}

interface Waiter {
  readonly task: Task;
  readonly ready: (buffer: DiskBuffer) => void;
}

/** The buffers of one kind. */
class Shelf {
  #made = 0;
  #waiting: Waiter[] = [];
  readonly #free: DiskBuffer[] = [];

  constructor(readonly kind: Kind) {}

  take(dma: Dma, task: Task, ready: (buffer: DiskBuffer) => void): void {
    if (this.#free.length === 0 && this.#made < this.kind.most) this.#make(dma);
    const buffer = this.#free.pop();
    if (buffer === undefined) this.#waiting.push({ task, ready });
    else ready(buffer);
  }

  give(buffer: DiskBuffer): void {
    let next = this.#waiting.shift();
    while (next?.task.ended) next = this.#waiting.shift();
    if (next === undefined) this.#free.push(buffer);
    else next.ready(buffer);
  }

  purge(): void {
    this.#waiting = this.#waiting.filter(({ task }) => !task.ended);
  }

  #make(dma: Dma): void {
    const { size, together } = this.kind;
    const memory = dma.allocate(size * together);
    for (let n = 0; n < together; n++) this.#free.push(new DiskBuffer(this.kind, memory, n * size));
    this.#made += together;
  }
}

export class DiskBuffers {
  readonly #shelves = KINDS.map((kind) => new Shelf(kind));

  /**
   * Calls `ready`, at once or later, with a buffer of at least `length` bytes, LARGEST at most; never when the task
   * ends before.
   */
  take(length: number, dma: Dma, task: Task, ready: (buffer: DiskBuffer) => void): void {
    const shelf = this.#shelves.find(({ kind }) => kind.size >= length);
    if (shelf === undefined) throw new RangeError(`no buffer has ${length} bytes`);
    shelf.take(dma, task, ready);
  }

  /** Nothing moves to or from it any more. */
  give(buffer: DiskBuffer): void {
    this.#shelves[KINDS.indexOf(buffer.kind)].give(buffer);
  }

  /** Tasks have ended: they wait no longer. */
  purge(): void {
    for (const shelf of this.#shelves) shelf.purge();
  }
}
