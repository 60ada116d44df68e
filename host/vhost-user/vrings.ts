/**
 * All virtqueues of the device, and the requests that are about them: SET_VRING_*, GET_VRING_BASE. Each handler throws
 * ProtocolError for what cannot be.
 */
import { ProtocolError } from "../../shared/errors.js";
import { MAX_QUEUES } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { U64, VRING_INDEX_MASK, VRING_NO_FD, VringAddr, VringState } from "../../shared/spec/vhost-user.js";
import { type Message, takeFd } from "./connection.js";
import type { DeviceVmMemory } from "./memory.js";
import { Vring, type VringFd } from "./vring.js";

/** What the back-end hears of its queues. */
export interface VringEvents {
  /** A queue is enabled: the device runs. */
  running(): void;
  /** A queue is about to stop. */
  stopping(): void;
  /** Queue `index` was enabled, or got its kick. */
  enabled(index: number): void;
}

export class Vrings {
  /** VIRTIO_F_EVENT_IDX was negotiated; for queues that start from now on. */
  eventIndex = false;
  readonly #vrings: Vring[] = [];
  readonly #memory: DeviceVmMemory;
  readonly #events: VringEvents;
  readonly #log: Log;

  constructor(memory: DeviceVmMemory, events: VringEvents, log: Log) {
    this.#memory = memory;
    this.#events = events;
    this.#log = log;
  }

  /** Queues that the front-end has mentioned. */
  get length(): number {
    return this.#vrings.length;
  }

  /** A queue that was mentioned. */
  at(index: number): Vring | undefined {
    return this.#vrings[index];
  }

  inspect(): object[] {
    return this.#vrings.map((vring) => vring.inspect());
  }

  /** The front-end is gone. */
  release(): void {
    for (const vring of this.#vrings) vring.release();
  }

  /** Stops rings that the new table took the ground from. */
  checkGround(): void {
    this.#vrings.forEach((vring, index) => {
      if (!vring.queue.running || vring.hasGround) return;
      this.#log.warn({ queue: index }, "the memory of a running queue went away");
      vring.halt();
      vring.reportBroken();
    });
  }

  setNum(message: Message): void {
    const { index, num } = VringState.view(message.data);
    this.#vring(index).size = num;
  }

  setBase(message: Message): void {
    const { index, num } = VringState.view(message.data);
    this.#vring(index).base = num;
  }

  setAddresses(message: Message): void {
    const { index, descriptors, available, used } = VringAddr.view(message.data);
    this.#vring(index).addresses = { descriptors, available, used };
  }

  setFd(message: Message, name: VringFd): void {
    const { value } = U64.view(message.data);
    const index = value & VRING_INDEX_MASK;
    const vring = this.#vring(index);
    const fd = value & VRING_NO_FD ? -1 : takeFd(message);
    if (fd < 0 && !(value & VRING_NO_FD)) throw new ProtocolError("an eventfd is missing");
    vring.setFd(name, fd);
    if (name === "kick" && vring.enabled) this.#start(index, vring);
  }

  setEnable(message: Message): void {
    const { index, num } = VringState.view(message.data);
    const vring = this.#vring(index);
    if (num === 0) {
      this.#events.stopping();
      vring.enabled = false;
      return;
    }
    if (vring.enabled) return;
    vring.enabled = true;
    this.#events.running();
    this.#start(index, vring);
  }

  #start(index: number, vring: Vring): void {
    try {
      vring.start(this.eventIndex);
    } catch (error) {
      this.#log.warn({ queue: index, reason: (error as Error).message }, "the driver set up a queue that cannot run");
      vring.reportBroken();
    }
    this.#events.enabled(index);
  }

  /** Stops a queue, and returns GET_VRING_BASE's reply. */
  stop(message: Message): { index: number; num: number } {
    const { index } = VringState.view(message.data);
    const vring = this.#vring(index);
    this.#events.stopping();
    return { index, num: vring.stop() };
  }

  /** The vring of that index, made on first mention: the front-end never says how many there are. */
  #vring(index: number): Vring {
    if (index >= MAX_QUEUES) throw new ProtocolError(`queue ${index} of at most ${MAX_QUEUES}`);
    while (this.#vrings.length <= index) this.#vrings.push(new Vring(this.#memory));
    return this.#vrings[index];
  }
}
