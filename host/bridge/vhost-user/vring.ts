/**
 * One virtqueue as the back-end keeps it: what the SET_VRING requests said of it, its three eventfds, and the ring
 * itself, which runs from the time that it is enabled and has a kick until GET_VRING_BASE. A queue that is set up again
 * as it was when it stopped goes on: see Vrings.
 */
import { eventfdWrite, isEventfd } from "../../../native/index.js";
import { ProtocolError } from "../../../shared/errors.js";
import { MAX_QUEUE_SIZE } from "../../../shared/limits.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import { availableRingBytes, descriptorTableBytes, usedRingBytes } from "../../../shared/spec/virtio.js";
import { passOn } from "../../../shared/vfio-user/irqs/untaken-signals.js";
import { DeviceQueue, type QueueLayout, RingState } from "../../../shared/virtqueue/device.js";
import { MISSING } from "../../../shared/virtqueue/memory.js";
import type { FdKeeper } from "../state/fd-keeper.js";
import { FD_KIND } from "../state/layout.js";
import type { Extent } from "./iotlb.js";
import type { DeviceVmMemory } from "./memory.js";

export type VringFd = "kick" | "call" | "error";

/** Addresses of the front-end's own, or of the device VM's IOMMU; 0 is what QEMU never uses. */
export interface VringAddresses {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
}

/** How a queue that ran was set up, and the base that GET_VRING_BASE was answered. */
interface Stopped extends VringAddresses {
  readonly size: number;
  readonly base: number;
}

/** Where `queue.state` has the eventfd that interrupts the driver, and that it is owed one. */
const CALL = RingState.offsets.call / 4;
const OWES_CALL = RingState.offsets.owesCall / 4;

/** A virtqueue as the state keeps it: eventfds are numbers of descriptors, 0 for none. */
export interface SavedVring extends VringAddresses {
  readonly enabled: boolean;
  readonly running: boolean;
  readonly size: number;
  readonly base: number;
  readonly kick: number;
  readonly call: number;
  readonly error: number;
  readonly stopped: Stopped | null;
}

const NOWHERE: VringAddresses = { descriptors: 0, available: 0, used: 0 };

export class Vring {
  readonly queue: DeviceQueue;
  enabled = false;
  addresses = NOWHERE;
  /** It would run if its memory were here. */
  awaitsMemory = false;
  /** It ran under another bridge, and is to go on where its used ring ends. */
  #goesOn = false;
  readonly #memory: DeviceVmMemory;
  readonly #keeper: FdKeeper;
  readonly #fds: Record<VringFd, number> = { kick: -1, call: -1, error: -1 };
  #size = 0;
  #base = 0;
  /** Since it was stopped, having run. */
  #stopped: Stopped | undefined;

  constructor(memory: DeviceVmMemory, fds: FdKeeper) {
    this.#memory = memory;
    this.#keeper = fds;
    this.queue = new DeviceQueue(memory);
    this.queue.state[CALL] = -1;
  }

  /** The eventfd that the driver's notifications signal, or -1. It stays the vring's. */
  get kick(): number {
    return this.#fds.kick;
  }

  /** @throws ProtocolError */
  set size(count: number) {
    if (count === 0 || count > MAX_QUEUE_SIZE) throw new ProtocolError(`a queue of ${count} descriptors`);
    this.#size = count;
  }

  get base(): number {
    return this.#base;
  }

  /** The available index to go on from. @throws ProtocolError */
  set base(index: number) {
    if (index > 0xffff) throw new ProtocolError(`an available index of ${index}`);
    this.#base = index;
  }

  /** Takes an eventfd over in place of the one before; -1 for none. @throws ProtocolError */
  setFd(name: VringFd, fd: number): void {
    if (fd >= 0 && !isEventfd(fd)) {
      closePeerFd(fd);
      throw new ProtocolError(`the ${name} fd is not an eventfd`);
    }
    const id = fd >= 0 ? this.#keeper.keep(fd) : 0;
    // A request that the bridge before has carried out as it died is handled again.
    const isSame = id !== 0 && id === this.#keeper.idOf(this.#fds[name]);
    if (name === "kick" && this.enabled && this.kick >= 0 && !isSame) {
      if (fd >= 0) closePeerFd(fd);
      throw new ProtocolError("the kick of a running queue cannot be changed");
    }
    const old = this.#fds[name];
    this.#fds[name] = fd;
    if (name === "call") this.queue.state[CALL] = fd;
    if (name === "call" && fd >= 0) {
      // QEMU replaces it whenever the device VM masks or unmasks the vector, and may have looked at the old one before.
      if (old >= 0) passOn(old, fd);
      if (this.queue.state[OWES_CALL] !== 0) eventfdWrite(fd);
      this.queue.state[OWES_CALL] = 0;
    }
    if (old >= 0) closePeerFd(old);
  }

