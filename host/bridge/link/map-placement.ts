/**
 * Where the device VM can reach a client's memory: in the window; or, where that cannot be, or the device process wants
 * to have none there, within reach of the copy queue.
 */
import { formatAddress } from "../../../shared/address.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { MAX_WINDOW_MAPS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { BackendRequest } from "../../../shared/spec/vhost-user.js";
import type { MemoryMap } from "../../../shared/vfio-user/backend.js";
import { CopiedMemory } from "../../../shared/vfio-user/dma/copied-memory.js";
import { MAP_FLAG } from "../state/layout.js";
import type { MapRecords } from "./map-records.js";
import type { WindowAllocation } from "./window-allocation.js";

/** Unmaps that wait in the window's queue at once. */
const UNMAPS_AT_ONCE = 256;

export class MapPlacement {
  /** What the copy queue reaches. */
  readonly copied: CopiedMemory;
  /** The device process wants no driver-VM memory in its window. */
  isolated = false;
  readonly #allocation: WindowAllocation;
  readonly #records: MapRecords;
  readonly #log: Log;
  /** What is in the window, by offset. */
  readonly #places = new Map<number, MemoryMap>();
  /** There was no room for the last map; memory could not be in the window, being unsealed: each was logged. */
  #isFull = false;
  #isUnsealed = false;

  constructor(allocation: WindowAllocation, records: MapRecords, log: Log) {
    this.#allocation = allocation;
    this.#records = records;
    this.#log = log;
    this.copied = new CopiedMemory(log);
  }

  /**
   * Into the window as far as that is possible, the rest within reach of the copy queue. Rejects with PeerGone when the
   * device stops.
   */
  async put(map: MemoryMap): Promise<void> {
    if (!this.isolated && map.windowOffset < 0) await this.#putIntoWindow(map);
    this.reach(map);
    const { begin, end } = map.windowPart;
    if (map.windowOffset >= 0 && end - begin === map.backed) return;
    if (this.isolated || map.isShareable || !map.writable || map.fd < 0 || this.#isUnsealed) return;
    this.#isUnsealed = true;
    this.#log.warn(
      { address: map.address, size: map.size },
      "the driver VM's memory can be shrunk by its owner, so each DMA is copied: use memory-backend-memfd (with " +
        "share=on), whose memory is sealed, or trust it by --trust-unsealed-memory",
    );
  }

  /** What of it is not in the window is within reach of the copy queue. */
  reach(map: MemoryMap): void {
    const { begin, end } = map.windowPart;
    if (map.windowOffset < 0 || end - begin !== map.backed) this.copied.put(map);
  }

  async #putIntoWindow(map: MemoryMap): Promise<void> {
    const { readable, writable, fd, fdOffset, isShareable, pageSize } = map;
    const { window } = this.#allocation;
    const address = formatAddress(map.address);
    const { begin, end } = map.windowPart;
    const size = end - begin;
    // QEMU does not enforce a read-only mapping, so what is not read-write stays outside.
    if (fd < 0 || !isShareable || !readable || !writable || size === 0 || !window.permitted) return;
    const hasRoom = this.#allocation.count < MAX_WINDOW_MAPS;
    const offset = hasRoom ? this.#allocation.reserve(size, fdOffset + begin, pageSize) : -1;
    if (offset < 0) {
      if (!this.#isFull) this.#log.warn({ address, size }, "the window is full: DMA by copies");
      this.#isFull = true;
      return;
    }
    map.windowOffset = offset;
    this.#places.set(offset, map);
    this.#records.note(map, MAP_FLAG.IN_WINDOW);
    try {
      await window.map(fd, fdOffset + begin, offset, size);
    } catch (error) {
      if (error instanceof ProtocolError && error.errno === Errno.ETIMEDOUT) this.#keep(map);
      else this.free(map);
      if (!(error instanceof ProtocolError)) throw error;
      this.#log.warn({ address, size, reason: error.message }, "not mapped in the window: DMA by copies");
    }
  }

  async takeOut(maps: readonly MemoryMap[], keep: boolean): Promise<void> {
    for (const map of maps) this.copied.remove(map);
    const inWindow = maps.filter(({ windowOffset }) => windowOffset >= 0);
    // Several in flight: the reply to one may prove that the one before it is committed.
    for (let first = 0; first < inWindow.length; first += UNMAPS_AT_ONCE) {
      await Promise.all(inWindow.slice(first, first + UNMAPS_AT_ONCE).map((map) => this.#takeOneOut(map, keep)));
    }
  }

  async #takeOneOut(map: MemoryMap, keep: boolean): Promise<void> {
    const { begin, end } = map.windowPart;
    const isOut = await this.#allocation.unmap(map.windowOffset, end - begin);
    if ((keep || !isOut) && this.#allocation.window.permitted && map.windowOffset >= 0) this.#keep(map);
    else this.free(map);
  }

  #keep(map: MemoryMap): void {
    const { begin, end } = map.windowPart;
    this.#allocation.keep(map.windowOffset, end - begin);
    this.#leave(map);
  }

  /** It is not in the window any more. */
  free(map: MemoryMap): void {
    if (map.windowOffset < 0) return;
    this.#allocation.release(map.windowOffset);
    this.#isFull = false;
    this.#leave(map);
  }

  #leave(map: MemoryMap): void {
    this.#places.delete(map.windowOffset);
    map.windowOffset = -1;
    this.#records.note(map, 0, MAP_FLAG.IN_WINDOW | MAP_FLAG.MAPPED);
  }

  /** See Window.onSettled: what is known before anything else happens. */
  settled(request: number, offset: number, isDone: boolean): boolean {
    const map = this.#places.get(offset);
    if (map === undefined) return false;
    if (!isDone) return true;
    if (request === BackendRequest.SHMEM_MAP) this.#records.note(map, MAP_FLAG.MAPPED);
    else this.#records.note(map, 0, MAP_FLAG.MAPPED);
    return true;
  }

  /** A place that another bridge took for a map. @throws StateError */
  restore(map: MemoryMap, offset: number): void {
    const { begin, end } = map.windowPart;
    this.#allocation.take(offset, end - begin);
    map.windowOffset = offset;
    this.#places.set(offset, map);
  }

  /** What has a place there, and is not mapped after all. */
  freeUnmapped(): void {
    for (const map of [...this.#places.values()]) if (!this.#records.has(map, MAP_FLAG.MAPPED)) this.free(map);
  }
}
