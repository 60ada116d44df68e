/**
 * Register memory of a device process (docs/virtio-vfio-user.md, "Register memory"): a sealed memfd in the window, and mapped
 * here too, from which the session answers reads. No client ever has it, so it comes and goes with the process.
 */
import * as native from "../../native/index.js";
import { Errno, PeerGone, ProtocolError } from "../../shared/errors.js";
import { type RegisterArea, RegisterMemory } from "../../shared/vfio-user/register-memory.js";
import type { Window } from "../vhost-user/window.js";
import { createSealed } from "./memfd.js";
import type { Places } from "./places.js";

interface Placed {
  readonly memory: RegisterMemory;
  readonly areas: readonly RegisterArea[];
  readonly size: number;
  /** -1 while it is not in the window. */
  windowOffset: number;
}

export class Registers {
  readonly #window: Window;
  readonly #places: Places;
  #placed: Placed | undefined;

  constructor(window: Window, places: Places) {
    this.#window = window;
    this.#places = places;
  }

  /** Undefined when the device process has none. */
  get memory(): RegisterMemory | undefined {
    return this.#placed?.memory;
  }

  /** Returns the window offset. Rejects with ProtocolError, SystemError, or PeerGone when the device stops. */
  async allocate(size: number, areas: readonly RegisterArea[]): Promise<number> {
    if (this.#placed !== undefined) throw new ProtocolError("there is register memory", Errno.EEXIST);
    const windowOffset = this.#places.reserve(size, 0);
    if (windowOffset < 0) throw new ProtocolError("the window has no room for register memory", Errno.ENOSPC);
    let placed: Placed | undefined;
    try {
      const fd = createSealed("vfio-user-registers", size);
      try {
        const buffer = native.mapFile(fd, 0, size, native.PROT_READ | native.PROT_WRITE);
        placed = { memory: new RegisterMemory(buffer, areas), areas, size, windowOffset };
        this.#placed = placed;
        await this.#window.map(fd, 0, windowOffset, size);
      } finally {
        native.close(fd);
      }
    } catch (error) {
      // When the device stopped, the place was given back already.
      if (placed === undefined || placed.windowOffset >= 0) this.#places.release(windowOffset);
      if (this.#placed === placed) this.#placed = undefined;
      throw error;
    }
    if (placed.windowOffset < 0) throw new PeerGone("the device stopped");
    return windowOffset;
  }

  /** Whether all registers lie within regions of these sizes. */
  fitInto(regionSizes: readonly number[]): boolean {
    const areas = this.#placed?.areas ?? [];
    return areas.every(({ region, offset, size }) => offset + size <= (regionSizes[region] ?? 0));
  }

  /** The device stopped, and QEMU dropped all that was mapped. */
  forget(): void {
    const placed = this.#placed;
    this.#placed = undefined;
    if (placed === undefined || placed.windowOffset < 0) return;
    this.#places.release(placed.windowOffset);
    placed.windowOffset = -1;
  }

  /** Takes it out of the window; when this resolves, the device VM cannot reach it. Never rejects. */
  async takeBack(): Promise<void> {
    const placed = this.#placed;
    if (placed !== undefined && placed.windowOffset >= 0) await this.#places.unmap(placed.windowOffset, placed.size);
    this.forget();
  }
}
