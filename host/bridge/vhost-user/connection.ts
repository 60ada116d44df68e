/**
 * A vhost-user socket: framing and file descriptors, for the front-end's socket and the back-end's request channel
 * alike.
 *
 * The header and the payload are received one after the other, never more than the current message wants: file
 * descriptors belong to the message whose first byte they came with, and the kernel would hand out two messages' bytes
 * with the fds of the second. Both directions carry a handful of small messages that the peer waits for, so a socket
 * that does not take one at once has a peer that does not read: that ends the connection, and there is no send queue.
 *
 * What came, and what is to be sent, is in a StreamMemory: a message that was not dealt with is handled again by the
 * next bridge, and an answer that was queued is sent by it.
 */

import * as native from "../../../native/index.js";
import { PeerGone } from "../../../shared/errors.js";
import { MAX_MESSAGE_FDS, MAX_VHOST_USER_MESSAGE_SIZE, MAX_VHOST_USER_REGIONS } from "../../../shared/limits.js";
import { closePeerFd, closePeerSocket, FdShare, takeReceived } from "../../../shared/peer-fds.js";
import { Header, HeaderFlags } from "../../../shared/spec/vhost-user.js";
import { Rest, type Share, Turn } from "../../../shared/turn.js";
import { loadStream } from "../../../shared/vfio-user/kept-client.js";
import type { StreamMemory } from "../../../shared/vfio-user/socket/stream-memory.js";

const { StreamWord } = native;
/** A message is received in two parts: its header, and its payload. */
const PARTS = 2;

/** A message that just arrived; the object and its bytes are reused for the next one. */
export interface Message {
  request: number;
  flags: number;
  /** The payload is data[0, size). */
  size: number;
  readonly data: DataView;
  readonly bytes: Uint8Array;
  /** The fds that came along; the handler takes what it keeps with `takeFd`, the rest is closed after it returns. */
  fds: number[];
  /** There was no room for all that came. */
  lostFds: boolean;
}

export interface ConnectionEvents {
  message(message: Message): void;
  /** The connection ended without `close`; called once. `reason` is for diagnostics. */
  gone(reason: string): void;
}

export interface ConnectionOptions {
  readonly share: Share;
  /** Where the fds are counted that the peer hands over. */
  readonly fds?: FdShare | undefined;
  readonly memory: StreamMemory;
  /** It goes on where another bridge was, and hands over nothing until `goOn`. */
  readonly resumes?: boolean;
}

/** Removes and returns the message's next fd; -1 when there is none. */
export function takeFd(message: Message): number {
  return message.fds.shift() ?? -1;
}

export class Connection {
  readonly #fd: number;
  readonly #poll: native.Poll;
  readonly #events: ConnectionEvents;
  readonly #header = Header.view();
  readonly #message: Message;
  readonly #fdSlots = new Int32Array(1 + MAX_MESSAGE_FDS);
  readonly #outBytes = new Uint8Array(MAX_VHOST_USER_MESSAGE_SIZE);
  readonly #outHeader = Header.view(new DataView(this.#outBytes.buffer));
  readonly #turn: Turn;
  readonly #fds: FdShare;
  readonly #memory: StreamMemory;
  readonly #data: DataView;
  /** Where the next message begins that is not dealt with: everything in front of it is when the next one is sent. */
  #handled: number;
  #open = true;
  #isPolled = false;

