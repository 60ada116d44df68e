/**
 * Read and Write where the disk is memory and the data lies in the window: a command is checked, noted as a few copies, and
 * done when the copies of its batch are, all in one go. Nothing is allocated, and nothing waits for the event loop.
 *
 * Only what goes well is done here. Whatever is odd about a command is left to io.ts, which looks at all of it again.
 */
import { COPY_ENTRY as Copy, type CopyList, createCopyList } from "../../../native/index.js";
import { inBounds } from "../../../shared/bits.js";
import type { Dma } from "../../device.js";
import type { Command } from "./command.js";
import type { Counters } from "./io.js";
import type { Namespaces } from "./namespaces.js";
import { newSegment } from "./segment.js";
import { NvmOpcode, RW_NLB_MASK, Status } from "./spec.js";
import type { StorageMemory } from "./storage.js";

/** A burst of commands whose pages are scattered, at MDTS. */
const MAX_COPIES = 8192;

const segment = newSegment();

export class MemoryIo {
  /** Bytes of the copies that `finish` is to do. */
  pending = 0;
  readonly #dma: Dma;
  readonly #namespaces: Namespaces;
  readonly #counters: Counters;
  readonly #maxTransfer: number;
  readonly #list: CopyList = createCopyList(MAX_COPIES);
  readonly #entries = this.#list.entries;
  #copies = 0;
  /** The window's pieces that were met, and their numbers in the list. */
  readonly #windowBytes: Uint8Array[] = [];
  readonly #windowNumbers: number[] = [];
  readonly #windowStarts: number[] = [];
  /** By namespace, the numbers of the pieces of its storage. */
  readonly #diskNumbers: (number | undefined)[][] = [];
  #read = 0;
  #written = 0;

  /** `maxTransfer`: bytes of one command's data (MDTS). */
  constructor(dma: Dma, namespaces: Namespaces, counters: Counters, maxTransfer: number) {
    this.#dma = dma;
    this.#namespaces = namespaces;
    this.#counters = counters;
    this.#maxTransfer = maxTransfer;
    for (const { id } of namespaces.all) this.#diskNumbers[id] = [];
  }

  /** Notes a command's copies. False when it is none for here; nothing has happened then. */
  start(command: Command, pageSize: number): boolean {
    const { opcode } = command;
    if ((opcode !== NvmOpcode.READ && opcode !== NvmOpcode.WRITE) || command.flags !== 0) return false;
    const namespace = this.#namespaces.find(command.namespaceId);
    const memory = namespace?.storage.memory;
    if (namespace === undefined || memory === undefined || namespace.formatting) return false;
    // Inexact above 2^53, and then far above every size.
    const block = command.cdw10 + command.cdw11 * 0x1_0000_0000;
    const blocks = (command.cdw12 & RW_NLB_MASK) + 1;
    const { blockSize } = namespace;
    const length = blocks * blockSize;
    if (length > this.#maxTransfer || !inBounds(block, blocks, namespace.blockCount)) return false;
    const { ranges } = command;
    const isRead = opcode === NvmOpcode.READ;
    if (ranges.resolve(this.#dma, command.prp1, command.prp2, length, pageSize) !== Status.SUCCESS) return false;
    const before = this.#copies;
    let position = block * blockSize;
    for (let n = 0; n < ranges.count; n++) {
      const size = ranges.lengths[n];
      if (!this.#note(namespace.id, memory, position, ranges.addresses[n], size, isRead)) {
        this.#copies = before;
        return false;
      }
      position += size;
    }
    this.pending += length;
    if (isRead) {
      this.#counters.reads++;
      this.#read += length;
    } else {
      this.#counters.writes++;
      this.#written += length;
    }
    return true;
  }

  /** Does all copies that were noted. */
  finish(): void {
    this.#list.run(this.#copies);
    this.#dma.account(this.#written, this.#read);
    this.#counters.bytesRead += this.#read;
    this.#counters.bytesWritten += this.#written;
    this.#copies = this.pending = this.#read = this.#written = 0;
  }

  /** Copies between a disk from `position` on and one range of driver-VM memory; false when that is not in the window. */
  #note(
    id: number,
    memory: StorageMemory,
    position: number,
    address: number,
    length: number,
    isRead: boolean,
  ): boolean {
    const { pieceSize } = memory;
    const entries = this.#entries;
    for (let done = 0; done < length; ) {
      if (this.#dma.locate(address + done, length - done, isRead ? "write" : "read", segment) === 0) return false;
      const window = this.#windowNumber(segment.bytes);
      const windowOffset = this.#windowStarts[window] + segment.offset;
      for (let at = 0; at < segment.length; ) {
        if (this.#copies === MAX_COPIES) return false;
        // Not `%`, which is slow beyond 32 bits.
        const piece = Math.floor((position + done) / pieceSize);
        const diskOffset = position + done - piece * pieceSize;
        const size = Math.min(segment.length - at, pieceSize - diskOffset);
        const disk = this.#diskNumbers[id][piece] ?? this.#openDisk(id, memory, piece);
        const entry = this.#copies++ * Copy.SIZE;
        entries[entry + Copy.SOURCE] = isRead ? disk : this.#windowNumbers[window];
        entries[entry + Copy.SOURCE_OFFSET] = isRead ? diskOffset : windowOffset + at;
        entries[entry + Copy.TARGET] = isRead ? this.#windowNumbers[window] : disk;
        entries[entry + Copy.TARGET_OFFSET] = isRead ? windowOffset + at : diskOffset;
        entries[entry + Copy.LENGTH] = size;
        at += size;
        done += size;
      }
    }
    return true;
  }

  /** The index of a piece of the window among those that were met: a few. */
  #windowNumber(bytes: Uint8Array): number {
    const known = this.#windowBytes;
    for (let n = 0; n < known.length; n++) if (known[n] === bytes) return n;
    this.#windowNumbers.push(this.#list.add(bytes.buffer as ArrayBuffer));
    this.#windowStarts.push(bytes.byteOffset);
    return known.push(bytes) - 1;
  }

  #openDisk(id: number, memory: StorageMemory, piece: number): number {
    const number = this.#list.add(memory.piece(piece));
    this.#diskNumbers[id][piece] = number;
    return number;
  }
}
