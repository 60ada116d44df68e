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
import type { FdKeeper } from "../state/fd-keeper.js";
import { type Message, takeFd } from "./connection.js";
import type { DeviceVmMemory } from "./memory.js";
import { type SavedVring, Vring, type VringFd } from "./vring.js";

/** Bases have 16 bits. */
const MAX_TOKEN = 0xffff;

export interface SavedVrings {
  readonly eventIndex: boolean;
  readonly state: VringsState;
  readonly token: number;
  readonly vrings: readonly SavedVring[];
}

/** Whether rings run; when they stand still, whether it is known yet that they go on. */
type VringsState = "idle" | "running" | "stopped" | "resuming";

export class Vrings {
  /** VIRTIO_F_EVENT_IDX was negotiated; for queues that start from now on. */
  eventIndex = false;
  readonly #vrings: Vring[] = [];
  readonly #memory: DeviceVmMemory;
  readonly #log: Log;
  readonly #fds: FdKeeper;
  #state: VringsState = "idle";
  #token = 0;

  constructor(memory: DeviceVmMemory, log: Log, fds: FdKeeper) {
    this.#memory = memory;
    this.#log = log;
    this.#fds = fds;
  }

  save(): SavedVrings {
    const vrings = this.#vrings.map((vring) => vring.save());
    return { eventIndex: this.eventIndex, state: this.#state, token: this.#token, vrings };
  }

  /** @throws StateError, or another Error for a queue that cannot run */
  restore({ eventIndex, state, token, vrings }: SavedVrings): void {
    this.eventIndex = eventIndex;
    this.#state = state;
    this.#token = token;
    for (const [index, saved] of vrings.entries()) this.mention(index).restore(saved, eventIndex);
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

  /**
   * Memory has come, or gone. Stops rings whose memory the new table unmapped; those behind an IOMMU stand still while
   * some of theirs is not here, and start or go on when all is. Calls `started` for each that starts.
   */
  memoryChanged(started: (index: number) => void): void {
    this.#vrings.forEach((vring, index) => {
      if (!vring.follow()) {
        this.#log.warn({ queue: index }, "the memory of a running queue went away");
        vring.halt();
        vring.reportBroken();
      } else if (vring.awaitsMemory) {
        this.#start(index, vring);
        if (vring.queue.running) started(index);
      }
    });
  }

  /** Queues are being set up, and none is enabled yet. */
  get isStarting(): boolean {
    return this.#state === "idle" || this.#state === "stopped";
  }

  setNum(message: Message): void {
    const { index, num } = VringState.view(message.data);
    this.mention(index).size = num;
  }

  setBase(message: Message): void {
    const { index, num } = VringState.view(message.data);
    this.mention(index).base = num;
  }

  setAddresses(message: Message): void {
    const { index, descriptors, available, used } = VringAddr.view(message.data);
    this.mention(index).addresses = { descriptors, available, used };
  }

  /** Returns the index of a queue that is enabled and now has its kick, so that it may run; otherwise -1. */
  setFd(message: Message, name: VringFd): number {
    const { value } = U64.view(message.data);
    const index = value & VRING_INDEX_MASK;
    const vring = this.mention(index);
    const fd = value & VRING_NO_FD ? -1 : takeFd(message);
    if (fd < 0 && !(value & VRING_NO_FD)) throw new ProtocolError("an eventfd is missing");
    vring.setFd(name, fd);
    if (name !== "kick" || !vring.enabled) return -1;
    this.#start(index, vring);
    return index;
  }

  /** Before a queue stops, of rings that run: from now on they stand still. False where none ran. */
  pause(): boolean {
    if (this.#state !== "running" && this.#state !== "resuming") return false;
    // The first of them has stopped by now, or may have: the next start decides of all.
    this.#state = "stopped";
    this.#token = (this.#token % MAX_TOKEN) + 1;
    return true;
  }

  /**
   * Before a queue is enabled, the first one of a start when all have been set up: whether what ran before was reset.
   */
  wasReset(): boolean {
    if (this.#state !== "stopped") return false;
    const before = this.#vrings.filter((vring) => vring.hasStopped);
    if (this.#hasPaused(before)) {
      this.#state = "resuming";
      return false;
    }
    for (const vring of before) vring.forget();
    this.#state = "idle";
    return true;
  }

  enable(index: number): void {
    if (this.#state === "idle") this.#state = "running";
    const vring = this.mention(index);
    vring.enabled = true;
    this.#start(index, vring);
  }

  /** After that: whether by now all run again that stood still. */
  haveResumed(): boolean {
    if (this.#state !== "resuming") return false;
    if (this.#vrings.some((vring) => vring.hasStopped && !vring.queue.running)) return false;
    for (const vring of this.#vrings) vring.forget();
    this.#state = "running";
    return true;
  }

  #hasPaused(vrings: readonly Vring[]): boolean {
    return vrings.length > 0 && vrings.every((vring) => vring.isAsBefore) && vrings.some((vring) => vring.base > 0);
  }

  #start(index: number, vring: Vring): void {
    try {
      vring.start(this.eventIndex);
    } catch (error) {
      this.#log.warn({ queue: index, reason: (error as Error).message }, "the driver set up a queue that cannot run");
      vring.reportBroken();
    }
  }

  /** After `pause`: stops a queue, and returns GET_VRING_BASE's reply. */
  stop(message: Message): { index: number; num: number } {
    const { index } = VringState.view(message.data);
    const vring = this.mention(index);
    const isDoorbell = index >= Queue.FIRST_DOORBELL;
    return { index, num: isDoorbell && vring.hasStarted ? vring.stop(this.#token) : vring.stop() };
  }

  /** The vring of that index, made on first mention: the front-end never says how many there are. */
  mention(index: number): Vring {
    if (index >= MAX_QUEUES) throw new ProtocolError(`queue ${index} of at most ${MAX_QUEUES}`);
    while (this.#vrings.length <= index) this.#vrings.push(new Vring(this.#memory, this.#fds));
    return this.#vrings[index];
  }
}
