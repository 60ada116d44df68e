/**
 * Memory and eventfds of the device's that a client on the virtio link is given: the bridge makes them, maps the memory
 * into the window, and forwards the eventfds' signals; here are their handles (docs/virtio-vfio-user.md,
 * "ALLOCATE_MEMORY").
 */
import { inBounds, isAligned } from "../../../shared/bits.js";
import { ProtocolError, UserError } from "../../../shared/errors.js";
import { PAGE_SIZE } from "../../../shared/limits.js";
import { AllocateEvents, AllocateMemory, LinkCommand, MemoryAllocated, MemoryArea } from "../../../shared/spec/link.js";
import { getU64 } from "../../../shared/struct/struct.js";
import type { Area, IoEvents, SharedMemory, Window } from "../link.js";
import type { BridgeRequests } from "./requests.js";

export class VirtioSharing {
  readonly #requests: BridgeRequests;
  readonly #window: Window;
  /** By handle. */
  readonly #events = new Map<number, () => void>();
  /** Asks for all that was given, again. */
  readonly #again: (() => Promise<void>)[] = [];

  constructor(requests: BridgeRequests, window: Window) {
    this.#requests = requests;
    this.#window = window;
  }

  /** Rejects with UserError when the bridge does not give it. */
  async allocateMemory(region: number, areas: readonly Area[]): Promise<SharedMemory> {
    const body = Buffer.concat([
      AllocateMemory.encode({ region, areas: areas.length }),
      ...areas.map(({ offset, size }) => MemoryArea.encode({ offset, size })),
    ]);
    const reply = await this.#ask(LinkCommand.ALLOCATE_MEMORY, body, MemoryAllocated.size + 8 * areas.length);
    const offsets = (from: DataView) => areas.map((_, n) => getU64(from, MemoryAllocated.size + 8 * n));
    const windowOffsets = offsets(reply);
    const views = areas.map(({ size }, n) => this.#view(windowOffsets[n], size));
    const memory = { descriptor: MemoryAllocated.view(reply).handle, areas: views };
    this.#again.push(async () => {
      const next = await this.#ask(LinkCommand.ALLOCATE_MEMORY, body, MemoryAllocated.size + 8 * areas.length);
      // The window is empty after a reset, so what is asked for in the same order has the same places.
      if (offsets(next).some((offset, n) => offset !== windowOffsets[n])) {
        throw new UserError("the bridge puts the device's memory elsewhere than before");
      }
      memory.descriptor = MemoryAllocated.view(next).handle;
    });
    return memory;
  }

  /** Rejects with UserError when the bridge does not give them. */
  async allocateEvents(region: number, count: number, signalled: (index: number) => void): Promise<IoEvents> {
    const descriptors: number[] = [];
    const ask = async () => {
      const reply = await this.#ask(LinkCommand.ALLOCATE_EVENTS, AllocateEvents.encode({ region, count }), 4 * count);
      for (let index = 0; index < count; index++) {
        descriptors[index] = reply.getUint32(4 * index, true);
        this.#events.set(descriptors[index], () => signalled(index));
      }
    };
    await ask();
    this.#again.push(ask);
    return { descriptors };
  }

  /** After a reset of the device: the same memory and eventfds, by other handles. Rejects with UserError. */
  async restart(): Promise<void> {
    this.#events.clear();
    for (const ask of this.#again) await ask();
  }

  /** The client signalled an eventfd. @throws ProtocolError when it is none of ours */
  signalled(handle: number): void {
    const signalled = this.#events.get(handle);
    if (signalled === undefined) throw new ProtocolError(`an event of handle ${handle}`);
    signalled();
  }

  async #ask(command: number, body: Uint8Array, length: number): Promise<DataView> {
    let reply: Uint8Array;
    try {
      reply = await this.#requests.send(command, body);
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      throw new UserError(`the bridge does not give the device memory or eventfds for its clients: ${reason}`);
    }
    if (reply.length !== length)
      throw new UserError(`the bridge answers command ${command} with ${reply.length} bytes`);
    return new DataView(reply.buffer, reply.byteOffset, length);
  }

  #view(windowOffset: number, size: number): Uint8Array<ArrayBuffer> {
    const { pieceSize } = this.#window;
    const offset = windowOffset % pieceSize;
    const inWindow = inBounds(windowOffset, size, this.#window.size) && isAligned(windowOffset, PAGE_SIZE);
    if (!inWindow || !inBounds(offset, size, pieceSize)) {
      throw new UserError(`the bridge puts ${size} bytes of memory at window offset ${windowOffset}`);
    }
    return new Uint8Array(this.#window.piece((windowOffset - offset) / pieceSize), offset, size);
  }
}
