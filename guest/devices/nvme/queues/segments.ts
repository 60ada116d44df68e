/** Segments of the window, and the list of them that one command's data is. */
import { isLost } from "../../../../shared/lost-memory.js";
import type { Dma, Segment } from "../../../device.js";
import type { ScatterList } from "../../../scatter-list.js";

const NO_BYTES = new Uint8Array(0);
const NO_DATA = new DataView(NO_BYTES.buffer);

/** A segment that lies nowhere yet. */
export function newSegment(): Segment {
  return { bytes: NO_BYTES, data: NO_DATA, offset: 0, length: 0 };
}

/**
 * 32-bit words of a segment, each read and written as a whole and in the order of the program, which Atomics promises.
 * (The window's words are little-endian, and so is every machine that this runs on.)
 */
export class Words {
  /** The piece of the window that `#words` is a view of; asking it for its buffer each time would be slow. */
  #bytes: Uint8Array = NO_BYTES;
  #words: Int32Array = new Int32Array(0);
  #first = 0;
  #start = 0;

  /** From `offset` bytes into the segment on; a multiple of 4 in memory. */
  at({ bytes, offset: start }: Segment, offset: number): this {
    if (this.#bytes !== bytes) {
      this.#bytes = bytes;
      this.#words = new Int32Array(bytes.buffer, 0, Math.floor(bytes.buffer.byteLength / 4));
      this.#first = bytes.byteOffset;
    }
    this.#start = (this.#first + start + offset) / 4;
    return this;
  }

  load(index: number): number {
    return Atomics.load(this.#words, this.#start + index) >>> 0;
  }

  store(index: number, value: number): void {
    Atomics.store(this.#words, this.#start + index, value | 0);
  }
}

/** The pieces of the window that hold one command's data; reused from command to command. */
export class SegmentList {
  /** Segments in use; the array may be longer. */
  count = 0;
  readonly segments: Segment[] = [];

  /** Finds all of `ranges` in the window. False when a part is not there: it is not mapped, or reached by messages. */
  locate(dma: Dma, ranges: ScatterList, access: "read" | "write"): boolean {
    this.count = 0;
    for (let range = 0; range < ranges.count; range++) {
      let address = ranges.addresses[range];
      let left = ranges.lengths[range];
      while (left > 0) {
        if (this.count === this.segments.length) this.segments.push(newSegment());
        const segment = this.segments[this.count];
        const length = dma.locate(address, left, access, segment);
        if (length === 0) return false;
        address += length;
        left -= length;
        if (!this.#joinsPrevious(segment)) this.count++;
      }
    }
    return true;
  }

  /** Whether some of the memory is gone; to be asked after a copy from or to it. */
  isLost(): boolean {
    for (let n = 0; n < this.count; n++) {
      const { bytes, offset, length } = this.segments[n];
      if (isLost(bytes, offset, length)) return true;
    }
    return false;
  }

  /** Grows the segment before when `segment` follows on it in the window. */
  #joinsPrevious(segment: Segment): boolean {
    if (this.count === 0) return false;
    const previous = this.segments[this.count - 1];
    if (previous.bytes !== segment.bytes || previous.offset + previous.length !== segment.offset) return false;
    previous.length += segment.length;
    return true;
  }
}
