/**
 * Who has which place in the window, and where the client's DMA maps are: in the window; or, where that cannot be, or
 * the device process wants to have none of them, within reach of the copy queue. A map that can be neither is no error:
 * the device process reaches that memory by DMA messages.
 */

import { formatAddress } from "../../../shared/address.js";
import { CopiedMemory } from "../../../shared/copied-memory.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_WINDOW_MAPS, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import type { MemoryMap } from "../../../shared/vfio-user/backend.js";
import { WindowAllocator } from "../../../shared/window-allocator.js";
import type { Window } from "../vhost-user/window.js";

/** Unmaps that wait in the window's queue at once. */
const UNMAPS_AT_ONCE = 256;

export class Places {
  /** What the copy queue reaches. */
  readonly copied: CopiedMemory;
  readonly #window: Window;
  readonly #log: Log;
  readonly #allocator: WindowAllocator;
  /** There was no room for the last map; memory could not be in the window, being unsealed: each was logged. */
  #isFull = false;
  #isUnsealed = false;
  /**
   * Window offsets that a device which did not let go may still use, or that QEMU has not given back: nothing else is
   * put there.
   */
  readonly #kept: number[] = [];

  constructor(window: Window, log: Log) {
    this.#window = window;
    this.#log = log;
    this.copied = new CopiedMemory(log);
    this.#allocator = new WindowAllocator(window.size, WINDOW_PIECE_SIZE);
  }

  /**
   * Puts a map into the window as far as that is possible, and sets its `windowOffset`; the rest, or all for a device
   * process that is `isolated`, within reach of the copy queue. Rejects with PeerGone when the device stops.
   */
  async put(map: MemoryMap, isolated: boolean): Promise<void> {
    if (!isolated) await this.#putIntoWindow(map);
    const { begin, end } = map.windowPart;
    if (map.windowOffset >= 0 && end - begin === map.size) return;
    this.copied.put(map);
    if (isolated || map.isShareable || !map.writable || map.fd < 0 || this.#isUnsealed) return;
    this.#isUnsealed = true;
    this.#log.warn(
      { address: map.address, size: map.size },
      "the driver VM's memory can be shrunk by its owner, so each DMA is copied: use memory-backend-memfd (with share=on), " +
        "whose memory is sealed, or trust it by --trust-unsealed-memory",
    );
  }

  async #putIntoWindow(map: MemoryMap): Promise<void> {
    const { readable, writable, fd, fdOffset, isShareable, pageSize } = map;
    const address = formatAddress(map.address);
    const { begin, end } = map.windowPart;
    const size = end - begin;
    // QEMU does not enforce a read-only mapping, so what is not read-write stays outside.
    if (fd < 0 || !isShareable || !readable || !writable || size === 0 || !this.#window.permitted) return;
    const hasRoom = this.#allocator.count < MAX_WINDOW_MAPS;
    const offset = hasRoom ? this.#allocator.allocate(size, fdOffset + begin, pageSize) : -1;
    if (offset < 0) {
      if (!this.#isFull) this.#log.warn({ address, size }, "the window is full: DMA by copies");
      this.#isFull = true;
      return;
    }
    map.windowOffset = offset;
    try {
      await this.#window.map(fd, fdOffset + begin, offset, size);
    } catch (error) {
      if (error instanceof ProtocolError && error.errno === Errno.ETIMEDOUT) this.#keep(map);
      else this.#forget(map);
      if (!(error instanceof ProtocolError)) throw error;
      this.#log.warn({ address, size, reason: error.message }, "not mapped in the window: DMA by copies");
    }
  }

  /**
   * Takes maps out of reach; when this resolves, the device VM cannot get at them. With `keep` nothing else is put at
   * their places until `releaseKept`. Never rejects.
   */
  async takeBack(maps: Iterable<MemoryMap>, keep = false): Promise<void> {
    const inWindow: MemoryMap[] = [];
    for (const map of maps) {
      this.copied.remove(map);
      if (map.windowOffset >= 0) inWindow.push(map);
    }
    // Several in flight: the reply to one may prove that the one before it is committed.
    for (let first = 0; first < inWindow.length; first += UNMAPS_AT_ONCE) {
      await Promise.all(inWindow.slice(first, first + UNMAPS_AT_ONCE).map((map) => this.#takeOut(map, keep)));
    }
  }

  async #takeOut(map: MemoryMap, keep: boolean): Promise<void> {
    const { begin, end } = map.windowPart;
    const isOut = await this.unmap(map.windowOffset, end - begin);
    if ((keep || !isOut) && this.#window.permitted && map.windowOffset >= 0) this.#keep(map);
    else this.#forget(map);
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

  /** Takes what is mapped at a place out of the window; whether it is out. Never rejects. */
  async unmap(windowOffset: number, size: number): Promise<boolean> {
    try {
      await this.#window.unmap(windowOffset, size);
      return true;
    } catch (error) {
      // The device stopped meanwhile, and with it all maps went.
      if (error instanceof PeerGone) return true;
      this.#log.error({ err: error }, "a map stays in the window");
      return false;
    }
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forgetAll(maps: Iterable<MemoryMap>): void {
    for (const map of maps) {
      this.copied.remove(map);
      this.#forget(map);
    }
    this.releaseKept();
  }

  /** The bridge ends. */
  close(): void {
    this.copied.close();
  }

  #keep(map: MemoryMap): void {
    this.#kept.push(map.windowOffset);
    map.windowOffset = -1;
  }

  #forget(map: MemoryMap): void {
    if (map.windowOffset >= 0) {
      this.#allocator.free(map.windowOffset);
      this.#isFull = false;
    }
    map.windowOffset = -1;
  }
}
