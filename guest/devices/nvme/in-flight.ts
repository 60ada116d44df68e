/**
 * Counts what uses driver-VM memory or the storage, and tells when everything that was under way at some moment has
 * ended, also when new work keeps coming.
 */

/** Work that began in the same span between two calls of `drained`. */
export interface Epoch {
  active: number;
  end: (() => void) | undefined;
}

export class InFlight {
  /** All work under way. */
  count = 0;
  #busySince = 0;
  #busyMs = 0;
  #current: Epoch = { active: 0, end: undefined };
  readonly #ending = new Set<Promise<void>>();

  /** Work begins; give the result to `end`. */
  begin(): Epoch {
    if (this.count++ === 0) this.#busySince = performance.now();
    this.#current.active++;
    return this.#current;
  }

  end(epoch: Epoch): void {
    if (--this.count === 0) this.#busyMs += performance.now() - this.#busySince;
    if (--epoch.active === 0) epoch.end?.();
  }

  /** Milliseconds in which there was work, up to the last time that there was none. */
  get busyMs(): number {
    return this.#busyMs;
  }

  /** Resolves when all work that is under way now has ended. */
  async drained(): Promise<void> {
    const epoch = this.#current;
    if (epoch.active > 0) {
      this.#current = { active: 0, end: undefined };
      const ended = new Promise<void>((resolve) => {
        epoch.end = () => {
          this.#ending.delete(ended);
          resolve();
        };
      });
      this.#ending.add(ended);
    }
    await Promise.all(this.#ending);
  }
}
