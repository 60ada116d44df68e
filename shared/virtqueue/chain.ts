/**
 * One descriptor chain as the device sees it: a row of places in guest memory, the readable ones first, as VIRTIO
 * demands (1.2, 2.7.4.2). Kept in arrays of its own that are used again, so that a chain allocates nothing.
 */
import { copyBytes, type RingMemory } from "./memory.js";

/** What it takes to look a descriptor up, as bytes of a message (turn.ts). */
const DESCRIPTOR_COST = 128;

export class Chain {
  /** Bytes that the device may read, and may write. */
  readable = 0;
  writable = 0;
  segments = 0;
  /** What `next` found: where the bytes are. */
  bytes: Uint8Array = new Uint8Array(0);
  offset = 0;
  readonly #memory: RingMemory;
  #readSegments = 0;
  #offsets = new Float64Array(0);
  #lengths = new Float64Array(0);
  /** Where `next` goes on: a segment, and bytes of it that are behind. */
  #segment = 0;
  #skip = 0;

  constructor(memory: RingMemory) {
    this.#memory = memory;
  }

  /** What it costs a turn to follow the chain, beside the bytes that are moved. */
  get cost(): number {
    return this.segments * DESCRIPTOR_COST;
  }

  /** Makes room for chains of so many segments. */
  reserve(segments: number): void {
    if (this.#offsets.length >= segments) return;
    this.#offsets = new Float64Array(segments);
    this.#lengths = new Float64Array(segments);
  }

  clear(): void {
    this.readable = this.writable = this.segments = this.#readSegments = 0;
  }

  /** Adds a segment at a flat offset of the memory. False when it is a readable one behind a writable one. */
  add(offset: number, length: number, isWritable: boolean): boolean {
    this.#offsets[this.segments] = offset;
    this.#lengths[this.segments] = length;
    this.segments++;
    if (isWritable) {
      this.writable += length;
      return true;
    }
    if (this.#readSegments !== this.segments - 1) return false;
    this.#readSegments++;
    this.readable += length;
    return true;
  }

  /** `next` is to go through the writable bytes, or the readable ones, from `skip` on. */
  seek(writable: boolean, skip: number): void {
    this.#segment = writable ? this.#readSegments : 0;
    this.#skip = skip;
  }

  /**
   * Finds the next bytes, which the caller knows to be there: sets `bytes` and `offset`, returns how many of `length`
   * lie in a row.
   */
  next(length: number): number {
    const lengths = this.#lengths;
    while (this.#skip >= lengths[this.#segment]) this.#skip -= lengths[this.#segment++];
    const { pieceSize } = this.#memory;
    const offset = this.#offsets[this.#segment] + this.#skip;
    const inPiece = offset % pieceSize;
    const run = Math.min(length, lengths[this.#segment] - this.#skip, pieceSize - inPiece);
    this.#skip += run;
    this.bytes = this.#memory.bytes((offset - inPiece) / pieceSize);
    this.offset = inPiece;
    return run;
  }

  /** Copies the next bytes. */
  copyTo(target: Uint8Array, at: number, length: number): void {
    for (const end = at + length; at < end; ) {
      const run = this.next(end - at);
      copyBytes(this.bytes, this.offset, target, at, run);
      at += run;
    }
  }

  /** The other way. */
  copyFrom(source: Uint8Array, at: number, length: number): void {
    for (const end = at + length; at < end; ) {
      const run = this.next(end - at);
      copyBytes(source, at, this.bytes, this.offset, run);
      at += run;
    }
  }
}
