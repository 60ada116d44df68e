/**
 * A client's DMA maps: checks DMA_MAP and DMA_UNMAP, keeps the fds, and tells the backend. All fds are closed when
 * their map ends, and not before the backend released it.
 */
import { F_SEAL_SHRINK, memoryStatus } from "../../../native/index.js";
import { inBounds, isAligned } from "../../bits.js";
import { Errno, PeerGone, ProtocolError } from "../../errors.js";
import { MAX_DATA_XFER_SIZE, MAX_DIRTY_BITMAP_SIZE, PAGE_SIZE } from "../../limits.js";
import type { Log } from "../../log.js";
import { closePeerFd } from "../../peer-fds.js";
import { Bitmap, Command, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags } from "../../spec/vfio-user.js";
import { copyBytes } from "../../virtqueue/memory.js";
import type {
  Backend,
  DirtyRequest,
  MemoryMap,
  PendingCommand,
  UnmapRange,
  UnmapRequest,
  WindowPart,
} from "../backend.js";
import type { Frame } from "../socket/connection.js";
import { bitmapSize, unmapRange, windowPart } from "./dma-ranges.js";
import { DmaTable } from "./dma-table.js";

const ALL_MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE | DmaMapFlags.MMAP | DmaMapFlags.FILE_IO;

/** Whether memory may be mapped: for a device, by a process that survives a truncation, or not at all. */
const Use = { SHARED: "shared", HERE: "here", NONE: "none" } as const;
type Use = (typeof Use)[keyof typeof Use];

class Entry implements MemoryMap {
  windowOffset = -1;
  isHeld = false;
  /** Settles when the backend, which is busy with mapping or unmapping it, is done. */
  change: Promise<unknown> | undefined;

  constructor(
    readonly address: number,
    readonly size: number,
    readonly readable: boolean,
    readonly writable: boolean,
    readonly fd: number,
    readonly fdOffset: number,
    readonly isShareable: boolean,
    readonly pageSize: number = PAGE_SIZE,
    readonly device = 0,
    readonly inode = 0,
    readonly isMemory = false,
    /** Bytes of the map that its file has. */
    readonly backed = size,
    readonly position = 0,
  ) {}

  get windowPart(): WindowPart {
    return windowPart(this.fdOffset, this.backed, this.pageSize);
  }
}

/** A map that another process had for the same client; `fd` is the table's from now on. */
export interface RestoredEntry {
  readonly address: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly fd: number;
  readonly fdOffset: number;
  readonly isShareable: boolean;
  readonly pageSize: number;
  readonly backed: number;
  readonly position: number;
}

interface DmaMapsOptions {
  readonly backend: Backend;
  /** Map memory that its owner can shrink under us as well. */
  readonly trustUnsealedMemory: boolean;
  readonly log: Log;
}

function refuse(what: string, errno: number = Errno.EINVAL): never {
  throw new ProtocolError(`DMA_MAP: ${what}`, errno, Command.DMA_MAP);
}

function refuseUnmap(what: string, errno: number = Errno.EINVAL): never {
  throw new ProtocolError(`DMA_UNMAP: ${what}`, errno, Command.DMA_UNMAP);
}

const mapView = DmaMap.view();
const unmapView = DmaUnmap.view();
const bitmapView = Bitmap.view();
/** What is in front of the bitmap in a reply: the request. */
const BITMAP_OFFSET = DmaUnmap.size + Bitmap.size;
/** What memoryStatus said last. */
const status = new Float64Array(6);
const NO_BITMAP = new Uint8Array(0);

/** A range, and where the command is in what the client sent. */
type PlacedRange = UnmapRange & Pick<UnmapRequest, "position">;

interface Release extends UnmapRequest {
  readonly maps: readonly Entry[];
}

/** What another process noted of the last unmap: the command's position, and the bytes that it unmapped. */
export interface RestoredUnmap {
  readonly position: number;
  readonly size: number;
}

/** What an unmap did: the bytes that were mapped, and the bitmap, if one was wanted. */
export interface Unmapped {
  readonly size: number;
  readonly bitmap: Uint8Array;
}

export class DmaMaps {
  readonly #table = new DmaTable<Entry>();
  #ended = false;
  #unmapped: RestoredUnmap | undefined;
  readonly #options: DmaMapsOptions;

