/**
 * Where a command's data is in driver-VM memory: NVM Express 1.4, section 4.3, Physical Region Page entries and lists,
 * and 4.4, Scatter Gather Lists, resolved to ranges of addresses. Neighbouring pages become one range. A reader asks
 * for one list (or segment) after the other; each entry is read exactly once, in the window or by messages.
 *
 * PRP lists may be chained and of any length; the data length bounds them. SGLs have data blocks, segments and last
 * segments, addresses and lengths in dwords (Identify, SGLS). Left out: bit buckets, keyed and transport descriptors.
 *
 * Addresses are as in shared/address.ts. Offsets in a page are taken by `&`, which looks at the low 32 bits of any
 * number; `%` on one beyond them calls C's fmod.
 */
import { isExact } from "../../../../shared/address.js";
import { isLost } from "../../../../shared/lost-memory.js";
import { getI64 } from "../../../../shared/struct/struct.js";
import type { Dma } from "../../../device.js";
import type { ScatterList } from "../../../scatter-list.js";
import { SGL_DESCRIPTOR_SIZE, SglDescriptor, SglType, Status } from "../spec.js";
import type { Task } from "../storage/storage.js";
import { newSegment } from "./segments.js";

/** A step of a reader, beside a status: another list is to be read first. */
const LIST_WANTED = -1;
/** What `resolve` returns when a list is not in the window: go on with `resolveByMessages`. */
export const NOT_IN_WINDOW = -2;

const segment = newSegment();

/** Fills a command's ranges; reused from command to command. */
abstract class ListReader {
  /** The list, or part of one, that is wanted: a few pages at most. */
  protected listAddress = 0;
  protected listLength = 0;
  protected remaining = 0;
  protected readonly ranges: ScatterList;

  constructor(ranges: ScatterList) {
    this.ranges = ranges;
  }

  /** Takes the list that was wanted. Returns a status (0 is success) or LIST_WANTED. */
  protected abstract walk(data: DataView, offset: number): number;

  /** Reads all lists, from `step` on, as far as they lie in the window. Returns a status or NOT_IN_WINDOW. */
  protected readLists(dma: Dma, step: number): number {
    let status = step;
    while (status === LIST_WANTED) {
      const { listAddress, listLength } = this;
      if (dma.locate(listAddress, listLength, "read", segment) < listLength) return NOT_IN_WINDOW;
      dma.account(listLength, 0);
      status = this.walk(segment.data, segment.offset);
      if (isLost(segment.bytes, segment.offset, listLength)) return Status.DATA_TRANSFER_ERROR;
    }
    return status;
  }

  /** Goes on where `resolve` returned NOT_IN_WINDOW, until the task ends. Resolves to a status; never rejects. */
  async resolveByMessages(dma: Dma, task: Task): Promise<number> {
    for (let status = LIST_WANTED; ; ) {
      if (status !== LIST_WANTED) return status;
      if (task.ended) return Status.ABORT_REQUESTED;
      const list = new Uint8Array(this.listLength);
      try {
        await dma.read(this.listAddress, list);
      } catch {
        return Status.DATA_TRANSFER_ERROR;
      }
      status = this.walk(new DataView(list.buffer), 0);
    }
  }

  protected add(address: number, length: number): number {
    if (!isExact(address, length)) return Status.DATA_TRANSFER_ERROR;
    if (length > 0) this.ranges.add(address, length);
    this.remaining -= length;
    return Status.SUCCESS;
  }
}

export const PRP_SIZE = 8;
/** Of where data begins, in bytes. */
export const PRP_ALIGNMENT = 4;

export class PrpReader extends ListReader {
  #pageSize = 0;

