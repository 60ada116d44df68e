/** Those who wait for the next thing that another process does: a line, its end. */
export class WakeUps {
  readonly #waiting = new Set<() => void>();

  /** Something came: all who wait look again. */
  wake(): void {
    for (const wakeUp of [...this.#waiting]) wakeUp();
  }

  /** Until `wake`, or for so long. */
  wait(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const wakeUp = () => {
        clearTimeout(timer);
        this.#waiting.delete(wakeUp);
        resolve();
      };
      const timer = setTimeout(wakeUp, timeoutMs);
      this.#waiting.add(wakeUp);
    });
  }
}
