/**
 * The driver of the copy queue (docs/virtio-vfio-user.md, "Copies"): asks the bridge to copy between driver-VM memory
 * and memory of this VM. Bytes in DMA memory (buffers.ts) are copied where they are; all others go through a buffer
 * of each request's own, in pieces, several of which are in flight at once.
 *
 * A bridge that breaks the ring, or finishes nothing, is reported by what is thrown; nobody is kept waiting for it
 * then.
 */
import { alignUp } from "../../../shared/bits.js";
import { startTicks, TICKS_PER_DEADLINE } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { KiB, MAX_COPY_SIZE, PAGE_SIZE, REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { CopyFlags, CopyRequest, CopyStatus, Queue } from "../../../shared/spec/link.js";
import { DriverQueue, ringBytes } from "../../../shared/virtqueue/driver.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { DmaMemory, PciFunction } from "../../vfio/pci-function.js";
import type { VirtioPci } from "../../virtio-pci/transport.js";
import type { DmaBuffers } from "./buffers.js";

/** A request is three descriptors: what is asked, its status, the data. */
const DESCRIPTORS = 3;
/** Descriptors of the ring. With the buffers of its slots it fits 2 MiB. */
const MAX_QUEUE_SIZE = 64;
const BOUNCE_SIZE = 64 * KiB;
/** Of the fixed parts of a slot: CopyRequest, and a CopyStatus behind it. */
const FIXED_SIZE = 32;
const STATUS = CopyRequest.size;

/** One call of `read` or `write`. */
interface Transfer {
  readonly address: number;
  readonly bytes: Uint8Array;
  readonly isWrite: boolean;
  /** Where `bytes` are for the bridge, or -1: they go through the slots' buffers. */
  readonly deviceAddress: number;
  /** Bytes that were asked for, and requests for them without an answer. */
  asked: number;
  inFlight: number;
  error: Error | undefined;
  resolve(): void;
  reject(error: Error): void;
}

/** A request in flight: which part of which transfer. */
interface Slot {
  transfer: Transfer | undefined;
  start: number;
  length: number;
}

export class Copies {
  /** The bridge has finished nothing for too long. */
  onLate: (error: PeerGone) => void = () => {};
  readonly queue: DriverQueue;
  readonly #transport: VirtioPci;
  readonly #buffers: DmaBuffers;
  readonly #memory: DmaMemory;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #data: DataView<ArrayBuffer>;
  readonly #fixed: number;
  readonly #bounce: number;
  readonly #request = CopyRequest.view();
  readonly #status = CopyStatus.view();
  readonly #slots: readonly Slot[];
  readonly #free: number[];
  /** Transfers that were not asked for to their end, in order. */
  readonly #waiting: Transfer[] = [];
  /** Ticks since something was finished, or the first request was made after a rest. */
  #ticks = 0;
  /** While there are requests. */
  #stopTicks: (() => void) | undefined;
  #stopped: Error | undefined;
  #isAsking = false;
  readonly #askAll = () => {
    this.#isAsking = false;
    if (!this.#stopped) this.#ask();
  };

  /** @throws UserError when there is no memory for it, or the queue may have too few descriptors */
  constructor(pci: PciFunction, transport: VirtioPci, buffers: DmaBuffers, eventIndex = false) {
    this.#transport = transport;
    this.#buffers = buffers;
    const most = Math.min(transport.maxQueueSize(Queue.COPY), MAX_QUEUE_SIZE);
    const size = 2 ** Math.floor(Math.log2(Math.max(1, most)));
    const slots = Math.floor(size / DESCRIPTORS);
    if (slots === 0) throw new UserError(`the VIRTIO device's copy queue has ${most} descriptors`);
    const fixed = alignUp(ringBytes(size), FIXED_SIZE);
    const bounce = alignUp(fixed + slots * FIXED_SIZE, PAGE_SIZE);
    this.#memory = pci.allocate(bounce + slots * BOUNCE_SIZE);
    this.#fixed = this.#memory.start + fixed;
    this.#bounce = this.#memory.start + bounce;
    this.queue = new DriverQueue(size, this.#memory, this.#memory.start, eventIndex);
    this.#bytes = new Uint8Array(this.#memory.buffer);
    this.#data = new DataView(this.#memory.buffer);
    this.#slots = Array.from({ length: slots }, () => ({ transfer: undefined, start: 0, length: 0 }));
    this.#free = Array.from({ length: slots }, (_, n) => slots - 1 - n);
  }

  /** The device was reset, after `stop`. */
  restart(): void {
    this.queue.reset();
    this.#free.length = 0;
    for (let slot = this.#slots.length - 1; slot >= 0; slot--) this.#free.push(slot);
    this.#stopTicks = undefined;
    this.#ticks = 0;
    this.#stopped = undefined;
  }

  /** Fills `target` from driver-VM memory, all of it in one map. Rejects with ProtocolError (EFAULT) or PeerGone. */
  read(address: number, target: Uint8Array): Promise<void> {
    return this.#transfer(address, target, false);
  }

  /** The other way; `source` stays as it is until then. */
  write(address: number, source: Uint8Array): Promise<void> {
    return this.#transfer(address, source, true);
  }

  /** Takes what the bridge has finished, and asks for what waits. Whether it was anything. @throws PeerGone */
  poll(): boolean {
    if (this.#stopped) return false;
    let isAny = false;
    for (let id = this.queue.take(); id >= 0; id = this.queue.take()) {
      this.#finished(id / DESCRIPTORS);
      isAny = true;
    }
    this.#ask();
    return isAny;
  }

  #tick(): void {
    if (this.queue.inFlight > 0 && ++this.#ticks <= TICKS_PER_DEADLINE) return;
    this.#stopTicks?.();
    this.#stopTicks = undefined;
    if (this.queue.inFlight > 0) this.onLate(new PeerGone("the bridge finishes no copies"));
  }

  /** Nobody waits any longer: everything rejects with `error`, from now on. */
  stop(error: Error): void {
    if (this.#stopped) return;
    this.#stopped = error;
    this.#stopTicks?.();
    for (const transfer of this.#waiting.splice(0)) transfer.reject(error);
    for (const slot of this.#slots) {
      slot.transfer?.reject(error);
      slot.transfer = undefined;
    }
  }

  #transfer(address: number, bytes: Uint8Array, isWrite: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#stopped) return reject(this.#stopped);
      const deviceAddress = this.#buffers.addressOf(bytes);
      const error = undefined;
      this.#waiting.push({ address, bytes, isWrite, deviceAddress, asked: 0, inFlight: 0, error, resolve, reject });
      // All that is asked for in one go makes one notification, which leaves the VM.
      if (this.#isAsking) return;
      this.#isAsking = true;
      queueMicrotask(this.#askAll);
    });
  }

  /** Makes requests as long as there is a slot for them. */
  #ask(): void {
    const { queue } = this;
    if (queue.inFlight === 0) this.#ticks = 0;
    this.#stopTicks ??= startTicks(REPLY_DEADLINE_MS, () => this.#tick());
    let asked = false;
    while (this.#free.length > 0) {
      const transfer = this.#waiting[0];
      if (transfer === undefined) break;
      this.#askFor(transfer, this.#free.pop() as number);
      if (transfer.asked === transfer.bytes.length) this.#waiting.shift();
      asked = true;
    }
    if (asked && queue.publish()) this.#transport.notify(Queue.COPY);
  }

  #askFor(transfer: Transfer, index: number): void {
    const { address, bytes, isWrite, deviceAddress, asked: start } = transfer;
    const isDirect = deviceAddress >= 0;
    const length = Math.min(bytes.length - start, isDirect ? MAX_COPY_SIZE : BOUNCE_SIZE);
    const slot = this.#slots[index];
    slot.transfer = transfer;
    slot.start = start;
    slot.length = length;
    transfer.asked += length;
    transfer.inFlight++;

    const fixed = this.#fixed + index * FIXED_SIZE;
    const bounce = this.#bounce + index * BOUNCE_SIZE;
    if (isWrite && !isDirect) copyBytes(bytes, start, this.#bytes, bounce, length);
    const request = this.#request.at(this.#data, fixed);
    request.address = address + start;
    request.length = length;
    request.flags = isWrite ? CopyFlags.WRITE : 0;
    const { address: memory } = this.#memory;
    const data = isDirect ? deviceAddress + start : memory + bounce;
    const head = index * DESCRIPTORS;
    // What the bridge reads comes first.
    const [status, last] = isWrite ? [head + 2, head + 1] : [head + 1, head + 2];
    this.queue.describe(head, memory + fixed, CopyRequest.size, false, head + 1);
    this.queue.describe(status, memory + fixed + STATUS, CopyStatus.size, true, isWrite ? -1 : last);
    this.queue.describe(last, data, length, !isWrite, isWrite ? status : -1);
    this.queue.offer(head, CopyStatus.size + (isWrite ? 0 : length));
  }

  #finished(index: number): void {
    const slot = this.#slots[index];
    const { transfer, start, length } = slot;
    if (transfer === undefined) throw new PeerGone(`the bridge finished copy ${index}, which is not in flight`);
    const { bytes, isWrite, deviceAddress } = transfer;
    const { errno } = this.#status.at(this.#data, this.#fixed + index * FIXED_SIZE + STATUS);
    const written = CopyStatus.size + (errno === 0 && !isWrite ? length : 0);
    if (this.queue.usedLength !== written) {
      throw new PeerGone(`the bridge wrote ${this.queue.usedLength} bytes for a copy of ${length}`);
    }
    slot.transfer = undefined;
    this.#free.push(index);
    this.#ticks = 0;
    if (errno !== 0) {
      transfer.error ??= new ProtocolError(`a copy was refused, errno ${errno}`, errno > 4095 ? Errno.EIO : errno);
      this.#giveUp(transfer);
    } else if (!isWrite && deviceAddress < 0) {
      copyBytes(this.#bytes, this.#bounce + index * BOUNCE_SIZE, bytes, start, length);
    }
    if (--transfer.inFlight > 0 || transfer.asked < bytes.length) return;
    if (transfer.error) transfer.reject(transfer.error);
    else transfer.resolve();
  }

  /** Nothing more is asked for of a transfer that failed. */
  #giveUp(transfer: Transfer): void {
    if (transfer.asked < transfer.bytes.length) this.#waiting.splice(this.#waiting.indexOf(transfer), 1);
    transfer.asked = transfer.bytes.length;
  }
}
