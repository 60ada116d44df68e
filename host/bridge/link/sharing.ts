/**
 * What a device process shares with the client, as one thing: memory (region-memory.ts), eventfds (io-events.ts), and
 * the handles by which the process names them (replies.ts).
 */
import { ProtocolError } from "../../../shared/errors.js";
import { LinkCommand, MemoryAllocated } from "../../../shared/spec/link.js";
import { setU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary } from "../../../shared/vfio-user/backend.js";
import type { StateMemory } from "../state/state-memory.js";
import { handleBody, parseAllocateEvents, parseAllocateMemory } from "./bodies.js";
import { HandleTable } from "./handle-table.js";
import { IoEvents, type SavedEvents } from "./io-events.js";
import { RegionMemories, type RegionMemory, type SavedMemory } from "./region-memory.js";
import type { RequestChannel } from "./request-channel.js";
import type { WindowAllocation } from "./window-allocation.js";

/** Carries a request out and gives the reply's body. */
export type Allocation = () => Promise<Uint8Array<ArrayBuffer>>;

/** As the state keeps it. */
export interface SavedSharing {
  readonly hasClient: boolean;
  readonly lastHandle: number;
  readonly memories: readonly SavedMemory[];
  readonly events: SavedEvents;
}

export class Sharing {
  readonly handles: HandleTable;
  readonly memories: RegionMemories;
  readonly events: IoEvents;
  /** A client is there, which may have mapped what there is. */
  #hasClient = false;
  #lastHandle = 0;

  constructor(allocation: WindowAllocation, requests: RequestChannel, state: StateMemory) {
    // One numbering for both, since the device process tells them apart by it.
    const newHandle = () => ++this.#lastHandle;
    this.memories = new RegionMemories(allocation.window, allocation, state, newHandle);
    this.events = new IoEvents(requests, state.fds, newHandle);
    this.handles = new HandleTable(this.memories, this.events);
  }

  save(): SavedSharing {
    return {
      hasClient: this.#hasClient,
      lastHandle: this.#lastHandle,
      memories: this.memories.save(),
      events: this.events.save(),
    };
  }

  /** @throws StateError */
  restore({ hasClient, lastHandle, memories, events }: SavedSharing): void {
    this.#hasClient = hasClient;
    this.#lastHandle = lastHandle;
    this.memories.restore(memories);
    this.events.restore(events);
  }

  /** Reads ALLOCATE_MEMORY or ALLOCATE_EVENTS, whose body is data[offset, offset + length). @throws ProtocolError */
  parse(command: number, data: DataView, offset: number, length: number): Allocation {
    if (command === LinkCommand.ALLOCATE_MEMORY) {
      const { region, areas } = parseAllocateMemory(data, offset, length);
      return async () => memoryBody(await this.memories.allocate(region, areas, this.#hasClient));
    }
    const { region, count } = parseAllocateEvents(data, offset, length);
    return async () => handleBody(this.events.allocate(region, count));
  }

  /** What a device process was given by that request, with that body, it has not heard of: it gets it again. */
  withdraw(command: number, data: DataView): void {
    if (command === LinkCommand.ALLOCATE_MEMORY)
      this.memories.withdraw(parseAllocateMemory(data, 0, data.byteLength).region);
    if (command === LinkCommand.ALLOCATE_EVENTS)
      this.events.withdraw(parseAllocateEvents(data, 0, data.byteLength).region);
  }

  /** @throws ProtocolError when there is memory outside of these regions */
  checkAgainst({ regionSizes }: DeviceSummary): void {
    if (!this.memories.fitInto(regionSizes)) throw new ProtocolError("memory outside of its region");
  }

  connect(): void {
    this.#hasClient = true;
  }

  /** The client is gone; what a device process has is stale until `memories.renew`. */
  disconnect(): void {
    this.#hasClient = false;
    this.events.clientGone();
    this.memories.clientGone();
  }

  /** The device process is gone. */
  processGone(): void {
    this.events.forget(this.#hasClient);
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forget(): void {
    this.memories.forget(this.#hasClient);
  }

  /** Takes the memory out of the window. Never rejects. */
  takeOut(): Promise<void> {
    return this.memories.takeOut(this.#hasClient);
  }

  /** Closes all fds; the device has stopped. */
  close(): void {
    this.events.forget(false);
    this.memories.forget(false);
  }
}

/** The reply to ALLOCATE_MEMORY. */
function memoryBody({ handle, areas }: RegionMemory): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(MemoryAllocated.size + 8 * areas.length);
  const data = new DataView(body.buffer);
  MemoryAllocated.view(data).handle = handle;
  for (const [n, { windowOffset }] of areas.entries()) setU64(data, MemoryAllocated.size + 8 * n, windowOffset);
  return body;
}
