/**
 * A client's DMA maps: checks DMA_MAP and DMA_UNMAP, keeps the fds, and tells the backend. All fds are closed when their
 * map ends, and not before the backend let go of it.
 */
import { close, F_SEAL_SHRINK, memoryStatus } from "../../native/index.js";
import { inBounds, isAligned } from "../bits.js";
import { Errno, ProtocolError } from "../errors.js";
import { MAX_DATA_XFER_SIZE, MAX_DIRTY_BITMAP_SIZE, PAGE_SIZE } from "../limits.js";
import { Bitmap, Command, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags } from "../spec/vfio-user.js";
import type { Backend, DirtyRequest, MemoryMap } from "./backend.js";
import { bitmapSize } from "./bitmap.js";
import type { Frame } from "./connection.js";
import { DmaTable } from "./dma-table.js";

const ALL_MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE | DmaMapFlags.MMAP | DmaMapFlags.FILE_IO;

/** Whether memory may be mapped: for a device, by a process that survives a truncation, or not at all. */
const Use = { SHARED: "shared", HERE: "here", NONE: "none" } as const;
type Use = (typeof Use)[keyof typeof Use];

class Entry implements MemoryMap {
  windowOffset = -1;
  /** The backend is still busy with mapping or unmapping it. */
  changing = true;

  constructor(
    readonly address: number,
    readonly size: number,
    readonly readable: boolean,
    readonly writable: boolean,
    readonly fd: number,
    readonly fdOffset: number,
    readonly isShareable: boolean,
  ) {}
}

export interface DmaMapsOptions {
  readonly backend: Backend;
  /** Map memory that its owner can shrink under us as well. */
  readonly trustUnsealedMemory: boolean;
  readonly maxMaps?: number;
  /** Tells the operator what is better done otherwise. */
  readonly warn: (message: string) => void;
  readonly syscalls?: { close(fd: number): void };
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
const status = new Float64Array(3);
const NO_BITMAP = new Uint8Array(0);

export class DmaMaps {
  private readonly table: DmaTable<Entry>;
  private readonly close: (fd: number) => void;
  private ended = false;

  constructor(private readonly options: DmaMapsOptions) {
    this.table = new DmaTable(options.maxMaps === undefined ? {} : { maxEntries: options.maxMaps });
    this.close = options.syscalls?.close ?? close;
  }

  get length(): number {
    return this.table.length;
  }

  /**
   * DMA_MAP: undefined when the backend has it, or the promise of it. `stillWanted` is asked when that resolves: when the
   * client was told meanwhile that it failed, the map is taken away again.
   * @throws ProtocolError when the request is bad, and what the backend throws; or rejects with what that rejects with
   */
  map(frame: Frame, stillWanted: () => boolean): Promise<void> | undefined {
    const entry = this.parseMap(frame);
    try {
      this.table.insert(entry);
    } catch (error) {
      if (entry.fd !== -1) this.close(entry.fd);
      throw error;
    }
    let mapping: Promise<void> | undefined;
    try {
      mapping = this.options.backend.map(entry);
    } catch (error) {
      this.forget(entry);
      throw error;
    }
    if (mapping !== undefined) return this.finishMap(entry, mapping, stillWanted);
    entry.changing = false;
    return undefined;
  }

  private async finishMap(entry: Entry, mapping: Promise<void>, stillWanted: () => boolean): Promise<void> {
    try {
      await mapping;
    } catch (error) {
      this.forget(entry);
      throw error;
    }
    entry.changing = false;
    if (!this.ended && !stillWanted()) await this.release(entry);
  }

  /**
   * DMA_UNMAP: when nothing uses the memory any more, the bitmap that follows the request's body in the reply; or the promise
   * of it.
   * @throws ProtocolError when the request is bad, and what the backend throws; or rejects with what that rejects with
   */
  unmap(frame: Frame): Uint8Array | Promise<Uint8Array> {
    const { argsz, flags, address, size } = unmapView.at(frame.data, frame.offset);
    const wantsBitmap = flags === DmaUnmapFlags.GET_DIRTY_BITMAP;
    if (flags !== 0 && flags !== DmaUnmapFlags.ALL && !wantsBitmap) refuseUnmap(`flags ${flags}`);
    if (frame.length !== (wantsBitmap ? BITMAP_OFFSET : DmaUnmap.size)) refuseUnmap(`a body of ${frame.length} bytes`);
    if (argsz < DmaUnmap.size || argsz > MAX_DATA_XFER_SIZE) refuseUnmap(`argsz ${argsz}`);
    if (flags === DmaUnmapFlags.ALL) {
      if (address !== 0 || size !== 0) refuseUnmap("all, with an address or a size");
      return this.releaseAll();
    }
    const entry = this.table.get(address, size);
    if (entry.changing) refuseUnmap("it is being mapped or unmapped already", Errno.EBUSY);
    return this.release(entry, wantsBitmap ? parseBitmap(frame, argsz, entry) : undefined);
  }

