/**
 * Signals that nobody has taken from an eventfd when it is replaced. Whoever replaces it may never look at it again,
 * and an interrupt that is lost hangs a driver, while one too many does no harm: the signal goes to the eventfd that
 * follows.
 */
import { eventfdSignalled, eventfdWrite } from "../../../native/index.js";
import { Irq, NUM_PCI_IRQS } from "../../spec/vfio-user.js";

/** Signals `next` if `old` has a count that nobody took. Both are open. */
export function passOn(old: number, next: number): void {
  if (eventfdSignalled(old)) eventfdWrite(next);
}

/**
 * The same for interrupt vectors, which may be without an eventfd for a while: MSI and MSI-X then have pending bits.
 */
export class UntakenSignals {
  readonly #pending: readonly Set<number>[] = Array.from({ length: NUM_PCI_IRQS }, () => new Set());

  /** The vector's eventfd `old` becomes `next`; both are open, or -1 for none. */
  replace(index: number, vector: number, old: number, next: number): void {
    const pending = this.#pending[index];
    const isUntaken = old >= 0 && eventfdSignalled(old);
    if (next >= 0) {
      if (pending.delete(vector) || isUntaken) eventfdWrite(next);
    } else if (isUntaken && (index === Irq.MSI || index === Irq.MSIX)) {
      pending.add(vector);
    }
  }

  /** By interrupt index, the vectors that have one. */
  save(): number[][] {
    return this.#pending.map((vectors) => [...vectors]);
  }

  restore(saved: readonly (readonly number[])[]): void {
    for (const [index, vectors] of saved.entries()) for (const vector of vectors) this.#pending[index]?.add(vector);
  }

  /** The device was reset, or the client is gone. */
  clear(): void {
    for (const pending of this.#pending) pending.clear();
  }
}
