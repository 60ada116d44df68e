/**
 * What belongs together of the I/O of all disks: requests of one go, which are submitted to a disk's threads by one
 * call, and what is to be done when all that was completed together has been handled.
 */

/** A disk with requests to submit. */
interface Submitter {
  submit(): void;
}

class IoBatch {
  #corks = 0;
  readonly #noted: Submitter[] = [];
  #completing = 0;
  /** The first `#deferred` are to be called. An array that is made shorter would be allocated again. */
  readonly #afterwards: (() => void)[] = [];
  #deferred = 0;

  /** What is asked for from now on may wait for `uncork`. Pairs may be nested. */
  cork(): void {
    this.#corks++;
  }

  uncork(): void {
    if (--this.#corks > 0) return;
    while (this.#noted.length > 0) this.#noted.pop()?.submit();
  }

  /** Calls `callback` soon: when all that was completed together is handled, or else from the event loop. */
  defer(callback: () => void): void {
    if (this.#completing > 0) this.#afterwards[this.#deferred++] = callback;
    else setImmediate(callback);
  }

  /** Has requests submitted: at once, or by `uncork`. Once for each of its batches. */
  note(submitter: Submitter): void {
    if (this.#corks > 0) this.#noted.push(submitter);
    else submitter.submit();
  }

  /** Handles, by `work`, what was completed together. */
  complete(work: () => void): void {
    this.cork();
    this.#completing++;
    try {
      work();
    } finally {
      this.#completing--;
      try {
        this.#callDeferred();
      } finally {
        this.uncork();
      }
    }
  }

  #callDeferred(): void {
    const count = this.#deferred;
    this.#deferred = 0;
    for (let n = 0; n < count; n++) this.#afterwards[n]();
  }
}

/** The process's. */
export const ioBatch = new IoBatch();
