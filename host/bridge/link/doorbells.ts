/**
 * Doorbells: which vector of the client's has which notify-only queue of the device, and the native relay that moves
 * each kick to the client's eventfd without touching JavaScript.
 *
 * The device process learns of a change only some time after it was made here, and rings meanwhile what it knows. So a
 * vector keeps its doorbell when it gets another eventfd, and gives it back only when the process has said that it
 * knows of that: no doorbell ever stands for two vectors, and none is rung in vain.
 *
 * The client's eventfds outlive the device process: after a restart, `rebind` gives every bound vector a doorbell
 * again.
 */

import * as native from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { closePeerFd, FdShare } from "../../../shared/peer-fds.js";
import { NO_DOORBELL, Queue } from "../../../shared/spec/link.js";
import { Irq, NUM_PCI_IRQS } from "../../../shared/spec/vfio-user.js";
import { UntakenSignals } from "../../../shared/vfio-user/irqs/untaken-signals.js";
import type { FdKeeper } from "../state/fd-keeper.js";
import { FD_KIND } from "../state/layout.js";
import { StateMemory } from "../state/state-memory.js";

interface Binding {
  /** The client's eventfd. */
  fd: number;
  /** NO_DOORBELL while no device is there. */
  doorbell: number;
  /** The relay's id, or -1. */
  relay: number;
}

/** As the state keeps them: which vector has which eventfd and doorbell, and what was signalled and not taken. */
export interface SavedDoorbells {
  readonly bindings: readonly (readonly [index: number, vector: number, fd: number, doorbell: number])[];
  readonly untaken: readonly (readonly number[])[];
}

/** The relay's copies of a kick and of an eventfd. */
const FDS_PER_RELAY = 2;

/** The kick eventfd of a queue of the device, or -1. */
export type KickOf = (queue: number) => number;

export class Doorbells {
  readonly #relay = new native.Relay();
  /** By interrupt index, then by vector. */
  readonly #bindings: Map<number, Binding>[] = Array.from({ length: NUM_PCI_IRQS }, () => new Map());
  readonly #untaken = new UntakenSignals();
  /** Who has doorbell n. */
  #taken: (Binding | undefined)[] = [];
  #kickOf: KickOf = () => -1;
  #attached = false;
  /** The device VM is paused: doorbells are bound as ever, and nothing is relayed. */
  #halted = false;
  /** Which doorbells the driver has set up. */
  #usable: boolean[] = [];
  readonly #fds: FdShare;
  readonly #keeper: FdKeeper;

  /** `fds`: charged with the relay's descriptors for as long as a vector is bound, whether or not a device is there. */
  constructor(fds = new FdShare(), keeper = StateMemory.temporary().fds) {
    this.#fds = fds;
    this.#keeper = keeper;
  }

