/**
 * What a device shares with the driver VM's VMM, at work: BAR memory that is mapped, and ioeventfds (vfio-user,
 * "VFIO_USER_DEVICE_GET_REGION_INFO" and "..._GET_REGION_IO_FDS"; the shadow kind as in libvfio-user's header).
 *
 * A VMM need use neither: accesses by message reach the same memory, and writes by message that match an ioeventfd have
 * the same effect. Left out: ioregionfd.
 */
import { alignUp, inBounds } from "../shared/bits.js";
import { PAGE_SIZE } from "../shared/limits.js";
import type { Log } from "../shared/log.js";
import { NO_REGION } from "../shared/spec/link.js";
import {
  IoEventFd,
  IoEventFdFlags,
  IoFdType,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  SparseMmap,
  SparseMmapArea,
} from "../shared/spec/vfio-user.js";
import { getU64, setU64 } from "../shared/struct/struct.js";
import type { Device, IoEventFdOptions, SharedPart } from "./device.js";
import type { IoEvents, Link, SharedMemory } from "./link/link.js";
import type { MsixLayout } from "./pci/msix.js";
import { type BarSharing, declaredSharing } from "./pci/sharing.js";

/** A shared part of a BAR; `data` is of its bytes alone. */
export interface SharedArea extends SharedPart {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly data: DataView;
}

interface Event {
  readonly options: IoEventFdOptions;
  /** Its place in the shadow memory, or -1. */
  readonly shadowOffset: number;
}

interface Bar extends BarSharing {
  readonly events: readonly Event[];
  /** By event, 1 for one that came while the function was stopped. */
  readonly waiting: Uint8Array;
  /** In the order of the declaration. */
  areas: readonly SharedArea[];
  memory: SharedMemory | undefined;
  eventfds: IoEvents | undefined;
}

/** What GET_REGION_IO_FDS is answered with: sub-regions, and the descriptors that they have indices of. */
export interface IoFds {
  readonly descriptors: readonly number[];
  readonly entries: readonly Uint8Array[];
}

const SHADOW_SIZE = 8;

export class Sharing {
  /** The most descriptors that a reply may have; the client's. */
  maxDescriptors = 0;
  readonly #bars: (Bar | undefined)[] = [];
  readonly #device: Device;
  readonly #log: Log;
  #shadowBytes = 0;
  #held = false;
  #shadow: SharedMemory | undefined;
  #shadowData = new DataView(new ArrayBuffer(0));

