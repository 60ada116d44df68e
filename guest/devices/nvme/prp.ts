/**
 * NVM Express 1.4, section 4.3: Physical Region Page entries and lists, resolved to ranges of driver-VM addresses. Neighbouring
 * pages become one range. Each list entry is read exactly once. Lists may be chained and of any length; the data length
 * bounds them. Left out: scatter gather lists.
 *
 * Offsets in a page are taken by `&`, which looks at the low 32 bits of any number; `%` on one beyond them calls C's fmod.
 */
import { getU64 } from "../../../shared/struct/struct.js";
import type { Dma } from "../../device.js";
import { ScatterList } from "../../scatter-list.js";
import { newSegment } from "./segment.js";
import { Status } from "./spec.js";

const ENTRY_SIZE = 8;
/** Not a status: a list must be read first. */
const LIST_WANTED = -1;
/** What `resolve` returns when a list is not in the window: go on with `resolveByMessages`. */
export const NOT_IN_WINDOW = -2;

const segment = newSegment();

/** The ranges of one command's data; reused from command to command. */
export class PrpRanges extends ScatterList {
  #pageSize = 0;
  #remaining = 0;
  /** The list to read next, up to its last useful entry or the end of its page. */
  #listAddress = 0;
  #listLength = 0;

  /**
   * Resolves `length` bytes (at least 1) as far as lists lie in the window. Returns a status (0 is success) or NOT_IN_WINDOW.
   * `pageSize` is CC.MPS in bytes.
   */
  resolve(dma: Dma, prp1: number, prp2: number, length: number, pageSize: number): number {
    let step = this.#begin(prp1, prp2, length, pageSize);
    while (step === LIST_WANTED) {
      if (dma.locate(this.#listAddress, this.#listLength, "read", segment) < this.#listLength) return NOT_IN_WINDOW;
      dma.account(this.#listLength, 0);
      step = this.#walk(segment.data, segment.offset);
    }
    return step;
  }

  /** Goes on where `resolve` returned NOT_IN_WINDOW. Resolves to a status; never rejects. */
  async resolveByMessages(dma: Dma): Promise<number> {
    const list = new Uint8Array(this.#pageSize);
    const data = new DataView(list.buffer);
    for (let step: number = LIST_WANTED; ; ) {
      if (step !== LIST_WANTED) return step;
      try {
        await dma.read(this.#listAddress, list.subarray(0, this.#listLength));
      } catch {
        return Status.DATA_TRANSFER_ERROR;
      }
      step = this.#walk(data, 0);
    }
  }

  #begin(prp1: number, prp2: number, length: number, pageSize: number): number {
    this.clear();
    this.#pageSize = pageSize;
    this.#remaining = length;
    if ((prp1 & 3) !== 0) return Status.PRP_OFFSET_INVALID;
    let status = this.#add(prp1, Math.min(length, pageSize - (prp1 & (pageSize - 1))));
    if (status !== Status.SUCCESS || this.#remaining === 0) return status;
    if (this.#remaining > pageSize) return this.#wantList(prp2);
    if ((prp2 & (pageSize - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
    status = this.#add(prp2, this.#remaining);
    return status;
  }

  /** Reads the entries of the list that was asked for. Its last entry is a pointer to the next list when data is left. */
  #walk(data: DataView, offset: number): number {
    const entries = this.#listLength / ENTRY_SIZE;
    const chained = entries * this.#pageSize < this.#remaining;
    for (let n = 0; n < entries; n++) {
      const address = getU64(data, offset + n * ENTRY_SIZE);
      if ((address & (this.#pageSize - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
      if (chained && n === entries - 1) return this.#wantList(address);
      const status = this.#add(address, Math.min(this.#remaining, this.#pageSize));
      if (status !== Status.SUCCESS) return status;
    }
    return Status.SUCCESS;
  }

  #wantList(address: number): number {
    if ((address & (ENTRY_SIZE - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
    const room = this.#pageSize - (address & (this.#pageSize - 1));
    if (!(address <= Number.MAX_SAFE_INTEGER - room)) return Status.DATA_TRANSFER_ERROR;
    this.#listAddress = address;
    this.#listLength = Math.min(room, Math.ceil(this.#remaining / this.#pageSize) * ENTRY_SIZE);
    return LIST_WANTED;
  }

  #add(address: number, length: number): number {
    if (!(address <= Number.MAX_SAFE_INTEGER - length)) return Status.DATA_TRANSFER_ERROR;
    this.add(address, length);
    this.#remaining -= length;
    return Status.SUCCESS;
  }
}
