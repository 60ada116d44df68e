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

export class RegionMemories {
  readonly #window: Window;
  readonly #allocation: WindowAllocation;
  readonly #memories = new Map<number, RegionMemory>();
  readonly #newHandle: () => number;

  /** `newHandle` gives numbers above 0, each once. */
  constructor(window: Window, allocation: WindowAllocation, newHandle: () => number) {
    this.#window = window;
    this.#allocation = allocation;
    this.#newHandle = newHandle;
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
      memory.recreate();
      // From now on: the client that comes next may go again before all of it is in the window.
      memory.stale = false;
      for (const area of memory.areas) {
        const { windowOffset, size } = area;
        if (windowOffset < 0) continue;
        await this.#window.unmap(windowOffset, size);
        await this.#map(memory, area, windowOffset);
      }
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
    memory.recreate();
    this.#memories.set(region, memory);
    return memory;
  }

  async #place(memory: RegionMemory): Promise<void> {
    for (const area of memory.areas) {
      const windowOffset = this.#allocation.reserve(area.size, area.offset);
      if (windowOffset < 0) throw new ProtocolError("the window has no room for the memory", Errno.ENOSPC);
      area.windowOffset = windowOffset;
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
      if (area.windowOffset >= 0) this.#allocation.release(windowOffset);
      area.windowOffset = -1;
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
    for (const area of memory.areas) {
      if (area.windowOffset >= 0) this.#allocation.release(area.windowOffset);
      area.windowOffset = -1;
    }
  }

  #delete(memory: RegionMemory): void {
    if (this.#memories.get(memory.region) !== memory) return;
    this.#leaveWindow(memory);
    this.#memories.delete(memory.region);
    memory.close();
  }
}
