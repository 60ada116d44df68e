/**
 * The device's promises, waited for only so long. The driver VM must be able to rely on an unmap, and must not hang on
 * a device that does not finish: who waits in vain is told so, takes the memory away by force, and learns later when
 * the device is done after all.
 */
import { startDeadline } from "../../shared/deadline.js";
import { Errno, ProtocolError } from "../../shared/errors.js";
import { DMA_ANSWER_MS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";

/** The device did not finish in time. */
export class Overdue extends ProtocolError {
  constructor(
    what: string,
    /** Resolves when it has finished; never rejects. */
    readonly finished: Promise<void>,
  ) {
    super(`the device did not finish its ${what} in time`, Errno.ETIMEDOUT);
  }
}

export class Patience {
  readonly #overdue = new Set<Promise<void>>();
  readonly #deadlineMs: number;
  readonly #log: Log;

  constructor(deadlineMs: number, log: Log) {
    this.#deadlineMs = deadlineMs;
    this.#log = log;
  }

  /**
   * Waits for `work`, which never rejects, until the deadline; not at all while other work is overdue, lest deadlines
   * add up. `isFutile` is asked now and then: whether the work waits for the client, which waits for us.
   * @throws Overdue
   */
  async wait(what: string, work: Promise<unknown>, isFutile?: () => boolean): Promise<void> {
    const finished = work.then(() => {});
    const outcome = await this.#outcome(finished, isFutile);
    if (outcome === "done") return;
    // The client cannot do both: that is nobody's fault.
    if (outcome === "futile") throw new Overdue(what, finished);
    this.#log.warn(`the device did not finish its ${what} in time`);
    this.#overdue.add(finished);
    void finished.then(() => {
      this.#overdue.delete(finished);
      this.#log.info(`the device finished its ${what} after all`);
    });
    throw new Overdue(what, finished);
  }

  /** Resolves when nothing is overdue any more. */
  async idle(): Promise<void> {
    while (this.#overdue.size > 0) await Promise.all(this.#overdue);
  }

  #outcome(finished: Promise<void>, isFutile?: () => boolean): Promise<"done" | "late" | "futile"> {
    return new Promise((resolve) => {
      let stopLook = () => {};
      const end = (outcome: "done" | "late" | "futile") => {
        stop();
        stopLook();
        resolve(outcome);
      };
      const look = () => {
        if (isFutile?.()) end("futile");
        else stopLook = startDeadline(DMA_ANSWER_MS, look);
      };
      const stop = startDeadline(this.#overdue.size > 0 ? 0 : this.#deadlineMs, () =>
        end(isFutile?.() ? "futile" : "late"),
      );
      if (isFutile !== undefined) stopLook = startDeadline(DMA_ANSWER_MS, look);
      void finished.then(() => end("done"));
    });
  }
}
