/** Two counters that threads wait on, as eventfds are between processes. */
export const DRIVER = 0;
export const DEVICE = 1;
const STOPPED = 2;

export function makeSignals(words = new Int32Array(new SharedArrayBuffer(12))) {
  return {
    words,
    /** To be asked before the ring is looked at for the last time. */
    seen: (who: number) => Atomics.load(words, who),
    wake(who: number): void {
      Atomics.add(words, who, 1);
      Atomics.notify(words, who);
    },
    /** Sleeps until there are more signals than were seen. False when none came in time. */
    sleep: (who: number, seen: number, timeoutMs: number) => Atomics.wait(words, who, seen, timeoutMs) !== "timed-out",
    stop(): void {
      Atomics.store(words, STOPPED, 1);
      this.wake(DEVICE);
    },
    get stopped() {
      return Atomics.load(words, STOPPED) !== 0;
    },
  };
}