  constructor(options: DmaMapsOptions) {
    this.#options = options;
  }

  get length(): number {
    return this.#table.length;
  }

  /**
   * DMA_MAP: undefined when the backend has it, or the promise of it. `stillWanted` is asked when that resolves: when
   * it was answered meanwhile with an error, it is unmapped again.
   * @throws ProtocolError when the request is bad, and what the backend throws; or rejects with what that rejects with
   */
  map(frame: Frame, stillWanted: () => boolean): Promise<void> | undefined {
    const entry = this.#entryFor(frame);
    let mapping: Promise<void> | undefined;
    try {
      mapping = this.#options.backend.map(entry);
    } catch (error) {
      this.#forget([entry]);
      throw error;
    }
    if (mapping === undefined) return undefined;
    const finished = this.#finishMap(entry, mapping, stillWanted);
    entry.change = finished;
    return finished;
  }

  async #finishMap(entry: Entry, mapping: Promise<void>, stillWanted: () => boolean): Promise<void> {
    try {
      await mapping;
    } catch (error) {
      this.#forget([entry]);
      throw error;
    } finally {
      entry.change = undefined;
    }
    const { address, size } = entry;
    if (!this.#ended && !stillWanted()) await this.#release({ address, size, maps: [entry], position: -1 });
  }

  /**
   * DMA_UNMAP: what was unmapped, when nothing uses the memory any more; or the promise of it.
   * @throws ProtocolError when the request is bad, and what the backend throws; or rejects with what that rejects with
   */
  unmap(frame: Frame): Unmapped | Promise<Unmapped> {
    const { argsz, flags } = unmapView.at(frame.data, frame.offset);
    const wantsBitmap = flags === DmaUnmapFlags.GET_DIRTY_BITMAP;
    if (flags !== 0 && flags !== DmaUnmapFlags.ALL && !wantsBitmap) refuseUnmap(`flags ${flags}`);
    if (frame.length !== (wantsBitmap ? BITMAP_OFFSET : DmaUnmap.size)) refuseUnmap(`a body of ${frame.length} bytes`);
    if (argsz < DmaUnmap.size || argsz > MAX_DATA_XFER_SIZE) refuseUnmap(`argsz ${argsz}`);
    const range = { ...unmapRange(frame.data, frame.offset), position: frame.position };
    const maps = this.#table.within(range.address, range.size);
    const dirty = wantsBitmap ? parseBitmap(frame, argsz, range) : undefined;
    // Another process has begun with it, and may have come to its end.
    const before = frame.isAgain && this.#unmapped?.position === frame.position ? this.#unmapped : undefined;
    if (frame.isAgain && dirty) dirty.bitmap.fill(0xff);
    if (before !== undefined) return this.#finishAgain({ ...range, maps }, before.size, dirty);
    if (maps.some(({ change }) => change !== undefined)) return this.#releaseLater(range, maps, dirty);
    return this.#release({ ...range, maps, dirty });
  }

  /**
   * Goes on with maps of another process; `unmapped` is what it noted last of an unmap, by the command's position.
   * @throws ProtocolError when they cannot be in one table
   */
  restore(maps: readonly RestoredEntry[], unmapped: RestoredUnmap | undefined): MemoryMap[] {
    this.#unmapped = unmapped;
    return maps.map((map) => {
      const entry = restoredEntry(map);
      this.#table.insert(entry);
      return entry;
    });
  }

  /** The client is gone: from now on the backend releases everything by itself. */
  end(): void {
    this.#ended = true;
  }

  /** The backend released everything: close all fds. */
  clear(): void {
    // Nothing else holds their files any more.
    for (const entry of this.#table) entry.isHeld = false;
    closeFds(this.#table);
    this.#table.clear();
  }

  async #finishAgain(request: Release, size: number, dirty: DirtyRequest | undefined): Promise<Unmapped> {
    await this.#release(request);
    return { size, bitmap: dirty?.bitmap ?? NO_BITMAP };
  }

  #release(request: Release): Unmapped | Promise<Unmapped> {
    // What the device wrote before it was unmapped is still to be reported.
    if (request.maps.length === 0 && request.dirty === undefined) return this.#released(request);
    const unmapping = this.#options.backend.unmap(request);
    if (unmapping === undefined) return this.#released(request);
    const finished = this.#finishRelease(request, unmapping);
    for (const entry of request.maps) entry.change = finished;
    return finished;
  }