  /**
   * Resolves `length` bytes (at least 1) as far as lists lie in the window. Returns a status (0 is success) or
   * NOT_IN_WINDOW. `pageSize` is CC.MPS in bytes.
   */
  resolve(dma: Dma, prp1: number, prp2: number, length: number, pageSize: number): number {
    return this.readLists(dma, this.#begin(prp1, prp2, length, pageSize));
  }

  #begin(prp1: number, prp2: number, length: number, pageSize: number): number {
    this.ranges.clear();
    this.#pageSize = pageSize;
    this.remaining = length;
    if ((prp1 & (PRP_ALIGNMENT - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
    const status = this.add(prp1, Math.min(length, pageSize - (prp1 & (pageSize - 1))));
    if (status !== Status.SUCCESS || this.remaining === 0) return status;
    if (this.remaining > pageSize) return this.#wantList(prp2);
    if ((prp2 & (pageSize - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
    return this.add(prp2, this.remaining);
  }

  /** A list's last entry points to the next list when data is left. */
  protected walk(data: DataView, offset: number): number {
    const entries = this.listLength / PRP_SIZE;
    const chained = entries * this.#pageSize < this.remaining;
    for (let n = 0; n < entries; n++) {
      const address = getI64(data, offset + n * PRP_SIZE);
      if ((address & (this.#pageSize - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
      if (chained && n === entries - 1) return this.#wantList(address);
      const status = this.add(address, Math.min(this.remaining, this.#pageSize));
      if (status !== Status.SUCCESS) return status;
    }
    return Status.SUCCESS;
  }

  /** The list at `address`, up to its last useful entry or the end of its page. */
  #wantList(address: number): number {
    if ((address & (PRP_SIZE - 1)) !== 0) return Status.PRP_OFFSET_INVALID;
    const room = this.#pageSize - (address & (this.#pageSize - 1));
    if (!isExact(address, room)) return Status.DATA_TRANSFER_ERROR;
    this.listAddress = address;
    this.listLength = Math.min(room, Math.ceil(this.remaining / this.#pageSize) * PRP_SIZE);
    return LIST_WANTED;
  }
}

/** Descriptors of one command, segments and empty data blocks included: four times what 1 MiB in pages takes. */
export const MAX_DESCRIPTORS = 1024;
/** Bytes of a segment that are read at once. */
export const MAX_SEGMENT_READ = 4096;
/** Of addresses and lengths of data, in bytes. */
export const SGL_ALIGNMENT = 4;

const descriptor = SglDescriptor.view();

export class SglReader extends ListReader {
  #descriptors = 0;
  /** Bytes of the segment from `listAddress` on, and whether it is a last one. */
  #segmentLeft = 0;
  #isLastSegment = false;

  /** Resolves `length` bytes from the descriptor in the command, at `offset`. Returns a status or NOT_IN_WINDOW. */
  resolve(dma: Dma, data: DataView, offset: number, length: number): number {
    this.ranges.clear();
    this.remaining = length;
    this.#descriptors = 0;
    this.#isLastSegment = false;
    return this.readLists(dma, this.#take(data, offset, true));
  }

  protected walk(data: DataView, offset: number): number {
    const { listLength } = this;
    this.#segmentLeft -= listLength;
    const segmentEnds = this.#segmentLeft === 0;
    for (let at = 0; at < listLength; at += SGL_DESCRIPTOR_SIZE) {
      const isFinal = segmentEnds && at + SGL_DESCRIPTOR_SIZE === listLength;
      const step = this.#take(data, offset + at, isFinal);
      if (step !== Status.SUCCESS || isFinal) return step;
    }
    return this.#wantPart(this.listAddress + listLength);
  }

  /** Takes a descriptor. `isFinal`: of its segment, so that only it may point to a further one. */
  #take(data: DataView, offset: number, isFinal: boolean): number {
    if (++this.#descriptors > MAX_DESCRIPTORS) return Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS;
    descriptor.at(data, offset);
    const { ADDRESS: address, LENGTH: length, ID: id } = descriptor;
    switch (id) {
      case SglType.DATA_BLOCK: {
        const status = this.#takeBlock(address, length);
        if (status !== Status.SUCCESS || !isFinal) return status;
        // Only a last segment ends without pointing further; a command's own descriptor is all there is.
        if (this.#descriptors > 1 && !this.#isLastSegment) return Status.INVALID_SGL_SEGMENT_DESCRIPTOR;
        return this.remaining === 0 ? Status.SUCCESS : Status.DATA_SGL_LENGTH_INVALID;
      }
      case SglType.SEGMENT:
      case SglType.LAST_SEGMENT:
        if (!isFinal || this.#isLastSegment || length === 0 || length % SGL_DESCRIPTOR_SIZE !== 0) {
          return Status.INVALID_SGL_SEGMENT_DESCRIPTOR;
        }
        if (!isExact(address, length)) return Status.DATA_TRANSFER_ERROR;
        this.#segmentLeft = length;
        this.#isLastSegment = id === SglType.LAST_SEGMENT;
        return this.#wantPart(address);
      default:
        return Status.SGL_DESCRIPTOR_TYPE_INVALID;
    }
  }

  #takeBlock(address: number, length: number): number {
    if ((address & (SGL_ALIGNMENT - 1)) !== 0) return Status.SGL_OFFSET_INVALID;
    if ((length & (SGL_ALIGNMENT - 1)) !== 0 || length > this.remaining) return Status.DATA_SGL_LENGTH_INVALID;
    return this.add(address, length);
  }

  #wantPart(address: number): number {
    this.listAddress = address;
    this.listLength = Math.min(this.#segmentLeft, MAX_SEGMENT_READ);
    return LIST_WANTED;
  }
}
