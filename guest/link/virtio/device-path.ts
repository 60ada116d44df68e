/**
 * The device path: plain register accesses on their way from the ring to the device, and the replies back, in C++
 * (native DevicePath), in the wake-up that they come with. It takes messages of one buffer that DeviceAccess deals
 * with, in order, while nothing is in their way; anything else comes up to messages.ts as if there were no path.
 *
 * What both need lies in one piece of memory (PathState) and in the queues' own (shared/virtqueue/driver.ts), so that
 * either goes on where the other stopped.
 */
import * as native from "../../../native/index.js";
import { Queue } from "../../../shared/spec/link.js";
import { struct } from "../../../shared/struct/struct.js";
import { DeviceAccess } from "../../../shared/vfio-user/device-access.js";
import type { RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import { type DriverQueue, DriverState } from "../../../shared/virtqueue/driver.js";
import type { VirtioPci } from "../../virtio-pci/transport.js";
import type { Endpoint } from "../link.js";
import type { Buffers } from "./buffers.js";

/** "adaptive": as long as it pays. "always": the process never sleeps, and takes all of a CPU. "never": at once. */
export type LinkPolling = "adaptive" | "always" | "never";
const POLLING: Readonly<Record<LinkPolling, number>> = { adaptive: 0, always: 1, never: 2 };

const MAX_BUFFERS = 256;
const MAX_ANSWER = 64;

/** See native/device_path.h. */
const State = struct({
  stopped: "u32",
  received: "u32",
  unsent: "u32",
  freeCount: "u32",
  free: 4 * MAX_BUFFERS,
  answer: MAX_ANSWER,
});
const { received, freeCount, free, answer } = State.offsets;
/** The same table as native/device_path.cc has it. */
const LAYOUT = Uint32Array.of(received, freeCount, free, answer, State.size, 4 * DriverState.SIZE);

const STOPPED = State.offsets.stopped / 4;
const RECEIVED = received / 4;
const UNSENT = State.offsets.unsent / 4;
const FREE_COUNT = freeCount / 4;
const FREE = free / 4;

/** Why the path is stopped, as bits. */
export const Stop = {
  /** The link does not run. */
  LINK: 1,
  /** A command is in flight: the next one waits. */
  COMMAND: 2,
  /** Messages wait for transmit buffers: what is sent goes behind them. */
  WAITING: 4,
  /** A message that takes several buffers is not complete. */
  PARTIAL: 8,
} as const;

export class PathState {
  readonly bytes = new Uint8Array(State.size);
  readonly #words = new Int32Array(this.bytes.buffer);

  constructor() {
    this.stop(Stop.LINK);
  }

  stop(reasons: number): void {
    this.#words[STOPPED] |= reasons;
  }

  start(reasons: number): void {
    this.#words[STOPPED] &= ~reasons;
  }

  /** Buffers received, modulo 2^32. */
  get received(): number {
    return this.#words[RECEIVED];
  }

  countReceived(): void {
    this.#words[RECEIVED]++;
  }

  /** A transmit buffer; -1 when none is free. */
  takeFree(): number {
    const left = this.#words[FREE_COUNT] - 1;
    if (left < 0) return -1;
    this.#words[FREE_COUNT] = left;
    return this.#words[FREE + left];
  }

  putFree(id: number): void {
    this.#words[FREE + this.#words[FREE_COUNT]++] = id;
  }

  /** Buffers 0 to `count` - 1 are free. Nothing that the path left to be sent is sent any more. */
  freeAll(count: number): void {
    this.#words[UNSENT] = 0;
    this.#words[FREE_COUNT] = 0;
    for (let id = count - 1; id >= 0; id--) this.putFree(id);
  }

  /** An answer that the path left to be sent. */
  takeUnsent(): Uint8Array<ArrayBuffer> | undefined {
    const length = this.#words[UNSENT];
    if (length === 0) return undefined;
    this.#words[UNSENT] = 0;
    return this.bytes.slice(answer, answer + length);
  }
}

export class DevicePath {
  /** For the Poll on the interrupt. */
  readonly native: native.DevicePath;

  constructor(state: PathState, polling: LinkPolling) {
    this.native = new native.DevicePath(state.bytes, LAYOUT, POLLING[polling]);
  }

  /** Whose accesses it is, and where the values of its registers are kept. */
  serve({ words, summary }: Endpoint, registers: RegisterMemory | undefined): void {
    const access = new DeviceAccess(words, summary, false);
    access.shareRegisters(registers, true);
    this.native.device(access.native);
  }

  /** The queues, which are enabled. */
  enable(toDevice: Buffers, fromDevice: Buffers, copies: DriverQueue, transport: VirtioPci): void {
    this.native.rings(partsOf(toDevice), partsOf(fromDevice), ringOf(copies));
    const { registers, offsets } = transport.notifications([Queue.TO_DEVICE, Queue.FROM_DEVICE]);
    if (registers.kicks !== undefined) this.native.notifications(registers.kicks);
    else if (registers.buffer !== undefined) this.native.notifications(registers.buffer, ...offsets);
    else this.native.notifications((queue) => transport.notify(queue));
  }
}

function ringOf(queue: DriverQueue): native.DriverRing {
  return [queue.state, queue.lengths, ...queue.parts, queue.eventIndex];
}

function partsOf(buffers: Buffers): native.DeviceQueueParts {
  const { queue, bytes, size } = buffers;
  return [ringOf(queue), bytes.subarray(buffers.offset(0)), buffers.address(0), size];
}
