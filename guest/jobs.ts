/**
 * A device's work under way: what a register write starts and what takes time. Reset, quiesce and pause wait for it here, so
 * that an author need not keep a list. Left out: ending a job from outside; a job ends by itself, as its DMA does.
 */

import { isPowerOfTwo } from "../shared/bits.js";
import { MAX_JOBS } from "../shared/limits.js";
import type { Log } from "../shared/log.js";
import { DmaError } from "./device.js";

export type Job = () => void | Promise<void>;

export class Jobs {
  readonly #running = new Set<Promise<void>>();
  /** Jobs that wait for the end of a pause. */
  #held: Job[] = [];
  #paused = false;
  #resetting = false;
  #dropped = 0;
  #failed = 0;

  constructor(readonly log: Log) {}

  /** Jobs that wait for the end of the pause. */
  get held(): number {
    return this.#held.length;
  }

  /** Starts a job now, up to its first `await`; or at the end of the pause. */
  run(job: Job): void {
    if (this.#resetting) return;
    if (this.#running.size + this.#held.length >= MAX_JOBS) {
      this.#dropped++;
      if (isPowerOfTwo(this.#dropped))
        this.log.warn({ dropped: this.#dropped }, "too many jobs at once: one is dropped");
    } else if (this.#paused) {
      this.#held.push(job);
    } else {
      const running: Promise<void> = this.#guard(job).finally(() => this.#running.delete(running));
      this.#running.add(running);
    }
  }

  /** No job is under way. */
  get idle(): boolean {
    return this.#running.size === 0;
  }

  /** Resolves when all jobs that are under way now have ended. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
  }

  /** Resolves when no job is under way; from now on new ones wait for `resume`. */
  async pause(): Promise<void> {
    this.#paused = true;
    await this.settled();
  }

  resume(): void {
    this.#paused = false;
    for (const job of this.#held.splice(0)) this.run(job);
  }

  /** Drops what is held, waits for what is under way, and lets nothing new begin until `power` has resolved. */
  async reset(power: () => Promise<void>): Promise<void> {
    this.#resetting = true;
    this.#held = [];
    try {
      await this.settled();
      await power();
    } finally {
      this.#resetting = false;
    }
  }

  inspect(): unknown {
    const { size: running } = this.#running;
    return { running, held: this.#held.length, paused: this.#paused, failed: this.#failed, dropped: this.#dropped };
  }

  /** Never rejects. What repeats itself is logged less and less often: a driver VM must not fill the log. */
  async #guard(job: Job): Promise<void> {
    try {
      await job();
    } catch (error) {
      this.#failed++;
      if (!isPowerOfTwo(this.#failed)) return;
      const details = { err: error, failed: this.#failed };
      if (error instanceof DmaError)
        this.log.warn(details, "the driver VM gave an address that the device cannot reach");
      else this.log.error(details, "a job of the device's failed");
    }
  }
}
