/**
 * Messages over the two message queues of the virtio-vfio-user device (docs/virtio-vfio-user.md, "Messages"): buffers
 * in DMA memory, messages that span several of them, and what waits while the bridge has all of ours.
 *
 * A received message is copied out of the memory that the bridge can still write before anybody reads it. A message
 * to send is built in its transmit buffer where it fits. When the bridge breaks the rings or the framing, `onBroken` is
 * called once and nothing is sent or received any more; nothing is thrown for it, since replies are sent from
 * everywhere.
 */
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { Queue } from "../../../shared/spec/link.js";
import { Header } from "../../../shared/spec/vfio-user.js";
import type { DriverQueue } from "../../../shared/virtqueue/driver.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { PciFunction } from "../../vfio/pci-function.js";
import type { VirtioPci } from "../../virtio-pci/transport.js";
import { Buffers } from "./buffers.js";
import { type DevicePath, PathState, Stop } from "./device-path.js";

/** Messages taken at one go, before timers and other sockets get a turn. */
const BATCH = 256;
/** Messages that may wait to be sent before no more are received. */
const MAX_WAITING = 64;

/**
 * A message being built: `size` bytes, header included, go into `bytes` from `offset` on; `data` views the same buffer.
 */
export class Outgoing {
  bytes = new Uint8Array(0);
  data = new DataView(this.bytes.buffer);
  offset = 0;
  /** The transmit buffer that it is built in, or -1. */
  buffer = -1;
  /** Where it is built when it fits into no transmit buffer or none is free. */
  scratch = this.data;
}

/** What becomes of received messages: `size` bytes, header included, valid until the call returns. */
type Receiver = (bytes: Uint8Array<ArrayBuffer>, data: DataView<ArrayBuffer>, size: number) => void;

/** A message of `sendParts`. */
export interface PartsMessage {
  parts: readonly Uint8Array[];
  readonly size: number;
  /** Bytes that are in transmit buffers. */
  sent: number;
}

export class Messages {
  readonly maxMessageSize: number;
  /** What of it C++ has, too. */
  readonly state = new PathState();
  onBroken: (error: unknown) => void = () => {};
  /** Less is waiting to be sent than the high-water mark: what was held back in the ring is to be polled for. */
  onDrained: () => void = () => {};
  #broken = false;
  readonly #transport: VirtioPci;
  readonly #receive: Buffers;
  readonly #transmit: Buffers;
  readonly #waiting: PartsMessage[] = [];
  readonly #header = Header.view();
  /** The message that is being received: `#have` of `#size` bytes, 0 before its first buffer. */
  #incoming: DataView<ArrayBuffer>;
  #incomingBytes: Uint8Array<ArrayBuffer>;
  #spare: DataView<ArrayBuffer>;
  #size = 0;
  #have = 0;
  /** Nothing was received because too much was waiting to be sent. */
  #heldBack = false;

