/**
 * The link's messages over the device's two message queues (docs/virtio-vfio-user.md, "Messages").
 *
 * A message to the device process waits in a buffer of the channel's own until the driver offers space for it. The
 * buffer has a mark: above it, whoever produces messages is to hold back (`congested`, then `drained`), the device
 * process's own commands included. What the driver sends is copied out of its memory first and examined afterwards; a
 * broken ring or a malformed message stops the channel, and is reported once.
 */
import * as native from "../../../native/index.js";
import { KiB, MAX_MESSAGE_SIZE } from "../../../shared/limits.js";
import { Queue } from "../../../shared/spec/link.js";
import { Header } from "../../../shared/spec/vfio-user.js";
import { Rest, type Share, Turn } from "../../../shared/turn.js";
import { type AccessPath, Stop } from "../../../shared/vfio-user/socket/access-path.js";
import { DeviceQueue, QueueBroken } from "../../../shared/virtqueue/device.js";
import { StateError } from "../state/state-bytes.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { DeviceState } from "./device-state.js";
import { Outgoing } from "./outgoing.js";

/** Waiting bytes above which producers hold back. */
const CONGESTION_MARK = 256 * KiB;
/** A whole message, in bytes[0, length); both views are of the same bytes, which are reused afterwards. */
export type MessageListener = (bytes: Uint8Array, data: DataView, length: number) => void;

export class Channel {
  #sent = 0;
  #received = 0;
  #signals = 0;
  #backEnd: BackEnd | undefined;
  #toDevice = idleQueue;
  #fromDevice = idleQueue;
  readonly #polls: native.Poll[] = [];
  readonly #state: DeviceState;
  #listener: MessageListener = () => {};
  readonly #drained: (() => void)[] = [];
  readonly #out = new Outgoing();
  readonly #in = new Uint8Array(MAX_MESSAGE_SIZE);
  readonly #inData = new DataView(this.#in.buffer);
  readonly #inHeader = Header.view(this.#inData);
  #have = 0;
  #paused = false;
  #halted = false;
  #held = false;
  #owesCall = false;
  readonly #receiving: Turn;
  readonly #sending: Turn;

  readonly #path: AccessPath;

  /**
   * `path` goes by the same rings, as long as nothing waits here. `state` hears of a driver that broke a ring or a
   * message, as the channel has stopped then, or that takes no messages.
   */
  constructor(state: DeviceState, share: Share, path: AccessPath) {
    this.#state = state;
    this.#path = path;
    this.#receiving = new Turn(share, Rest.DATA, () => this.#receive());
    this.#sending = new Turn(share, Rest.DATA, () => this.#flush());
  }

  /** Who gets the messages. */
  listen(listener: MessageListener): void {
    this.#listener = listener;
  }

  /** Calls `listener` whenever what waits fell below the mark, and when nothing does any more. */
  onDrained(listener: () => void): void {
    this.#drained.push(listener);
  }

  /** Messages so far, those of accesses among them, and interrupts of the device VM for either queue. */
  get statistics() {
    const { sent, received, signals } = this.#path.counts;
    return {
      messagesSent: this.#sent + sent,
      messagesReceived: this.#received + received,
      messageSignals: this.#signals + signals,
    };
  }

