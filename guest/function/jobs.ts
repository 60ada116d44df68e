/**
 * A device's work in flight: what a register write starts and what takes time. Reset, quiesce and pause wait for it
 * here, so that an author need not keep a list. A reset cannot end a job from outside: it aborts the job's signal, and
 * DMA fails.
 */

import { MAX_JOBS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { DmaError } from "../device.js";

export type Job = (signal: AbortSignal) => void | Promise<void>;

export class Jobs {
  readonly #running = new Set<Promise<void>>();
  /** Jobs that wait for the end of a pause. */
  #held: Job[] = [];
  #paused = false;
  /** Aborted by the next reset. */
  #generation = new AbortController();
  #dropped = 0;
  #failed = 0;

  constructor(readonly log: Log) {}

  /** Jobs that wait for the end of the pause. */
  get held(): number {
    return this.#held.length;
  }

  /** Starts a job now, up to its first `await`; or at the end of the pause. */
  run(job: Job): void {
    if (this.#running.size + this.#held.length >= MAX_JOBS) {
      this.#dropped++;
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

  /** Drops what is held, and aborts what is in flight. */
  abort(): void {
    this.#held = [];
    this.#generation.abort(new Error("the function is being reset"));
    this.#generation = new AbortController();
  }

  inspect(): unknown {
    const { size: running } = this.#running;
    return { running, held: this.#held.length, paused: this.#paused, failed: this.#failed, dropped: this.#dropped };
  }

  /** Never rejects. */
  async #guard(job: Job): Promise<void> {
    const { signal } = this.#generation;
    try {
      await job(signal);
    } catch (error) {
      // What a reset did to it is nobody's mistake.
      if (signal.aborted && (error instanceof DmaError || error === signal.reason)) return;
      this.#failed++;
      const details = { err: error, failed: this.#failed };
      if (error instanceof DmaError)
        this.log.warn(details, "the driver VM gave an address that the device cannot reach");
      else this.log.error(details, "a job of the device's failed");
    }
  }
}