  /**
   * Takes the connected socket `fd` over, also when it throws. @throws SystemError when it is nothing that can be
   * polled
   */
  constructor(fd: number, events: ConnectionEvents, { share, fds, memory, resumes = false }: ConnectionOptions) {
    this.#fd = fd;
    this.#events = events;
    this.#fds = fds ?? new FdShare();
    this.#memory = memory;
    this.#turn = new Turn(share, Rest.CONTROL, () => this.#serve());
    this.#data = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.length);
    const payload = new ArrayBuffer(MAX_VHOST_USER_MESSAGE_SIZE - Header.size);
    this.#message = {
      request: 0,
      flags: 0,
      size: 0,
      data: new DataView(payload),
      bytes: new Uint8Array(payload),
      fds: [],
      lostFds: false,
    };
    try {
      this.#poll = new native.Poll(fd, () => this.#serve());
      if (resumes) this.#resume();
      else memory.begin();
    } catch (error) {
      closePeerFd(fd);
      throw error;
    }
    this.#handled = memory.words[StreamWord.HANDLED] >>> 0;
    if (!resumes) this.#setPolled(true);
  }

  get open(): boolean {
    return this.#open;
  }

  /** The peer has closed its end; what it sent before may still be here. */
  get isHungUp(): boolean {
    return !this.#open || native.isHungUp(this.#fd);
  }

  /** What was to be sent so far, and what was sent: positions, modulo 2^32. */
  get queued(): number {
    return this.#memory.words[StreamWord.QUEUED] >>> 0;
  }

  get sent(): number {
    return this.#memory.words[StreamWord.SENT] >>> 0;
  }

  /** Behind the message that is being handled, or was last. */
  get handled(): number {
    return this.#handled;
  }

  /** Where the message begins that is being handled, or comes next. */
  get position(): number {
    return this.#memory.words[StreamWord.HANDLED] >>> 0;
  }

  /** After a take-over, when everything behind it is restored: sends what was queued, and hands over what came. */
  goOn(): void {
    if (!this.#open) return;
    try {
      const unsent = (this.queued - this.sent) >>> 0;
      if (unsent > 0) this.#send(unsent);
    } catch {
      return;
    }
    this.#setPolled(true);
    this.#serve();
  }

  /**
   * Handles at once what has arrived, for callers that must see what is there before they go on: up to `most` messages,
   * as many as a peer that keeps to the protocol can have sent.
   */
  drain(most: number): void {
    try {
      for (let part = 0; part < most * PARTS && this.#open && this.#receive(); part++);
    } catch (error) {
      this.#end(error instanceof Error ? error.message : String(error));
    }
  }

  /** One turn. What does not fit into it waits in the socket, which is not polled meanwhile. */
  #serve(): void {
    const turn = this.#turn;
    let goesOn = turn.begin();
    if (goesOn) {
      try {
        while (goesOn && this.#open && this.#receive()) goesOn = turn.spend(this.#message.size);
      } catch (error) {
        this.#end(error instanceof Error ? error.message : String(error));
      }
      if (!this.#open) return;
      turn.end(!goesOn);
    }
    if (turn.waits === this.#isPolled) this.#setPolled(!turn.waits);
  }

  #setPolled(isPolled: boolean): void {
    this.#isPolled = isPolled;
    if (isPolled) this.#poll.start(native.POLL_READABLE | native.POLL_DISCONNECT);
    else this.#poll.stop();
  }

  /** Fds of the one message that another bridge began to receive. @throws ProtocolError when it is damaged */
  #resume(): void {
    for (const { fds } of loadStream(this.#memory)) {
      for (const fd of fds) this.#fds.adopt(fd);
      this.#message.fds.push(...fds);
    }
  }

  /**
   * Sends a message with `size` payload bytes and optionally one fd, which stays the caller's; what was handled before,
   * the message in flight included, is dealt with from then on.
   * @throws PeerGone when the peer does not take it; `gone` was called then
   */
  send(request: number, flags: number, payload: Uint8Array, size: number, fd = -1): void {
    if (!this.#open) throw new PeerGone("the vhost-user connection is closed");
    const header = this.#outHeader;
    header.request = request;
    header.flags = flags | HeaderFlags.VERSION;
    header.size = size;
    this.#outBytes.set(payload.subarray(0, size), Header.size);
    const length = Header.size + size;
    this.#memory.native.queue(this.#outBytes, 0, length);
    this.#memory.native.commit(this.#handled);
    this.#send(length, fd);
  }

  #send(length: number, fd = -1): void {
    let reason = "the peer does not read its vhost-user socket";
    try {
      if (this.#memory.native.send(this.#fd, length, fd < 0 ? undefined : [fd]) === length) return;
    } catch (error) {
      reason = `cannot send to the peer: ${(error as Error).message}`;
    }
    this.#end(reason);
    throw new PeerGone(reason);
  }

  /** After a take-over: what was queued, and is not sent, goes nowhere. */
  dropUnsent(): void {
    const { native: memory, words } = this.#memory;
    words[StreamWord.QUEUED] = words[StreamWord.SENT];
    memory.commit(this.#handled);
  }

  /** After a take-over: what came up to a position was handled before. */
  skipTo(position: number): void {
    const { native: memory, words } = this.#memory;
    this.#handled = position;
    memory.commit(position);
    words[StreamWord.SCAN] = position;
    words[StreamWord.FLOOR] = position;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#turn.close();
    this.#poll.close();
    this.#memory.close();
    this.#closeFds();
    closePeerSocket(this.#fd, this.#fds);
  }

  /** One recvmsg, unless what is wanted is here already; false when nothing waits. */
  #receive(): boolean {
    const missing = this.#wanted - this.#have;
    if (missing > 0 && !this.#receiveBytes(missing)) return false;
    if (this.#have >= this.#wanted) this.#handOver();
    return true;
  }

  /** Bytes of the message in flight that are here, and that are to be. */
  get #have(): number {
    return (this.#memory.words[StreamWord.END] - this.position) >>> 0;
  }

  /** @throws PeerGone for a message that cannot be */
  get #wanted(): number {
    if (this.#have < Header.size) return Header.size;
    const message = this.#message;
    const { request, flags, size } = this.#header.at(this.#data, this.#memory.at(this.position));
    message.request = request;
    message.flags = flags;
    message.size = size;
    if ((flags & HeaderFlags.VERSION_MASK) !== HeaderFlags.VERSION) {
      throw new PeerGone(`message version ${flags & HeaderFlags.VERSION_MASK}, not 1`);
    }
    if (size > message.bytes.length) throw new PeerGone(`a payload of ${size} bytes is too large`);
    return Header.size + size;
  }

  #receiveBytes(length: number): boolean {
    const message = this.#message;
    const slots = this.#fdSlots;
    const { words } = this.#memory;
    words[StreamWord.ROOM] = length;
    words[StreamWord.MOST_FDS] = Math.min(MAX_VHOST_USER_REGIONS - message.fds.length, this.#fds.left());
    const count = this.#memory.receive(this.#fd, slots);
    if (count < 0) return false;
    if (slots[0] !== 0) {
      const { fds, isLost } = takeReceived(slots, this.#fds);
      message.fds.push(...fds);
      if (isLost) message.lostFds = true;
    }
    if (count === 0) throw new PeerGone("the peer closed the socket");
    return true;
  }

  #handOver(): void {
    const { words, bytes } = this.#memory;
    const message = this.#message;
    const at = this.#memory.at(this.position) + Header.size;
    message.bytes.set(bytes.subarray(at, at + message.size));
    this.#handled = (this.position + Header.size + message.size) >>> 0;
    try {
      this.#events.message(message);
      if (this.#open) this.#memory.native.commit(this.#handled);
      words[StreamWord.SCAN] = this.#handled;
      words[StreamWord.FLOOR] = this.#handled;
    } finally {
      this.#closeFds();
    }
  }

  #closeFds(): void {
    for (const fd of this.#message.fds) closePeerFd(fd);
    this.#message.fds.length = 0;
    this.#message.lostFds = false;
  }

  #end(reason: string): void {
    if (!this.#open) return;
    this.close();
    this.#events.gone(reason);
  }
}
