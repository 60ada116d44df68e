/**
 * Changes of what the device process has of its client: made one after the other, each when all before it is done. Each
 * waits for the device process, and every wait ends when that answers, is reset, or lets its deadline pass. The client
 * is not kept waiting while the device VM is paused.
 */
import { isSystemError, PeerGone, ProtocolError } from "../../../shared/errors.js";
import type { Log } from "../../../shared/log.js";
import type { DeviceState } from "./device-state.js";

export class Changes {
  readonly #state: DeviceState;
  readonly #log: Log;
  #tail: Promise<unknown> = Promise.resolve();
  /** Work that is done once for all who want it before it begins. */
  readonly #queued = new Map<() => Promise<void>, Promise<void>>();
  /** What answers those who wait for the device process, and do not wait for the end of a pause. */
  readonly #early = new Set<() => void>();
  /** Why the last change failed: said once. */
  #failure: string | undefined;

  constructor(state: DeviceState, log: Log) {
    this.#state = state;
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

  /**
   * Resolves as `work` does, or at once while the device VM is paused, now or later: `work` then goes on when that
   * does, and `answered` is called as the client is answered.
   */
  orPaused(work: Promise<void>, answered = () => {}): Promise<void> {
    return new Promise((resolve, reject) => {
      const early = () => {
        answered();
        resolve();
      };
      work.then(
        () => {
          this.#early.delete(early);
          resolve();
        },
        (error) => {
          // The client was told that it is done.
          if (!this.#early.delete(early)) this.failed(error);
          reject(error);
        },
      );
      if (this.#state.isPaused) early();
      else this.#early.add(early);
    });
  }

  /** The device VM is paused: answers all who wait. */
  paused(): void {
    for (const answer of this.#early) answer();
    this.#early.clear();
  }

  /** A change was not made, or not all of it, which only the device process can mend: it is to release the client. */
  failed(error: unknown): void {
    // The device process left, or the client: nothing has failed.
    if (error instanceof PeerGone) return;
    const reason = error instanceof Error ? error.message : String(error);
    if (reason !== this.#failure) {
      if (error instanceof ProtocolError) this.#log.warn({ reason }, "the device did not take the client");
      else if (isSystemError(error)) this.#log.error({ err: error }, "the device cannot be given the client");
      else this.#log.error({ err: error }, "unexpected");
    }
    this.#failure = reason;
    this.#state.raise("failed", reason);
  }

  /** The device process has all of the client. */
  succeeded(): void {
    this.#failure = undefined;
  }
}
