/**
 * The device VM's memory, as SET_MEM_TABLE hands it over: each region's file is mapped into one Reservation that lasts
 * as long as the bridge, so that no table brings new ArrayBuffers. A table comes with every map and unmap in the
 * window, and nearly all of its regions are the ones of the table before: those stay as they are.
 *
 * Behind a virtual IOMMU, addresses in rings are its own, and what is mapped is what the IOTLB has (iotlb.ts); of the
 * table only the files are kept.
 */
import * as native from "../../../native/index.js";
import { reserveAddressSpace } from "../../../shared/address-space.js";
import { inBounds, isAligned } from "../../../shared/bits.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { DEVICE_VM_MEMORY_SIZE, MAX_VHOST_USER_REGIONS, PAGE_SIZE, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import { closePeerFd, duplicatePeerFd } from "../../../shared/peer-fds.js";
import { MemoryRegion, MemTable } from "../../../shared/spec/vhost-user.js";
import type { RingMemory } from "../../../shared/virtqueue/memory.js";
import type { FdKeeper } from "../state/fd-keeper.js";
import { FD_KIND } from "../state/layout.js";
import { StateMemory } from "../state/state-memory.js";
import type { Message } from "./connection.js";
import { Iotlb } from "./iotlb.js";

/** One region as the table has it; the fd stays the caller's. */
export interface RegionEntry {
  readonly guestAddress: number;
  readonly size: number;
  readonly userAddress: number;
  readonly mmapOffset: number;
  readonly fd: number;
}

/** A region as the state keeps it: `fd` is the number of its descriptor. */
export type SavedRegion = RegionEntry;

/** With a descriptor of its own. */
interface Region extends RegionEntry {
  readonly device: number;
  readonly inode: number;
  /** Where it is in the reservation; -1 behind an IOMMU. */
  readonly offset: number;
}

const fileOf = ({ device, inode }: Region) => `${device}:${inode}`;

