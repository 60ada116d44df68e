/**
 * Read and Write where nothing has to be waited for: data in the window, and a disk that is memory, a file in memory,
 * or one whose blocks the page cache has. Likewise Write Zeroes, and Deallocate of memory, where it is not much. A
 * command is checked and noted as a few copies, of which one may also be zeros or a hole, and the copies of a burst are
 * done by one call. Nothing is allocated, and nothing waits for the event loop.
 *
 * Only what goes well is done here. Whatever is odd about a command, and whatever would wait for a device, is left to
 * io.ts, which does all of it from the start.
 */
import { COPY_HOLE, COPY_ENTRY as Copy, type CopyList, createCopyList } from "../../../../native/index.js";
import { BufferTable } from "../../../../shared/buffer-table.js";
import { KiB, MiB } from "../../../../shared/limits.js";
import { copyBytes } from "../../../../shared/virtqueue/memory.js";
import type { Dma } from "../../../device.js";
import type { Command } from "../queues/command.js";
import { newSegment } from "../queues/segments.js";
import { DSM_DEALLOCATE, NvmOpcode, RW_FUA, Status, WRITE_ZEROES_DEAC } from "../spec.js";
import { type Namespace, ZEROS } from "../storage/namespace.js";
import type { Namespaces } from "../storage/namespaces.js";
import type { DirectAccess } from "../storage/storage.js";
import { DatasetRanges, MAX_RANGES, rangesSize } from "./dataset-ranges.js";
import type { Features } from "./features.js";
import type { Counters } from "./log-pages.js";

/** A burst of commands whose pages are scattered, and the last of them at MDTS. */
const MAX_COPIES = 1024;
/** Bytes of zeros that one command writes at once, and of holes, whose pages are to be freed: some 50 us. */
const MAX_ZEROS = 256 * KiB;
const MAX_HOLES = MiB;
/** Of a number of the list, one entry's. */
const MAX_ENTRY_LENGTH = 0x8000_0000;
/** Permanently: the file system has no such flag, as most have none for writes, or no holes. */
const EOPNOTSUPP = 95;
const NONE = -1;

