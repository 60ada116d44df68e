/**
 * The copy queue (docs/virtio-vfio-user.md, "Copies"): the device process names driver-VM memory and memory of its own VM, and the
 * bridge copies from one to the other. Requests are carried out one after the other, each whole, so that none is under way when
 * memory is taken away. After some megabytes the rest of the bridge gets its turn.
 *
 * A request that asks for what cannot be gets a status; a chain that is no request breaks the link, as a broken ring does.
 */
import * as native from "../../native/index.js";
import { Errno } from "../../shared/errors.js";
import { KiB, MAX_COPY_SIZE, MiB } from "../../shared/limits.js";
import { CopyFlags, CopyRequest, CopyStatus, Queue } from "../../shared/spec/link.js";
import { type DeviceQueue, QueueBroken } from "../../shared/virtqueue/device.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { CopiedMemory } from "./copied-memory.js";

/** Bytes that are copied before others get their turn: a third of a millisecond. Less costs more in changes of processes. */
const BYTES_PER_TURN = 8 * MiB;
/** What a request counts at least, so that a turn has an end whatever is asked. */
const LEAST_COST = 4 * KiB;

export class Copies {
  /** Requests that were carried out so far, and their bytes. */
  copies = 0;
  bytes = 0;
  readonly #memory: CopiedMemory;
  readonly #broken: (reason: string) => void;
  #backEnd: BackEnd | undefined;
  #queue: DeviceQueue | undefined;
  #poll: native.Poll | undefined;
  #nextTurn: NodeJS.Immediate | undefined;
  readonly #header = new Uint8Array(CopyRequest.size);
  readonly #request = CopyRequest.view(new DataView(this.#header.buffer));
  readonly #statusBytes = new Uint8Array(CopyStatus.size);
  readonly #status = CopyStatus.view(new DataView(this.#statusBytes.buffer));

  /** `broken` is called when the driver broke the queue, which has stopped then. */
  constructor(memory: CopiedMemory, broken: (reason: string) => void) {
    this.#memory = memory;
    this.#broken = broken;
  }

  /** Starts on a device whose copy queue was enabled. */
  start(backEnd: BackEnd): void {
    this.stop();
    const kick = backEnd.kickFd(Queue.COPY);
    if (kick < 0) return;
    this.#backEnd = backEnd;
    this.#queue = backEnd.queue(Queue.COPY);
    this.#poll = new native.Poll(kick, () => this.#serve(), "eventfd");
    this.#poll.start(native.POLL_READABLE);
  }

  stop(): void {
    clearImmediate(this.#nextTurn);
    this.#nextTurn = undefined;
    this.#poll?.close();
    this.#poll = undefined;
    this.#queue = undefined;
    this.#backEnd = undefined;
  }

  #serve(): void {
    const queue = this.#queue;
    if (queue === undefined || this.#nextTurn !== undefined) return;
    let served = false;
    let more = false;
    try {
      let left = BYTES_PER_TURN;
      while (left > 0 && queue.next()) {
        served = true;
        left -= this.#carryOut(queue);
      }
      // The driver notifies of what comes when the queue was found empty, and of nothing before.
      more = left <= 0;
    } catch (error) {
      if (!(error instanceof QueueBroken)) throw error;
      const backEnd = this.#backEnd;
      this.stop();
      backEnd?.reportBroken(Queue.COPY);
      this.#broken(error.message);
      return;
    }
    if (served) this.#backEnd?.call(Queue.COPY);
    if (more) this.#schedule();
  }

  #schedule(): void {
    this.#nextTurn = setImmediate(() => {
      this.#nextTurn = undefined;
      this.#serve();
    });
  }

  /** Carries out the request under way. Returns what it counts of a turn. @throws QueueBroken when it is none */
  #carryOut(queue: DeviceQueue): number {
    const { readable, writable } = queue;
    if (readable < CopyRequest.size || writable < CopyStatus.size) {
      throw new QueueBroken(`a copy request of ${readable} readable and ${writable} writable bytes`);
    }
    // Copied first: the driver can change it at any time.
    queue.read(0, this.#header, 0, CopyRequest.size);
    const { address, length, flags } = this.#request;
    const isWrite = (flags & CopyFlags.WRITE) !== 0;
    const makesSense =
      (flags & ~CopyFlags.WRITE) === 0 &&
      length > 0 &&
      length <= MAX_COPY_SIZE &&
      readable === CopyRequest.size + (isWrite ? length : 0) &&
      writable === CopyStatus.size + (isWrite ? 0 : length);
    let errno = 0;
    if (!makesSense) errno = Errno.EINVAL;
    else if (!this.#memory.reaches(address, length, isWrite)) errno = Errno.EFAULT;
    else this.#copy(queue, address, length, isWrite);
    this.#status.errno = errno;
    queue.write(0, this.#statusBytes, 0, CopyStatus.size);
    queue.complete(CopyStatus.size + (errno === 0 && !isWrite ? length : 0));
    if (errno !== 0) return LEAST_COST;
    this.copies++;
    this.bytes += length;
    return Math.max(length, LEAST_COST);
  }

  #copy(queue: DeviceQueue, address: number, length: number, isWrite: boolean): void {
    const memory = this.#memory;
    for (let done = 0; done < length; ) {
      const run = memory.locate(address + done, length - done);
      if (isWrite) queue.read(CopyRequest.size + done, memory.bytes, memory.offset, run);
      else queue.write(CopyStatus.size + done, memory.bytes, memory.offset, run);
      done += run;
    }
  }
}