  save(): SavedDoorbells {
    const bindings = this.#bindings.flatMap((each, index) =>
      [...each].map(([vector, { fd, doorbell }]) => [index, vector, this.#keeper.idOf(fd), doorbell] as const),
    );
    return { bindings, untaken: this.#untaken.save() };
  }

  /**
   * Goes on with vectors of another bridge. Where a device is attached each has the doorbell that it had, and what was
   * rung since is passed on. @throws StateError or SystemError
   */
  restore({ bindings, untaken }: SavedDoorbells, isHalted: boolean): void {
    this.#halted = isHalted;
    this.#untaken.restore(untaken);
    for (const [index, vector, id, doorbell] of bindings) {
      const fd = this.#keeper.take(id, FD_KIND.EVENTFD);
      this.#fds.adopt(fd);
      const binding = { fd, doorbell: NO_DOORBELL, relay: -1 };
      this.#bindings[index].set(vector, binding);
      this.#fds.charge(FDS_PER_RELAY);
      if (this.#attached && doorbell < this.#taken.length) this.#place(binding, doorbell);
    }
  }

  /** Signals moved so far. */
  get relayed(): number {
    return this.#relay.count();
  }

  /** A device with `count` doorbells is there. */
  attach(count: number, kickOf: KickOf): void {
    this.detach();
    this.#taken = new Array(Math.max(0, count)).fill(undefined);
    this.#kickOf = kickOf;
    this.#usable = Array.from(this.#taken, (_, n) => kickOf(Queue.FIRST_DOORBELL + n) >= 0);
    this.#attached = true;
  }

  /**
   * The rings stand still, and may go on. To be called while their kick eventfds are still open: what was rung is
   * passed on.
   */
  halt(): void {
    if (this.#halted) return;
    this.#halted = true;
    for (const [n, binding] of this.#taken.entries()) {
      if (!binding || binding.relay < 0) continue;
      // What is in there was relayed already, or was not: a spurious interrupt is harmless, and one that is lost is
      // not.
      const rang = native.eventfdRead(this.#kickOf(Queue.FIRST_DOORBELL + n)) > 0;
      this.#relay.remove(binding.relay);
      binding.relay = -1;
      if (rang) native.eventfdWrite(binding.fd);
    }
  }

  /**
   * The rings go on, with other kicks. QEMU leaves a count of its own in each: as an interrupt it is harmless, and it
   * may hide one that is not its own; as an error it would stop the driver VM. One that has no kick any more is silent.
   * @throws SystemError; then they do not go on
   */
  goOn(): void {
    this.#halted = false;
    for (const [index, bindings] of this.#bindings.entries()) {
      for (const binding of bindings.values()) {
        if (binding.doorbell === NO_DOORBELL) continue;
        const kick = this.#kickOf(Queue.FIRST_DOORBELL + binding.doorbell);
        if (kick < 0) continue;
        if (!isInterrupt(index)) native.eventfdRead(kick);
        binding.relay = this.#relay.add(kick, binding.fd);
      }
    }
  }

  /** Signals all vectors, one of which may have missed an interrupt. */
  signalAll(): void {
    for (const [index, bindings] of this.#bindings.entries()) {
      if (isInterrupt(index)) for (const { fd } of bindings.values()) native.eventfdWrite(fd);
    }
  }

  /** The device is gone; the client's eventfds stay. To be called while its kick eventfds are still open. */
  detach(): void {
    for (const bindings of this.#bindings) for (const binding of bindings.values()) this.#release(binding);
    this.#taken = [];
    this.#kickOf = () => -1;
    this.#usable = [];
    this.#attached = false;
    this.#halted = false;
  }

  /** Whether vectors that have a doorbell are to lose their eventfd. */
  unbinds(index: number, start: number, eventfds: readonly number[]): boolean {
    return eventfds.some((fd, i) => fd < 0 && this.doorbell(index, start + i) !== NO_DOORBELL);
  }

  /** @throws ProtocolError ENOSPC or EMFILE when there are not enough doorbells, or descriptors, for `bind` */
  checkRoom(index: number, start: number, eventfds: readonly number[]): void {
    let doorbells = 0;
    let vectors = 0;
    eventfds.forEach((fd, i) => {
      const binding = this.#bindings[index].get(start + i);
      const wanted = fd >= 0 ? 1 : 0;
      vectors += wanted - (binding ? 1 : 0);
      doorbells += wanted - (binding && binding.doorbell !== NO_DOORBELL ? 1 : 0);
    });
    if (this.#attached && doorbells > this.#free) {
      throw new ProtocolError(`${this.#free} free doorbells are not enough`, Errno.ENOSPC);
    }
    if (vectors > 0 && vectors * FDS_PER_RELAY > this.#fds.left()) {
      throw new ProtocolError("no file descriptors are left for interrupts: raise LimitNOFILE", Errno.EMFILE);
    }
  }

  /**
   * Binds eventfds[i] to vector start + i of an index, or unbinds it where it is -1: that the device process has to
   * know already. Owns the eventfds from here on, also when it throws.
   * @throws ProtocolError ENOSPC or EMFILE, SystemError; no vector has got another eventfd then
   */
  bind(index: number, start: number, eventfds: readonly number[]): void {
    const bindings = this.#bindings[index];
    const fresh = new Map<number, Binding>();
    try {
      this.checkRoom(index, start, eventfds);
      eventfds.forEach((fd, i) => {
        if (fd < 0) this.#unbind(index, start + i);
      });
      eventfds.forEach((fd, i) => {
        if (fd < 0 || this.#keepsPlace(bindings.get(start + i))) return;
        this.#keeper.keep(fd);
        const binding = { fd, doorbell: NO_DOORBELL, relay: -1 };
        fresh.set(start + i, binding);
        if (this.#attached) this.#take(binding);
      });
    } catch (error) {
      for (const binding of fresh.values()) this.#release(binding);
      for (const fd of eventfds) if (fd >= 0) closePeerFd(fd);
      throw error;
    }
    // From here on nothing can fail.
    eventfds.forEach((fd, i) => {
      if (fd < 0) return;
      const vector = start + i;
      const before = bindings.get(vector);
      const old = before?.fd ?? -1;
      const binding = fresh.get(vector) ?? before;
      if (!binding) return;
      if (binding === before && binding.relay >= 0) this.#relay.retarget(binding.relay, fd);
      binding.fd = fd;
      bindings.set(vector, binding);
      if (!before) this.#fds.charge(FDS_PER_RELAY);
      this.#untaken.replace(index, vector, old, fd);
      if (old >= 0) closePeerFd(old);
    });
  }

  /** Unbinds all vectors of an index. */
  unbindAll(index: number): void {
    for (const vector of [...this.#bindings[index].keys()]) this.#unbind(index, vector);
  }

  /** The client is gone. */
  clear(): void {
    for (let index = 0; index < NUM_PCI_IRQS; index++) this.unbindAll(index);
    this.forgetPending();
  }

  /** The device is reset: no interrupt of before comes afterwards. */
  forgetPending(): void {
    this.#untaken.clear();
  }

  /** Gives every bound vector a doorbell of a device that was just attached; false for those that got none. */
  rebind(): boolean {
    let all = true;
    // The vectors that matter most come first.
    for (const index of [Irq.MSIX, Irq.MSI, Irq.INTX, Irq.ERR, Irq.REQ]) {
      for (const binding of this.#bindings[index].values()) all = this.#take(binding) && all;
    }
    return all;
  }

  /** The doorbell of a vector, or NO_DOORBELL. */
  doorbell(index: number, vector: number): number {
    return this.#bindings[index].get(vector)?.doorbell ?? NO_DOORBELL;
  }

  /** The same for the vectors start to start + count. */
  numbers(index: number, start: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.doorbell(index, start + i));
  }

  /** Which vector has which doorbell, by interrupt index, for diagnostics. */
  inspect(): object {
    const indices = Object.entries({ intx: Irq.INTX, msi: Irq.MSI, msix: Irq.MSIX, err: Irq.ERR, req: Irq.REQ });
    const bound = indices.map(([name, index]) => {
      const vectors = [...this.#bindings[index]].map(([vector, { doorbell }]) => {
        return [vector, doorbell === NO_DOORBELL ? "none" : doorbell];
      });
      return [name, Object.fromEntries(vectors)];
    });
    return { attached: this.#attached, doorbells: this.#taken.length, free: this.#free, ...Object.fromEntries(bound) };
  }

  /** Ends the relay's thread. */
  close(): void {
    this.detach();
    this.clear();
    this.#relay.close();
  }

  /** Doorbells that can be taken: not in use, and set up by the driver. */
  get #free(): number {
    return this.#taken.filter((binding, n) => !binding && this.#usable[n]).length;
  }

  #take(binding: Binding): boolean {
    if (binding.doorbell !== NO_DOORBELL) return true;
    for (let doorbell = 0; doorbell < this.#taken.length; doorbell++) {
      if (this.#taken[doorbell] || !this.#usable[doorbell]) continue;
      // What was kicked before the binding is not for this vector; QEMU even leaves a count of its own there.
      if (!this.#halted) native.eventfdRead(this.#kickOf(Queue.FIRST_DOORBELL + doorbell));
      this.#place(binding, doorbell);
      return true;
    }
    return false;
  }

  #place(binding: Binding, doorbell: number): void {
    const kick = this.#halted ? -1 : this.#kickOf(Queue.FIRST_DOORBELL + doorbell);
    if (kick >= 0) binding.relay = this.#relay.add(kick, binding.fd);
    binding.doorbell = doorbell;
    this.#taken[doorbell] = binding;
  }

  #release(binding: Binding): void {
    if (binding.relay >= 0) this.#relay.remove(binding.relay);
    if (binding.doorbell !== NO_DOORBELL) this.#taken[binding.doorbell] = undefined;
    binding.relay = -1;
    binding.doorbell = NO_DOORBELL;
  }

  /** Whether a vector with this binding can get another eventfd without another doorbell. */
  #keepsPlace(binding: Binding | undefined): boolean {
    return binding !== undefined && (!this.#attached || binding.doorbell !== NO_DOORBELL);
  }

  #unbind(index: number, vector: number): void {
    const bindings = this.#bindings[index];
    const binding = bindings.get(vector);
    if (!binding) return;
    bindings.delete(vector);
    this.#fds.release(FDS_PER_RELAY);
    this.#release(binding);
    this.#untaken.replace(index, vector, binding.fd, -1);
    closePeerFd(binding.fd);
  }
}

/** Whether a signal that means nothing is harmless there. */
function isInterrupt(index: number): boolean {
  return index !== Irq.ERR && index !== Irq.REQ;
}
