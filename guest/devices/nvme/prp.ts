/**
 * NVM Express 1.4, section 4.3: Physical Region Page entries and lists, resolved to ranges of driver-VM addresses.
 * Neighbouring pages become one range. Each list entry is read exactly once. Lists may be chained and of any length;
 * the data length bounds them.
 *
 * Addresses are as in shared/address.ts. Offsets in a page are taken by `&`, which looks at the low 32 bits of any
 * number; `%` on one beyond them calls C's fmod.
 */
import { isExact } from "../../../shared/address.js";
import { getI64 } from "../../../shared/struct/struct.js";
import type { Dma } from "../../device.js";
import type { ScatterList } from "../../scatter-list.js";
import { LIST_WANTED, type ListReader, readLists, readListsByMessages } from "./data-lists.js";
import { Status } from "./spec.js";
import type { Task } from "./task.js";

const ENTRY_SIZE = 8;

/** Fills a command's ranges; reused from command to command. */
export class PrpReader implements ListReader {
  /** The list to read next, up to its last useful entry or the end of its page. */
  listAddress = 0;
  listLength = 0;
  readonly #ranges: ScatterList;
  #pageSize = 0;
  #remaining = 0;

  constructor(ranges: ScatterList) {
    this.#ranges = ranges;
  }

  /**
   * Resolves `length` bytes (at least 1) as far as lists lie in the window. Returns a status (0 is success) or
   * NOT_IN_WINDOW. `pageSize` is CC.MPS in bytes.
   */
  resolve(dma: Dma, prp1: number, prp2: number, length: number, pageSize: number): number {
    return readLists(this, dma, this.#begin(prp1, prp2, length, pageSize));
  }

  /** Goes on where `resolve` returned NOT_IN_WINDOW. Resolves to a status; never rejects. */
  resolveByMessages(dma: Dma, task: Task): Promise<number> {
    return readListsByMessages(this, dma, task);
  }

  #begin(prp1: number, prp2: number, length: number, pageSize: number): number {
    this.#ranges.clear();
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

  /**
   * Reads the entries of the list that was asked for. Its last entry is a pointer to the next list when data is left.
   */
  walk(data: DataView, offset: number): number {
    const entries = this.listLength / ENTRY_SIZE;
    const chained = entries * this.#pageSize < this.#remaining;
    for (let n = 0; n < entries; n++) {
      const address = getI64(data, offset + n * ENTRY_SIZE);
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
    if (!isExact(address, room)) return Status.DATA_TRANSFER_ERROR;
    this.listAddress = address;
    this.listLength = Math.min(room, Math.ceil(this.#remaining / this.#pageSize) * ENTRY_SIZE);
    return LIST_WANTED;
  }

  #add(address: number, length: number): number {
    if (!isExact(address, length)) return Status.DATA_TRANSFER_ERROR;
    this.#ranges.add(address, length);
    this.#remaining -= length;
    return Status.SUCCESS;
  }
}