const segment = newSegment();
const rangeList = new Uint8Array(rangesSize(MAX_RANGES - 1));
const rangeData = new DataView(rangeList.buffer);

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
  readonly #ranges = new DatasetRanges();
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
    if (command.hasInvalidFlags || this.#namespaces.faults.isActive) return false;
    const namespace = this.#namespaces.find(command.namespaceId);
    if (namespace === undefined || namespace.formatting) return false;
    const disk = this.#disks[namespace.id];
    if (disk === undefined) return false;
    command.firstCopy = this.#copies;
    if (!this.#startOn(disk, namespace, command)) {
      this.#copies = command.firstCopy;
      return false;
    }
    command.endCopy = this.#copies;
    this.pending += command.length;
    return true;
  }

  #startOn(disk: DirectDisk, namespace: Namespace, command: Command): boolean {
    switch (command.opcode) {
      case NvmOpcode.READ:
        return this.#mayRead(command, disk) && this.#startTransfer(disk, namespace, command, true);
      case NvmOpcode.WRITE:
        return this.#mayWrite(command, disk) && this.#startTransfer(disk, namespace, command, false);
      case NvmOpcode.WRITE_ZEROES:
        return this.#startZeros(disk, namespace, command);
      case NvmOpcode.DATASET_MANAGEMENT:
        return this.#startDeallocate(disk, namespace, command);
      default:
        return false;
    }
  }

  #startTransfer(disk: DirectDisk, namespace: Namespace, command: Command, isRead: boolean): boolean {
    if (command.setRange(namespace, this.#maxTransfer) !== Status.SUCCESS) return false;
    const { ranges, length } = command;
    if (!namespace.io.isFree(command.position, length, isRead)) return false;
    if (command.resolveInWindow(length) !== Status.SUCCESS) return false;
    let { position } = command;
    for (let n = 0; n < ranges.count; n++) {
      const size = ranges.lengths[n];
      if (!this.#note(disk, position, ranges.addresses[n], size, isRead)) return false;
      position += size;
    }
    return true;
  }

  /** What it deallocates are holes, and else zeros are written: it shall take space afterwards. */
  #startZeros(disk: DirectDisk, namespace: Namespace, command: Command): boolean {
    if (command.setRange(namespace, Number.POSITIVE_INFINITY) !== Status.SUCCESS) return false;
    const { position, length } = command;
    if ((command.cdw12 & WRITE_ZEROES_DEAC) !== 0) {
      if (!disk.punches || length > MAX_HOLES || !this.#mayChange(disk, (command.cdw12 & RW_FUA) !== 0)) return false;
      if (!namespace.io.isIdle("writes") || !namespace.io.isFree(position, length, false)) return false;
      return this.#noteHole(disk, position, length, command);
    }
    // A block device may have a better way than to write them.
    const isMemory = disk.isVolatile || disk.punches;
    if (!isMemory || length > MAX_ZEROS || !this.#mayWrite(command, disk)) return false;
    if (!namespace.io.isFree(position, length, false)) return false;
    const zeros = this.#window.numberOf(ZEROS);
    const { start } = this.#window;
    for (let done = 0; done < length; ) {
      if (this.#copies === MAX_COPIES) return false;
      const size = disk.find(position + done, length - done, false);
      this.#put(zeros, start, disk.number, disk.offset, size, disk.offsetHigh);
      done += size;
    }
    return true;
  }

  /** Other writes in flight may have the file's lock, so holes are left to their threads then. */
  #startDeallocate(disk: DirectDisk, namespace: Namespace, command: Command): boolean {
    if ((command.cdw11 & DSM_DEALLOCATE) === 0 || !disk.punches || !this.#mayChange(disk, false)) return false;
    if (!namespace.io.isIdle("writes") || !this.#readRanges(command)) return false;
    const ranges = this.#ranges;
    if (ranges.take(rangeData, command.length, namespace) !== Status.SUCCESS) return false;
    const { count, positions, lengths } = ranges;
    if (ranges.length > MAX_HOLES || this.#copies + count > MAX_COPIES) return false;
    for (let n = 0; n < count; n++) if (!namespace.io.isFree(positions[n], lengths[n], false)) return false;
    for (let n = 0; n < count; n++) this.#noteHole(disk, positions[n], lengths[n], command);
    this.#dma.account(command.length, 0);
    command.length = ranges.length;
    return true;
  }

  /** The list of a command's ranges, all of it in the window, to `rangeList`; sets the command's length to its own. */
  #readRanges(command: Command): boolean {
    const { ranges, segments } = command;
    const size = rangesSize(command.cdw10);
    command.length = size;
    if (command.resolveInWindow(size) !== Status.SUCCESS) return false;
    if (!segments.locate(this.#dma, ranges, "read")) return false;
    let at = 0;
    for (let n = 0; n < segments.count; n++) {
      const { bytes, offset, length } = segments.segments[n];
      copyBytes(bytes, offset, rangeList, at, length);
      at += length;
    }
    return !segments.isLost();
  }

  /** One that follows the hole that was noted last becomes part of it, also where that is another command's. */
  #noteHole(disk: DirectDisk, position: number, length: number, command: Command): boolean {
    if (this.#copies === MAX_COPIES) return false;
    disk.findInFile(position);
    const entries = this.#entries;
    const last = (this.#copies - 1) * Copy.SIZE;
    const follows =
      last >= 0 &&
      entries[last + Copy.SOURCE] === COPY_HOLE &&
      entries[last + Copy.TARGET] === disk.number &&
      entries[last + Copy.FILE_OFFSET_HIGH] === disk.offsetHigh &&
      entries[last + Copy.TARGET_OFFSET] + entries[last + Copy.LENGTH] === disk.offset &&
      entries[last + Copy.LENGTH] + length <= MAX_ENTRY_LENGTH;
    if (follows) {
      entries[last + Copy.LENGTH] += length;
      command.firstCopy = Math.min(command.firstCopy, this.#copies - 1);
    } else {
      this.#put(COPY_HOLE, 0, disk.number, disk.offset, length, disk.offsetHigh);
    }
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
    switch (command.opcode) {
      case NvmOpcode.READ:
        this.#counters.reads++;
        this.#counters.bytesRead += length;
        this.#dma.account(0, length);
        return true;
      case NvmOpcode.WRITE:
        this.#counters.writes++;
        this.#counters.bytesWritten += length;
        this.#dma.account(length, 0);
        return true;
      case NvmOpcode.WRITE_ZEROES:
        this.#counters.writes++;
    }
    return true;
  }

  #succeeded(command: Command): boolean {
    for (let n = command.firstCopy; n < command.endCopy; n++) {
      const errno = this.#list.results[n];
      if (errno === 0) continue;
      const isHole = this.#entries[n * Copy.SIZE + Copy.SOURCE] === COPY_HOLE;
      const operation = isHole ? "punches" : command.opcode === NvmOpcode.READ ? "reads" : "writes";
      if (errno === EOPNOTSUPP) (this.#disks[command.namespaceId] as DirectDisk)[operation] = false;
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
    return disk.writes && this.#mayChange(disk, (cdw12 & RW_FUA) !== 0);
  }

  #mayChange(disk: DirectDisk, forceUnitAccess: boolean): boolean {
    return disk.isVolatile || (this.#features.writeCache && !forceUnitAccess);
  }

  /**
   * Copies between a disk from `position` on and one range of driver-VM memory; false when that is not in the window.
   */
  #note(disk: DirectDisk, position: number, address: number, length: number, isRead: boolean): boolean {
    for (let done = 0; done < length; ) {
      if (this.#dma.locate(address + done, length - done, isRead ? "write" : "read", segment) === 0) return false;
      const window = this.#window.numberOf(segment.bytes);
      const windowOffset = this.#window.start + segment.offset;
      for (let at = 0; at < segment.length; ) {
        if (this.#copies === MAX_COPIES) return false;
        const size = disk.find(position + done, segment.length - at, isRead);
        if (isRead) this.#put(disk.number, disk.offset, window, windowOffset + at, size, disk.offsetHigh);
        else this.#put(window, windowOffset + at, disk.number, disk.offset, size, disk.offsetHigh);
        at += size;
        done += size;
      }
    }
    return true;
  }

  #put(source: number, sourceOffset: number, target: number, targetOffset: number, length: number, high: number): void {
    const entries = this.#entries;
    const entry = this.#copies++ * Copy.SIZE;
    entries[entry + Copy.SOURCE] = source;
    entries[entry + Copy.SOURCE_OFFSET] = sourceOffset;
    entries[entry + Copy.TARGET] = target;
    entries[entry + Copy.TARGET_OFFSET] = targetOffset;
    entries[entry + Copy.LENGTH] = length;
    entries[entry + Copy.FILE_OFFSET_HIGH] = high;
  }
}

/** A disk as one side of the copies: pieces of memory, or a file that is read and written in place. */
class DirectDisk {
  /** Whether there are reads and writes that can be done at once. */
  reads: boolean;
  writes: boolean;
  /** Whether holes can be punched at once. */
  punches: boolean;
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
  /** Of the file that holes are punched into. */
  readonly #holeNumber: number;
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
    const holeFd = isFile && access.mayPunch !== true ? undefined : access.fd;
    this.#holeNumber = holeFd === undefined ? NONE : list.addFile(holeFd, 0);
    this.punches = this.#holeNumber !== NONE;
  }

  /** Finds `position` in the file that holes are punched into. */
  findInFile(position: number): void {
    this.number = this.#holeNumber;
    this.offset = position >>> 0;
    this.offsetHigh = Math.floor(position / 0x1_0000_0000);
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
}
