/**
 * What belongs together of the I/O of all disks: requests of one go, which go to a disk's threads by one call, and what
 * is to be done when all that ended together was dealt with.
 */

/** A disk with requests to submit. */
interface Submitter {
  submit(): void;
}

export class IoBatch {
  #corks = 0;
  readonly #noted: Submitter[] = [];
  #ending = 0;
  /** The first `#deferred` are to be called. An array that is made shorter would be made anew. */
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

  /** Calls `callback` soon: when all that ended together is dealt with, or else in a turn of the event loop. */
  defer(callback: () => void): void {
    if (this.#ending > 0) this.#afterwards[this.#deferred++] = callback;
    else setImmediate(callback);
  }

  /** Has requests submitted: at once, or by `uncork`. Once for each of its batches. */
  note(submitter: Submitter): void {
    if (this.#corks > 0) this.#noted.push(submitter);
    else submitter.submit();
  }

  /** Deals with what ended together. */
  end(work: () => void): void {
    this.cork();
    this.#ending++;
    try {
      work();
    } finally {
      this.#ending--;
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
