/** DMA maps in the state: what the next bridge has to know of each to go on with it. */

import type { MemoryMap } from "../../../shared/vfio-user/backend.js";
import type { FdKeeper } from "../state/fd-keeper.js";
import { MAP_FLAG } from "../state/layout.js";
import type { StateMemory } from "../state/state-memory.js";
import type { Slots, SlotValues } from "../state/tables.js";

export type SavedMap = Required<SlotValues<"maps">>;

interface Place {
  slot: number | undefined;
  flags: number;
}

export class MapRecords {
  /** Which life of the device process it is that is told of maps. */
  announcement = 1;
  readonly #fds: FdKeeper;
  readonly #slots: Slots<"maps">;
  readonly #state: StateMemory;
  readonly #places = new Map<MemoryMap, Place>();

  constructor(state: StateMemory) {
    this.#state = state;
    this.#fds = state.fds;
    this.#slots = state.slots("maps");
  }

  has(map: MemoryMap, flag: number): boolean {
    return ((this.#places.get(map)?.flags ?? 0) & flag) !== 0;
  }

  /** Notes a map; nothing happens where it is noted. */
  add(map: MemoryMap): void {
    if (this.#places.has(map)) return;
    const flags = flagsOf(map);
    const slot = this.#slots.add(this.#values(map, flags));
    if (slot === undefined) this.#state.countLost();
    this.#places.set(map, { slot, flags });
  }

  /** Sets and clears flags of MAP_FLAG, and notes where in the window it is. Nothing happens where it is not noted. */
  note(map: MemoryMap, set: number, clear = 0): void {
    const place = this.#places.get(map);
    if (place?.slot === undefined) return;
    place.flags = (place.flags & ~clear) | set;
    place.slot = this.#slots.replace(place.slot, this.#values(map, place.flags)) ?? place.slot;
  }

  remove(map: MemoryMap): void {
    const slot = this.#places.get(map)?.slot;
    this.#places.delete(map);
    if (slot !== undefined) this.#slots.remove(slot);
  }

  /** One that another bridge noted. */
  adopt(map: MemoryMap, slot: number, flags: number): void {
    this.#places.set(map, { slot, flags });
  }

  #values(map: MemoryMap, flags: number): SlotValues<"maps"> {
    const { address, size, fd, fdOffset, backed, pageSize, position, windowOffset } = map;
    const { announcement } = this;
    const where = { fdOffset, windowOffset: Math.max(0, windowOffset) };
    const id = fd < 0 || flags & MAP_FLAG.UNRELEASED ? 0 : this.#fds.idOf(fd);
    return { flags, address, size, ...where, backed, fd: id, pageSize, position, announcement };
  }
}

function flagsOf({ readable, writable, isShareable }: MemoryMap): number {
  const { READ, WRITE, SHAREABLE } = MAP_FLAG;
  return (readable ? READ : 0) | (writable ? WRITE : 0) | (isShareable ? SHAREABLE : 0);
}
