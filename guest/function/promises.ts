/**
 * What the device promises of itself (`Device` in device.ts), as the framework asks for it: its jobs are waited for
 * along with its own part, and a promise that fails is its bug, is logged, and goes no further. Nothing here rejects.
 */
import type { Log } from "../../shared/log.js";
import type { Device } from "../device.js";
import type { Jobs } from "./jobs.js";
import type { Patience } from "./patience.js";

export class DevicePromises {
  readonly #device: Device;
  readonly #jobs: Jobs;
  readonly #patience: Patience;
  readonly #log: Log;
  #paused = false;

  constructor(device: Device, jobs: Jobs, patience: Patience, log: Log) {
    this.#device = device;
    this.#jobs = jobs;
    this.#patience = patience;
    this.#log = log;
  }

  /**
   * Resolves when the device does nothing by itself any more: no DMA, no interrupt, no change of its state. False when
   * the device failed; never rejects.
   */
  async pause(): Promise<boolean> {
    this.#paused = true;
    const device = this.#device;
    const stop = () => (device.pause === undefined ? device.quiesce?.() : device.pause());
    const [, isPaused] = await Promise.all([this.#jobs.pause(), this.#keep("pause", stop)]);
    return isPaused;
  }

  /** A reset ends a pause as well. False when the device failed. */
  async resume(): Promise<boolean> {
    if (!this.#paused) return true;
    this.#paused = false;
    const isResumed = await this.#keep("resume", () => this.#device.resume?.());
    this.#jobs.resume();
    return isResumed;
  }

  /** The device's part of a reset, behind its jobs; `first` comes between the two. */
  async reset(first: () => void): Promise<void> {
    await this.#jobs.settled();
    first();
    await this.#keep("reset", () => this.#device.reset?.());
  }

  async close(): Promise<void> {
    await this.#keep("close", () => this.#device.close?.());
  }

  /** Whether `work` came to a good end before its deadline. */
  async inTime(what: string, work: boolean | Promise<boolean>, isFutile?: () => boolean): Promise<boolean> {
    try {
      const done = Promise.resolve(work);
      await this.#patience.wait(what, done, isFutile);
      return await done;
    } catch {
      return false;
    }
  }

  /** Waits for the DMA that is under way; at once where there is none. False when the device failed. */
  quiesce(): boolean | Promise<boolean> {
    const quiesced = this.#keep("quiesce", () => this.#device.quiesce?.());
    if (typeof quiesced === "boolean" && this.#jobs.idle) return quiesced;
    return this.#both(quiesced);
  }

  async #both(quiesced: boolean | Promise<boolean>): Promise<boolean> {
    const [, isQuiet] = await Promise.all([this.#jobs.settled(), quiesced]);
    return isQuiet;
  }

  /** Keeps one of the device's promises; a failure (false) is the device's bug, is logged, and goes no further. */
  #keep(what: string, action: () => void | Promise<void>): boolean | Promise<boolean> {
    try {
      const done = action();
      return done === undefined ? true : this.#finish(what, done);
    } catch (error) {
      return this.#failed(what, error);
    }
  }

  async #finish(what: string, done: Promise<void>): Promise<boolean> {
    try {
      await done;
      return true;
    } catch (error) {
      return this.#failed(what, error);
    }
  }

  #failed(what: string, error: unknown): false {
    this.#log.error({ err: error }, `the device's ${what} failed`);
    return false;
  }
}
