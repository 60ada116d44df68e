/**
 * Counts what uses driver-VM memory or the storage, and says when everything that was in flight at some moment has
 * ended, also when new work keeps coming.
 */

/** Work that began between two calls of `drained`. */
export interface WaitGroup {
  active: number;
  done: (() => void) | undefined;
}

export class InFlight {
  count = 0;
  #busySince = 0;
  #busyMs = 0;
  #current: WaitGroup = { active: 0, done: undefined };
  readonly #pending = new Set<Promise<void>>();

  /** Work begins; give the result to `end`. */
  begin(): WaitGroup {
    if (this.count++ === 0) this.#busySince = performance.now();
    this.#current.active++;
    return this.#current;
  }

  end(group: WaitGroup): void {
    if (--this.count === 0) this.#busyMs += performance.now() - this.#busySince;
    if (--group.active === 0) group.done?.();
  }

  /** Milliseconds in which there was work, up to the last time that there was none. */
  get busyMs(): number {
    return this.#busyMs;
  }

  /** Resolves when all work that is in flight now has ended. */
  async drained(): Promise<void> {
    const group = this.#current;
    if (group.active > 0) {
      this.#current = { active: 0, done: undefined };
      const ended = new Promise<void>((resolve) => {
        group.done = () => {
          this.#pending.delete(ended);
          resolve();
        };
      });
      this.#pending.add(ended);
    }
    await Promise.all(this.#pending);
  }
}
