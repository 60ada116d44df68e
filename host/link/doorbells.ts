/**
 * Doorbells: which vector of the client's has which notify-only queue of the device, and the native relay that moves
 * each kick to the client's eventfd without touching JavaScript.
 *
 * The client's eventfds outlive the device process: after a restart, `rebind` gives every bound vector a doorbell again.
 */

import * as native from "../../native/index.js";
import { close } from "../../native/index.js";
import { Errno, ProtocolError } from "../../shared/errors.js";
import { NO_DOORBELL, Queue } from "../../shared/spec/link.js";
import { Irq, NUM_PCI_IRQS } from "../../shared/spec/vfio-user.js";

interface Binding {
  /** The client's eventfd. */
  fd: number;
  /** NO_DOORBELL while no device is there. */
  doorbell: number;
  /** The relay's id, or -1. */
  relay: number;
}

/** The kick eventfd of a queue of the device, or -1. */
export type KickOf = (queue: number) => number;

export class Doorbells {
  readonly #relay = new native.Relay();
  /** By interrupt index, then by vector. */
  readonly #bindings: Map<number, Binding>[] = Array.from({ length: NUM_PCI_IRQS }, () => new Map());
  /** Who has doorbell n. */
  #taken: (Binding | undefined)[] = [];
  #kickOf: KickOf = () => -1;
  #attached = false;

  /** Signals moved so far. */
  get relayed(): number {
    return this.#relay.count();
  }

  /** A device with `count` doorbells is there. */
  attach(count: number, kickOf: KickOf): void {
    this.detach();
    this.#taken = new Array(Math.max(0, count)).fill(undefined);
    this.#kickOf = kickOf;
    this.#attached = true;
  }

  /** The device is gone; the client's eventfds stay. To be called while its kick eventfds are still open. */
  detach(): void {
    for (const bindings of this.#bindings) for (const binding of bindings.values()) this.#release(binding);
    this.#taken = [];
    this.#kickOf = () => -1;
    this.#attached = false;
  }

  /**
   * Binds eventfds[i] to vector start + i of an index, or unbinds it where it is -1. Owns the eventfds from here on, also
   * when it throws. @throws ProtocolError ENOSPC when there are not enough doorbells; nothing has changed then
   */
  bind(index: number, start: number, eventfds: readonly number[]): void {
    const bindings = this.#bindings[index];
    let needed = 0;
    eventfds.forEach((fd, i) => {
      const has = (bindings.get(start + i)?.doorbell ?? NO_DOORBELL) !== NO_DOORBELL;
      needed += (fd >= 0 ? 1 : 0) - (has ? 1 : 0);
    });
    if (this.#attached && needed > this.#free) {
      for (const fd of eventfds) if (fd >= 0) close(fd);
      throw new ProtocolError(`${this.#free} free doorbells are not enough`, Errno.ENOSPC);
    }
    // Doorbells that become free are free for the others of the same request.
    eventfds.forEach((_, i) => {
      this.#unbind(bindings, start + i);
    });
    eventfds.forEach((fd, i) => {
      if (fd < 0) return;
      const binding = { fd, doorbell: NO_DOORBELL, relay: -1 };
      bindings.set(start + i, binding);
      if (this.#attached) this.#take(binding);
    });
  }

  /** Unbinds all vectors of an index. */
  unbindAll(index: number): void {
    const bindings = this.#bindings[index];
    for (const vector of [...bindings.keys()]) this.#unbind(bindings, vector);
  }

  /** The client is gone. */
  clear(): void {
    for (let index = 0; index < NUM_PCI_IRQS; index++) this.unbindAll(index);
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

  /** Ends the relay's thread. */
  close(): void {
    this.detach();
    this.clear();
    this.#relay.close();
  }

  /** Doorbells that can be taken: not in use, and set up by the driver. */
  get #free(): number {
    return this.#taken.filter((binding, n) => !binding && this.#kickOf(Queue.FIRST_DOORBELL + n) >= 0).length;
  }

  #take(binding: Binding): boolean {
    if (binding.doorbell !== NO_DOORBELL) return true;
    for (let doorbell = 0; doorbell < this.#taken.length; doorbell++) {
      if (this.#taken[doorbell]) continue;
      const kick = this.#kickOf(Queue.FIRST_DOORBELL + doorbell);
      if (kick < 0) continue;
      // What was kicked before the binding is not for this vector; QEMU even leaves a count of its own there.
      native.eventfdRead(kick);
      binding.relay = this.#relay.add(kick, binding.fd);
      binding.doorbell = doorbell;
      this.#taken[doorbell] = binding;
      return true;
    }
    return false;
  }

  #release(binding: Binding): void {
    if (binding.relay >= 0) this.#relay.remove(binding.relay);
    if (binding.doorbell !== NO_DOORBELL) this.#taken[binding.doorbell] = undefined;
    binding.relay = -1;
    binding.doorbell = NO_DOORBELL;
  }

  #unbind(bindings: Map<number, Binding>, vector: number): void {
    const binding = bindings.get(vector);
    if (!binding) return;
    bindings.delete(vector);
    this.#release(binding);
    close(binding.fd);
  }
}
