/**
 * Read and Write where nothing has to be waited for: data in the window, and a disk that is memory, a file in memory,
 * or one whose blocks the page cache has. A command is checked and noted as a few copies, and the copies of a burst are
 * done by one call. Nothing is allocated, and nothing waits for the event loop.
 *
 * Only what goes well is done here. Whatever is odd about a command, and whatever would wait for a device, is left to
 * io.ts, which does all of it from the start.
 */
import { COPY_ENTRY as Copy, type CopyList, createCopyList } from "../../../native/index.js";
import { inBounds } from "../../../shared/bits.js";
import type { Dma } from "../../device.js";
import type { Command } from "./command.js";
import { DirectDisk } from "./direct-disk.js";
import type { Features } from "./features.js";
import type { Counters } from "./io.js";
import type { Namespace } from "./namespace.js";
import type { Namespaces } from "./namespaces.js";
import { newSegment } from "./segment.js";
import { NvmOpcode, RW_FUA, RW_NLB_MASK, Status } from "./spec.js";

/** A burst of commands whose pages are scattered, and the last of them at MDTS. */
const MAX_COPIES = 1024;

const segment = newSegment();

export class DirectIo {
  /** Bytes of the copies that `finish` is to do. */
  pending = 0;
  readonly #dma: Dma;
  readonly #namespaces: Namespaces;
  readonly #features: Features;
  readonly #counters: Counters;
  readonly #maxTransfer: number;
  readonly #list: CopyList = createCopyList(MAX_COPIES);
  readonly #entries = this.#list.entries;
  #copies = 0;
  /** The window's pieces that were met: their numbers in the list, and where in their buffers they begin. */
  readonly #windowBytes: Uint8Array[] = [];
  readonly #windowNumbers: number[] = [];
  readonly #windowStarts: number[] = [];
  /** By NSID. */
  readonly #disks: (DirectDisk | undefined)[] = [];

  /** `maxTransfer`: bytes of one command's data (MDTS). */
  constructor(dma: Dma, namespaces: Namespaces, features: Features, counters: Counters, maxTransfer: number) {
    this.#dma = dma;
    this.#namespaces = namespaces;
    this.#features = features;
    this.#counters = counters;
    this.#maxTransfer = maxTransfer;
    for (const { id, storage } of namespaces.all) {
      this.#disks[id] = storage.direct && new DirectDisk(storage.direct, this.#list);
    }
  }

  /** Notes a command's copies. False when it is none for here; nothing has happened then. */
  start(command: Command, pageSize: number): boolean {
    const { opcode } = command;
    const isRead = opcode === NvmOpcode.READ;
    if ((!isRead && opcode !== NvmOpcode.WRITE) || command.hasInvalidFlags) return false;
    const namespace = this.#namespaces.find(command.namespaceId);
    if (namespace === undefined || namespace.formatting) return false;
    const disk = this.#disks[namespace.id];
    if (disk === undefined || !(isRead ? this.#mayRead(command, disk) : this.#mayWrite(command, disk))) return false;
    if (!this.#place(command, namespace)) return false;
    const { ranges, length } = command;
    if (!namespace.io.isFree(command.position, length, isRead)) return false;
    if (command.resolve(this.#dma, length, pageSize) !== Status.SUCCESS) return false;
    command.firstCopy = this.#copies;
    let { position } = command;
    for (let n = 0; n < ranges.count; n++) {
      const size = ranges.lengths[n];
      if (!this.#note(disk, position, ranges.addresses[n], size, isRead)) {
        this.#copies = command.firstCopy;
        return false;
      }
      position += size;
    }
    command.endCopy = this.#copies;
    this.pending += length;
    return true;
  }

  /** Does all copies that were noted. */
  finish(): void {
    this.#failed = this.#list.run(this.#copies) > 0;
    this.#copies = this.pending = 0;
  }

  /** After `finish`: whether a command is done. If not, it is as if it had not been started. */
  isDone(command: Command): boolean {
    if (this.#failed && !this.#succeeded(command)) return false;
    const { length } = command;
    if (command.opcode === NvmOpcode.READ) {
      this.#counters.reads++;
      this.#counters.bytesRead += length;
      this.#dma.account(0, length);
    } else {
      this.#counters.writes++;
      this.#counters.bytesWritten += length;
      this.#dma.account(length, 0);
    }
    return true;
  }

  /** Some copy of the last burst failed. */
  #failed = false;

  #succeeded(command: Command): boolean {
    for (let n = command.firstCopy; n < command.endCopy; n++) {
      const errno = this.#list.results[n];
      if (errno === 0) continue;
      this.#disks[command.namespaceId]?.failed(command.opcode === NvmOpcode.READ, errno);
      return false;
    }
    return true;
  }

  /** What is to be read from stable storage has to be written there first, unless there is none. */
  #mayRead({ cdw12 }: Command, disk: DirectDisk): boolean {
    return disk.reads && ((cdw12 & RW_FUA) === 0 || disk.isVolatile);
  }

  /** What has to be on stable storage is not done at once, unless there is none. */
  #mayWrite({ cdw12 }: Command, disk: DirectDisk): boolean {
    return disk.writes && (disk.isVolatile || (this.#features.writeCache && (cdw12 & RW_FUA) === 0));
  }

  /** Sets the command's place in the storage. False when it is not within the namespace, or too long. */
  #place(command: Command, { blockSize, blockCount }: Namespace): boolean {
    // Inexact above 2^53, and then far above every size.
    const block = command.cdw10 + command.cdw11 * 0x1_0000_0000;
    const blocks = (command.cdw12 & RW_NLB_MASK) + 1;
    command.position = block * blockSize;
    command.length = blocks * blockSize;
    return command.length <= this.#maxTransfer && inBounds(block, blocks, blockCount);
  }

  /**
   * Copies between a disk from `position` on and one range of driver-VM memory; false when that is not in the window.
   */
  #note(disk: DirectDisk, position: number, address: number, length: number, isRead: boolean): boolean {
    const entries = this.#entries;
    for (let done = 0; done < length; ) {
      if (this.#dma.locate(address + done, length - done, isRead ? "write" : "read", segment) === 0) return false;
      const window = this.#windowNumber(segment.bytes);
      const windowOffset = this.#windowStarts[window] + segment.offset;
      for (let at = 0; at < segment.length; ) {
        if (this.#copies === MAX_COPIES) return false;
        const size = disk.find(position + done, segment.length - at, isRead);
        const entry = this.#copies++ * Copy.SIZE;
        entries[entry + Copy.SOURCE] = isRead ? disk.number : this.#windowNumbers[window];
        entries[entry + Copy.SOURCE_OFFSET] = isRead ? disk.offset : windowOffset + at;
        entries[entry + Copy.TARGET] = isRead ? this.#windowNumbers[window] : disk.number;
        entries[entry + Copy.TARGET_OFFSET] = isRead ? windowOffset + at : disk.offset;
        entries[entry + Copy.LENGTH] = size;
        entries[entry + Copy.FILE_OFFSET_HIGH] = disk.offsetHigh;
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
}
