/**
 * When doorbells that the driver VM's VMM has mapped are looked at. Nothing tells of a write to them, so a device that
 * wants to hear of it looks for as long as the controller is enabled: turn after turn while commands keep coming and
 * for SPIN_MS more, then by a timer, the less often the longer none has come. What it waits is a share of how long
 * nothing came, so a driver that sends now and then waits hardly longer than it slept, and an idle device costs next to
 * nothing.
 */
import { DoorbellPoll } from "./doorbell-poll.js";
import type { QueueEngine } from "./engine.js";
import type { SharedDoorbells } from "./shared-doorbells.js";

/** Turns go on for so long without a command. */
const SPIN_MS = 2;
/** The wait, as a share of the time since the last command, and its bounds. */
const IDLE_SHARE = 1 / 8;
const MIN_WAIT_MS = 1;
const MAX_WAIT_MS = 15;

/** "always": turn after turn while the controller is enabled, which takes a CPU. */
export type Polling = "adaptive" | "always";

export interface SharedOptions {
  readonly words: SharedDoorbells;
  readonly polling: Polling;
}

export class SharedPoll extends DoorbellPoll<SharedDoorbells> {
  resting = false;
  readonly #polling: Polling;
  #timer: NodeJS.Timeout | undefined;

  readonly #doorbells: SharedDoorbells;

  constructor(engine: QueueEngine, onNonsense: () => void, { words, polling }: SharedOptions) {
    super(engine, onNonsense);
    this.#doorbells = words;
    this.#polling = polling;
  }

  /** The controller is enabled: what was written to doorbells before meant nothing. */
  enable(): void {
    this.#doorbells.clear();
    this.words = this.#doorbells;
    this.busyAt = performance.now();
    this.engine.schedule();
  }

  /** All doorbells are 0 again. */
  stop(): void {
    this.#doorbells.clear();
    this.words = undefined;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  goesOn(worked: boolean): boolean {
    if (this.words === undefined) return false;
    const now = performance.now();
    if (worked) this.busyAt = now;
    const idle = now - this.busyAt;
    this.resting = idle >= SPIN_MS && this.#polling !== "always";
    if (!this.resting) return true;
    this.#timer ??= setTimeout(
      () => {
        this.#timer = undefined;
        this.engine.schedule();
      },
      Math.min(MAX_WAIT_MS, Math.max(MIN_WAIT_MS, idle * IDLE_SHARE)),
    ).unref();
    return false;
  }
}
