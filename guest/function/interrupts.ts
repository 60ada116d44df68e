/**
 * Interrupts to the driver VM: which vectors the client set up by SET_IRQS, which are masked, and which wait. The state
 * is VFIO's (<linux/vfio.h>, VFIO_DEVICE_SET_IRQS); doorbells and eventfds are the link's. What config space disables
 * or masks counts as well: a hypervisor that injects eventfds by itself reads neither. Eventfds that mask or unmask
 * are the link's, too.
 *
 * An interrupt that reaches nobody is kept, as PCI's pending bits do, until its vector is bound and not masked: also
 * while the client has no kind of interrupt enabled, or goes from one kind to another. One too many is harmless, one
 * that is lost is not. Left out: VFIO's refusals of INTx, MSI and MSI-X side by side; libvfio-user has none either.
 */
import { ProtocolError } from "../../shared/errors.js";
import { Irq, IrqSetFlags } from "../../shared/spec/vfio-user.js";
import type { Interrupts } from "../device.js";
import type { IrqChange, Link } from "../link/link.js";
import type { LaneVectors } from "./lane-mirror.js";

/** A vector's state, as bits. */
const BOUND = 1;
const MASKED = 2;
const PENDING = 4;

/** What the driver VM says in config space, and what it sees there. */
interface InterruptGate {
  readonly intxDisabled: boolean;
  intxPending: boolean;
  msiMasked(vector: number): boolean;
}

export class InterruptController implements Interrupts {
  count = 0;
  /** By index, a byte of state for each vector. */
  readonly #states: readonly Uint8Array[];
  readonly #lanes: LaneVectors | undefined;
  /** By index, a number for each vector's binding; all are different. */
  readonly #bindings: readonly Float64Array[];
  #lastBinding = 0;
  #intxEnabled = false;
  /** INTx is a level: up from a trigger until the client has handled it and unmasks. */
  #intxAsserted = false;
  /** The level as the device drives it by `raise` and `lower`, whatever the client handled. */
  #level = false;
  /** MSI vectors that the client set up: as many as the driver VM lets the function use; 0 when MSI is off. */
  #msiVectors = 0;
  #msixEnabled = false;
  /** The function is stopped: interrupts wait. */
  #held = false;
  /** The function is being reset: what the device triggers is of before. */
  #muted = false;

  constructor(
    irqCounts: readonly number[],
    readonly link: Pick<Link, "trigger" | "doorbellsRung">,
    readonly gate: InterruptGate,
    lanes?: LaneVectors,
  ) {
    this.#states = irqCounts.map((count) => new Uint8Array(count));
    this.#bindings = irqCounts.map((count) => new Float64Array(count));
    this.#lanes = lanes;
  }

