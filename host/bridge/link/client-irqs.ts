/**
 * What the client set up by SET_IRQS, beside its eventfds (doorbells.ts): kept as plain data, so that a device process
 * that says HELLO later, the first or one after a restart, can be told all of it.
 */
import { IrqSetFlags as Flags, Irq, NUM_PCI_IRQS } from "../../../shared/spec/vfio-user.js";
import type { IrqSetRequest } from "../../../shared/vfio-user/backend.js";
import { doorbellBody, plainIrqBody } from "./bodies.js";
import type { Doorbells } from "./doorbells.js";

interface IndexState {
  enabled: boolean;
  /** Vectors from 0 on that the client gave eventfds, or took them away. */
  vectors: number;
  readonly masked: Set<number>;
}

export class ClientIrqs {
  readonly #indices: readonly IndexState[] = Array.from({ length: NUM_PCI_IRQS }, () => ({
    enabled: false,
    vectors: 0,
    masked: new Set<number>(),
  }));

  /** Notes a request that was carried out, or that there was nobody for. Not for eventfds that mask or unmask. */
  note({ flags, index, start, count, bools }: IrqSetRequest): void {
    const state = this.#indices[index];
    const action = flags & Flags.ACTIONS_MASK;
    if (action === Flags.ACTION_TRIGGER) {
      if (count === 0) {
        Object.assign(state, { enabled: false, vectors: 0 });
        state.masked.clear();
      } else if (flags & Flags.DATA_EVENTFD) {
        state.enabled = true;
        state.vectors = Math.max(state.vectors, start + count);
      } else if (index === Irq.MSIX) {
        // Naming its vectors enables MSI-X, with or without eventfds.
        state.enabled = true;
      }
      return;
    }
    for (let n = 0; n < count; n++) {
      if (bools && !bools[n]) continue;
      if (action === Flags.ACTION_MASK) state.masked.add(start + n);
      else state.masked.delete(start + n);
    }
  }

  /**
   * The bodies of the SET_IRQS commands that say all this to a device with `irqCounts` vectors, all of which are
   * disabled.
   */
  bodies(doorbells: Doorbells, irqCounts: readonly number[]): Uint8Array[] {
    const bodies: Uint8Array[] = [];
    for (const [index, { enabled, vectors, masked }] of this.#indices.entries()) {
      const most = irqCounts[index] ?? 0;
      const last = Math.min(most, Math.max(-1, ...masked) + 1);
      if (last > 0) {
        const bools = Uint8Array.from({ length: last }, (_, vector) => (masked.has(vector) ? 1 : 0));
        const flags = Flags.DATA_BOOL | Flags.ACTION_MASK;
        bodies.push(plainIrqBody({ flags, index, start: 0, count: last, bools }));
      }
      const count = Math.min(most, Math.max(1, vectors));
      if (enabled && count > 0) {
        const numbers = doorbells.numbers(index, 0, count);
        bodies.push(doorbellBody(Flags.DATA_EVENTFD | Flags.ACTION_TRIGGER, index, 0, numbers));
      }
    }
    return bodies;
  }

  /** The same for one index, to a device that has the interrupts as they were some time ago. */
  changes(index: number, doorbells: Doorbells, irqCounts: readonly number[]): Uint8Array[] {
    const count = irqCounts[index] ?? 0;
    if (count === 0) return [];
    const { enabled, masked } = this.#indices[index];
    const none = { index, start: 0, count: 0 };
    if (!enabled) return [plainIrqBody({ ...none, flags: Flags.DATA_NONE | Flags.ACTION_TRIGGER })];
    const bodies: Uint8Array[] = [];
    for (const action of [Flags.ACTION_MASK, Flags.ACTION_UNMASK]) {
      const isMask = action === Flags.ACTION_MASK;
      const bools = Uint8Array.from({ length: count }, (_, vector) => (masked.has(vector) === isMask ? 1 : 0));
      bodies.push(plainIrqBody({ flags: Flags.DATA_BOOL | action, index, start: 0, count, bools }));
    }
    const numbers = doorbells.numbers(index, 0, count);
    bodies.push(doorbellBody(Flags.DATA_EVENTFD | Flags.ACTION_TRIGGER, index, 0, numbers));
    return bodies;
  }
}
