/** Work that waits for other sides, done one piece after the other. */
import type { Log } from "../../../shared/log.js";

export class Serial {
  readonly #log: Log;
  #tail: Promise<unknown> = Promise.resolve();
  /** Work that is done once for all who want it before it begins. */
  readonly #queued = new Map<() => Promise<void>, Promise<void>>();

  constructor(log: Log) {
    this.#log = log;
  }

  /** Runs `work` when everything before it is done; settles as it does. */
  run(work: () => Promise<void>): Promise<void> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {});
    return done;
  }

  /** The same for work that nobody waits for, and that is not to fail. */
  background(work: () => Promise<void>): void {
    this.run(work).catch((error) => this.#log.error({ err: error }, "unexpected"));
  }

  /**
   * The same for work that may be wanted again and again while something in front of it waits: what waits already does
   * for that, too. Resolves when it is done.
   */
  once(work: () => Promise<void>): Promise<void> {
    let done = this.#queued.get(work);
    if (done === undefined) {
      done = this.run(() => {
        this.#queued.delete(work);
        return work();
      }).catch((error) => this.#log.error({ err: error }, "unexpected"));
      this.#queued.set(work, done);
    }
    return done;
  }
}