  async #finishRelease(request: Release, unmapping: Promise<void>): Promise<Unmapped> {
    try {
      await unmapping;
    } finally {
      for (const entry of request.maps) entry.change = undefined;
    }
    return this.#released(request);
  }

  /**
   * After those that the backend is still busy with, whose commands were answered with a time-out. What it maps
   * meanwhile is not unmapped.
   */
  async #releaseLater(range: PlacedRange, maps: readonly Entry[], dirty?: DirtyRequest): Promise<Unmapped> {
    let left = maps;
    for (let changes = changesOf(left); changes.length > 0; changes = changesOf(left)) {
      await Promise.allSettled(changes);
      left = left.filter((entry) => this.#isThere(entry));
    }
    if (this.#ended) throw new PeerGone("the client is gone");
    return this.#release({ ...range, maps: left, dirty });
  }

  #released({ maps, dirty }: Release): Unmapped {
    this.#forget(maps);
    return { size: maps.reduce((sum, { size }) => sum + size, 0), bitmap: dirty?.bitmap ?? NO_BITMAP };
  }

  /** The entries may be gone already, after `clear`. */
  #forget(entries: readonly Entry[]): void {
    const there = entries.filter((entry) => this.#isThere(entry));
    this.#table.removeAll(there);
    closeFds(there);
  }

  #isThere(entry: Entry): boolean {
    return this.#table.at(entry.address) === entry;
  }

  /** That of the request, which is in the table by now; another process may have put it there. */
  #entryFor(frame: Frame): Entry {
    const { address } = mapView.at(frame.data, frame.offset);
    const known = frame.isAgain ? this.#table.at(address) : undefined;
    if (known?.position === frame.position) return known;
    const entry = this.#parseMap(frame);
    try {
      this.#table.insert(entry);
    } catch (error) {
      if (entry.fd !== -1) closePeerFd(entry.fd);
      throw error;
    }
    return entry;
  }

  /** The entry's fd, if any, was taken out of the frame. */
  #parseMap(frame: Frame): Entry {
    const { argsz, flags, offset, address, size } = mapView.at(frame.data, frame.offset);
    if (argsz < DmaMap.size) refuse(`argsz ${argsz}`);
    const readable = (flags & DmaMapFlags.READ) !== 0;
    const writable = (flags & DmaMapFlags.WRITE) !== 0;
    if ((flags & ~ALL_MAP_FLAGS) !== 0 || !(readable || writable)) refuse(`flags ${flags}`);
    const fd = frame.fds.length > 0 ? frame.fds[0] : -1;
    if (fd === -1 && (flags & (DmaMapFlags.MMAP | DmaMapFlags.FILE_IO)) !== 0) refuse("no fd to map");
    const use = fd === -1 ? Use.NONE : this.#useOf(fd, offset, size, writable);
    const { position } = frame;
    if (use === Use.NONE) {
      return new Entry(address, size, readable, writable, -1, 0, false, PAGE_SIZE, 0, 0, false, size, position);
    }
    frame.fds[0] = -1;
    const isShareable = use === Use.SHARED;
    const [fileSize, , seals, pageSize, device, inode] = status;
    const file = [pageSize, device, inode, seals !== -1, Math.min(size, fileSize - offset), position] as const;
    return new Entry(address, size, readable, writable, fd, offset, isShareable, ...file);
  }

  /**
   * Whether a map that is larger than its file is of huge pages. Clients that have each huge page in a
   * file of its own (DPDK's) map a row of them by the first one's: what that has is mapped, and the rest goes by
   * messages. To map more would make the client's file larger.
   */
  #hasHugePages(offset: number, size: number, fileSize: number): boolean {
    const [, , , pageSize] = status;
    if (pageSize === PAGE_SIZE || offset >= fileSize) return false;
    const message = "a map of huge pages is larger than its file: what the file does not have goes by messages";
    this.#options.log.warn({ size, offset, fileSize }, message);
    return true;
  }

  /** What may be done with good memory. */
  #useOf(fd: number, offset: number, size: number, writable: boolean): Use {
    memoryStatus(fd, status);
    const fileSize = status[0];
    if (fileSize < 0) refuse("the fd is not a file or a memfd");
    if (!isAligned(offset, PAGE_SIZE)) refuse(`offset ${offset} is not on a page`);
    if (!inBounds(offset, size, fileSize) && !this.#hasHugePages(offset, size, fileSize)) {
      refuse(`${size} bytes at ${offset} of a file of ${fileSize}`);
    }
    if (writable && status[1] === 0) refuse("the fd is read-only, the map is not", Errno.EACCES);
    const seals = status[2];
    const isTrusted = this.#options.trustUnsealedMemory;
    // Access to a file that is not memory may take forever.
    if (seals === -1 && !isTrusted) {
      this.#options.log.warn(
        "the driver VM's memory is a file of a disk, which is not mapped, and each DMA becomes a message: use " +
          "memory-backend-memfd (with share=on), or trust it by --trust-unsealed-memory",
      );
      return Use.NONE;
    }
    // A mapping in a VM cannot be made read-only (see docs), so nothing read-only is ever put there.
    if (!writable) return Use.HERE;
    return isTrusted || (seals & F_SEAL_SHRINK) !== 0 ? Use.SHARED : Use.HERE;
  }
}