  /** @throws RangeError when the identity declares what cannot be */
  constructor(device: Device, msix: MsixLayout | undefined, log: Log) {
    this.#device = device;
    this.#log = log;
    for (const declared of declaredSharing(device.identity, msix)) {
      const events = declared.ioeventfds.map((options) => {
        const shadowOffset = options.shadow ? this.#shadowBytes : -1;
        if (options.shadow) this.#shadowBytes += SHADOW_SIZE;
        return { options, shadowOffset };
      });
      if (events.length > 0 && device.ioEvent === undefined) throw new RangeError("ioeventfds, and no ioEvent method");
      this.#bars[declared.bar] = {
        ...declared,
        events,
        waiting: new Uint8Array(events.length),
        areas: [],
        memory: undefined,
        eventfds: undefined,
      };
    }
  }

  /** Gets the memory and the eventfds from the link. */
  async open(link: Link): Promise<void> {
    for (const bar of this.#bars) {
      if (bar === undefined) continue;
      if (bar.parts.length > 0) {
        const ascending = [...bar.parts].sort((a, b) => a.offset - b.offset);
        const memory = await link.allocateMemory(bar.bar, ascending);
        bar.memory = memory;
        bar.areas = bar.parts.map((part) => {
          const bytes = memory.areas[ascending.indexOf(part)];
          return { ...part, bytes, data: new DataView(bytes.buffer, bytes.byteOffset, bytes.length) };
        });
      }
      if (bar.events.length > 0) {
        bar.eventfds = await link.allocateEvents(bar.bar, bar.events.length, (index) => this.#signalled(bar, index));
      }
    }
    if (this.#shadowBytes === 0) return;
    const size = alignUp(this.#shadowBytes, PAGE_SIZE);
    this.#shadow = await link.allocateMemory(NO_REGION, [{ offset: 0, size }]);
    const [bytes] = this.#shadow.areas;
    this.#shadowData = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** The function is stopped: events wait from now on, until `release`. */
  hold(): void {
    this.#held = true;
  }

  /** The function runs again: what waited comes. */
  release(): void {
    this.#held = false;
    for (const bar of this.#bars) {
      for (const [index, waits] of bar?.waiting.entries() ?? []) {
        if (waits === 1 && bar !== undefined) this.#signalled(bar, index);
      }
      bar?.waiting.fill(0);
    }
  }

  /** The function was reset: nothing waits. */
  forgetWaiting(): void {
    for (const bar of this.#bars) bar?.waiting.fill(0);
  }

  /** All shared parts, one behind the other, and a byte for each event that says whether it waits. */
  save(): Uint8Array {
    return Buffer.concat(this.#moving);
  }

  /** Puts back what `save` gave. @throws RangeError when it is of other parts; nothing has changed then */
  load(state: Uint8Array): void {
    const targets = this.#moving;
    const size = targets.reduce((sum, target) => sum + target.length, 0);
    if (state.length !== size) throw new RangeError(`${state.length} bytes for shared parts of ${size}`);
    let at = 0;
    for (const target of targets) {
      target.set(state.subarray(at, at + target.length));
      at += target.length;
    }
  }

  /** What moves with the function. */
  get #moving(): Uint8Array[] {
    return this.#bars.flatMap((bar) => (bar ? [...bar.areas.map(({ bytes }) => bytes), bar.waiting] : []));
  }

  /** Where a BAR's first shared part begins; Infinity when there is none. */
  lowestPart(bar: number): number {
    return Math.min(...(this.#bars[bar]?.parts.map(({ offset }) => offset) ?? []));
  }

  /** What the device's author gets. @throws RangeError when there is no such part */
  shared(bar: number, index: number): Uint8Array<ArrayBuffer> {
    const area = this.#bars[bar]?.areas[index];
    if (area === undefined) throw new RangeError(`BAR ${bar} has no shared part ${index}`);
    return area.bytes;
  }

  /** The shared part in which a region's byte at `offset` is, if any. */
  area(region: number, offset: number): SharedArea | undefined {
    const areas = this.#bars[region]?.areas;
    if (areas === undefined) return undefined;
    for (let n = 0; n < areas.length; n++) if (inBounds(offset - areas[n].offset, 1, areas[n].size)) return areas[n];
    return undefined;
  }

  /** A write by message. True when an ioeventfd matched it: the device was told, and the write is done. */
  write(region: number, offset: number, count: number, data: DataView, from: number): boolean {
    const bar = this.#bars[region];
    if (bar === undefined) return false;
    for (let index = 0; index < bar.events.length; index++) {
      const { options, shadowOffset } = bar.events[index];
      if (options.offset !== offset || (options.size !== 0 && options.size !== count)) continue;
      if (options.size !== 0 && options.datamatch !== undefined && getValue(data, from, count) !== options.datamatch) {
        continue;
      }
      for (let n = 0; shadowOffset >= 0 && n < count; n++) {
        this.#shadowData.setUint8(shadowOffset + n, data.getUint8(from + n));
      }
      this.#tell(bar, index);
      return true;
    }
    return false;
  }

  /** What names the memory of a region in a reply; -1 when nothing of it can be mapped. */
  memoryDescriptor(region: number): number {
    return this.maxDescriptors > 0 ? (this.#bars[region]?.memory?.descriptor ?? -1) : -1;
  }

  /** Bytes of the capability that says which parts can be mapped; 0 when all of the region can. */
  capabilitySize(region: number): number {
    const bar = this.#bars[region];
    if (bar === undefined || (bar.parts.length === 1 && bar.parts[0].size === bar.size)) return 0;
    return RegionCapHeader.size + SparseMmap.size + bar.parts.length * SparseMmapArea.size;
  }

  /** Writes that capability into a reply whose body begins at `start`, behind the fixed part. */
  putCapability(region: number, data: DataView, start: number): void {
    const parts = this.#bars[region]?.parts ?? [];
    let at = start + RegionInfo.size;
    Object.assign(RegionCapHeader.view(data, at), { id: RegionCap.SPARSE_MMAP, version: 1, next: 0 });
    at += RegionCapHeader.size;
    SparseMmap.view(data, at).areas = parts.length;
    data.setUint32(at + SparseMmap.offsets.reserved, 0);
    at += SparseMmap.size;
    for (const { offset, size } of parts) {
      Object.assign(SparseMmapArea.view(data, at), { offset, size });
      at += SparseMmapArea.size;
    }
  }

  /** The ioeventfds of a region; as many as the client can take the descriptors of. */
  ioFds(region: number): IoFds {
    const descriptors: number[] = [];
    const entries: Uint8Array[] = [];
    const bar = this.#bars[region];
    const shadow = this.#shadow?.descriptor ?? -1;
    for (const [index, { options, shadowOffset }] of bar?.events.entries() ?? []) {
      const needed = [bar?.eventfds?.descriptors[index] ?? -1, ...(shadowOffset >= 0 ? [shadow] : [])];
      if (needed.includes(-1)) continue;
      const before = descriptors.length;
      const indices = needed.map((descriptor) => {
        const known = descriptors.indexOf(descriptor);
        return known >= 0 ? known : descriptors.push(descriptor) - 1;
      });
      if (descriptors.length > this.maxDescriptors) return { descriptors: descriptors.slice(0, before), entries };
      entries.push(encodeEntry(options, bar?.io ?? false, shadowOffset, indices));
    }
    return { descriptors, entries };
  }

  #signalled(bar: Bar, index: number): void {
    try {
      this.#tell(bar, index);
    } catch (error) {
      this.#log.error({ err: error, bar: bar.bar, index }, "the device threw in an ioeventfd's event");
    }
  }

  #tell(bar: Bar, index: number): void {
    const { options, shadowOffset } = bar.events[index];
    if (this.#held) {
      bar.waiting[index] = 1;
      return;
    }
    const value = shadowOffset >= 0 ? getValue(this.#shadowData, shadowOffset, options.size) : options.datamatch;
    this.#device.ioEvent?.(bar.bar, index, value);
  }
}

/** A little-endian value of 1, 2, 4 or 8 bytes. */
function getValue(data: DataView, offset: number, size: number): number {
  if (size === 8) return getU64(data, offset);
  if (size === 4) return data.getUint32(offset, true);
  return size === 2 ? data.getUint16(offset, true) : data.getUint8(offset);
}

function encodeEntry(options: IoEventFdOptions, io: boolean, shadowOffset: number, indices: readonly number[]) {
  const { offset, size, datamatch } = options;
  const flags = (datamatch === undefined ? 0 : IoEventFdFlags.DATAMATCH) | (io ? IoEventFdFlags.PIO : 0);
  const isShadow = shadowOffset >= 0;
  const entry = IoEventFd.encode({
    gpaOffset: offset,
    size,
    fdIndex: indices[0],
    type: isShadow ? IoFdType.IOEVENTFD_SHADOW : IoFdType.IOEVENTFD,
    flags,
    shadowMemFdIndex: isShadow ? indices[1] : 0,
    shadowOffset: isShadow ? shadowOffset : 0,
    dataMatch: datamatch ?? 0,
  });
  // The specification has the value where libvfio-user has the shadow's offset: a client of either finds it.
  if (!isShadow) setU64(new DataView(entry.buffer), IoEventFd.offsets.shadowOffset, datamatch ?? 0);
  return entry;
}
