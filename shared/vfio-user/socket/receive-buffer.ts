/**
 * The receiving half of a connection: bytes and fds in, whole messages out (vfio-user, "Header"), with a queue of
 * commands that wait in place, in the ring of received bytes (stream-memory.ts). What is taken out stays there until
 * the command is done, and after a crash until it was dealt with.
 */
import { StreamWord } from "../../../native/index.js";
import { PeerGone } from "../../errors.js";
import { KiB, MAX_MESSAGE_FDS, MAX_MESSAGE_SIZE, MAX_PENDING_COMMANDS } from "../../limits.js";
import { type FdShare, takeReceived } from "../../peer-fds.js";
import { Header, HeaderFlags } from "../../spec/vfio-user.js";
import type { SocketIo } from "./message-socket.js";
import { closeAll, type Syscalls } from "./message-socket.js";
import type { Arrival } from "./stream-memory.js";

/** So much is received at once, or a message. */
const RECEIVE_SIZE = 64 * KiB;
const NO_FDS: number[] = [];
/** In place of a message's fds: some of them were lost, since there was no room for them here, and none is left. */
export const LOST: number[] = [];

/**
 * A received message. One object for all commands of a connection and one for all replies: valid during the call only.
 */
export interface Frame {
  id: number;
  command: number;
  flags: number;
  errno: number;
  /**
   * The body is bytes[offset, offset + length); `data` views the same buffer. A command's body stays valid until
   * `finish`.
   */
  bytes: Uint8Array;
  data: DataView;
  offset: number;
  length: number;
  /** Who takes one puts -1 in its place; the rest is closed when the message is done. LOST when some did not arrive. */
  fds: number[];
  /** Where it begins in all that was received, modulo 2^32: no other command of any client has the same. */
  position: number;
  /** It may have been handed over before, by another process. */
  isAgain: boolean;
}

const header = Header.view();

/** A message whose header is invalid: the stream cannot be understood from there on. */
interface BadHeader {
  readonly reason: PeerGone;
  /** It is a command, so an error reply can be sent. */
  readonly isCommand: boolean;
  readonly id: number;
  readonly command: number;
}

/** Fds of a message that was not taken, and where that begins. */
interface MessageFds {
  readonly at: number;
  fds: number[];
}

export class ReceiveBuffer {
  /** Why nothing more will come out. */
  bad: BadHeader | undefined;
  readonly #socket: SocketIo;
  /** Positions: SCAN, in front of which everything was taken or is in the queue; and END, behind what was received. */
  readonly #words: Int32Array;
  readonly #data: DataView;
  readonly #size: number;
  /** In the order of the messages. One receive call has fds for one message alone. */
  #fds: MessageFds[] = [];

  /** Commands that wait, a ring: their positions, how long they are, and their fds. */
  readonly #queueAt = new Uint32Array(MAX_PENDING_COMMANDS);
  readonly #queueSize = new Int32Array(MAX_PENDING_COMMANDS);
  readonly #queueFds: number[][] = new Array(MAX_PENDING_COMMANDS).fill(NO_FDS);
  #queueHead = 0;
  #queueCount = 0;
  #queueFdCount = 0;
  readonly #syscalls: Syscalls;
  readonly #share: FdShare;

  constructor(syscalls: Syscalls, socket: SocketIo, share: FdShare) {
    this.#syscalls = syscalls;
    this.#socket = socket;
    this.#share = share;
    this.#words = socket.words;
    const { bytes } = socket;
    this.#data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#size = bytes.length / 2;
  }

