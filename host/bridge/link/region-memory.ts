/**
 * Memory of the device's that the client may map (docs/virtio-vfio-user.md, "ALLOCATE_MEMORY"): for each region a
 * sealed memfd of the bridge's, whose areas are in the window too, where the device process reaches them.
 *
 * The memory outlives the device process as long as a client is there that may have mapped it: the next process gets
 * the same. It never outlives the client: `renew` maps fresh memory where it was.
 */
import { inBounds, isAligned } from "../../../shared/bits.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_REGION_MEMORY, MAX_SHARED_PARTS, PAGE_SIZE } from "../../../shared/limits.js";
import { type Area, MemoryFile, type PlacedArea } from "../../../shared/memory-file.js";
import { NO_REGION } from "../../../shared/spec/link.js";
import { BackendRequest } from "../../../shared/spec/vhost-user.js";
import { FD_KIND } from "../state/layout.js";
import type { StateMemory } from "../state/state-memory.js";
import type { Window } from "../vhost-user/window.js";
import { isSharable } from "./bodies.js";
import type { WindowAllocation } from "./window-allocation.js";

const NO_HANDLE = 0;

/** The memory of one region, or of none (NO_REGION). */
export class RegionMemory extends MemoryFile {
  /** What the device process knows it by; NO_HANDLE when the process that asked for it is gone. */
  handle = NO_HANDLE;
  /** A client that may have mapped it is gone. */
  stale = false;

  constructor(
    readonly region: number,
    areas: readonly Area[],
  ) {
    super(areas);
  }
}

/** Memory of a region as the state keeps it. */
export interface SavedMemory {
  readonly region: number;
  readonly handle: number;
  readonly stale: boolean;
  readonly fd: number;
  /** Whether it is mapped at that offset of the window; -1: it has none there. */
  readonly areas: readonly (readonly [offset: number, size: number, windowOffset: number, isMapped: boolean])[];
}

export class RegionMemories {
  readonly #window: Window;
  readonly #allocation: WindowAllocation;
  readonly #memories = new Map<number, RegionMemory>();
  readonly #newHandle: () => number;
  readonly #state: StateMemory;
  /** Offsets of the window at which areas are mapped. */
  readonly #mapped = new Set<number>();
  /** Fresh memory is being mapped where stale memory was. */
  #renewing: RegionMemory | undefined;

  /** `newHandle` gives numbers above 0, each once. */
  constructor(window: Window, allocation: WindowAllocation, state: StateMemory, newHandle: () => number) {
    this.#window = window;
    this.#allocation = allocation;
    this.#state = state;
    this.#newHandle = newHandle;
  }

  save(): SavedMemory[] {
    return [...this.#memories.values()].map((memory) => {
      const { region, handle, stale, fd, areas } = memory;
      return {
        region,
        handle,
        stale: stale || memory === this.#renewing,
        fd: this.#state.fds.idOf(fd),
        areas: areas.map(({ offset, size, windowOffset }) => {
          return [offset, size, windowOffset, this.#mapped.has(windowOffset)] as const;
        }),
      };
    });
  }

