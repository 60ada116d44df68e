/**
 * Memory of this VM that the bridge can reach, for data that it copies: parts of huge pages, handed out for good. Where
 * no huge page is left it is ordinary memory, which works as well and costs one more copy.
 */
import { LARGE_PAGE_SIZE, PAGE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import type { DmaMemory, PciFunction } from "../../vfio/pci-function.js";

/** So that no two parts share a cache line. */
const ALIGNMENT = 64;

export class DmaBuffers {
  readonly #pci: PciFunction;
  readonly #log: Log;
  /** Where each huge page is for the bridge. */
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  #page: DmaMemory | undefined;
  #used = 0;
  #isOut = false;

  constructor(pci: PciFunction, log: Log) {
    this.#pci = pci;
    this.#log = log;
  }

  /**
   * `length` bytes of zeros; from a page's size on they begin at a page. Never more than a huge page of the bridge's
   * reach.
   */
  allocate(length: number): Uint8Array<ArrayBuffer> {
    const alignment = length >= PAGE_SIZE ? PAGE_SIZE : ALIGNMENT;
    const start = Math.ceil(this.#used / alignment) * alignment;
    const page = this.#page;
    if (page !== undefined && start + length <= page.buffer.byteLength) {
      this.#used = start + length;
      return new Uint8Array(page.buffer, start, length);
    }
    if (length > LARGE_PAGE_SIZE || !this.#takePage()) return pageAligned(length);
    return this.allocate(length);
  }

  /** Where bytes are for the bridge; -1 when it does not reach them. */
  addressOf(bytes: Uint8Array): number {
    const address = this.#addresses.get(bytes.buffer);
    return address === undefined ? -1 : address + bytes.byteOffset;
  }

  #takePage(): boolean {
    if (this.#isOut) return false;
    try {
      this.#page = this.#pci.allocate(LARGE_PAGE_SIZE);
    } catch (error) {
      this.#isOut = true;
      this.#log.warn(
        { reason: (error as Error).message },
        "no more memory that the bridge reaches: more is copied twice",
      );
      return false;
    }
    this.#used = 0;
    this.#addresses.set(this.#page.buffer, this.#page.address);
    return true;
  }
}
