/** NVM Express 1.4, section 7.12: the Keep Alive Timer. Without a Keep Alive command in time the controller fails. */
export class KeepAlive {
  readonly #onExpired: () => void;
  #timer: NodeJS.Timeout | undefined;
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
    clearTimeout(this.#timer);
    this.#timer = this.#timeoutMs === 0 ? undefined : setTimeout(this.#onExpired, this.#timeoutMs).unref();
  }
}