  /** Messages that were sent or wait, modulo 2^32; of those another process had, the ones that it sent. */
  get queuedCount(): number {
    return (this.#path.sentCount + this.#out.count) >>> 0;
  }

  get open(): boolean {
    return this.#backEnd !== undefined;
  }

  /** Bytes that wait for the driver to offer space. */
  get backlog(): number {
    return this.#out.backlog;
  }

  get congested(): boolean {
    return this.backlog > CONGESTION_MARK;
  }

  /** Whether the rings stand still: `goOn` has not been called since `halt`. */
  get halted(): boolean {
    return this.#halted;
  }

  /**
   * Starts on a device whose message queues run; `isResumed`: another process sent and received there. What that had
   * not sent is not sent. @throws SystemError; it is not open then
   */
  start(backEnd: BackEnd, isResumed = false): void {
    if (!isResumed) this.stop();
    this.#backEnd = backEnd;
    this.#toDevice = backEnd.queue(Queue.TO_DEVICE) ?? idleQueue;
    this.#fromDevice = backEnd.queue(Queue.FROM_DEVICE) ?? idleQueue;
    if (!isResumed) this.#path.beginSending();
    else if (!this.#path.restore((this.#toDevice.nextUsed - 1) & 0xffff)) {
      throw new StateError("what the device process was sent is damaged, or a message is not whole");
    }
    try {
      this.#watchKicks(backEnd);
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  /** The rings are about to stand still, and may go on. What is sent waits, and nothing is received. */
  halt(): void {
    this.#receiving.close();
    this.#sending.close();
    for (const poll of this.#polls) poll.close();
    this.#polls.length = 0;
    this.#halted = true;
    this.#updatePath();
  }

  /** The rings go on, with other kicks. @throws SystemError; they stand still then */
  goOn(): void {
    const backEnd = this.#backEnd;
    if (!backEnd) return;
    this.halt();
    try {
      this.#watchKicks(backEnd);
    } catch (error) {
      this.halt();
      throw error;
    }
    this.#halted = false;
    this.#updatePath();
    this.poll();
  }

  /** Looks at both rings again, when memory has come that they may have waited for. */
  poll(): void {
    if (!this.#backEnd || this.#halted) return;
    if (!this.#path.hasRings) this.#path.rings(this.#toDevice, this.#fromDevice);
    this.#flush();
    this.#receiving.goOn();
  }

  /**
   * Takes back messages that the driver has not been given any part of. `isWanted` says of each, by its id, command and
   * flags, whether it stays.
   */
  withdraw(isWanted: (id: number, command: number, flags: number) => boolean): void {
    const wasCongested = this.congested;
    this.#out.withdraw(isWanted);
    this.#updatePath();
    if (wasCongested && !this.congested) this.#reportDrained();
  }

  /** Forgets everything in flight. */
  stop(): void {
    this.halt();
    this.#backEnd = undefined;
    this.#toDevice = idleQueue;
    this.#fromDevice = idleQueue;
    this.#out.clear();
    this.#have = 0;
    this.#paused = false;
    this.#halted = false;
    this.#owesCall = false;
    this.#path.reset();
    this.#updatePath();
  }

  /**
   * Sends a message with the body bytes[offset, offset + length), which are copied; it is the client's command at
   * `position`. Nothing happens when stopped. False when it was dropped, because too much waits.
   */
  send(
    id: number,
    command: number,
    flags: number,
    errno: number,
    bytes: Uint8Array,
    offset = 0,
    length = bytes.length,
    position = -1,
  ): boolean {
    if (!this.#backEnd) return true;
    if (!this.#out.push(id, command, flags, errno, bytes, offset, length, position)) {
      this.#state.raise("silent", "it takes no messages");
      return false;
    }
    this.#sent++;
    this.#flush();
    if (this.backlog > 0) this.#updatePath();
    return true;
  }

  /**
   * Between the two calls, without a turn of the event loop in between, what is sent does not wake the driver, and
   * wakes it once at the end. A driver that runs at the first of several messages finds one, and sleeps again before
   * the next.
   */
  hold(held: boolean): void {
    this.#held = held;
    if (!held && this.#owesCall) this.#call();
  }

  /** Leaves the driver's messages where they are, until `resume`. */
  pause(): void {
    this.#paused = true;
    this.#updatePath();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#updatePath();
    this.#receiving.goOn();
  }

  #watchKicks(backEnd: BackEnd): void {
    this.#path.rings(this.#toDevice, this.#fromDevice);
    this.#watch(backEnd.kickFd(Queue.TO_DEVICE), () => this.#flush(), "eventfd");
    this.#watch(backEnd.kickFd(Queue.FROM_DEVICE), (events) => this.#kicked(events), this.#path.native);
    this.#updatePath();
  }

  #watch(kick: number, run: (events: number) => void, task: "eventfd" | native.AccessPath): void {
    if (kick < 0) return;
    const poll = new native.Poll(kick, run, task);
    poll.start(native.POLL_READABLE);
    this.#polls.push(poll);
  }

  #kicked(events: number): void {
    if (events & native.POLL_PATH) {
      this.#path.endTurn(this.#receiving);
      this.#path.attend();
    }
    if (events & native.POLL_READABLE) this.#receive();
  }

  /** Accesses may go by the path while none can overtake anything here. */
  #updatePath(): void {
    const mayRun = this.open && !this.#halted && !this.#paused && this.#have === 0 && this.backlog === 0;
    if (mayRun) this.#path.start(Stop.CHANNEL);
    else this.#path.stop(Stop.CHANNEL);
  }

  /** Writes what waits into the buffers that the driver offers. */
  #flush(): void {
    const turn = this.#sending;
    if (this.#halted || this.backlog === 0 || !turn.begin()) return;
    const queue = this.#toDevice;
    const wasCongested = this.congested;
    let wrote = false;
    let goesOn = true;
    try {
      while (goesOn && this.backlog > 0 && queue.next()) {
        if (queue.writable === 0 || queue.readable > 0) throw new QueueBroken("a buffer that cannot take a message");
        const count = this.#out.writeTo(queue, this.#path);
        wrote = true;
        goesOn = turn.spend(queue.chain.cost + count);
      }
    } catch (error) {
      this.#fail(error, Queue.TO_DEVICE);
      return;
    }
    this.#updatePath();
    turn.end(!goesOn);
    if (wrote) this.#call();
    if ((wasCongested && !this.congested) || this.backlog === 0) this.#reportDrained();
  }

  #call(): void {
    this.#owesCall = this.#held;
    if (!this.#held && this.#backEnd?.call(Queue.TO_DEVICE)) this.#signals++;
  }

  #receive(): void {
    const turn = this.#receiving;
    if (this.#halted || this.#paused || !turn.begin()) return;
    const queue = this.#fromDevice;
    let goesOn = true;
    let took = false;
    try {
      while (goesOn && !this.#paused && queue === this.#fromDevice && queue.next()) {
        goesOn = turn.spend(queue.chain.cost + queue.readable);
        this.#take(queue);
        took = true;
        if (this.#have > 0 && this.#have === this.#inHeader.size) {
          const length = this.#have;
          this.#have = 0;
          this.#received++;
          this.#listener(this.#in, this.#inData, length);
        }
        // Last: what is given back nobody is told again.
        if (queue.hasChain) queue.complete(0);
      }
    } catch (error) {
      this.#fail(error, Queue.FROM_DEVICE);
      return;
    }
    if (took && this.#backEnd?.call(Queue.FROM_DEVICE)) this.#signals++;
    this.#updatePath();
    // It may have been stopped by one of the messages.
    if (queue === this.#fromDevice) turn.end(!goesOn);
  }

  /** Copies one chain to the message in flight. */
  #take(queue: DeviceQueue): void {
    const count = queue.readable;
    let missing = MAX_MESSAGE_SIZE;
    if (this.#have > 0) missing = this.#inHeader.size - this.#have;
    else if (count < Header.size) throw new QueueBroken(`a message of ${count} bytes`);
    if (count === 0 || count > missing) throw new QueueBroken(`a buffer of ${count} bytes, more than its message has`);
    queue.read(0, this.#in, this.#have, count);
    const isFirst = this.#have === 0;
    this.#have += count;
    // From here on the header is ours, and the driver cannot change it any more.
    const { size } = this.#inHeader;
    if (isFirst && (size < count || size > MAX_MESSAGE_SIZE)) {
      throw new QueueBroken(`a message that says ${size} bytes, in a buffer of ${count}`);
    }
  }

  #fail(error: unknown, queue: number): void {
    if (!(error instanceof QueueBroken)) throw error;
    this.#backEnd?.reportBroken(queue);
    this.stop();
    this.#state.raise("violated", error.message);
  }

  #reportDrained(): void {
    for (const listener of this.#drained) listener();
  }
}

const idleQueue = new DeviceQueue({ pieceSize: 1, locate: () => -1, bytes: () => new Uint8Array(0) });