function restoredEntry(map: RestoredEntry): Entry {
  const { address, size, readable, writable, fd, fdOffset, isShareable, pageSize, backed, position } = map;
  if (fd < 0) status.fill(0);
  else memoryStatus(fd, status);
  const [, , seals, , device, inode] = status;
  const file = [pageSize, device, inode, fd >= 0 && seals !== -1, backed, position] as const;
  return new Entry(address, size, readable, writable, fd, fdOffset, isShareable, ...file);
}

/**
 * Closes the fds of maps, of which there may be thousands of one file. What may free memory is not done at once (see
 * closePeerFd), and costs a thread; so of each file all but one fd are closed first, which frees nothing.
 */
function closeFds(entries: Iterable<Entry>): void {
  let last: Map<number, Entry> | undefined;
  for (const entry of entries) {
    const { fd, inode, device, isMemory, isHeld } = entry;
    if (fd === -1) continue;
    const other = last?.get(inode);
    if (isHeld || (isMemory && other?.device === device)) {
      closePeerFd(fd, true);
    } else if (isMemory && other === undefined) {
      last ??= new Map();
      last.set(inode, entry);
    } else {
      closePeerFd(fd);
    }
  }
  for (const { fd } of last?.values() ?? []) closePeerFd(fd);
}

function changesOf(entries: readonly Entry[]): Promise<unknown>[] {
  return entries.flatMap(({ change }) => (change === undefined ? [] : [change]));
}

/** What the client says about the bitmap must be what the range needs, and the reply fit into argsz. */
function parseBitmap(frame: Frame, argsz: number, { address, size }: UnmapRange): DirtyRequest {
  const { pageSize, size: length } = bitmapView.at(frame.data, frame.offset + DmaUnmap.size);
  const needed = bitmapSize(address, size, pageSize);
  if (needed < 0 || length !== needed) refuseUnmap(`a bitmap of ${length} bytes for pages of ${pageSize}`);
  if (needed > MAX_DIRTY_BITMAP_SIZE) refuseUnmap(`a bitmap of ${needed} bytes`, Errno.E2BIG);
  if (argsz < BITMAP_OFFSET + needed) refuseUnmap(`argsz ${argsz} for a bitmap of ${needed} bytes`);
  return { pageSize, bitmap: new Uint8Array(needed) };
}

/** The reply is the request, with the size that was unmapped, and the bitmap if one was wanted. */
export function replyUnmapped(pending: PendingCommand, { size, bitmap }: Unmapped): void {
  if (!pending.active) return;
  const { bytes, offset, length } = pending;
  pending.reserve(length + bitmap.length);
  const { replyBytes, replyOffset } = pending;
  copyBytes(bytes, offset, replyBytes, replyOffset, length);
  unmapView.at(pending.replyData, replyOffset).size = size;
  replyBytes.set(bitmap, replyOffset + length);
  pending.reply(length + bitmap.length);
}