  constructor(pci: PciFunction, transport: VirtioPci, maxMessageSize: number, eventIndex: boolean) {
    this.#transport = transport;
    this.maxMessageSize = maxMessageSize;
    this.#receive = new Buffers(pci, transport.maxQueueSize(Queue.TO_DEVICE), eventIndex);
    this.#transmit = new Buffers(pci, transport.maxQueueSize(Queue.FROM_DEVICE), eventIndex);
    this.state.freeAll(this.#transmit.queue.size);
    this.#incoming = new DataView(new ArrayBuffer(maxMessageSize));
    this.#incomingBytes = new Uint8Array(this.#incoming.buffer);
    this.#spare = new DataView(new ArrayBuffer(maxMessageSize));
  }

  /** The device was reset, and nothing of before is to be sent or received any more. No buffer may be reserved. */
  restart(): void {
    this.#receive.queue.reset();
    this.#transmit.queue.reset();
    this.state.freeAll(this.#transmit.queue.size);
    this.#waiting.length = 0;
    this.#size = 0;
    this.#have = 0;
    this.state.start(Stop.WAITING | Stop.PARTIAL);
    this.#heldBack = false;
    this.#broken = false;
  }

  /** Tells the device of both queues; before DRIVER_OK. */
  enable(): void {
    this.#transport.enableQueue(Queue.TO_DEVICE, this.#receive.queue, true);
    this.#transport.enableQueue(Queue.FROM_DEVICE, this.#transmit.queue, true);
    this.#transmit.queue.wantsInterrupt = false;
  }

  /** C++ has the queues, too, from now on; they are enabled. */
  enablePath(path: DevicePath, copies: DriverQueue): void {
    path.enable(this.#receive, this.#transmit, copies, this.#transport);
    this.state.start(Stop.LINK);
  }

  /** Offers all receive buffers; after DRIVER_OK. */
  offer(): void {
    for (let id = 0; id < this.#receive.queue.size; id++) this.#receive.add(id, this.#receive.size, true);
    this.#publishReceived();
  }

  /** More is waiting to be sent than the high-water mark: nothing is received until it is less. */
  get isAboveHighWater(): boolean {
    return this.#waiting.length > MAX_WAITING;
  }

  /**
   * Hands received messages to `receiver`, as long as `ready` says so. True when more may be there. `isLast`: when
   * there are no more, the next one is to interrupt; otherwise the caller polls again.
   */
  poll(receiver: Receiver, ready: () => boolean, isLast: boolean): boolean {
    if (this.#broken) return false;
    try {
      this.#sendUnsent();
      this.#sendWaiting();
      return this.#poll(receiver, ready, isLast);
    } catch (error) {
      this.#break(error);
      return false;
    } finally {
      if (this.#size > 0) this.state.stop(Stop.PARTIAL);
      else this.state.start(Stop.PARTIAL);
    }
  }

  #poll(receiver: Receiver, ready: () => boolean, isLast: boolean): boolean {
    const { queue } = this.#receive;
    for (let n = 0; n < BATCH; n++) {
      this.#heldBack = this.isAboveHighWater;
      if (this.#heldBack || !ready()) return false;
      if (!isLast && queue.isIdle) return false;
      const id = queue.take();
      if (id < 0) return false;
      this.state.countReceived();
      this.#collect(id, queue.usedLength);
      this.#receive.add(id, this.#receive.size, true);
      // Publishing buffers in batches spares most notifications, each of which leaves the VM.
      if (queue.unpublished >= queue.size / 4) this.#publishReceived();
      if (this.#size > 0 && this.#have === this.#size) {
        const size = this.#size;
        this.#size = 0;
        receiver(this.#incomingBytes, this.#incoming, size);
      }
    }
    return true;
  }

  /** Leaves the message that was received last to its receiver for longer; at most one at a time. */
  keepReceived(): void {
    const kept = this.#incoming;
    this.#incoming = this.#spare;
    this.#incomingBytes = new Uint8Array(this.#spare.buffer);
    this.#spare = kept;
  }

  /** Makes room for a message of `size` bytes. @throws ProtocolError E2BIG when it is too long */
  reserve(out: Outgoing, size: number): void {
    this.release(out);
    if (!(size <= this.maxMessageSize)) throw new ProtocolError(`a message of ${size} bytes is too long`, Errno.E2BIG);
    if (size <= this.#transmit.size && this.#waiting.length === 0 && !this.#broken) {
      this.#reclaim();
      const id = this.state.takeFree();
      if (id >= 0) {
        out.bytes = this.#transmit.bytes;
        out.data = this.#transmit.data;
        out.offset = this.#transmit.offset(id);
        out.buffer = id;
        return;
      }
    }
    if (out.scratch.byteLength < size) out.scratch = new DataView(new ArrayBuffer(this.maxMessageSize));
    out.data = out.scratch;
    out.bytes = new Uint8Array(out.scratch.buffer);
    out.offset = 0;
  }

  /** Sends the first `size` bytes of what was reserved. */
  send(out: Outgoing, size: number): void {
    if (out.buffer < 0) {
      this.sendParts([out.bytes.slice(0, size)], size);
      return;
    }
    this.#transmit.add(out.buffer, size, false);
    out.buffer = -1;
    if (!this.#broken) this.#publishSent();
  }

  /** Gives back what was reserved and is not to be sent. */
  release(out: Outgoing): void {
    if (out.buffer >= 0) this.state.putFree(out.buffer);
    out.buffer = -1;
  }

  /** Sends a message whose parts stay as they are until its reply is there, or until `retract`. */
  sendParts(parts: readonly Uint8Array[], size: number): PartsMessage {
    const message = { parts, size, sent: 0 };
    if (this.#broken) return message;
    this.#waiting.push(message);
    this.state.stop(Stop.WAITING);
    this.#sendWaiting();
    return message;
  }

  /** The parts of a message are their owner's again. Whether nothing of it was sent, and nothing will be. */
  retract(message: PartsMessage): boolean {
    const at = this.#waiting.indexOf(message);
    if (at < 0) return message.sent === 0;
    if (message.sent === 0) {
      this.#waiting.splice(at, 1);
      if (this.#waiting.length === 0) this.state.start(Stop.WAITING);
      return true;
    }
    // The bridge has its beginning, and takes what follows for the rest of it.
    message.parts = message.parts.map((part) => part.slice());
    return false;
  }

  #break(error: unknown): void {
    if (this.#broken) return;
    this.#broken = true;
    this.#waiting.length = 0;
    this.onBroken(error);
  }

  /** Copies a used buffer to its place in the message. @throws PeerGone when it has none */
  #collect(id: number, length: number): void {
    const { bytes, size: bufferSize } = this.#receive;
    const offset = this.#receive.offset(id);
    let skip = 0;
    if (this.#size === 0) {
      if (length < Header.size) throw new PeerGone(`a message of ${length} bytes`);
      // Copied first: the bridge could change the size after it was checked.
      copyBytes(bytes, offset, this.#incomingBytes, 0, Header.size);
      const { size } = this.#header.at(this.#incoming);
      if (size < Header.size || size > this.maxMessageSize) throw new PeerGone(`a message that says ${size} bytes`);
      this.#size = size;
      this.#have = Header.size;
      skip = Header.size;
    }
    const count = length - skip;
    if (count > this.#size - this.#have) throw new PeerGone("a buffer goes on behind the end of its message");
    copyBytes(bytes, offset + skip, this.#incomingBytes, this.#have, count);
    this.#have += count;
    if (this.#have < this.#size && length !== bufferSize)
      throw new PeerGone(`a buffer of ${length} bytes in a message`);
  }

  #publishReceived(): void {
    if (this.#receive.queue.publish()) this.#transport.notify(Queue.TO_DEVICE);
  }

  #publishSent(): void {
    if (this.#transmit.queue.publish()) this.#transport.notify(Queue.FROM_DEVICE);
  }

  /** Takes back transmit buffers that the bridge has read. */
  #reclaim(): void {
    const { queue } = this.#transmit;
    try {
      for (let id = queue.take(); id >= 0; id = queue.take()) this.state.putFree(id);
    } catch (error) {
      this.#break(error);
    }
  }

  /** What C++ has left to be sent: the answer to an access, which was dealt with before anything that is here now. */
  #sendUnsent(): void {
    const answer = this.state.takeUnsent();
    if (answer !== undefined) this.sendParts([answer], answer.length);
  }

  #sendWaiting(): void {
    if (this.#waiting.length === 0) return;
    this.#reclaim();
    if (!this.#fill()) {
      // All buffers are with the bridge: an interrupt is to tell when one comes back, unless it just did.
      this.#transmit.queue.wantsInterrupt = true;
      this.#reclaim();
      if (!this.#fill()) return;
    }
    this.#transmit.queue.wantsInterrupt = false;
  }

  /** Puts what waits into free buffers. True when nothing waits any more. */
  #fill(): boolean {
    let filled = false;
    for (let message = this.#waiting[0]; message !== undefined; message = this.#waiting[0]) {
      const id = this.state.takeFree();
      if (id < 0) break;
      const length = Math.min(message.size - message.sent, this.#transmit.size);
      gather(message, this.#transmit.bytes, this.#transmit.offset(id), length);
      message.sent += length;
      this.#transmit.add(id, length, false);
      filled = true;
      if (message.sent === message.size) this.#waiting.shift();
    }
    if (filled) this.#publishSent();
    if (this.#heldBack && !this.isAboveHighWater) {
      this.#heldBack = false;
      this.onDrained();
    }
    if (this.#waiting.length > 0) return false;
    this.state.start(Stop.WAITING);
    return true;
  }
}

/** Copies `length` bytes of a message, from the first that was not sent on. */
function gather(message: PartsMessage, target: Uint8Array, to: number, length: number): void {
  let skip = message.sent;
  let left = length;
  for (const part of message.parts) {
    const count = Math.min(left, part.length - skip);
    if (count > 0) {
      copyBytes(part, skip, target, to + length - left, count);
      left -= count;
      skip = 0;
    } else {
      skip -= part.length;
    }
  }
}
