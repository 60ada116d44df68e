/**
 * Polling the link's ring a little longer before sleeping. Where the device process has a CPU of its own, the bridge's
 * next message is often there within some tens of microseconds, and being woken for it costs as long again. Where it
 * has not, polling keeps the bridge from sending anything at all; so a poll that finds nothing makes the next ones
 * rarer.
 */

/** "adaptive": as long as it pays. "always": the process never sleeps, and takes all of a CPU. "never": at once. */
export type LinkPolling = "adaptive" | "always" | "never";

/** How long after the last message, in milliseconds. */
const POLL_MS = 0.05;
/** Sleeps between two rounds of polling, when all of them found nothing. */
const MAX_SLEEPS = 1024;

export class BusyPolling {
  readonly #polling: LinkPolling;
  readonly #now: () => number;
  #end = 0;
  #isPolling = false;
  /** Sleeps that come before the next round, and how many there were to be when the last one found nothing. */
  #left = 0;
  #sleeps = 0;

  /** `now`: milliseconds, with fractions. */
  constructor(polling: LinkPolling, now: () => number = () => performance.now()) {
    this.#polling = polling;
    this.#now = now;
  }

  /**
   * Whether to poll again, at the next turn of the event loop, instead of sleeping. `found`: messages came at this
   * turn.
   */
  continues(found: boolean): boolean {
    if (this.#polling !== "adaptive") return this.#polling === "always";
    if (found) {
      if (this.#isPolling) this.#sleeps = 0;
      else if (this.#left > 0) {
        this.#left--;
        return false;
      }
      this.#isPolling = true;
      this.#end = this.#now() + POLL_MS;
      return true;
    }
    if (!this.#isPolling) return false;
    if (this.#now() < this.#end) return true;
    this.#isPolling = false;
    this.#sleeps = Math.min(MAX_SLEEPS, Math.max(1, 2 * this.#sleeps));
    this.#left = this.#sleeps;
    return false;
  }
}
