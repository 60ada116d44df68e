/**
 * All virtqueues of the device, and the requests that are about them: SET_VRING_*, GET_VRING_BASE. Each handler throws
 * ProtocolError for what cannot be.
 *
 * A front-end stops the rings with the same messages when the device VM is paused and when the device is reset, and
 * only its next start says which it was: after a pause each ring has the addresses, the size and the base that it had,
 * after a reset it begins at 0. A doorbell queue has no indices, so its base is a token: a number that no reset brings.
 */
import { ProtocolError } from "../../../shared/errors.js";
import { MAX_QUEUES } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { Queue } from "../../../shared/spec/link.js";
import { U64, VRING_INDEX_MASK, VRING_NO_FD, VringAddr, VringState } from "../../../shared/spec/vhost-user.js";
import { type Message, takeFd } from "./connection.js";
import type { DeviceVmMemory } from "./memory.js";
import { Vring, type VringFd } from "./vring.js";

/** What the back-end hears of its queues. */
export interface VringEvents {
  /** A queue is about to stop, of rings that run: for the time being, or permanently. */
  pausing(): void;
  /** All rings that ran go on where they were. */
  resumed(): void;
  /** A queue is enabled that does not go on: what ran before was reset. */
  reset(): void;
  /** Queue `index` was enabled, or got its kick. */
  enabled(index: number): void;
}

/** Bases have 16 bits. */
const MAX_TOKEN = 0xffff;

export class Vrings {
  /** VIRTIO_F_EVENT_IDX was negotiated; for queues that start from now on. */
  eventIndex = false;
  readonly #vrings: Vring[] = [];
  readonly #memory: DeviceVmMemory;
  readonly #events: VringEvents;
  readonly #log: Log;
  /** Whether rings run; when they stand still, whether it is known yet that they go on. */
  #state: "idle" | "running" | "stopped" | "resuming" = "idle";
  #token = 0;

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

  /** Whether rings that ran stand still, and may go on. */
  get stopped(): boolean {
    return this.#state === "stopped" || this.#state === "resuming";
  }

  /** The front-end is gone. */
  release(): void {
    for (const vring of this.#vrings) vring.release();
    this.#state = "idle";
  }

  /** Stops rings whose memory the new table unmapped. */
  stopUnmapped(): void {
    this.#vrings.forEach((vring, index) => {
      if (!vring.queue.running || vring.isMapped) return;
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
      this.#pause();
      vring.enabled = false;
      return;
    }
    if (vring.enabled) return;
    if (this.#state === "stopped") this.#decide();
    if (this.#state === "idle") this.#state = "running";
    vring.enabled = true;
    this.#start(index, vring);
    if (this.#state === "resuming") this.#resume();
  }

  #pause(): void {
    if (this.#state !== "running" && this.#state !== "resuming") return;
    // The first of them has stopped by now, or may have: the next start decides of all.
    this.#state = "stopped";
    this.#token = (this.#token % MAX_TOKEN) + 1;
    this.#events.pausing();
  }

  /** Before the first queue of a start is enabled, when all have been set up. */
  #decide(): void {
    const before = this.#vrings.filter((vring) => vring.hasStopped);
    if (this.#hasPaused(before)) {
      this.#state = "resuming";
      return;
    }
    for (const vring of before) vring.forget();
    this.#state = "idle";
    this.#events.reset();
  }

  #hasPaused(vrings: readonly Vring[]): boolean {
    return vrings.length > 0 && vrings.every((vring) => vring.isAsBefore) && vrings.some((vring) => vring.base > 0);
  }

  /** Goes on once all run again. */
  #resume(): void {
    if (this.#vrings.some((vring) => vring.hasStopped && !vring.queue.running)) return;
    for (const vring of this.#vrings) vring.forget();
    this.#state = "running";
    this.#events.resumed();
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
    this.#pause();
    const isDoorbell = index >= Queue.FIRST_DOORBELL;
    return { index, num: isDoorbell && vring.queue.running ? vring.stop(this.#token) : vring.stop() };
  }

  /** The vring of that index, made on first mention: the front-end never says how many there are. */
  #vring(index: number): Vring {
    if (index >= MAX_QUEUES) throw new ProtocolError(`queue ${index} of at most ${MAX_QUEUES}`);
    while (this.#vrings.length <= index) this.#vrings.push(new Vring(this.#memory));
    return this.#vrings[index];
  }
}