  /** @throws StateError */
  restore(saved: readonly SavedMemory[]): void {
    for (const { region, handle, stale, fd, areas } of saved) {
      const asked = areas.map(([offset, size]) => ({ offset, size }));
      const memory = new RegionMemory(region, asked);
      memory.adopt(this.#state.fds.take(fd, FD_KIND.MEMORY));
      Object.assign(memory, { handle, stale });
      this.#memories.set(region, memory);
      for (const [n, [, size, windowOffset, isMapped]] of areas.entries()) {
        if (windowOffset < 0) continue;
        this.#allocation.take(windowOffset, size);
        memory.areas[n].windowOffset = windowOffset;
        if (isMapped) this.#mapped.add(windowOffset);
      }
    }
  }

  /**
   * After `restore`, when nothing is in flight to the front-end: what a device process has is in the window, and
   * nothing else is.
   */
  async repair(): Promise<void> {
    for (const memory of this.#memories.values()) {
      for (const area of memory.areas) {
        const { windowOffset } = area;
        if (windowOffset < 0) continue;
        const isMapped = this.#mapped.has(windowOffset);
        if (memory.handle !== NO_HANDLE) {
          if (!isMapped) await this.#map(memory, area, windowOffset);
        } else {
          if (isMapped) await this.#allocation.unmap(windowOffset, area.size);
          this.#leave(area);
        }
      }
    }
  }

  /** No device process knows the memory of that region. */
  withdraw(region: number): void {
    const memory = this.#memories.get(region);
    if (memory) memory.handle = NO_HANDLE;
  }

  /** See Window.onSettled. */
  settled(request: number, offset: number, isDone: boolean): boolean {
    const areas = [...this.#memories.values()].flatMap((memory) => memory.areas);
    if (!areas.some(({ windowOffset }) => windowOffset === offset)) return false;
    if (isDone && request === BackendRequest.SHMEM_MAP) this.#mapped.add(offset);
    else if (isDone) this.#mapped.delete(offset);
    this.#state.control.commitNow();
    return true;
  }

  /** Whether there is memory that has to be recreated before another client comes. */
  get stale(): boolean {
    return [...this.#memories.values()].some(({ stale }) => stale);
  }

  /** What the device process named, if it is its own. */
  byHandle(handle: number): RegionMemory | undefined {
    if (handle === NO_HANDLE) return undefined;
    return [...this.#memories.values()].find((memory) => memory.handle === handle);
  }

  /** Whether all areas lie within regions of these sizes. */
  fitInto(regionSizes: readonly number[]): boolean {
    return [...this.#memories.values()].every(({ region, size, handle }) => {
      return handle === NO_HANDLE || region === NO_REGION || size <= regionSizes[region];
    });
  }

  /**
   * Makes the memory of a region, or finds the one that the client has, and maps it into the window. `keep`: a client
   * is there, whose memory cannot be replaced. Rejects with ProtocolError, SystemError, or PeerGone when the device
   * stops.
   */
  async allocate(region: number, asked: readonly Area[], keep: boolean): Promise<RegionMemory> {
    const known = this.#memories.get(region);
    if (known && known.handle !== NO_HANDLE) throw new ProtocolError(`region ${region} has memory`, Errno.EEXIST);
    this.#check(region, asked);
    let memory = known;
    if (memory && !memory.hasAreas(asked)) {
      if (keep) throw new ProtocolError(`the client has other memory of region ${region}`, Errno.EBUSY);
      this.#delete(memory);
      memory = undefined;
    }
    memory ??= this.#make(region, asked);
    try {
      await this.#place(memory);
    } catch (error) {
      await this.#takeOut(memory);
      if (!keep) this.#delete(memory);
      throw error;
    }
    if (memory.areas.some(({ windowOffset }) => windowOffset < 0)) throw new PeerGone("the device stopped");
    memory.handle = this.#newHandle();
    this.#state.control.touch();
    return memory;
  }

  /** The device stopped, and QEMU dropped all that was mapped. Memory that no client has goes. */
  forget(keep: boolean): void {
    for (const memory of this.#memories.values()) {
      this.#leaveWindow(memory);
      if (!keep) this.#delete(memory);
    }
  }

  /** Takes all of it out of the window; when this resolves, the device VM cannot reach it. Never rejects. */
  async takeOut(keep: boolean): Promise<void> {
    for (const memory of this.#memories.values()) {
      await this.#takeOut(memory);
      if (!keep) this.#delete(memory);
    }
  }

  /** The client is gone: what no device process has goes; the rest is stale until `renew`. */
  clientGone(): void {
    for (const memory of this.#memories.values()) {
      if (memory.handle === NO_HANDLE) this.#delete(memory);
      else memory.stale = true;
    }
  }

  /** Maps fresh memory where stale memory is. Rejects with ProtocolError, SystemError or PeerGone. */
  async renew(): Promise<void> {
    for (const memory of this.#memories.values()) {
      if (!memory.stale) continue;
      this.#recreate(memory);
      // From now on: the client that comes next may go again before all of it is in the window.
      memory.stale = false;
      this.#renewing = memory;
      for (const area of memory.areas) {
        const { windowOffset, size } = area;
        if (windowOffset < 0) continue;
        await this.#window.unmap(windowOffset, size);
        await this.#map(memory, area, windowOffset);
      }
      this.#renewing = undefined;
    }
  }

  #check(region: number, areas: readonly Area[]): void {
    if (!isSharable(region) && region !== NO_REGION) throw new ProtocolError(`region ${region} cannot be mapped`);
    if (areas.length === 0 || areas.length > MAX_SHARED_PARTS) throw new ProtocolError(`${areas.length} areas`);
    let end = 0;
    let sum = 0;
    for (const { offset, size } of areas) {
      const aligned = isAligned(offset, PAGE_SIZE) && isAligned(size, PAGE_SIZE);
      if (!aligned || size === 0 || offset < end || !inBounds(offset, size, Number.MAX_SAFE_INTEGER)) {
        throw new ProtocolError(`an area of ${size} bytes at ${offset}`);
      }
      end = offset + size;
      sum += size;
    }
    for (const memory of this.#memories.values()) {
      if (memory.region !== region) sum += memory.areas.reduce((total, { size }) => total + size, 0);
    }
    if (sum > MAX_REGION_MEMORY) throw new ProtocolError(`${sum} bytes of memory for clients`, Errno.ENOSPC);
  }

  #make(region: number, asked: readonly Area[]): RegionMemory {
    const memory = new RegionMemory(region, asked);
    this.#recreate(memory);
    this.#memories.set(region, memory);
    return memory;
  }

  #recreate(memory: RegionMemory): void {
    memory.recreate();
    this.#state.fds.keep(memory.fd);
    this.#state.control.touch();
  }