  newFrame(): Frame {
    const { bytes } = this.#socket;
    const empty = { id: 0, command: 0, flags: 0, errno: 0, offset: 0, length: 0, position: 0, isAgain: false };
    return { ...empty, bytes, data: this.#data, fds: NO_FDS };
  }

  /** A message has begun and is not complete. */
  get hasPartial(): boolean {
    return this.#words[StreamWord.END] !== this.#words[StreamWord.SCAN];
  }

  /** Where the first command begins that was not handed over, or will. */
  get front(): number {
    return this.#queueCount > 0 ? this.#queueAt[this.#queueHead] : this.#words[StreamWord.SCAN] >>> 0;
  }

  /** Attaches fds that another process received to their messages. */
  restore(arrivals: readonly Arrival[]): void {
    for (const { end, fds } of arrivals) {
      for (const fd of fds) this.#share.adopt(fd);
      this.#attach(end, fds);
    }
  }

  /** One receive call; returns what it returned. @throws SystemError, PeerGone */
  receive(): number {
    const socket = this.#socket;
    const count = socket.receive();
    if (count > 0 && socket.fds[0] !== 0) {
      const { fds, isLost } = takeReceived(socket.fds, this.#share);
      if (isLost) closeAll(this.#syscalls, fds);
      this.#attach(this.#words[StreamWord.END] >>> 0, isLost ? LOST : fds);
    }
    return count;
  }

  /**
   * The type of the message at the front (HeaderFlags.TYPE_COMMAND or TYPE_REPLY) when it is complete and valid,
   * or -1. Whoever asks then takes it or enqueues it.
   */
  peek(): number {
    const available = this.#available;
    if (available < Header.size || this.bad !== undefined) return -1;
    this.#headerAt(this.#words[StreamWord.SCAN]);
    const size = header.size;
    const type = header.flags & HeaderFlags.TYPE_MASK;
    const isCommand = type === HeaderFlags.TYPE_COMMAND;
    let wrong = "";
    if (!isCommand && type !== HeaderFlags.TYPE_REPLY) wrong = `unknown type ${type}`;
    else if (size < Header.size || size > MAX_MESSAGE_SIZE) wrong = `${size} bytes`;
    if (wrong !== "") {
      this.bad = { reason: new PeerGone(`a message of ${wrong}`), isCommand, id: header.id, command: header.command };
      return -1;
    }
    return available < size ? -1 : type;
  }

  /** Takes the message that `peek` saw. */
  take(frame: Frame): Frame {
    const at = this.#words[StreamWord.SCAN] >>> 0;
    const size = this.#advance();
    return this.#fill(frame, at, size, this.#takeFds(at));
  }

  /** A message that was taken, and whose place nobody has used since, without its fds. */
  again(frame: Frame, at: number): Frame {
    return this.#fill(frame, at, this.#headerAt(at).size, NO_FDS);
  }

  get queueIsEmpty(): boolean {
    return this.#queueCount === 0;
  }

  get queueIsFull(): boolean {
    return this.#queueCount >= MAX_PENDING_COMMANDS || this.#queueFdCount >= MAX_MESSAGE_FDS;
  }

  /** Puts the command that `peek` saw behind those that wait. */
  enqueue(): void {
    const slot = (this.#queueHead + this.#queueCount) % MAX_PENDING_COMMANDS;
    const at = this.#words[StreamWord.SCAN] >>> 0;
    this.#queueAt[slot] = at;
    this.#queueSize[slot] = this.#advance();
    const fds = this.#takeFds(at);
    this.#queueFds[slot] = fds;
    this.#queueCount++;
    this.#queueFdCount += fds.length;
  }

  /** Takes the first command of the queue, which is not empty. */
  dequeue(frame: Frame): Frame {
    const slot = this.#queueHead;
    const fds = this.#queueFds[slot];
    this.#queueFds[slot] = NO_FDS;
    this.#queueHead = (slot + 1) % MAX_PENDING_COMMANDS;
    this.#queueCount--;
    this.#queueFdCount -= fds.length;
    return this.#fill(frame, this.#queueAt[slot], this.#queueSize[slot], fds);
  }

  /** Nothing waits that was received, in whole or with fds. */
  get isIdle(): boolean {
    return this.queueIsEmpty && this.#fds.length === 0 && this.bad === undefined;
  }

  /**
   * The first message that is in use begins at `position`, or the first that waits. `isHandled`: it was dealt with all
   * the same, and another process would go on behind it.
   */
  inUse(position: number, isHandled: boolean): void {
    this.#words[StreamWord.FLOOR] = position;
    this.#words[StreamWord.HANDLED] = isHandled ? this.front : position;
  }

  /**
   * Lets the next receive call bring so much that the message at the front can be received whole. False when it is
   * here, or the queue must be served first.
   */
  expect(): boolean {
    this.#words[StreamWord.MOST_FDS] = Math.min(this.#share.left(), MAX_MESSAGE_FDS);
    this.#words[StreamWord.ROOM] = this.#room();
    return this.#words[StreamWord.ROOM] > 0;
  }

  /** The reply that was taken last, as `frame`, is done. */
  release({ position }: Frame): void {
    if (!this.hasPartial && this.#isCrowded) this.#socket.retract(position);
  }

  /** Closes the fds of all messages that were not taken. */
  close(): void {
    for (const fds of this.#queueFds) closeAll(this.#syscalls, fds);
    for (const { fds } of this.#fds) closeAll(this.#syscalls, fds);
  }

  /** Bytes behind SCAN. */
  get #available(): number {
    return (this.#words[StreamWord.END] - this.#words[StreamWord.SCAN]) >>> 0;
  }

  #room(): number {
    const needed = this.#available < Header.size ? Header.size : this.#headerAt(this.#words[StreamWord.SCAN]).size;
    const missing = needed - this.#available;
    const room = this.#size - ((this.#words[StreamWord.END] - this.#words[StreamWord.FLOOR]) >>> 0);
    if (missing <= 0 || missing > room) return 0;
    // Replies behind a command that waits for them give their place back if nothing was received behind them.
    return this.#isCrowded ? missing : Math.min(room, Math.max(missing, RECEIVE_SIZE));
  }

  /** More than half of the ring is in use. */
  get #isCrowded(): boolean {
    return (this.#words[StreamWord.SCAN] - this.#words[StreamWord.FLOOR]) >>> 0 > this.#size / 2;
  }

  #headerAt(position: number) {
    return header.at(this.#data, this.#socket.at(position));
  }

  /** Fds belong to the last message that begins before the end of what was received with them. */
  #attach(end: number, fds: number[]): void {
    let at = this.#words[StreamWord.SCAN] >>> 0;
    for (;;) {
      const left = (end - at) >>> 0;
      if (left < Header.size) break;
      const size = this.#headerAt(at).size;
      // A bad header ends the connection when it is its turn.
      if (size < Header.size || size >= left) break;
      at = (at + size) >>> 0;
    }
    const last = this.#fds.at(-1);
    if (last === undefined || last.at !== at) {
      this.#fds.push({ at, fds });
      return;
    }
    if (fds === LOST || last.fds === LOST) {
      closeAll(this.#syscalls, fds);
      closeAll(this.#syscalls, last.fds);
      last.fds = LOST;
      return;
    }
    last.fds = last.fds.concat(fds);
    if (last.fds.length > MAX_MESSAGE_FDS) throw new PeerGone(`more than ${MAX_MESSAGE_FDS} fds on one message`);
  }

  /** Moves past the message at `scan`, and returns its size. */
  #advance(): number {
    const size = this.#headerAt(this.#words[StreamWord.SCAN]).size;
    this.#words[StreamWord.SCAN] += size;
    return size;
  }

  /** The fds of the message that was moved past. */
  #takeFds(at: number): number[] {
    return this.#fds.length > 0 && this.#fds[0].at === at ? (this.#fds.shift()?.fds ?? NO_FDS) : NO_FDS;
  }

  #fill(frame: Frame, at: number, size: number, fds: number[]): Frame {
    const offset = this.#socket.at(at);
    header.at(this.#data, offset);
    frame.id = header.id;
    frame.command = header.command;
    frame.flags = header.flags;
    frame.errno = header.errno;
    frame.offset = offset + Header.size;
    frame.length = size - Header.size;
    frame.fds = fds;
    frame.position = at;
    return frame;
  }
}
