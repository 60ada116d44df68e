/**
 * Looking at the link's ring a little longer before sleeping. Where the device process has a CPU of its own, the
 * bridge's next message is often there within some tens of microseconds, and being woken for it costs as long again.
 * Where it has not, looking keeps the bridge from sending anything at all; so a look that finds nothing makes the next
 * ones rarer.
 */

/** "adaptive": as long as it pays. "always": the process never sleeps, and takes all of a CPU. "never": at once. */
export type LinkPolling = "adaptive" | "always" | "never";

/** How long after the last message, in milliseconds. */
const LOOK_MS = 0.05;
/** Sleeps between two looks, when all of them found nothing. */
const MAX_PAUSE = 1024;

export class Looking {
  readonly #polling: LinkPolling;
  readonly #now: () => number;
  #end = 0;
  #isLooking = false;
  /** Sleeps that come before the next look, and how many it was to be when the last one found nothing. */
  #left = 0;
  #pause = 0;

  /** `now`: milliseconds, with fractions. */
  constructor(polling: LinkPolling, now: () => number = () => performance.now()) {
    this.#polling = polling;
    this.#now = now;
  }

  /**
   * Whether to look again, at the next turn of the event loop, instead of sleeping. `found`: messages came at this
   * turn.
   */
  goesOn(found: boolean): boolean {
    if (this.#polling !== "adaptive") return this.#polling === "always";
    if (found) {
      if (this.#isLooking) this.#pause = 0;
      else if (this.#left > 0) {
        this.#left--;
        return false;
      }
      this.#isLooking = true;
      this.#end = this.#now() + LOOK_MS;
      return true;
    }
    if (!this.#isLooking) return false;
    if (this.#now() < this.#end) return true;
    this.#isLooking = false;
    this.#pause = Math.min(MAX_PAUSE, Math.max(1, 2 * this.#pause));
    this.#left = this.#pause;
    return false;
  }
}