  /** The client is gone: from now on the backend lets go of everything by itself. */
  end(): void {
    this.ended = true;
  }

  /** The backend let go of everything: close all fds. */
  clear(): void {
    for (const entry of this.table) if (entry.fd !== -1) this.close(entry.fd);
    this.table.clear();
  }

  private release(entry: Entry, dirty?: DirtyRequest): Uint8Array | Promise<Uint8Array> {
    entry.changing = true;
    let unmapping: Promise<void> | undefined;
    try {
      unmapping = this.options.backend.unmap(entry, dirty);
    } catch (error) {
      entry.changing = false;
      throw error;
    }
    if (unmapping !== undefined) return this.finishRelease(entry, unmapping, dirty);
    this.forget(entry);
    return dirty?.bitmap ?? NO_BITMAP;
  }

  private async finishRelease(entry: Entry, unmapping: Promise<void>, dirty?: DirtyRequest): Promise<Uint8Array> {
    try {
      await unmapping;
    } catch (error) {
      entry.changing = false;
      throw error;
    }
    this.forget(entry);
    return dirty?.bitmap ?? NO_BITMAP;
  }

  private async releaseAll(): Promise<Uint8Array> {
    const releases: Promise<Uint8Array>[] = [];
    // A copy: the table shrinks meanwhile. One that fails is to hold up no other.
    for (const entry of [...this.table]) {
      if (!entry.changing) releases.push((async () => this.release(entry))());
    }
    for (const result of await Promise.allSettled(releases)) {
      if (result.status === "rejected") throw result.reason;
    }
    return NO_BITMAP;
  }

  /** The entry may be gone already, after `clear`. */
  private forget(entry: Entry): void {
    if (this.table.at(entry.address) !== entry) return;
    this.table.remove(entry.address, entry.size);
    if (entry.fd !== -1) this.close(entry.fd);
  }

  /** The entry's fd, if any, was taken out of the frame. */
  private parseMap(frame: Frame): Entry {
    const { argsz, flags, offset, address, size } = mapView.at(frame.data, frame.offset);
    if (argsz < DmaMap.size) refuse(`argsz ${argsz}`);
    const readable = (flags & DmaMapFlags.READ) !== 0;
    const writable = (flags & DmaMapFlags.WRITE) !== 0;
    if ((flags & ~ALL_MAP_FLAGS) !== 0 || !(readable || writable)) refuse(`flags ${flags}`);
    const fd = frame.fds.length > 0 ? frame.fds[0] : -1;
    if (fd === -1 && (flags & (DmaMapFlags.MMAP | DmaMapFlags.FILE_IO)) !== 0) refuse("no fd to map");
    const use = fd === -1 ? Use.NONE : this.useOf(fd, offset, size, writable);
    if (use === Use.NONE) return new Entry(address, size, readable, writable, -1, 0, false);
    frame.fds[0] = -1;
    return new Entry(address, size, readable, writable, fd, offset, use === Use.SHARED);
  }

  /** What may be done with good memory. */
  private useOf(fd: number, offset: number, size: number, writable: boolean): Use {
    memoryStatus(fd, status);
    const fileSize = status[0];
    if (fileSize < 0) refuse("the fd is not a file or a memfd");
    if (!isAligned(offset, PAGE_SIZE)) refuse(`offset ${offset} is not on a page`);
    if (!inBounds(offset, size, fileSize)) refuse(`${size} bytes at ${offset} of a file of ${fileSize}`);
    if (writable && status[1] === 0) refuse("the fd is read-only, the map is not", Errno.EACCES);
    const seals = status[2];
    const isTrusted = this.options.trustUnsealedMemory;
    // Access to a file that is not memory may take for ever.
    if (seals === -1 && !isTrusted) {
      this.options.warn(
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

/** What the client says about the bitmap must be what the map needs, and the reply fit into argsz. */
function parseBitmap(frame: Frame, argsz: number, { address, size }: MemoryMap): DirtyRequest {
  const { pageSize, size: length } = bitmapView.at(frame.data, frame.offset + DmaUnmap.size);
  const needed = bitmapSize(address, size, pageSize);
  if (needed < 0 || length !== needed) refuseUnmap(`a bitmap of ${length} bytes for pages of ${pageSize}`);
  if (needed > MAX_DIRTY_BITMAP_SIZE) refuseUnmap(`a bitmap of ${needed} bytes`, Errno.E2BIG);
  if (argsz < BITMAP_OFFSET + needed) refuseUnmap(`argsz ${argsz} for a bitmap of ${needed} bytes`);
  return { pageSize, bitmap: new Uint8Array(needed) };
}