  trigger(vector: number): void {
    const vectors = Math.max(this.#states[Irq.MSIX].length, this.#states[Irq.MSI].length, 1);
    if (!(vector >= 0 && vector < vectors)) throw new RangeError(`there is no vector ${vector}`);
    if (this.#muted) return;
    if (this.#msixEnabled) this.#signal(Irq.MSIX, vector);
    // PCI 3.0, 6.8.3.4: a function that got fewer messages than it wanted shares them out.
    else if (this.#msiVectors > 0) this.#signal(Irq.MSI, vector % this.#msiVectors);
    else {
      // Messages come once there are some, unless the client says before that it has dealt with the pin.
      this.#waitForMessages(vector);
      if (this.#intxEnabled) this.#signal(Irq.INTX, 0);
    }
  }

  raise(vector: number): void {
    this.#level = !this.#muted;
    this.trigger(vector);
    this.#showPin();
  }

  lower(): void {
    this.#level = this.#intxAsserted = false;
    for (const vector of this.#states[Irq.INTX].keys()) this.#states[Irq.INTX][vector] &= ~PENDING;
    if (this.byPin) this.#forgetMessages();
    this.#showPin();
  }

  get byPin(): boolean {
    return !this.#msixEnabled && this.#msiVectors === 0;
  }

  reportError(): boolean {
    return this.#notify(Irq.ERR);
  }

  requestRelease(): boolean {
    return this.#notify(Irq.REQ);
  }

  /** Whether an interrupt waits for its MSI-X vector to be bound or unmasked. */
  pending(vector: number): boolean {
    return (this.#states[Irq.MSIX][vector] & PENDING) !== 0;
  }

  /** Whether INTA# is asserted, disabled or not. */
  get intxPending(): boolean {
    return this.#intxAsserted || this.#levelShows;
  }

  /** MSI vectors that wait, a bit each. */
  msiPending(): number {
    return (
      this.#states[Irq.MSI].reduce((bits, state, n) => ((state & PENDING) !== 0 ? bits | (1 << n) : bits), 0) >>> 0
    );
  }

  /** The gate may have opened: what waited for that goes out. */
  gateChanged(): void {
    for (const index of [Irq.INTX, Irq.MSI]) {
      for (let vector = 0; vector < this.#states[index].length; vector++) this.#deliver(index, vector);
    }
    this.#showLanes();
  }

  /** The function is being reset: until `unmute` the device's interrupts go nowhere. */
  mute(): void {
    this.#muted = true;
    this.#showLanes();
  }

  unmute(): void {
    this.#muted = false;
    this.#showLanes();
  }

  /** The function is stopped: every interrupt waits from now on, until `release`. */
  hold(): void {
    this.#held = true;
    this.#showLanes();
  }

  /** The function runs again: what waited for that goes out. */
  release(): void {
    this.#held = false;
    for (const [index, states] of this.#states.entries()) {
      for (let vector = 0; vector < states.length; vector++) this.#deliver(index, vector);
    }
    this.#showLanes();
  }

  /**
   * What waits, a byte for each vector in the order of their indices; then whether INTA# is asserted, and the device's
   * level.
   */
  savePending(): Uint8Array {
    const waiting = this.#states.flatMap((states) => Array.from(states, (state) => ((state & PENDING) !== 0 ? 1 : 0)));
    return Uint8Array.of(...waiting, this.#intxAsserted ? 1 : 0, this.#level ? 1 : 0);
  }

  /**
   * Replaces what waits by what `savePending` gave; nothing goes out before `release`. @throws RangeError when it is
   * not of this function
   */
  loadPending(bytes: Uint8Array): void {
    const vectors = this.#states.reduce((sum, states) => sum + states.length, 0);
    if (bytes.length !== vectors + 2 || bytes.some((byte) => byte > 1))
      throw new RangeError("another function's interrupts");
    let at = 0;
    for (const states of this.#states) {
      for (let vector = 0; vector < states.length; vector++) {
        states[vector] = (states[vector] & ~PENDING) | (bytes[at++] === 1 ? PENDING : 0);
      }
    }
    this.#intxAsserted = bytes[at] === 1;
    this.#level = bytes[at + 1] === 1;
    this.#showPin();
  }

  /** Applies a SET_IRQS whose bounds were checked. @throws ProtocolError for a combination that VFIO does not have */
  change(change: IrqChange): void {
    try {
      this.#change(change);
    } finally {
      this.#showLanes();
    }
    this.#showPin();
  }

  /** Lanes signal by themselves what a trigger would signal at once, and nothing else. */
  #showLanes(): void {
    if (this.#lanes === undefined) return;
    const index = this.#msixEnabled ? Irq.MSIX : Irq.MSI;
    const count = this.#msixEnabled ? this.#states[index].length : this.#msiVectors;
    const isOpen = count > 0 && !this.#muted && !this.#held;
    for (let vector = 0; vector < this.#lanes.count; vector++) {
      const to = this.#msixEnabled || count === 0 ? vector : vector % count;
      const isReady = isOpen && to < count && this.#states[index][to] === BOUND && !this.#gated(index, to);
      this.#lanes.set(vector, index, to, isReady ? this.#bindings[index][to] : -1);
    }
  }

  #change(change: IrqChange): void {
    const action = change.flags & IrqSetFlags.ACTIONS_MASK;
    const data = change.flags & IrqSetFlags.DATA_MASK;
    if (data === IrqSetFlags.DATA_NONE && action === IrqSetFlags.ACTION_TRIGGER && change.count === 0) {
      this.#disable(change.index);
      return;
    }
    if (data === IrqSetFlags.DATA_EVENTFD && action !== IrqSetFlags.ACTION_TRIGGER) {
      throw new ProtocolError("eventfds that mask or unmask an interrupt are the link's");
    }
    for (let n = 0; n < change.count; n++) {
      if (data === IrqSetFlags.DATA_BOOL && !change.bools?.[n]) continue;
      const vector = change.start + n;
      if (data === IrqSetFlags.DATA_EVENTFD) this.#bind(change.index, vector, change.bound?.[n] === true);
      else if (action === IrqSetFlags.ACTION_TRIGGER) this.#loopBack(change.index, vector);
      else if (action === IrqSetFlags.ACTION_MASK) this.#mask(change.index, vector);
      else this.#unmask(change.index, vector);
    }
    if (action === IrqSetFlags.ACTION_TRIGGER) this.#enable(change);
  }

  /** The client is gone: nothing is set up, and nothing waits. */
  reset(): void {
    for (const index of this.#states.keys()) this.#disable(index);
    this.#showLanes();
    this.forgetPending();
  }

  /** The client may reset the function and keep its eventfds: only what waits is forgotten. */
  forgetPending(): void {
    for (const states of this.#states) {
      for (let vector = 0; vector < states.length; vector++) states[vector] &= ~PENDING;
    }
    this.#level = this.#intxAsserted = false;
    this.#showPin();
  }

  /** Vectors by interrupt index. */
  inspect() {
    const having = (bit: number) =>
      this.#states.map((states) => [...states.keys()].filter((vector) => (states[vector] & bit) !== 0));
    const enabled = { intx: this.#intxEnabled, msi: this.#msiVectors, msix: this.#msixEnabled };
    const vectors = { bound: having(BOUND), masked: having(MASKED), pending: having(PENDING) };
    return { ...enabled, ...vectors, asserted: this.intxPending, count: this.count };
  }

  /**
   * A vector that is not bound yet keeps its interrupt, as masked MSI-X vectors do: QEMU binds each at its first
   * unmask.
   */
  #signal(index: number, vector: number): void {
    const states = this.#states[index];
    const state = states[vector];
    if (index === Irq.INTX) {
      this.#intxAsserted = true;
      this.#showPin();
    }
    if (this.#held || (state & (BOUND | MASKED)) !== BOUND || this.#gated(index, vector)) {
      states[vector] = state | PENDING;
      return;
    }
    // INTx is level-triggered: it stays quiet until the client unmasks it (VFIO_IRQ_INFO_AUTOMASKED).
    states[vector] = index === Irq.INTX ? BOUND | MASKED : BOUND;
    this.count++;
    this.link.trigger(index, vector);
  }

  #showPin(): void {
    const { intxPending } = this;
    if (this.gate.intxPending !== intxPending) this.gate.intxPending = intxPending;
  }

  /** A function that sends messages asserts no pin. */
  get #levelShows(): boolean {
    return this.#level && this.byPin;
  }

  #gated(index: number, vector: number): boolean {
    if (index === Irq.INTX) return this.gate.intxDisabled;
    return index === Irq.MSI && this.gate.msiMasked(vector);
  }

  /** The client's own trigger: what is not bound has nobody to hear of it. */
  #loopBack(index: number, vector: number): void {
    if ((this.#states[index][vector] & BOUND) !== 0) this.#signal(index, vector);
  }

  #notify(index: number): boolean {
    const states = this.#states[index];
    if (states.length === 0 || (states[0] & BOUND) === 0) return false;
    this.#signal(index, 0);
    return true;
  }

  #mask(index: number, vector: number): void {
    // A hypervisor masks INTx to hand it to somebody else, who has not heard of the level that is up: told at the
    // unmask.
    const isUp = index === Irq.INTX && this.#intxAsserted;
    this.#states[index][vector] |= isUp ? MASKED | PENDING : MASKED;
  }

  #bind(index: number, vector: number, bound: boolean): void {
    const states = this.#states[index];
    this.#bindings[index][vector] = ++this.#lastBinding;
    if (bound) states[vector] |= BOUND;
    else states[vector] &= ~BOUND;
    if (bound) this.#deliver(index, vector);
  }

  #unmask(index: number, vector: number): void {
    this.#states[index][vector] &= ~MASKED;
    if (index === Irq.INTX) {
      this.#intxAsserted = false;
      if (!this.#level && (this.#states[index][vector] & PENDING) === 0) this.#forgetMessages();
    }
    this.#deliver(index, vector);
  }

  #deliver(index: number, vector: number): void {
    if ((index === Irq.INTX && this.#levelShows) || (this.#states[index][vector] & PENDING) !== 0)
      this.#signal(index, vector);
  }

  #enable(change: IrqChange): void {
    // MSI-X is enabled by naming vectors, with or without an eventfd; INTx only by an eventfd.
    if (change.index === Irq.MSIX) {
      this.#msixEnabled = true;
      this.#moveWaiting(Irq.MSI, Irq.MSIX, this.#states[Irq.MSIX].length);
    }
    if ((change.flags & IrqSetFlags.DATA_EVENTFD) === 0) return;
    if (change.index === Irq.INTX) this.#intxEnabled = change.bound?.[0] === true;
    if (change.index !== Irq.MSI) return;
    this.#msiVectors = Math.max(this.#msiVectors, change.start + change.count);
    if (!this.#msixEnabled) this.#moveWaiting(Irq.MSIX, Irq.MSI, this.#msiVectors);
  }

  /** Without messages, what is for one of them waits at MSI-X, or at MSI where that is all there is. */
  #waitForMessages(vector: number): void {
    const states = this.#states[Irq.MSIX].length > 0 ? this.#states[Irq.MSIX] : this.#states[Irq.MSI];
    if (vector < states.length) states[vector] |= PENDING;
  }

  #forgetMessages(): void {
    for (const index of [Irq.MSI, Irq.MSIX]) {
      for (let vector = 0; vector < this.#states[index].length; vector++) this.#states[index][vector] &= ~PENDING;
    }
  }

  /** What waited at one kind of message goes out as the other kind, of which there are `count`. */
  #moveWaiting(from: number, to: number, count: number): void {
    for (const [vector, state] of this.#states[from].entries()) {
      if ((state & PENDING) === 0) continue;
      this.#states[from][vector] = state & ~PENDING;
      this.#signal(to, vector % count);
    }
  }

  #disable(index: number): void {
    // A client that gets one vector more disables its vectors and enables all of them again: what waits goes on
    // waiting.
    const kept = index === Irq.MSI || index === Irq.MSIX ? PENDING : 0;
    for (let vector = 0; vector < this.#states[index].length; vector++) this.#states[index][vector] &= kept;
    if (index === Irq.MSIX) this.#msixEnabled = false;
    if (index === Irq.MSI) this.#msiVectors = 0;
    // The level itself is the device's: it is still up when the client sets INTx up again.
    if (index === Irq.INTX) this.#intxEnabled = this.#intxAsserted = false;
  }
}
