/** Work that waits for other sides, done one piece after the other. */
import type { Log } from "../../shared/log.js";

export class Serial {
  readonly #log: Log;
  #tail: Promise<unknown> = Promise.resolve();

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
}
