/**
 * NVM Express 1.4, section 4.4: Scatter Gather Lists, resolved to ranges of driver-VM addresses: data blocks, segments
 * and last segments, addresses and lengths in dwords (Identify, SGLS). Each descriptor is read exactly once, and a
 * command has MAX_DESCRIPTORS of them at most, whatever its segments say. Left out: bit buckets, keyed and transport
 * descriptors.
 */
import { isExact } from "../../../shared/address.js";
import type { Dma } from "../../device.js";
import type { ScatterList } from "../../scatter-list.js";
import { LIST_WANTED, type ListReader, readLists, readListsByMessages } from "./data-lists.js";
import { SGL_DESCRIPTOR_SIZE, SglDescriptor, SglType, Status } from "./spec.js";
import type { Task } from "./task.js";

/** Descriptors of one command, segments and empty data blocks included: four times what 1 MiB in pages takes. */
const MAX_DESCRIPTORS = 1024;
/** Bytes of a segment that are read at once. */
const MAX_READ = 4096;

const entry = SglDescriptor.view();

/** Fills a command's ranges; reused from command to command. */
export class SglReader implements ListReader {
  listAddress = 0;
  listLength = 0;
  readonly #ranges: ScatterList;
  /** Bytes of data that no descriptor was found for. */
  #remaining = 0;
  #descriptors = 0;
  /** Bytes of the segment from `listAddress` on, and whether it is a last one. */
  #segmentLeft = 0;
  #isLastSegment = false;

  constructor(ranges: ScatterList) {
    this.#ranges = ranges;
  }

  /**
   * Resolves `length` bytes from the descriptor in the command, which lies at `offset`. Returns a status or
   * NOT_IN_WINDOW.
   */
  resolve(dma: Dma, data: DataView, offset: number, length: number): number {
    this.#ranges.clear();
    this.#remaining = length;
    this.#descriptors = 0;
    this.#isLastSegment = false;
    return readLists(this, dma, this.#take(data, offset, true));
  }

  /** Goes on where `resolve` returned NOT_IN_WINDOW. Resolves to a status; never rejects. */
  resolveByMessages(dma: Dma, task: Task): Promise<number> {
    return readListsByMessages(this, dma, task);
  }

  walk(data: DataView, offset: number): number {
    const { listLength } = this;
    this.#segmentLeft -= listLength;
    const segmentEnds = this.#segmentLeft === 0;
    for (let at = 0; at < listLength; at += SGL_DESCRIPTOR_SIZE) {
      const isFinal = segmentEnds && at + SGL_DESCRIPTOR_SIZE === listLength;
      const step = this.#take(data, offset + at, isFinal);
      if (step !== Status.SUCCESS || isFinal) return step;
    }
    this.listAddress += listLength;
    this.#wantPart();
    return LIST_WANTED;
  }

  /** Takes a descriptor. `isFinal`: of its segment, so that only it may point to a further one. */
  #take(data: DataView, offset: number, isFinal: boolean): number {
    if (++this.#descriptors > MAX_DESCRIPTORS) return Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS;
    entry.at(data, offset);
    const { ADDRESS: address, LENGTH: length, ID: id } = entry;
    switch (id) {
      case SglType.DATA_BLOCK: {
        const status = this.#add(address, length);
        if (status !== Status.SUCCESS || !isFinal) return status;
        // Only a last segment ends without pointing further; a command's own descriptor is all there is.
        if (this.#descriptors > 1 && !this.#isLastSegment) return Status.INVALID_SGL_SEGMENT_DESCRIPTOR;
        return this.#remaining === 0 ? Status.SUCCESS : Status.DATA_SGL_LENGTH_INVALID;
      }
      case SglType.SEGMENT:
      case SglType.LAST_SEGMENT:
        if (!isFinal || this.#isLastSegment || length === 0 || length % SGL_DESCRIPTOR_SIZE !== 0) {
          return Status.INVALID_SGL_SEGMENT_DESCRIPTOR;
        }
        if (!isExact(address, length)) return Status.DATA_TRANSFER_ERROR;
        this.listAddress = address;
        this.#segmentLeft = length;
        this.#isLastSegment = id === SglType.LAST_SEGMENT;
        this.#wantPart();
        return LIST_WANTED;
      default:
        return Status.SGL_DESCRIPTOR_TYPE_INVALID;
    }
  }

  #wantPart(): void {
    this.listLength = Math.min(this.#segmentLeft, MAX_READ);
  }

  #add(address: number, length: number): number {
    if ((address & 3) !== 0) return Status.SGL_OFFSET_INVALID;
    if ((length & 3) !== 0 || length > this.#remaining) return Status.DATA_SGL_LENGTH_INVALID;
    if (!isExact(address, length)) return Status.DATA_TRANSFER_ERROR;
    if (length > 0) this.#ranges.add(address, length);
    this.#remaining -= length;
    return Status.SUCCESS;
  }
}
