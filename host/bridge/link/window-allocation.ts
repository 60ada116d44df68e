/** Which parts of the window are in use, for DMA maps and for memory that the device process shares alike. */
import { PeerGone } from "../../../shared/errors.js";
import { WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { WindowAllocator } from "../../../shared/window-allocator.js";
import type { ControlState } from "../state/control-state.js";
import { StateError } from "../state/state-bytes.js";
import type { Window } from "../vhost-user/window.js";

export interface SavedAllocation {
  readonly kept: readonly { readonly offset: number; readonly size: number }[];
}

export class WindowAllocation {
  readonly window: Window;
  readonly #log: Log;
  readonly #allocator: WindowAllocator;
  /**
   * Window offsets that a device process which did not release them may still use, or that QEMU has not given back:
   * nothing else is put there.
   */
  readonly #kept: { readonly offset: number; readonly size: number }[] = [];
  readonly #control: ControlState;

  constructor(window: Window, log: Log, control: ControlState) {
    this.window = window;
    this.#log = log;
    this.#control = control;
    this.#allocator = new WindowAllocator(window.size, WINDOW_PIECE_SIZE);
  }

  /** Parts in use. */
  get count(): number {
    return this.#allocator.count;
  }

  /** Finds room for part of a file, whose pages have that size: returns the window offset, or -1 when there is none. */
  reserve(size: number, fdOffset: number, pageSize?: number): number {
    return this.#allocator.allocate(size, fdOffset, pageSize);
  }

  /** Gives back what `reserve` took. */
  release(windowOffset: number): void {
    this.#allocator.free(windowOffset);
  }

  /** Gives it back by `releaseKept` only. */
  keep(offset: number, size: number): void {
    this.#kept.push({ offset, size });
    this.#control.touch();
  }

  save(): SavedAllocation {
    return { kept: [...this.#kept] };
  }

  /** @throws StateError */
  restore({ kept }: SavedAllocation): void {
    for (const { offset, size } of kept) {
      this.take(offset, size);
      this.keep(offset, size);
    }
  }

  /** A place that another bridge reserved. @throws StateError */
  take(offset: number, size: number): void {
    if (!this.#allocator.take(offset, size)) throw new StateError(`two things are at ${offset} of the window`);
  }

  /** The device process has released everything that it had. */
  releaseKept(): void {
    for (const { offset } of this.#kept.splice(0)) this.#allocator.free(offset);
    this.#control.touch();
  }

  /** Takes what is mapped there out of the window; whether it is out. Never rejects. */
  async unmap(windowOffset: number, size: number): Promise<boolean> {
    try {
      await this.window.unmap(windowOffset, size);
      return true;
    } catch (error) {
      // The device stopped meanwhile, and with it all maps went.
      if (error instanceof PeerGone) return true;
      this.#log.error({ err: error }, "a map stays in the window");
      return false;
    }
  }
}
