/** NVM Express 1.4, section 7.12: the Keep Alive Timer. Without a Keep Alive command in time the controller fails. */
import { startDeadline } from "../../../shared/deadline.js";

export class KeepAlive {
  readonly #onExpired: () => void;
  #stop = (): void => {};
  #timeoutMs = 0;

  constructor(onExpired: () => void) {
    this.#onExpired = onExpired;
  }

  /** Set Features; 0 for no timer. */
  set(timeoutMs: number): void {
    this.#timeoutMs = timeoutMs;
    this.restart();
  }

  /** A Keep Alive command came. */
  restart(): void {
    this.#stop();
    this.#stop = this.#timeoutMs === 0 ? () => {} : startDeadline(this.#timeoutMs, this.#onExpired);
  }
}
