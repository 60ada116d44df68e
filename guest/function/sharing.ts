/**
 * What a device shares with the driver VM's VMM, at work: memory of its regions that is mapped, and ioeventfds
 * (vfio-user, "VFIO_USER_DEVICE_GET_REGION_INFO" and "..._GET_REGION_IO_FDS"; the shadow kind as in libvfio-user's
 * header).
 *
 * A VMM need use neither: accesses by message reach the same memory, and writes by message that match an ioeventfd have
 * the same effect. Left out: ioregionfd.
 */
import { alignUp, inBounds } from "../../shared/bits.js";
import { PAGE_SIZE } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { NO_REGION } from "../../shared/spec/link.js";
import {
  IoEventFd,
  IoEventFdFlags,
  IoFdType,
  RegionCap,
  RegionCapHeader,
  SparseMmap,
  SparseMmapArea,
} from "../../shared/spec/vfio-user.js";
import { getUint, setU64 } from "../../shared/struct/struct.js";
import type { Device, IoEventFdOptions, SharedPart } from "../device.js";
import type { IoEvents, Link, SharedMemory } from "../link/link.js";
import { declaredSharing, type RegionSharing } from "../pci/declared-regions.js";
import type { MsixLayout } from "../pci/msix.js";

/** A shared part of a region; `data` is of its bytes alone. */
interface SharedArea extends SharedPart {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly data: DataView;
}

interface Event {
  readonly options: IoEventFdOptions;
  /** Its offset in the shadow memory, or -1. */
  readonly shadowOffset: number;
}

interface SharedRegion extends RegionSharing {
  readonly events: readonly Event[];
  /** By event, 1 for one that came while the function was stopped. */
  readonly waiting: Uint8Array;
  /** In the order of the declaration. */
  areas: readonly SharedArea[];
  memory: SharedMemory | undefined;
  eventfds: IoEvents | undefined;
}

/** What GET_REGION_IO_FDS is answered with: sub-regions, and the descriptors that they have indices of. */
interface IoFds {
  readonly descriptors: readonly number[];
  readonly entries: readonly Uint8Array[];
}

const SHADOW_SIZE = 8;