export class DeviceVmMemory implements RingMemory {
  readonly pieceSize = WINDOW_PIECE_SIZE;
  beforeUnmap: (() => void) | undefined;
  /** Called when `pieces` are others. */
  onChange: (() => void) | undefined;
  readonly #reservation = reserveAddressSpace("the device VM's memory", DEVICE_VM_MEMORY_SIZE);
  readonly iotlb = new Iotlb(this.#reservation);
  /** Asks for what is not in the IOTLB; the result is what `locate` is to say of it. */
  ask: (iova: number, length: number) => number = () => -1;
  #translates = false;
  #regions: Region[] = [];
  readonly #takesFiles: boolean;
  readonly #fds: FdKeeper;
  readonly #bytes: Uint8Array[] = [];

  /** @param takesFiles also takes files of disks, whose pages may take for ever */
  constructor(takesFiles = false, { fds } = StateMemory.temporary()) {
    this.#takesFiles = takesFiles;
    this.#fds = fds;
    this.iotlb.beforeUnmap = () => this.beforeUnmap?.();
    this.iotlb.onChange = () => {
      for (const { start, end, offset } of this.iotlb.runs) {
        const last = offset + (end - start) - 1;
        for (let n = Math.floor(offset / this.pieceSize); n <= last / this.pieceSize; n++) this.bytes(n);
      }
      this.onChange?.();
    };
  }

  /** Whether addresses are those of a virtual IOMMU. */
  get translates(): boolean {
    return this.#translates;
  }

  set translates(translates: boolean) {
    if (translates === this.#translates) return;
    this.clear();
    this.#translates = translates;
  }

  save(): SavedRegion[] {
    return this.#regions.map(({ guestAddress, size, userAddress, mmapOffset, fd }) => {
      return { guestAddress, size, userAddress, mmapOffset, fd: this.#fds.idOf(fd) };
    });
  }

  /** @throws StateError, ProtocolError or SystemError */
  restore(saved: readonly SavedRegion[], translates: boolean): void {
    this.translates = translates;
    const entries = saved.map((region) => ({ ...region, fd: this.#fds.take(region.fd, FD_KIND.MEMORY) }));
    this.set(entries);
    for (const { fd } of entries) closePeerFd(fd);
  }

  get regions(): number {
    return this.#regions.length;
  }

  locate(address: number, length: number): number {
    if (this.#translates) return this.#locateIova(address, length);
    for (const region of this.#regions) {
      const offset = address - region.guestAddress;
      if (inBounds(offset, length, region.size)) return region.offset + offset;
    }
    return -1;
  }

  /** As `locate`, for a ring: without an IOMMU its address is one of the front-end's own. */
  locateRing(address: number, length: number): number {
    if (this.#translates) return this.#locateIova(address, length);
    for (const region of this.#regions) {
      const offset = address - region.userAddress;
      if (inBounds(offset, length, region.size)) return region.offset + offset;
    }
    return -1;
  }

  #locateIova(address: number, length: number): number {
    const offset = this.iotlb.locate(address, length);
    return offset >= 0 ? offset : this.ask(address, length);
  }

  /**
   * What the IOMMU has at `iova`: memory that the front-end has at `userAddress`. @throws ProtocolError, SystemError
   */
  translate(iova: number, size: number, userAddress: number): void {
    const region = this.#regions.find((one) => inBounds(userAddress - one.userAddress, size, one.size));
    if (region === undefined) throw new ProtocolError("an IOTLB entry outside of the memory table");
    const fileOffset = region.mmapOffset + (userAddress - region.userAddress);
    this.iotlb.add(iova, size, { fd: region.fd, file: fileOf(region), fileOffset });
  }

  bytes(piece: number): Uint8Array {
    let bytes = this.#bytes[piece];
    if (!bytes) {
      bytes = new Uint8Array(this.#reservation.piece(piece));
      this.#bytes[piece] = bytes;
      this.onChange?.();
    }
    return bytes;
  }

  /** Replaces the table. @throws ProtocolError or SystemError, and the old table stays */
  set(entries: readonly RegionEntry[]): void {
    if (entries.length > MAX_VHOST_USER_REGIONS) throw new ProtocolError(`${entries.length} memory regions`);
    const wanted = entries.map((entry, index) => {
      const file = native.fileStatus(entry.fd);
      check(entry, file, index, this.#takesFiles);
      for (const other of entries.slice(0, index)) {
        const apart =
          entry.guestAddress + entry.size <= other.guestAddress ||
          other.guestAddress + other.size <= entry.guestAddress;
        if (!apart) throw new ProtocolError(`memory region ${index} overlaps another`);
      }
      return { entry, file, kept: this.#regions.find((region) => same(region, entry, file)) };
    });

    // The new ones first: what cannot be mapped takes nothing away.
    const fresh: Region[] = [];
    let regions: Region[];
    try {
      regions = wanted.map(({ entry, file, kept }) => {
        if (kept) return kept;
        const region = this.#map(entry, file, [...this.#regions, ...fresh]);
        fresh.push(region);
        return region;
      });
    } catch (error) {
      for (const region of fresh) this.#unmap(region);
      throw error;
    }
    this.beforeUnmap?.();
    const gone = this.#regions.filter((region) => !regions.includes(region));
    this.#regions = regions;
    for (const region of gone) this.#unmap(region);
    this.iotlb.retain(({ file, fileOffset, size }) =>
      regions.some((one) => fileOf(one) === file && inBounds(fileOffset - one.mmapOffset, size, one.size)),
    );
    this.onChange?.();
  }

  /**
   * The memory as runs of bytes, each with the device VM's address of it: those that `bytes` was asked for, as making
   * an array of the others is expensive.
   */
  get pieces(): { readonly addresses: Float64Array; readonly bytes: readonly Uint8Array[] } {
    const addresses: number[] = [];
    const bytes: Uint8Array[] = [];
    const runs = this.#translates
      ? this.iotlb.runs.map(({ start, end, offset }) => ({ guestAddress: start, size: end - start, offset }))
      : this.#regions;
    for (const { guestAddress, size, offset } of runs) {
      for (let at = 0; at < size; ) {
        const start = (offset + at) % this.pieceSize;
        const length = Math.min(size - at, this.pieceSize - start);
        const piece = this.#bytes[(offset + at - start) / this.pieceSize];
        if (piece !== undefined) {
          addresses.push(guestAddress + at);
          bytes.push(piece.subarray(start, start + length));
        }
        at += length;
      }
    }
    return { addresses: Float64Array.from(addresses), bytes };
  }

  clear(): void {
    this.beforeUnmap?.();
    for (const region of this.#regions.splice(0)) this.#unmap(region);
    this.iotlb.clear();
    this.onChange?.();
  }

  #map(entry: RegionEntry, file: native.FileStatus, others: readonly Region[]): Region {
    const { guestAddress, size, userAddress, mmapOffset } = entry;
    const offset = this.#translates ? -1 : this.#place(size, others);
    const fd = duplicatePeerFd(entry.fd);
    if (fd < 0) throw new ProtocolError("no file descriptors are left for the device VM's memory", Errno.EMFILE);
    try {
      if (offset >= 0) this.#reservation.map(offset, size, fd, mmapOffset, native.PROT_READ | native.PROT_WRITE);
      this.#fds.keep(fd);
    } catch (error) {
      closePeerFd(fd);
      throw error;
    }
    const { device, inode } = file;
    return { guestAddress, size, userAddress, mmapOffset, device, inode, offset, fd };
  }

  #unmap({ offset, size, fd }: Region): void {
    // Held by the map.
    closePeerFd(fd, offset >= 0);
    if (offset >= 0) this.#reservation.unmap(offset, size);
  }

  /** The first free place, at a piece's start: a region of at most one piece then lies in one ArrayBuffer. */
  #place(size: number, others: readonly Region[]): number {
    let offset = 0;
    for (const region of others.toSorted((a, b) => a.offset - b.offset)) {
      if (offset + size <= region.offset) break;
      offset = Math.ceil((region.offset + region.size) / this.pieceSize) * this.pieceSize;
    }
    if (!inBounds(offset, size, DEVICE_VM_MEMORY_SIZE)) throw new ProtocolError("the device VM has too much memory");
    return offset;
  }
}

function check(entry: RegionEntry, file: native.FileStatus, index: number, takesFiles: boolean): void {
  const { guestAddress, size, userAddress, mmapOffset } = entry;
  const sane = [guestAddress + size, userAddress + size, mmapOffset + size].every(Number.isSafeInteger);
  if (!sane || size === 0) throw new ProtocolError(`memory region ${index} has a bad size or address`);
  if (![guestAddress, size, userAddress, mmapOffset].every((value) => isAligned(value, PAGE_SIZE))) {
    throw new ProtocolError(`memory region ${index} is not page-aligned`);
  }
  // Rings are read by the event loop, and a page of a disk, or of a server's, may take for ever to come.
  if (file.kind !== "memory" && !(file.kind === "file" && takesFiles)) {
    throw new ProtocolError(
      `memory region ${index} of the device VM is not memory: use memory-backend-memfd, or a file of tmpfs, ` +
        "hugetlbfs or DAX",
    );
  }
  if (!inBounds(mmapOffset, size, file.size)) {
    throw new ProtocolError(`memory region ${index} is larger than its file`);
  }
}

function same(region: Region, entry: RegionEntry, file: native.FileStatus): boolean {
  return (
    region.device === file.device &&
    region.inode === file.inode &&
    region.guestAddress === entry.guestAddress &&
    region.size === entry.size &&
    region.userAddress === entry.userAddress &&
    region.mmapOffset === entry.mmapOffset
  );
}

/** Reads SET_MEM_TABLE; the fds stay the message's. @throws ProtocolError when the sizes and counts do not agree */
export function parseMemTable({ data, size: length, fds }: Message): RegionEntry[] {
  const count = length < MemTable.size ? 0 : MemTable.view(data).regions;
  if (count > MAX_VHOST_USER_REGIONS || length !== MemTable.size + count * MemoryRegion.size) {
    throw new ProtocolError(`a memory table of ${count} regions in ${length} bytes`);
  }
  if (fds.length !== count) throw new ProtocolError(`${fds.length} fds for ${count} memory regions`);
  const region = MemoryRegion.view();
  return fds.map((fd, index) => {
    const at = MemTable.size + index * MemoryRegion.size;
    const { guestAddress, size, userAddress, mmapOffset } = region.at(data, at);
    return { guestAddress, size, userAddress, mmapOffset, fd };
  });
}
