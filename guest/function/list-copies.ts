/** The copies of a whole scatter list, as one call into the addon. */
import { COPY_ENTRY as Copy, createCopyList } from "../../native/index.js";
import { BufferTable } from "../../shared/buffer-table.js";
import type { Dma, Segment } from "../device.js";
import type { ScatterList } from "../scatter-list.js";

/** Copies for one call; a list of more takes several. */
const MAX_COPIES = 256;
/** The only thing that goes wrong between memory and memory. */
export const MEMORY_GONE = -1;

/** Copies between the ranges of a list and an array of the device's. */
export class ListCopies {
  readonly #dma: Dma;
  readonly #copies = createCopyList(MAX_COPIES);
  readonly #entries = this.#copies.entries;
  readonly #segment: Segment = {
    bytes: new Uint8Array(0),
    data: new DataView(new ArrayBuffer(0)),
    offset: 0,
    length: 0,
  };
  /** The device's buffer of the last call, and its number among those that the addon knows. */
  #buffer = new ArrayBuffer(0);
  readonly #own = this.#copies.add(this.#buffer);
  readonly #window = new BufferTable(this.#copies);

  constructor(dma: Dma) {
    this.#dma = dma;
  }

  /**
   * Copies the list's data to the beginning of `bytes`, or from there. Returns how many bytes: fewer than the list has
   * when a range is not in the window, MEMORY_GONE when what was copied is not all there. @throws RangeError when
   * `bytes` is shorter than the list
   */
  run(list: ScatterList, bytes: Uint8Array, access: "read" | "write"): number {
    if (bytes.length < list.length) throw new RangeError(`${bytes.length} bytes for a list of ${list.length}`);
    if (bytes.buffer !== this.#buffer) {
      this.#buffer = bytes.buffer as ArrayBuffer;
      this.#copies.replace(this.#own, this.#buffer);
    }
    const segment = this.#segment;
    const entries = this.#entries;
    const isRead = access === "read";
    // Of each copy, the words that are about the window, and those about the device's own array.
    const there = isRead ? Copy.SOURCE : Copy.TARGET;
    const here = isRead ? Copy.TARGET : Copy.SOURCE;
    const start = bytes.byteOffset;
    let moved = 0;
    let entry = 0;
    let failures = 0;
    for (let n = 0; n < list.count; n++) {
      let address = list.addresses[n];
      for (let left = list.lengths[n]; left > 0; ) {
        const length = this.#dma.locate(address, left, access, segment);
        if (length === 0) {
          failures += this.#copies.run(entry / Copy.SIZE);
          return failures > 0 ? MEMORY_GONE : moved;
        }
        entries[entry + there] = this.#window.numberOf(segment.bytes);
        entries[entry + there + 1] = this.#window.start + segment.offset;
        entries[entry + here] = this.#own;
        entries[entry + here + 1] = start + moved;
        entries[entry + Copy.LENGTH] = length;
        entry += Copy.SIZE;
        moved += length;
        address += length;
        left -= length;
        if (entry < entries.length) continue;
        failures += this.#copies.run(MAX_COPIES);
        entry = 0;
      }
    }
    failures += this.#copies.run(entry / Copy.SIZE);
    return failures > 0 ? MEMORY_GONE : moved;
  }
}