  async #place(memory: RegionMemory): Promise<void> {
    for (const area of memory.areas) {
      const windowOffset = this.#allocation.reserve(area.size, area.offset);
      if (windowOffset < 0) throw new ProtocolError("the window has no room for the memory", Errno.ENOSPC);
      area.windowOffset = windowOffset;
      this.#state.control.touch();
      await this.#map(memory, area, windowOffset);
    }
  }

  /** Into the window, at the area's offset; releases the offset when that fails. */
  async #map({ fd }: RegionMemory, area: PlacedArea, windowOffset: number): Promise<void> {
    try {
      await this.#window.map(fd, area.offset, windowOffset, area.size);
    } catch (error) {
      // Nothing is there: QEMU is not to be asked to take it out. When the device stopped, it was released
      // already.
      this.#leave(area);
      throw error;
    }
  }

  /** Out of the window. Never rejects. */
  async #takeOut(memory: RegionMemory): Promise<void> {
    memory.handle = NO_HANDLE;
    for (const { windowOffset, size } of memory.areas) {
      if (windowOffset >= 0) await this.#allocation.unmap(windowOffset, size);
    }
    this.#leaveWindow(memory);
  }

  #leaveWindow(memory: RegionMemory): void {
    memory.handle = NO_HANDLE;
    for (const area of memory.areas) this.#leave(area);
    this.#state.control.touch();
  }

  #leave(area: PlacedArea): void {
    if (area.windowOffset < 0) return;
    this.#allocation.release(area.windowOffset);
    this.#mapped.delete(area.windowOffset);
    area.windowOffset = -1;
    this.#state.control.touch();
  }

  #delete(memory: RegionMemory): void {
    if (this.#memories.get(memory.region) !== memory) return;
    this.#leaveWindow(memory);
    this.#memories.delete(memory.region);
    memory.close();
    this.#state.control.touch();
  }
}