export class Sharing {
  /** The most descriptors that a reply may have; the client's. */
  maxDescriptors = 0;
  readonly #regions: (SharedRegion | undefined)[] = [];
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
    for (const declared of declaredSharing(device.identity, msix, device.regions)) {
      const events = declared.ioeventfds.map((options) => {
        const shadowOffset = options.shadow ? this.#shadowBytes : -1;
        if (options.shadow) this.#shadowBytes += SHADOW_SIZE;
        return { options, shadowOffset };
      });
      if (events.length > 0 && device.ioEvent === undefined) throw new RangeError("ioeventfds, and no ioEvent method");
      this.#regions[declared.region] = {
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
    for (const shared of this.#regions) {
      if (shared === undefined) continue;
      const { region, parts, events } = shared;
      if (parts.length > 0) {
        const ascending = [...parts].sort((a, b) => a.offset - b.offset);
        const memory = await link.allocateMemory(region, ascending);
        shared.memory = memory;
        shared.areas = parts.map((part) => {
          const bytes = memory.areas[ascending.indexOf(part)];
          return { ...part, bytes, data: new DataView(bytes.buffer, bytes.byteOffset, bytes.length) };
        });
      }
      if (events.length > 0) {
        shared.eventfds = await link.allocateEvents(region, events.length, (index) => this.#signalled(shared, index));
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
    for (const shared of this.#regions) {
      for (const [index, waits] of shared?.waiting.entries() ?? []) {
        if (waits === 1 && shared !== undefined) this.#signalled(shared, index);
      }
      shared?.waiting.fill(0);
    }
  }

  /** The function was reset: nothing waits. */
  forgetWaiting(): void {
    for (const shared of this.#regions) shared?.waiting.fill(0);
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
    return this.#regions.flatMap((region) =>
      region ? [...region.areas.map(({ bytes }) => bytes), region.waiting] : [],
    );
  }

  /** Where a region's first shared part begins; Infinity when there is none. */
  lowestPart(region: number): number {
    return Math.min(...(this.#regions[region]?.parts.map(({ offset }) => offset) ?? []));
  }

  /** What the device's author gets. @throws RangeError when there is no such part */
  shared(region: number, index: number): Uint8Array<ArrayBuffer> {
    const area = this.#regions[region]?.areas[index];
    if (area === undefined) throw new RangeError(`region ${region} has no shared part ${index}`);
    return area.bytes;
  }

  /** The shared part in which a region's byte at `offset` is, if any. */
  area(region: number, offset: number): SharedArea | undefined {
    const areas = this.#regions[region]?.areas;
    if (areas === undefined) return undefined;
    for (let n = 0; n < areas.length; n++) if (inBounds(offset - areas[n].offset, 1, areas[n].size)) return areas[n];
    return undefined;
  }

  hasEvents(region: number): boolean {
    return (this.#regions[region]?.events.length ?? 0) > 0;
  }

  /** A write by message. True when an ioeventfd matched it: the device was notified, and the write is done. */
  write(region: number, offset: number, count: number, data: DataView, from: number): boolean {
    const shared = this.#regions[region];
    if (shared === undefined) return false;
    for (let index = 0; index < shared.events.length; index++) {
      const { options, shadowOffset } = shared.events[index];
      if (options.offset !== offset || (options.size !== 0 && options.size !== count)) continue;
      if (options.size !== 0 && options.datamatch !== undefined && getUint(data, from, count) !== options.datamatch) {
        continue;
      }
      for (let n = 0; shadowOffset >= 0 && n < count; n++) {
        this.#shadowData.setUint8(shadowOffset + n, data.getUint8(from + n));
      }
      this.#tell(shared, index);
      return true;
    }
    return false;
  }

  /** What names the memory of a region in a reply; -1 when nothing of it can be mapped. */
  memoryDescriptor(region: number): number {
    return this.maxDescriptors > 0 ? (this.#regions[region]?.memory?.descriptor ?? -1) : -1;
  }

  /** Bytes of the capability that says which parts can be mapped; 0 when all of the region can. */
  capabilitySize(region: number): number {
    const shared = this.#regions[region];
    if (shared === undefined || (shared.parts.length === 1 && shared.parts[0].size === shared.size)) return 0;
    return RegionCapHeader.size + SparseMmap.size + shared.parts.length * SparseMmapArea.size;
  }

  /** Writes that capability, the last of its list, from `start` on. */
  putCapability(region: number, data: DataView, start: number): void {
    const parts = this.#regions[region]?.parts ?? [];
    let at = start;
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
    const shared = this.#regions[region];
    const shadow = this.#shadow?.descriptor ?? -1;
    for (const [index, { options, shadowOffset }] of shared?.events.entries() ?? []) {
      const needed = [shared?.eventfds?.descriptors[index] ?? -1, ...(shadowOffset >= 0 ? [shadow] : [])];
      if (needed.includes(-1)) continue;
      const before = descriptors.length;
      const indices = needed.map((descriptor) => {
        const known = descriptors.indexOf(descriptor);
        return known >= 0 ? known : descriptors.push(descriptor) - 1;
      });
      if (descriptors.length > this.maxDescriptors) return { descriptors: descriptors.slice(0, before), entries };
      entries.push(encodeEntry(options, shared?.io ?? false, shadowOffset, indices));
    }
    return { descriptors, entries };
  }

  #signalled(shared: SharedRegion, index: number): void {
    try {
      this.#tell(shared, index);
    } catch (error) {
      this.#log.error({ err: error, region: shared.region, index }, "the device threw in an ioeventfd's event");
    }
  }

  #tell(shared: SharedRegion, index: number): void {
    const { options, shadowOffset } = shared.events[index];
    if (this.#held) {
      shared.waiting[index] = 1;
      return;
    }
    const value = shadowOffset >= 0 ? getUint(this.#shadowData, shadowOffset, options.size) : options.datamatch;
    this.#device.ioEvent?.(shared.region, index, value);
  }
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
