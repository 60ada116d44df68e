/**
 * The copy queue (docs/virtio-vfio-user.md, "Copies"): the device process names driver-VM memory and memory of its own
 * VM, and the bridge copies from one to the other. While nobody else wants anything of the bridge, JavaScript's own
 * thread does it, one request after the other, and after some megabytes the event loop gets its turn. Once somebody
 * does, large copies are left to a thread (copy-threads.ts), a batch at a time, for a while.
 *
 * Memory of either side goes away when no thread uses it: what is about to take it away waits for the batch, which is
 * no more than what would have been copied in a turn.
 *
 * A request that asks for what cannot be gets a status; a chain that is no request breaks the link, as a broken ring
 * does.
 */
import * as native from "../../../native/index.js";
import { BufferTable } from "../../../shared/buffer-table.js";
import { Errno } from "../../../shared/errors.js";
import { KiB, MAX_COPY_SIZE, MAX_QUEUE_SIZE, MiB } from "../../../shared/limits.js";
import { isLost } from "../../../shared/lost-memory.js";
import { CopyFlags, CopyRequest, CopyStatus, Queue } from "../../../shared/spec/link.js";
import { Rest, type Share, Turn } from "../../../shared/turn.js";
import type { CopiedMemory } from "../../../shared/vfio-user/dma/copied-memory.js";
import { type DeviceQueue, QueueBroken } from "../../../shared/virtqueue/device.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import { type CopyThreads, copyThreads } from "./copy-threads.js";
import type { DeviceState } from "./device-state.js";

/**
 * Bytes that are copied before others get their turn, and before the device process is told: a third of a millisecond.
 * Less costs more in changes of processes.
 */
const BYTES_PER_TURN = 8 * MiB;
/** Bytes that are copied before it is checked whether others wait, which is a system call. */
const BYTES_PER_CHECK = 512 * KiB;
/** Once others have waited, large copies are a thread's for so long. */
const SHARING_MS = 20;
/** What is large: a thread's hop costs as much as this takes to copy. */
const LARGE = 64 * KiB;
/**
 * Places of a request: those of its descriptors, and where memory of either side goes from one ArrayBuffer to the next.
 */
const MOST_PLACES = MAX_QUEUE_SIZE + 4;
/** What a request counts at least, so that a turn has an end whatever is asked. */
const LEAST_COST = 4 * KiB;
/**
 * Bytes that are only copied cost a turn as much as one byte of a message; of descriptors that holds for half as many.
 */
const COPIED_AS_ONE = 16;
const DESCRIPTOR_PARTS = COPIED_AS_ONE / 2;

/** A request that a thread copies for. */
interface PendingCopy {
  /** Of its chain. */
  readonly head: number;
  /** Bytes that are written into the chain. */
  readonly written: number;
  readonly address: number;
  readonly length: number;
  readonly isWrite: boolean;
  /** Where each byte of its status is. */
  readonly status: readonly { readonly bytes: Uint8Array; readonly offset: number }[];
}

export class Copies {
  /** Requests that were carried out so far, and their bytes. */
  copies = 0;
  bytes = 0;
  readonly #memory: CopiedMemory;
  readonly #state: DeviceState;
  #backEnd: BackEnd | undefined;
  #queue: DeviceQueue | undefined;
  #poll: native.Poll | undefined;
  readonly #turn: Turn;
  #kick = -1;
  /** When copies are the event loop's own again. */
  #sharingUntil = 0;
  readonly #buffers: BufferTable;
  /** What a thread copies, or is to copy next. */
  readonly #batch: PendingCopy[] = [];
  #isPending = false;
  readonly #header = new Uint8Array(CopyRequest.size);
  readonly #request = CopyRequest.view(new DataView(this.#header.buffer));
  readonly #statusBytes = new Uint8Array(CopyStatus.size);
  readonly #status = CopyStatus.view(new DataView(this.#statusBytes.buffer));

