/** Places in the window, and the list of them that one command's data is. */
import type { Dma, Segment } from "../../device.js";
import type { PrpRanges } from "./prp.js";

const NO_BYTES = new Uint8Array(0);
const NO_DATA = new DataView(NO_BYTES.buffer);

/** A segment that lies nowhere yet. */
export function newSegment(): Segment {
  return { bytes: NO_BYTES, data: NO_DATA, offset: 0, length: 0 };
}

/** The pieces of the window that hold one command's data; reused from command to command. */
export class SegmentList {
  /** Segments in use; the array may be longer. */
  count = 0;
  readonly segments: Segment[] = [];

  /** Finds all of `ranges` in the window. False when a part is not there: it is not mapped, or reached by messages. */
  locate(dma: Dma, ranges: PrpRanges, access: "read" | "write"): boolean {
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

  /** Grows the segment before when `segment` follows on it in the window. */
  #joinsPrevious(segment: Segment): boolean {
    if (this.count === 0) return false;
    const previous = this.segments[this.count - 1];
    if (previous.bytes !== segment.bytes || previous.offset + previous.length !== segment.offset) return false;
    previous.length += segment.length;
    return true;
  }
}
