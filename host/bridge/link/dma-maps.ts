/**
 * The client's DMA maps: where each can be reached from the device VM, and what the device process knows of them.
 *
 * A map is in the window; or, where that cannot be, or the device process wants to have none there, within reach of the
 * copy queue. A map that can be neither is no error: the device process reaches that memory by DMA messages.
 *
 * Maps are kept for the client's life, whatever becomes of the device process: `announce` tells it of those that it
 * does not know. What the client unmaps during a pause of the device VM is answered at once, and released at its end
 * (`release`).
 */
import { formatAddress } from "../../../shared/address.js";
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { UNMAP_DEADLINE_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { Command } from "../../../shared/spec/vfio-user.js";
import type { ClientMemory, DirtyRequest, MemoryMap, UnmapRequest } from "../../../shared/vfio-user/backend.js";
import { mapParts, setBits } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { MAP_FLAG } from "../state/layout.js";
import type { StateMemory } from "../state/state-memory.js";
import { mapBody, unmapBody } from "./bodies.js";
import type { Changes } from "./changes.js";
import type { DeviceState } from "./device-state.js";
import { MapPlacement } from "./map-placement.js";
import { MapRecords, type SavedMap } from "./map-records.js";
import type { RequestChannel } from "./request-channel.js";
import type { WindowAllocation } from "./window-allocation.js";

/** A client may have many thousands. */
const MAX_MAPS_INSPECTED = 64;

/** A map that another bridge noted. */
export interface RestoredMap {
  readonly map: MemoryMap;
  readonly slot: number;
  readonly values: SavedMap;
}

export class ClientMaps {
  readonly placement: MapPlacement;
  readonly #state: DeviceState;
  readonly #changes: Changes;
  readonly #requests: RequestChannel;
  readonly #allocation: WindowAllocation;
  readonly #records: MapRecords;
  readonly #memory: StateMemory;
  readonly #log: Log;
  /** Of the client that is there. */
  #client: ClientMemory | undefined;
  readonly #maps = new Set<MemoryMap>();
  /** Those that the device process was told of. */
  readonly #announced = new Set<MemoryMap>();
  /** Those that their client gave up, and that are still in the window, or known to the device process. */
  readonly #unreleased = new Set<MemoryMap>();
  /** Of these the device process was told, or of a part, by another bridge, and it is not known how far. */
  readonly #partial = new Set<MemoryMap>();
  /** Unmaps that the device process has not answered, and that are done all the same. */
  #late = 0;

  constructor(
    state: DeviceState,
    changes: Changes,
    requests: RequestChannel,
    allocation: WindowAllocation,
    memory: StateMemory,
    log: Log,
  ) {
    this.#state = state;
    this.#changes = changes;
    this.#requests = requests;
    this.#allocation = allocation;
    this.#log = log;
    this.#memory = memory;
    this.#records = new MapRecords(memory);
    this.placement = new MapPlacement(allocation, this.#records, log);
  }

  get size(): number {
    return this.#maps.size;
  }

  /** For diagnostics; of many maps the first ones. */
  inspect() {
    const maps = [...this.#maps];
    return {
      maps: maps.length,
      mappedBytes: maps.reduce((sum, { size }) => sum + size, 0),
      mapsInWindow: maps.filter(({ windowOffset }) => windowOffset >= 0).length,
      firstMaps: maps.slice(0, MAX_MAPS_INSPECTED).map(({ address, size, readable, writable, windowOffset }) => {
        return { address: `0x${address.toString(16)}`, size, readable, writable, windowOffset };
      }),
    };
  }

  // The client's side.

  connect(client: ClientMemory): void {
    this.#client = client;
  }

  /** The client is gone. Resolves when its memory is out of the window, or at once while the device VM is paused. */
  disconnect(): Promise<void> {
    this.#client = undefined;
    for (const map of this.#maps) this.#giveUp(map);
    this.#maps.clear();
    const released = this.#changes.once(this.#releaseQuietly);
    return this.#state.isPaused ? Promise.resolve() : this.#changes.orPaused(released);
  }

  map(map: MemoryMap): Promise<void> {
    if (this.#client === undefined) return Promise.reject(new PeerGone("no client is connected"));
    this.#maps.add(map);
    this.#records.add(map);
    if (this.#state.isPaused) return Promise.resolve();
    let isAnswered = false;
    const work = this.#changes.run(async () => {
      // When the device process is not there, or is told of all maps later, the map is for then.
      if (this.#state.name !== "connected" || !this.#maps.has(map) || this.#announced.has(map)) return;
      try {
        await this.#announce(map);
      } catch (error) {
        // When the device process is gone, the map is for the next one.
        if (error instanceof PeerGone) return;
        if (!isAnswered) this.#forget(map);
        throw error;
      }
    });
    return this.#changes.orPaused(work, () => {
      isAnswered = true;
    });
  }

  unmap(request: UnmapRequest): Promise<void> {
    const { address, size, maps } = request;
    const client = this.#client;
    if (this.#state.isPaused) {
      this.#noteUnmapped(request);
      for (const map of maps) {
        this.#maps.delete(map);
        this.#giveUp(map);
      }
      allDirty(request);
      return Promise.resolve();
    }
    const work = this.#changes.run(async () => {
      const isAnnounced = client !== undefined && this.#client === client && this.#state.name === "connected";
      if (!isAnnounced) allDirty(request);
      const isReleased = !isAnnounced || (await this.#askToRelease(request));
      // What the device process gave up is not sent to the client any more.
      client?.abandon(address, size);
      for (const map of maps) {
        this.#maps.delete(map);
        this.#announced.delete(map);
      }
      await this.placement.takeOut(maps, !isReleased);
      this.#noteUnmapped(request);
      for (const map of maps) this.#forget(map);
    });
    return this.#changes.orPaused(work, () => allDirty(request));
  }

  // The device process's side; the caller is within a change.

  /** Tells the device process of the maps that it does not know, for as long as their client is there. */
  async announce(): Promise<void> {
    const client = this.#client;
    for (const map of this.#maps) {
      if (this.#client !== client) return;
      if (!this.#announced.has(map)) await this.#announce(map);
    }
  }

  /** The device process knows of no map: another one is there, or the client is introduced again. */
  forgetAnnounced(): void {
    this.#announced.clear();
    this.#partial.clear();
    this.#records.announcement++;
    this.#memory.control.touch();
  }

  /** Takes out of the window what clients gave up, and has the device process release what it was told of. */
  async release(): Promise<void> {
    const maps = [...this.#unreleased];
    // Out of reach first, since the client goes on already.
    await this.placement.takeOut(maps, true);
    for (const map of maps) {
      this.#unreleased.delete(map);
      if (this.#announced.delete(map)) {
        await this.#askToRelease({ address: map.address, size: map.size, maps: [map], position: -1 });
      }
      this.#records.remove(map);
    }
  }

  /** The same for a device process that hears by CLIENT_GONE of the end of all of them, or is not there. */
  readonly #releaseQuietly = async (): Promise<void> => {
    const maps = [...this.#unreleased];
    await this.placement.takeOut(maps, false);
    for (const map of maps) {
      this.#unreleased.delete(map);
      this.#records.remove(map);
    }
    this.placement.copied.dropIdle();
  };

  /**
   * Takes all memory of clients out of reach; when this resolves, the device VM cannot get at it. With `keep` nothing
   * else is put in its place before the device process has released everything. Never rejects.
   */
  takeOutAll(keep: boolean): Promise<void> {
    return this.placement.takeOut([...this.#maps, ...this.#unreleased], keep);
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forget(): void {
    for (const map of [...this.#maps, ...this.#unreleased]) {
      this.placement.copied.remove(map);
      this.placement.free(map);
    }
    for (const map of this.#unreleased) this.#records.remove(map);
    this.#unreleased.clear();
    this.#allocation.releaseKept();
  }

  /** The bridge ends. */
  close(): void {
    this.placement.copied.close();
  }

  /** Puts a map where it can be reached, and tells the device process of it, part by part. */
  async #announce(map: MemoryMap): Promise<void> {
    await this.placement.put(map);
    if (!this.#maps.has(map)) {
      // Given up while the device VM was paused.
      await this.placement.takeOut([map], false);
      return;
    }
    const { address, size } = map;
    const unmap = { address, size, maps: [map], position: -1 };
    if (this.#partial.delete(map)) await this.#requests.request(Command.DMA_UNMAP, unmapBody(unmap));
    this.#announced.add(map);
    this.#records.note(map, MAP_FLAG.TOLD);
    try {
      for (const [n, part] of mapParts(map, this.placement.copied.has(map)).entries()) {
        await this.#requests.request(Command.DMA_MAP, mapBody(part)).catch(async (error) => {
          if (n > 0) await this.#requests.request(Command.DMA_UNMAP, unmapBody(unmap));
          throw error;
        });
      }
      if (this.#announced.has(map)) this.#records.note(map, MAP_FLAG.ANNOUNCED);
    } catch (error) {
      this.#announced.delete(map);
      this.#records.note(map, 0, MAP_FLAG.TOLD);
      await this.placement.takeOut([map], false);
      throw error;
    }
  }

  /**
   * Asks the device process to release all maps in a range, with one message, so that they have one deadline. False
   * when it does not say so in time: they are then taken by force. What is not known to be unwritten is reported as
   * written.
   * @throws ProtocolError when the device process cannot give the bitmap that is wanted; it then keeps the maps
   */
  async #askToRelease(request: UnmapRequest): Promise<boolean> {
    const { address, size, maps, dirty } = request;
    const body = unmapBody(request);
    const answer = this.#requests.send(Command.DMA_UNMAP, body);
    let stop = () => {};
    const late = new Promise<never>((_, reject) => {
      const giveUp = () => {
        this.#late++;
        const answered = () => this.#late--;
        answer.then(answered, answered);
        reject(new ProtocolError("the device process does not answer", Errno.ETIMEDOUT));
      };
      // One that is late already is not waited for again: the client's deadline is for all of its unmaps together.
      stop = startDeadline(this.#late > 0 ? 0 : UNMAP_DEADLINE_MS, giveUp, () => this.#state.isPaused);
    });
    try {
      const reply = await Promise.race([answer, late]);
      if (dirty) this.#takeBitmap(reply, body.length, dirty);
      return true;
    } catch (error) {
      if (dirty && error instanceof ProtocolError && error.errno !== Errno.ETIMEDOUT) throw error;
      const reason = (error as Error).message;
      const range = { address: formatAddress(address), size, maps: maps.length };
      this.#log.warn({ ...range, reason }, "the device did not release memory: it is taken by force");
      allDirty(request);
      return false;
    } finally {
      stop();
    }
  }

  /**
   * The bitmap follows the request's body in the reply. @throws PeerGone, the link broken, when it is of another length
   */
  #takeBitmap(reply: Uint8Array, offset: number, { bitmap }: DirtyRequest): void {
    if (reply.length !== offset + bitmap.length) {
      this.#state.raise("violated", `a reply of ${reply.length} bytes to DMA_UNMAP with a bitmap`);
      throw new PeerGone("the device process broke the link");
    }
    bitmap.set(reply.subarray(offset));
  }

  /** Its client has given it up: no copy reaches it any more, and it is to be taken out of the window. */
  #giveUp(map: MemoryMap): void {
    this.placement.copied.remove(map);
    if (map.windowOffset >= 0 || this.#announced.has(map)) {
      this.#records.note(map, MAP_FLAG.UNRELEASED);
      this.#unreleased.add(map);
    } else {
      this.#records.remove(map);
    }
  }

  /** It is the client's no more, and nowhere. */
  #forget(map: MemoryMap): void {
    this.#maps.delete(map);
    this.#records.remove(map);
  }

  /** What the answer is made of, before what it is about is gone. */
  #noteUnmapped({ maps, position }: UnmapRequest): void {
    const size = maps.reduce((sum, map) => sum + map.size, 0);
    if (position >= 0) this.#memory.pair("unmapped").write({ position, size });
  }

  // After a take-over.

  get announcement(): number {
    return this.#records.announcement;
  }

  /**
   * Goes on with maps that another bridge noted; `client` is theirs. They have a place in the window where it says so,
   * which may not be mapped any more, or not yet (`placement.freeUnmapped`). @throws StateError
   */
  restore(client: ClientMemory | undefined, restored: readonly RestoredMap[], announcement: number): void {
    this.#client = client;
    this.#records.announcement = announcement;
    for (const { map, slot, values } of restored) {
      const { flags, windowOffset } = values;
      this.#records.adopt(map, slot, flags);
      const isTold = values.announcement === announcement && (flags & MAP_FLAG.TOLD) !== 0;
      const isAnnounced = isTold && (flags & MAP_FLAG.ANNOUNCED) !== 0;
      if (flags & MAP_FLAG.IN_WINDOW) this.placement.restore(map, windowOffset);
      if (flags & MAP_FLAG.UNRELEASED) this.#unreleased.add(map);
      else this.#maps.add(map);
      if (isAnnounced) this.#announced.add(map);
      else if (isTold) this.#partial.add(map);
      if (isAnnounced && !(flags & MAP_FLAG.UNRELEASED)) this.placement.reach(map);
    }
  }
}

/** A device process that cannot be asked may have written everything. */
function allDirty({ size, dirty }: UnmapRequest): void {
  if (dirty) setBits(dirty.bitmap, 0, Math.ceil(size / dirty.pageSize) - 1);
}
