/**
 * A vhost-user socket: framing and file descriptors, for the front-end's socket and the back-end's request channel
 * alike.
 *
 * The header and the payload are received one after the other, never more than the current message wants: file
 * descriptors belong to the message whose first byte they came with, and the kernel would hand out two messages' bytes
 * with the fds of the second. Both directions carry a handful of small messages that the peer waits for, so a socket
 * that does not take one at once has a peer that does not read: that ends the connection, and there is no send queue.
 */

import * as native from "../../../native/index.js";
import { PeerGone } from "../../../shared/errors.js";
import { MAX_VHOST_USER_MESSAGE_SIZE, MAX_VHOST_USER_REGIONS } from "../../../shared/limits.js";
import { closePeerFd, closePeerSocket, FdShare, takeReceived } from "../../../shared/peer-fds.js";
import { Header, HeaderFlags } from "../../../shared/spec/vhost-user.js";
import { Rest, type Share, Turn } from "../../../shared/turn.js";

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

/** Removes and returns the message's next fd; -1 when there is none. */
export function takeFd(message: Message): number {
  return message.fds.shift() ?? -1;
}

export class Connection {
  readonly #fd: number;
  readonly #poll: native.Poll;
  readonly #events: ConnectionEvents;
  readonly #headerBytes = new Uint8Array(Header.size);
  readonly #header = Header.view(new DataView(this.#headerBytes.buffer));
  readonly #message: Message;
  readonly #fdSlots = new Int32Array(1 + MAX_VHOST_USER_REGIONS);
  readonly #outBytes = new Uint8Array(MAX_VHOST_USER_MESSAGE_SIZE);
  readonly #outHeader = Header.view(new DataView(this.#outBytes.buffer));
  readonly #turn: Turn;
  /** Where the fds are counted that the peer hands over. */
  readonly #share: FdShare;
  /** Bytes of the message in flight, header included. */
  #received = 0;
  #open = true;
  #isPolled = false;

  /**
   * Takes the connected socket `fd` over, also when it throws. @throws SystemError when it is nothing that can be
   * polled
   */
  constructor(fd: number, events: ConnectionEvents, share: Share, fds = new FdShare()) {
    this.#fd = fd;
    this.#events = events;
    this.#share = fds;
    this.#turn = new Turn(share, Rest.CONTROL, () => this.#serve());
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
    } catch (error) {
      closePeerFd(fd);
      throw error;
    }
    this.#setPolled(true);
  }

  /** What was to be sent so far, and how far what was received is handled: positions, modulo 2^32. */
  readonly queued = 0;
  readonly handling = 0;

  get open(): boolean {
    return this.#open;
  }

  /** The peer has closed its end; what it sent before may still be here. */
  get isHungUp(): boolean {
    return !this.#open || native.isHungUp(this.#fd);
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

  /**
   * Sends a message with `size` payload bytes and optionally one fd, which stays the caller's.
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
    let reason = "the peer does not read its vhost-user socket";
    try {
      const sent = native.send(this.#fd, this.#outBytes, 0, length, fd < 0 ? undefined : [fd]);
      if (sent === length) return;
    } catch (error) {
      reason = `cannot send to the peer: ${(error as Error).message}`;
    }
    this.#end(reason);
    throw new PeerGone(reason);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#turn.close();
    this.#poll.close();
    this.#closeFds();
    closePeerSocket(this.#fd, this.#share);
  }

  /** One recvmsg; false when nothing waits. */
  #receive(): boolean {
    const message = this.#message;
    const inHeader = this.#received < Header.size;
    const [bytes, at, end] = inHeader
      ? [this.#headerBytes, this.#received, Header.size]
      : [message.bytes, this.#received - Header.size, message.size];
    const slots = this.#fdSlots;
    const most = Math.min(MAX_VHOST_USER_REGIONS - message.fds.length, this.#share.left());
    const count = native.receive(this.#fd, bytes, at, end - at, slots, most);
    if (count < 0) return false;
    if (slots[0] !== 0) {
      const { fds, isLost } = takeReceived(slots, this.#share);
      message.fds.push(...fds);
      if (isLost) message.lostFds = true;
    }
    if (count === 0) throw new PeerGone("the peer closed the socket");
    this.#received += count;
    if (this.#received < Header.size) return true;
    if (inHeader) {
      message.request = this.#header.request;
      message.flags = this.#header.flags;
      message.size = this.#header.size;
      if ((message.flags & HeaderFlags.VERSION_MASK) !== HeaderFlags.VERSION) {
        throw new PeerGone(`message version ${message.flags & HeaderFlags.VERSION_MASK}, not 1`);
      }
      if (message.size > message.bytes.length) throw new PeerGone(`a payload of ${message.size} bytes is too large`);
    }
    if (this.#received < Header.size + message.size) return true;
    this.#received = 0;
    try {
      this.#events.message(message);
    } finally {
      this.#closeFds();
    }
    return true;
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
