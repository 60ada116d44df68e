/**
 * A chain of buffers that the driver gave (VIRTIO 1.2, 2.7.4): first what the device reads, then what it writes, each a
 * scatter list of driver-VM addresses.
 */
import { inBounds } from "../../shared/bits.js";
import type { Dma } from "../device.js";
import { ScatterList } from "../scatter-list.js";

export class Chain {
  readonly readable = new ScatterList();
  readonly writable = new ScatterList();
  readonly #dma: Dma;

  /** @param head the number of its first descriptor, by which it is given back */
  constructor(
    dma: Dma,
    readonly head: number,
  ) {
    this.#dma = dma;
  }

  /**
   * Fills `target` from byte `from` of what the driver wrote. Rejects with DmaError. @throws RangeError when the chain
   * has fewer bytes
   */
  read(from: number, target: Uint8Array): Promise<void> {
    return this.#dma.readList(part(this.readable, from, target.length), target);
  }

  /** Writes `source` to byte `to` of the room that the driver gave. As `read`. */
  write(to: number, source: Uint8Array): Promise<void> {
    return this.#dma.writeList(part(this.writable, to, source.length), source);
  }

  /** The same at once, where the memory is in the window. @throws DmaError when it is not, RangeError */
  readSync(from: number, target: Uint8Array): void {
    this.#dma.readListSync(part(this.readable, from, target.length), target);
  }

  writeSync(to: number, source: Uint8Array): void {
    this.#dma.writeListSync(part(this.writable, to, source.length), source);
  }
}

/** Bytes [from, from + length) of a list, itself where that is all. @throws RangeError when it has fewer */
function part(list: ScatterList, from: number, length: number): ScatterList {
  if (!inBounds(from, length, list.length)) {
    throw new RangeError(`${length} bytes at ${from} of a chain with ${list.length}`);
  }
  if (length === list.length) return list;
  const result = new ScatterList();
  let at = 0;
  for (let n = 0; n < list.count && result.length < length; n++) {
    const end = at + list.lengths[n];
    const start = Math.max(at, from);
    const stop = Math.min(end, from + length);
    if (start < stop) result.add(list.addresses[n] + start - at, stop - start);
    at = end;
  }
  return result;
}