  save(): SavedVring {
    const id = (name: VringFd) => this.#keeper.idOf(this.#fds[name]);
    const fds = { kick: id("kick"), call: id("call"), error: id("error") };
    const { enabled, addresses } = this;
    const stopped = this.#stopped ?? null;
    const running = this.hasStarted || this.#goesOn;
    return { enabled, running, ...addresses, size: this.#size, base: this.#base, ...fds, stopped };
  }

  /** A ring that ran goes on where it was, which is where its used ring ends. @throws StateError or QueueBroken */
  restore(saved: SavedVring, eventIndex: boolean): void {
    const { enabled, running, descriptors, available, used, size, base, stopped } = saved;
    Object.assign(this, { enabled, addresses: { descriptors, available, used }, base });
    this.#size = size;
    this.#stopped = stopped ?? undefined;
    for (const name of ["kick", "call", "error"] as const) {
      if (saved[name] !== 0) this.#fds[name] = this.#keeper.take(saved[name], FD_KIND.EVENTFD);
    }
    this.queue.state[CALL] = this.#fds.call;
    // It may have wanted one.
    this.queue.state[OWES_CALL] = 1;
    this.#goesOn = running;
    if (running) this.start(eventIndex);
  }

  /**
   * Starts the ring if it can, with event indices or without: a queue that the driver did not set up is enabled all the
   * same, and has no kick; and its memory may have to be asked for first. @throws Error
   */
  start(eventIndex: boolean): void {
    if (this.kick < 0 || this.addresses.descriptors === 0 || this.hasStarted) return;
    if (this.#memory.translates) this.#memory.iotlb.keep(this, this.#extents());
    const layout = this.#layout(this.#goesOn ? undefined : this.#base);
    this.awaitsMemory = !isHere(layout);
    if (this.awaitsMemory) return;
    this.#goesOn = false;
    this.queue.start({ ...layout, eventIndex });
  }

  get isToRun(): boolean {
    return this.hasStarted || this.awaitsMemory;
  }

  /** It runs, or is held. */
  get hasStarted(): boolean {
    return this.queue.running || this.queue.held;
  }

  /** After a change of memory a ring that has started is held, or goes on, by whether it is here. False: it is lost. */
  follow(): boolean {
    if (!this.hasStarted) return true;
    const layout = this.#layout(0);
    if (!isHere(layout)) this.queue.hold();
    else if (this.queue.isAt(layout)) this.queue.goOn();
    else return false;
    return true;
  }

  /** What it is to do is over. */
  #leaveMemory(): void {
    this.#memory.iotlb.release(this);
    this.awaitsMemory = false;
    this.#goesOn = false;
  }

  /** Stops the ring, but leaves what was said of it. */
  halt(): void {
    if (this.hasStarted) this.#base = this.queue.stop();
  }

  /**
   * GET_VRING_BASE: ends the queue, and returns the available index that it came to; or `token` where it is given, for
   * a queue that has none.
   */
  stop(token?: number): number {
    const ran = this.hasStarted;
    // Asked once more, as nobody saw the answer.
    if (!ran && this.#stopped && this.kick < 0 && this.addresses.descriptors === 0) return this.#stopped.base;
    this.halt();
    this.#leaveMemory();
    const base = token ?? this.#base;
    if (ran) this.#stopped = { ...this.addresses, size: this.#size, base };
    this.enabled = false;
    this.queue.state[OWES_CALL] = 0;
    this.setFd("kick", -1);
    this.addresses = NOWHERE;
    return base;
  }

  /** Whether it ran when it was stopped. */
  get hasStopped(): boolean {
    return this.#stopped !== undefined;
  }

  /** Whether it is set up now as it was when it was stopped, to go on there. */
  get isAsBefore(): boolean {
    const before = this.#stopped;
    if (!before) return false;
    const { descriptors, available, used } = this.addresses;
    return (
      before.size === this.#size &&
      before.base === this.#base &&
      before.descriptors === descriptors &&
      before.available === available &&
      before.used === used
    );
  }

  /** What came before the stop is of no interest any more. */
  forget(): void {
    this.#stopped = undefined;
  }

  /** Interrupts the driver, if it wants that; whether it did. Call it after each batch of completed buffers. */
  call(): boolean {
    if (!this.queue.shouldCall()) return false;
    if (this.#fds.call < 0) {
      this.queue.state[OWES_CALL] = 1;
      return false;
    }
    eventfdWrite(this.#fds.call);
    return true;
  }

  /** Tells the front-end that the queue is broken. */
  reportBroken(): void {
    if (this.#fds.error >= 0) eventfdWrite(this.#fds.error);
  }

  inspect(): object {
    const { kick, call, error } = this.#fds;
    return { enabled: this.enabled, kick: kick >= 0, call: call >= 0, error: error >= 0, ...this.queue.inspect() };
  }

  /** The front-end is gone. */
  release(): void {
    this.queue.stop();
    this.#leaveMemory();
    this.#stopped = undefined;
    this.enabled = false;
    this.queue.state[OWES_CALL] = 0;
    for (const name of ["kick", "call", "error"] as const) this.setFd(name, -1);
  }

  #layout(base: number | undefined): QueueLayout {
    const [descriptors, available, used] = this.#extents().map(({ address, length }) => {
      return this.#memory.locateRing(address, length);
    });
    return { size: this.#size, base, descriptors, available, used };
  }

  #extents(): Extent[] {
    const { descriptors, available, used } = this.addresses;
    return [
      { address: descriptors, length: descriptorTableBytes(this.#size) },
      { address: available, length: availableRingBytes(this.#size) },
      { address: used, length: usedRingBytes(this.#size) },
    ];
  }
}

/** Nothing of it has to be waited for: it is all there, or never will be. */
function isHere({ descriptors, available, used }: QueueLayout): boolean {
  const parts = [descriptors, available, used];
  return !parts.includes(MISSING) || parts.includes(-1);
}
