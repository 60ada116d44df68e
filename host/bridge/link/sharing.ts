/**
 * What a device process shares with the client, as one thing: memory (region-memory.ts), eventfds (io-events.ts), and
 * the handles by which the process names them (handles.ts).
 */
import { ProtocolError } from "../../../shared/errors.js";
import { LinkCommand, MemoryAllocated } from "../../../shared/spec/link.js";
import { setU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary } from "../../../shared/vfio-user/backend.js";
import type { Window } from "../vhost-user/window.js";
import { handleBody } from "./bodies.js";
import { parseAllocateEvents, parseAllocateMemory } from "./checks.js";
import { HandleTable } from "./handles.js";
import { IoEvents } from "./io-events.js";
import type { Places } from "./places.js";
import { RegionMemories, type RegionMemory } from "./region-memory.js";

/**
 * Carries a request out and gives the reply's body. `hasClient`: a client is there, which may have mapped what there
 * is.
 */
export type Allocation = (hasClient: boolean) => Promise<Uint8Array<ArrayBuffer>>;

export class Sharing {
  readonly #memories: RegionMemories;
  readonly #events: IoEvents;
  readonly #handles: HandleTable;
  #lastHandle = 0;

  /** `forward` sends IO_EVENT; it resolves with the reply, and rejects when none comes. */
  constructor(window: Window, places: Places, forward: (handle: number) => Promise<void>) {
    // One numbering for both, since the device process tells them apart by it.
    const newHandle = () => ++this.#lastHandle;
    this.#memories = new RegionMemories(window, places, newHandle);
    this.#events = new IoEvents(forward, newHandle);
    this.#handles = new HandleTable(this.#memories, this.#events);
  }

  /** Signals of the client's that were forwarded so far. */
  get forwarded(): number {
    return this.#events.forwarded;
  }

  /** Whether the device process has memory of a client that is gone. */
  get stale(): boolean {
    return this.#memories.stale;
  }

  /** Reads ALLOCATE_MEMORY or ALLOCATE_EVENTS, whose body is data[offset, offset + length). @throws ProtocolError */
  parse(command: number, data: DataView, offset: number, length: number): Allocation {
    if (command === LinkCommand.ALLOCATE_MEMORY) {
      const { region, areas } = parseAllocateMemory(data, offset, length);
      return async (hasClient) => memoryBody(await this.#memories.allocate(region, areas, hasClient));
    }
    const { region, count } = parseAllocateEvents(data, offset, length);
    return async () => handleBody(this.#events.allocate(region, count));
  }

  /** @throws ProtocolError when there is memory outside of these regions */
  checkAgainst({ regionSizes }: DeviceSummary): void {
    if (!this.#memories.fitInto(regionSizes)) throw new ProtocolError("memory outside of its region");
  }

  /** The fds that the handles of a reply stand for; see HandleTable. @throws ProtocolError */
  resolve(command: number, body: Uint8Array<ArrayBuffer>, handles: readonly number[], device: DeviceSummary): number[] {
    return this.#handles.resolve(command, body, handles, device);
  }

  /** The device process has the client: what the client signals is forwarded. */
  start(): void {
    this.#events.start();
  }

  /** What the client signals waits until `start`. */
  stop(): void {
    this.#events.stop();
  }

  /** The device process no longer answers. */
  left(hasClient: boolean): void {
    this.#events.forget(hasClient);
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forget(hasClient: boolean): void {
    this.#memories.forget(hasClient);
  }

  /** Takes the memory out of the window. Never rejects. */
  takeBack(hasClient: boolean): Promise<void> {
    return this.#memories.takeBack(hasClient);
  }

  /** The client is gone; what a device process has is stale until `renew`. */
  clientGone(): void {
    this.#events.clientGone();
    this.#memories.clientGone();
  }

  /** Puts fresh memory in the places of what is stale. Rejects with ProtocolError, SystemError or PeerGone. */
  renew(): Promise<void> {
    return this.#memories.renew();
  }

  /** Closes all fds; the device has stopped. */
  close(): void {
    this.#events.forget(false);
    this.#memories.forget(false);
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
