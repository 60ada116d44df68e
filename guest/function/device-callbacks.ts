/**
 * The device's callbacks (`Device` in device.ts) as the framework makes them: its jobs are waited for along with its
 * own part, a callback that fails is the device's bug, is logged and goes no further, and nobody waits for one longer
 * than a deadline. The driver VM must be able to rely on an unmap, and must not hang on a device that does not finish:
 * whoever waits in vain gets DeadlineExceeded, takes the memory away by force, and learns later when the device has
 * finished after all.
 *
 * What cancellation means is in docs/decisions/016: a job cannot be ended from outside, so a reset aborts its signal,
 * and its DMA fails.
 */
import { startDeadline } from "../../shared/deadline.js";
import { DMA_ANSWER_MS, MAX_JOBS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { type Device, DmaError } from "../device.js";
import { DeadlineExceeded } from "../link/link.js";

/** What a register write starts and what takes time. */
export type Job = (signal: AbortSignal) => void | Promise<void>;

type Outcome = "done" | "late" | "futile";

export class DeviceCallbacks {
  readonly #device: Device;
  readonly #deadlineMs: number;
  readonly #answerMs: number;
  readonly #log: Log;
  readonly #jobs = new Set<Promise<void>>();
  /** From a pause on until the device is resumed; and until it has resumed. */
  #isPaused = false;
  #holdsJobs = false;
  /** Jobs that wait for that. */
  #heldJobs: Job[] = [];
  /** Aborted by the next reset. */
  #generation = new AbortController();
  #droppedJobs = 0;
  #failedJobs = 0;
  /** What exceeded its deadline and has not finished. */
  readonly #late = new Set<Promise<void>>();

  /** `answerMs`: how long a client that is asked for its memory may say nothing before it is not waited for. */
  constructor(device: Device, deadlineMs: number, log: Log, answerMs = DMA_ANSWER_MS) {
    this.#device = device;
    this.#deadlineMs = deadlineMs;
    this.#answerMs = answerMs;
    this.#log = log;
  }

  /** Starts a job now, up to its first `await`; or at the end of the pause. */
  run(job: Job): void {
    if (this.#jobs.size + this.#heldJobs.length >= MAX_JOBS) {
      this.#droppedJobs++;
      this.#log.warn({ dropped: this.#droppedJobs }, "too many jobs at once: one is dropped");
    } else if (this.#holdsJobs) {
      this.#heldJobs.push(job);
    } else {
      const running: Promise<void> = this.#guard(job).finally(() => this.#jobs.delete(running));
      this.#jobs.add(running);
    }
  }

  /** Jobs that wait for the end of the pause. */
  get heldJobs(): number {
    return this.#heldJobs.length;
  }

  /** Drops jobs that are held, and aborts those in flight. */
  abortJobs(): void {
    this.#heldJobs = [];
    this.#generation.abort(new Error("the function is being reset"));
    this.#generation = new AbortController();
  }

  /** Waits for the DMA in flight; at once where there is none. False when the device failed. */
  quiesce(): boolean | Promise<boolean> {
    const quiesced = this.#call("quiesce", () => this.#device.quiesce?.());
    return typeof quiesced === "boolean" && this.#jobs.size === 0 ? quiesced : this.#withJobs(quiesced);
  }

  /**
   * Resolves when the device does nothing by itself any more: no DMA, no interrupt, no change of its state; jobs wait
   * for `resume`. False when the device failed.
   */
  pause(): Promise<boolean> {
    this.#isPaused = this.#holdsJobs = true;
    const device = this.#device;
    const stop = () => (device.pause === undefined ? device.quiesce?.() : device.pause());
    return this.#withJobs(this.#call("pause", stop));
  }

  /** A reset ends a pause as well. False when the device failed. */
  async resume(): Promise<boolean> {
    if (!this.#isPaused) return true;
    this.#isPaused = false;
    const isResumed = await this.#call("resume", () => this.#device.resume?.());
    this.#holdsJobs = false;
    for (const job of this.#heldJobs.splice(0)) this.run(job);
    return isResumed;
  }

  /** The device's part of a reset, behind its jobs. */
  async reset(): Promise<void> {
    await Promise.all(this.#jobs);
    await this.#call("reset", () => this.#device.reset?.());
  }

  async close(): Promise<void> {
    await this.#call("close", () => this.#device.close?.());
  }

  /**
   * Waits for `work`, which never rejects, until the deadline; not at all while other work is late, lest deadlines add
   * up. `isFutile` is asked now and then: whether the work waits for the client, which waits for us.
   * @throws DeadlineExceeded
   */
  async wait(what: string, work: Promise<unknown>, isFutile?: () => boolean): Promise<void> {
    const finished = work.then(() => {});
    const outcome = await this.#outcome(finished, isFutile);
    if (outcome === "done") return;
    // The client cannot do both: that is nobody's fault.
    if (outcome === "late") {
      this.#log.warn(`the device did not finish its ${what} in time`);
      this.#late.add(finished);
      void finished.then(() => {
        this.#late.delete(finished);
        this.#log.info(`the device finished its ${what} after all`);
      });
    }
    throw new DeadlineExceeded(what, finished);
  }

  /** Whether `work` came to a good end before its deadline. */
  async inTime(what: string, work: boolean | Promise<boolean>, isFutile?: () => boolean): Promise<boolean> {
    try {
      const done = Promise.resolve(work);
      await this.wait(what, done, isFutile);
      return await done;
    } catch {
      return false;
    }
  }

  /** Resolves when nothing is late any more. */
  async lateWork(): Promise<void> {
    while (this.#late.size > 0) await Promise.all(this.#late);
  }

  inspectJobs(): unknown {
    const { size: running } = this.#jobs;
    const counts = { failed: this.#failedJobs, dropped: this.#droppedJobs };
    return { running, held: this.#heldJobs.length, paused: this.#holdsJobs, ...counts };
  }

  /** Runs a job. Never rejects. */
  async #guard(job: Job): Promise<void> {
    const { signal } = this.#generation;
    try {
      await job(signal);
    } catch (error) {
      // What a reset did to it is nobody's mistake.
      if (signal.aborted && (error instanceof DmaError || error === signal.reason)) return;
      this.#failedJobs++;
      const details = { err: error, failed: this.#failedJobs };
      if (error instanceof DmaError)
        this.#log.warn(details, "the driver VM gave an address that the device cannot reach");
      else this.#log.error(details, "a job of the device's failed");
    }
  }

  async #withJobs(done: boolean | Promise<boolean>): Promise<boolean> {
    const [isDone] = await Promise.all([done, ...this.#jobs]);
    return isDone;
  }

  /** Makes one of the callbacks. False when it failed; never rejects. */
  #call(what: string, callback: () => void | Promise<void>): boolean | Promise<boolean> {
    const failed = (error: unknown): false => {
      this.#log.error({ err: error }, `the device's ${what} failed`);
      return false;
    };
    try {
      const done = callback();
      return done === undefined ? true : Promise.resolve(done).then(() => true, failed);
    } catch (error) {
      return failed(error);
    }
  }

  #outcome(finished: Promise<void>, isFutile?: () => boolean): Promise<Outcome> {
    return new Promise((resolve) => {
      let stopChecks = () => {};
      const end = (outcome: Outcome) => {
        stop();
        stopChecks();
        resolve(outcome);
      };
      const check = () => {
        if (isFutile?.()) end("futile");
        else stopChecks = startDeadline(this.#answerMs, check);
      };
      const deadlineMs = this.#late.size > 0 ? 0 : this.#deadlineMs;
      const stop = startDeadline(deadlineMs, () => end(isFutile?.() ? "futile" : "late"));
      if (isFutile !== undefined) stopChecks = startDeadline(this.#answerMs, check);
      void finished.then(() => end("done"));
    });
  }
}
