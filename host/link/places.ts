/**
 * Who has which place in the window, and where the client's DMA maps are. A map that cannot be there is no error: the device process reaches that
 * memory by DMA messages.
 */
import { PeerGone, ProtocolError } from "../../shared/errors.js";
import { WINDOW_PIECE_SIZE } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import type { MemoryMap } from "../../shared/vfio-user/backend.js";
import { WindowAllocator } from "../../shared/window-allocator.js";
import type { Window } from "../vhost-user/window.js";

export class Places {
  readonly #window: Window;
  readonly #log: Log;
  readonly #allocator: WindowAllocator;
  /** Window offsets that a device which did not let go may still use: zeros are there, and nothing else is put there. */
  readonly #kept: number[] = [];

  constructor(window: Window, log: Log) {
    this.#window = window;
    this.#log = log;
    this.#allocator = new WindowAllocator(window.size, WINDOW_PIECE_SIZE);
  }

  /** Puts a map into the window where that is possible, and sets its `windowOffset`. Rejects with PeerGone when the device stops. */
  async put(map: MemoryMap): Promise<void> {
    const { address, size, readable, writable, fd, fdOffset } = map;
    // QEMU does not enforce a read-only mapping, so what is not read-write stays outside.
    if (fd < 0 || !readable || !writable || !this.#window.permitted) return;
    const offset = this.#allocator.allocate(size, fdOffset);
    if (offset < 0) {
      this.#log.warn({ address, size }, "the window is full: DMA by messages");
      return;
    }
    map.windowOffset = offset;
    try {
      await this.#window.map(fd, fdOffset, offset, size);
    } catch (error) {
      this.#forget(map);
      if (!(error instanceof ProtocolError)) throw error;
      this.#log.warn({ address, size }, `${error.message}: DMA by messages`);
    }
  }

  /**
   * Takes maps out of the window; when this resolves, the device VM cannot reach them. With `keep` nothing else is put at
   * their places until `releaseKept`. Never rejects.
   */
  async takeBack(maps: Iterable<MemoryMap>, keep = false): Promise<void> {
    for (const map of maps) {
      if (map.windowOffset < 0) continue;
      await this.unmap(map.windowOffset, map.size);
      if (keep && this.#window.permitted && map.windowOffset >= 0) {
        this.#kept.push(map.windowOffset);
        map.windowOffset = -1;
      } else {
        this.#forget(map);
      }
    }
  }

  /** The device lets go of everything that it had. */
  releaseKept(): void {
    for (const offset of this.#kept.splice(0)) this.#allocator.free(offset);
  }

  /** Takes a place for memory that is no DMA map; -1 when the window is full. */
  reserve(size: number, fdOffset: number): number {
    return this.#allocator.allocate(size, fdOffset);
  }

  /** Gives back what `reserve` took. */
  release(windowOffset: number): void {
    this.#allocator.free(windowOffset);
  }

  /** Takes what is mapped at a place out of the window. Never rejects. */
  async unmap(windowOffset: number, size: number): Promise<void> {
    try {
      await this.#window.unmap(windowOffset, size);
    } catch (error) {
      // The device stopped meanwhile, and with it all maps went.
      if (!(error instanceof PeerGone)) this.#log.error({ err: error }, "a map stays in the window");
    }
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forgetAll(maps: Iterable<MemoryMap>): void {
    for (const map of maps) this.#forget(map);
    this.releaseKept();
  }

  #forget(map: MemoryMap): void {
    if (map.windowOffset >= 0) this.#allocator.free(map.windowOffset);
    map.windowOffset = -1;
  }
}
