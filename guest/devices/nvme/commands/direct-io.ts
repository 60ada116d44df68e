/**
 * Read and Write where nothing has to be waited for: data in the window, and a disk that is memory, a file in memory,
 * or one whose blocks the page cache has. A command is checked and noted as a few copies, and the copies of a burst are
 * done by one call. Nothing is allocated, and nothing waits for the event loop.
 *
 * Only what goes well is done here. Whatever is odd about a command, and whatever would wait for a device, is left to
 * io.ts, which does all of it from the start.
 */
import { COPY_ENTRY as Copy, type CopyList, createCopyList } from "../../../../native/index.js";
import { BufferTable } from "../../../../shared/buffer-table.js";
import type { Dma } from "../../../device.js";
import type { Command } from "../queues/command.js";
import { newSegment } from "../queues/segments.js";
import { NvmOpcode, RW_FUA, Status } from "../spec.js";
import type { Namespaces } from "../storage/namespaces.js";
import type { DirectAccess } from "../storage/storage.js";
import type { Features } from "./features.js";
import type { Counters } from "./log-pages.js";

/** A burst of commands whose pages are scattered, and the last of them at MDTS. */
const MAX_COPIES = 1024;
/** The file system has no such flag, as most have none for writes. */
const EOPNOTSUPP = 95;
const NONE = -1;

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
  readonly #window = new BufferTable(this.#list);
  #copies = 0;
  /** Some copy of the last burst failed. */
  #failed = false;
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
  start(command: Command): boolean {
    const { opcode } = command;
    const isRead = opcode === NvmOpcode.READ;
    if ((!isRead && opcode !== NvmOpcode.WRITE) || command.hasInvalidFlags) return false;
    const namespace = this.#namespaces.find(command.namespaceId);
    if (namespace === undefined || namespace.formatting) return false;
    const disk = this.#disks[namespace.id];
    if (disk === undefined || !(isRead ? this.#mayRead(command, disk) : this.#mayWrite(command, disk))) return false;
    if (command.setRange(namespace, this.#maxTransfer) !== Status.SUCCESS) return false;
    const { ranges, length } = command;
    if (!namespace.io.isFree(command.position, length, isRead)) return false;
    if (command.resolveInWindow(length) !== Status.SUCCESS) return false;
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

  /**
   * Copies between a disk from `position` on and one range of driver-VM memory; false when that is not in the window.
   */
  #note(disk: DirectDisk, position: number, address: number, length: number, isRead: boolean): boolean {
    const entries = this.#entries;
    for (let done = 0; done < length; ) {
      if (this.#dma.locate(address + done, length - done, isRead ? "write" : "read", segment) === 0) return false;
      const window = this.#window.numberOf(segment.bytes);
      const windowOffset = this.#window.start + segment.offset;
      for (let at = 0; at < segment.length; ) {
        if (this.#copies === MAX_COPIES) return false;
        const size = disk.find(position + done, segment.length - at, isRead);
        const entry = this.#copies++ * Copy.SIZE;
        entries[entry + Copy.SOURCE] = isRead ? disk.number : window;
        entries[entry + Copy.SOURCE_OFFSET] = isRead ? disk.offset : windowOffset + at;
        entries[entry + Copy.TARGET] = isRead ? window : disk.number;
        entries[entry + Copy.TARGET_OFFSET] = isRead ? windowOffset + at : disk.offset;
        entries[entry + Copy.LENGTH] = size;
        entries[entry + Copy.FILE_OFFSET_HIGH] = disk.offsetHigh;
        at += size;
        done += size;
      }
    }
    return true;
  }
}

/** A disk as one side of the copies: pieces of memory, or a file that is read and written in place. */
class DirectDisk {
  /** Whether there are reads and writes that can be done at once. */
  reads: boolean;
  writes: boolean;
  /** There is no stable storage under it. */
  readonly isVolatile: boolean;
  /** What `find` found: a number of the list, and an offset, whose upper half is 0 for memory. */
  number = NONE;
  offset = 0;
  offsetHigh = 0;
  readonly #access: DirectAccess;
  readonly #list: CopyList;
  /** Of a file, by what is done to it. */
  readonly #readNumber: number;
  readonly #writeNumber: number;
  /** Of memory, by piece; added at their first use. */
  readonly #pieceNumbers: number[] = [];

  constructor(access: DirectAccess, list: CopyList) {
    this.#access = access;
    this.#list = list;
    const isFile = access.kind === "file";
    const add = (flags: number | undefined) => (isFile && flags !== undefined ? list.addFile(access.fd, flags) : NONE);
    this.#readNumber = add(isFile ? access.readFlags : undefined);
    this.#writeNumber = add(isFile ? access.writeFlags : undefined);
    this.reads = !isFile || this.#readNumber !== NONE;
    this.writes = !isFile || this.#writeNumber !== NONE;
    this.isVolatile = !isFile;
  }

  /** Finds `position`; returns how many of `length` bytes are in one piece from there on. */
  find(position: number, length: number, isRead: boolean): number {
    const access = this.#access;
    if (access.kind === "file") {
      this.number = isRead ? this.#readNumber : this.#writeNumber;
      this.offset = position >>> 0;
      this.offsetHigh = Math.floor(position / 0x1_0000_0000);
      return length;
    }
    // Not `%`, which is slow beyond 32 bits.
    const piece = Math.floor(position / access.pieceSize);
    this.offset = position - piece * access.pieceSize;
    this.number = this.#pieceNumbers[piece] ??= this.#list.add(access.piece(piece));
    return Math.min(length, access.pieceSize - this.offset);
  }

  /** A copy failed: permanently, where the file system cannot do it. */
  failed(isRead: boolean, errno: number): void {
    if (errno !== EOPNOTSUPP) return;
    if (isRead) this.reads = false;
    else this.writes = false;
  }
}