  /** `state` hears of a driver that broke the queue, which has stopped then. */
  constructor(memory: CopiedMemory, share: Share, state: DeviceState) {
    this.#memory = memory;
    this.#turn = new Turn(share, Rest.NONE, () => this.#serve());
    this.#state = state;
    this.#buffers = new BufferTable({
      add: (buffer) => this.#threads.pool.add(buffer),
      remove: (number) => this.#threads.pool.remove(number),
    });
    memory.beforeUnmap = this.#finish;
  }

  /** Whether it was started, and not stopped. */
  get running(): boolean {
    return this.#queue !== undefined;
  }

  /** Starts on a device whose copy queue was enabled. @throws SystemError; it has not started then */
  start(backEnd: BackEnd): void {
    this.stop();
    const kick = backEnd.kickFd(Queue.COPY);
    if (kick < 0) return;
    this.#kick = kick;
    this.#backEnd = backEnd;
    this.#queue = backEnd.queue(Queue.COPY);
    if (this.#queue) this.#queue.memory.beforeUnmap = this.#finish;
    try {
      this.#poll = new native.Poll(kick, () => this.#serve(), "eventfd");
      this.#poll.start(native.POLL_READABLE);
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  /** To be called before the queue stops: what a thread is at is given back. */
  stop(): void {
    this.#finish();
    this.#buffers.clear();
    if (this.#queue) this.#queue.memory.beforeUnmap = undefined;
    this.#turn.close();
    this.#poll?.close();
    this.#poll = undefined;
    this.#queue = undefined;
    this.#backEnd = undefined;
  }

  /** Memory has come that the ring, or a buffer in it, may have waited for. */
  memoryChanged(): void {
    if (this.#queue) this.#turn.goOn();
  }

  get #threads(): CopyThreads {
    return copyThreads();
  }

  #serve(): void {
    const queue = this.#queue;
    const turn = this.#turn;
    if (queue === undefined || this.#isPending || !turn.begin()) return;
    let served = false;
    let goesOn = true;
    let isSharing = performance.now() < this.#sharingUntil;
    try {
      let left = BYTES_PER_TURN;
      let untilCheck = BYTES_PER_CHECK;
      while (goesOn && left > 0 && (this.#batch.length === 0 || this.#threads.hasRoom(MOST_PLACES)) && queue.next()) {
        served = true;
        const handedOver = this.#batch.length;
        const cost = this.#carryOut(queue, isSharing);
        left -= cost;
        goesOn = turn.spend(cost / COPIED_AS_ONE);
        if (this.#batch.length === handedOver) untilCheck -= cost;
        if (untilCheck > 0) continue;
        untilCheck = BYTES_PER_CHECK;
        // What is not large is this thread's in any case, so it stops here.
        if (isSharing) {
          left = 0;
        } else if (native.eventsWait(this.#kick)) {
          isSharing = true;
          this.#sharingUntil = performance.now() + SHARING_MS;
        }
      }
      // The driver notifies of what comes when the queue was found empty, and of nothing before.
      if (left <= 0) goesOn = false;
    } catch (error) {
      if (this.#batch.length > 0) this.#threads.drop();
      this.#batch.length = 0;
      if (!(error instanceof QueueBroken)) throw error;
      const backEnd = this.#backEnd;
      this.stop();
      backEnd?.reportBroken(Queue.COPY);
      this.#state.raise("violated", error.message);
      return;
    }
    if (this.#batch.length > 0) {
      this.#isPending = true;
      this.#threads.start(this.#onEnded);
    } else {
      if (served) this.#backEnd?.call(Queue.COPY);
      turn.end(!goesOn);
    }
  }

  /** The batch that a thread was at is done. */
  readonly #onEnded = (errno: number): void => {
    this.#isPending = false;
    for (const pending of this.#batch) {
      const isGone = errno !== 0 && this.#isLost(pending);
      if (isGone) this.#fail(pending);
      this.#queue?.completeLater(pending.head, isGone ? CopyStatus.size : pending.written);
    }
    this.#batch.length = 0;
    this.#backEnd?.call(Queue.COPY);
    this.#turn.goOn();
  };

  /** Waits until no thread is at anything of this queue. */
  readonly #finish = (): void => {
    while (this.#isPending) this.#threads.wait();
  };

  /**
   * Carries out the request in flight, or has it carried out by a thread, where it is large and `isSharing`. Returns
   * what it counts of a turn. @throws QueueBroken when it is none
   */
  #carryOut(queue: DeviceQueue, isSharing: boolean): number {
    const { readable, writable } = queue;
    const cost = queue.chain.cost * DESCRIPTOR_PARTS;
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
    // Requests end in their order, so what is behind one that a thread has goes the same way.
    const isThreads =
      this.#batch.length > 0 || (errno === 0 && isSharing && length >= LARGE && this.#threads.hasRoom(MOST_PLACES));
    if (errno === 0 && !isThreads && !this.#copy(queue, address, length, isWrite)) errno = Errno.EFAULT;
    this.#status.errno = errno;
    queue.write(0, this.#statusBytes, 0, CopyStatus.size);
    const written = CopyStatus.size + (errno === 0 && !isWrite ? length : 0);
    if (isThreads) {
      if (errno === 0) this.#addToBatch(queue, address, length, isWrite);
      const status = this.#statusPlaces(queue);
      this.#batch.push({ head: queue.detach(), written, address, length, isWrite, status });
    } else {
      queue.complete(written);
    }
    if (errno !== 0) return LEAST_COST + cost;
    this.copies++;
    this.bytes += length;
    return Math.max(length, LEAST_COST) + cost;
  }

  #statusPlaces({ chain }: DeviceQueue): PendingCopy["status"] {
    chain.seek(true, 0);
    return Array.from({ length: CopyStatus.size }, () => {
      chain.next(1);
      return { bytes: chain.bytes, offset: chain.offset };
    });
  }

  /** Whether some of the driver VM's memory that a request is about was gone. */
  #isLost({ address, length, isWrite }: PendingCopy): boolean {
    const memory = this.#memory;
    if (!memory.reaches(address, length, isWrite)) return false;
    for (let done = 0; done < length; ) {
      const run = memory.locate(address + done, length - done);
      if (isLost(memory.bytes, memory.offset, run)) return true;
      done += run;
    }
    return false;
  }

  /** Its status was written when it was handed to the thread. */
  #fail({ status }: PendingCopy): void {
    this.#status.errno = Errno.EFAULT;
    status.forEach(({ bytes, offset }, n) => {
      bytes[offset] = this.#statusBytes[n];
    });
  }

  #addToBatch(queue: DeviceQueue, address: number, length: number, isWrite: boolean): void {
    const memory = this.#memory;
    const threads = this.#threads;
    const { chain } = queue;
    chain.seek(!isWrite, isWrite ? CopyRequest.size : CopyStatus.size);
    for (let done = 0; done < length; ) {
      const run = chain.next(memory.locate(address + done, length - done));
      if (isWrite) threads.add(this.#buffers, chain.bytes, chain.offset, memory.bytes, memory.offset, run);
      else threads.add(this.#buffers, memory.bytes, memory.offset, chain.bytes, chain.offset, run);
      done += run;
    }
  }

  /** False when some of the memory is gone. */
  #copy(queue: DeviceQueue, address: number, length: number, isWrite: boolean): boolean {
    const memory = this.#memory;
    let isWhole = true;
    for (let done = 0; done < length; ) {
      const run = memory.locate(address + done, length - done);
      if (isWrite) queue.read(CopyRequest.size + done, memory.bytes, memory.offset, run);
      else queue.write(CopyStatus.size + done, memory.bytes, memory.offset, run);
      if (isLost(memory.bytes, memory.offset, run)) isWhole = false;
      done += run;
    }
    return isWhole;
  }
}
