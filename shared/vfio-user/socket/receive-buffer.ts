/**
 * The receiving half of a connection: bytes and fds in, whole messages out (vfio-user, "Header"), with a queue of
 * commands that wait in place. The buffer is used again and again, and grows up to a bound when a
 * message needs it.
 */
import { PeerGone } from "../../errors.js";
import { KiB, MAX_MESSAGE_FDS, MAX_MESSAGE_SIZE, MAX_PENDING_COMMANDS } from "../../limits.js";
import { type FdShare, takeReceived } from "../../peer-fds.js";
import { Header, HeaderFlags } from "../../spec/vfio-user.js";
import type { SocketIo } from "./message-socket.js";
import { closeAll, type Syscalls } from "./message-socket.js";

const INITIAL_SIZE = 64 * KiB;
/** Room for the largest message behind as many waiting commands. */
const MAX_SIZE = 2 * MAX_MESSAGE_SIZE;
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

export class ReceiveBuffer {
  /** Why nothing more will come out. */
  bad: BadHeader | undefined;
  #bytes = new Uint8Array(INITIAL_SIZE);
  #data = new DataView(this.#bytes.buffer);
  /** Everything in front was taken or is in the queue; a message begins here. */
  #scan = 0;
  /** End of the received bytes. */
  #end = 0;
  /** Fds that came with the message at `scan`. */
  #partialFds = NO_FDS;
  /**
   * Fds for a message behind the one at `scan`, and where it begins: one receive call has fds for one message alone.
   */
  #laterFds = NO_FDS;
  #laterFdsAt = -1;

  /** Commands that wait, a ring: where they begin (header included), how long they are, and their fds. */
  readonly #queueAt = new Int32Array(MAX_PENDING_COMMANDS);
  readonly #queueSize = new Int32Array(MAX_PENDING_COMMANDS);
  readonly #queueFds: number[][] = new Array(MAX_PENDING_COMMANDS).fill(NO_FDS);
  #queueHead = 0;
  #queueCount = 0;
  #queueBytes = 0;
  #queueFdCount = 0;
  readonly #syscalls: Syscalls;
  readonly #share: FdShare;

  constructor(syscalls: Syscalls, share: FdShare) {
    this.#syscalls = syscalls;
    this.#share = share;
  }

  newFrame(): Frame {
    const bytes = this.#bytes;
    const data = this.#data;
    return {
      id: 0,
      command: 0,
      flags: 0,
      errno: 0,
      bytes,
      data,
      offset: 0,
      length: 0,
      fds: NO_FDS,
      position: 0,
      isAgain: false,
    };
  }

  /** A message has begun and is not complete. */
  get hasPartial(): boolean {
    return this.#end > this.#scan;
  }

  /** How many bytes the next receive call can take. */
  get room(): number {
    return this.#bytes.length - this.#end;
  }

  /** One receive call; returns what it returned. @throws SystemError, PeerGone */
  receive(socket: SocketIo): number {
    const count = socket.receive(this.#bytes, this.#end, this.room);
    if (count > 0) {
      this.#end += count;
      if (socket.fds[0] !== 0) this.#attachFds(socket.fds);
    }
    return count;
  }

  /** Tells the socket where the next receive call is going to be. */
  expect(socket: SocketIo, isWanted: boolean): void {
    socket.expect(this.#bytes, this.#end, isWanted ? this.room : 0);
  }

  /**
   * The type of the message at the front (HeaderFlags.TYPE_COMMAND or TYPE_REPLY) when it is complete and valid,
   * or -1. Whoever asks then takes it or enqueues it.
   */
  peek(): number {
    const available = this.#end - this.#scan;
    if (available < Header.size || this.bad !== undefined) return -1;
    header.at(this.#data, this.#scan);
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
    const at = this.#scan;
    return this.#fill(frame, at, this.#advance(), this.#takeFds());
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
    this.#queueAt[slot] = this.#scan;
    const size = this.#advance();
    const fds = this.#takeFds();
    this.#queueSize[slot] = size;
    this.#queueFds[slot] = fds;
    this.#queueCount++;
    this.#queueBytes += size;
    this.#queueFdCount += fds.length;
  }

  /** Takes the first command of the queue, which is not empty. */
  dequeue(frame: Frame): Frame {
    const slot = this.#queueHead;
    const fds = this.#queueFds[slot];
    const size = this.#queueSize[slot];
    this.#queueFds[slot] = NO_FDS;
    this.#queueHead = (slot + 1) % MAX_PENDING_COMMANDS;
    this.#queueCount--;
    this.#queueBytes -= size;
    this.#queueFdCount -= fds.length;
    return this.#fill(frame, this.#queueAt[slot], size, fds);
  }

  /**
   * Sees to it that the message at the front can be received whole; false when the queue must be served first.
   * @param inUse the command in flight, whose body must stay where it is
   */
  makeRoom(inUse: Frame | undefined): boolean {
    const partial = this.#end - this.#scan;
    if (partial === 0 && inUse === undefined && this.#queueCount === 0) {
      this.#scan = 0;
      this.#end = 0;
    }
    const needed = partial < Header.size ? Header.size : header.at(this.#data, this.#scan).size;
    if (partial >= needed) return false;
    if (this.#scan + needed <= this.#bytes.length) return true;
    const retained = this.#queueBytes + needed;
    if (retained > MAX_SIZE) return false;
    const floor = inUse !== undefined && inUse.bytes === this.#bytes ? inUse.offset + inUse.length : 0;
    if (floor + retained <= this.#bytes.length) {
      this.#relocate(this.#bytes, floor);
    } else {
      let size = this.#bytes.length;
      while (size < retained) size = Math.min(2 * size, MAX_SIZE);
      this.#relocate(new Uint8Array(size), 0);
    }
    return true;
  }

  /** Goes on in a fresh buffer, so that nothing handed over so far is ever overwritten. */
  renew(): void {
    this.#relocate(new Uint8Array(this.#bytes.length), 0);
  }

  /** Closes the fds of all messages that were not taken. */
  close(): void {
    for (const fds of this.#queueFds) closeAll(this.#syscalls, fds);
    closeAll(this.#syscalls, this.#partialFds);
    closeAll(this.#syscalls, this.#laterFds);
  }

  /** Fds belong to the last message that begins before the end of what was received with them. */
  #attachFds(received: Int32Array): void {
    let at = this.#scan;
    while (this.#end - at >= Header.size) {
      const size = header.at(this.#data, at).size;
      // A bad header ends the connection when it is its turn.
      if (size < Header.size || size >= this.#end - at) break;
      at += size;
    }
    const arrived = takeReceived(received, this.#share);
    if (arrived.isLost) closeAll(this.#syscalls, arrived.fds);
    const fds = arrived.isLost ? LOST : arrived.fds;
    if (at !== this.#scan) {
      this.#laterFds = fds;
      this.#laterFdsAt = at;
      return;
    }
    if (fds === LOST || this.#partialFds === LOST) {
      closeAll(this.#syscalls, fds);
      closeAll(this.#syscalls, this.#partialFds);
      this.#partialFds = LOST;
      return;
    }
    this.#partialFds = this.#partialFds.concat(fds);
    if (this.#partialFds.length > MAX_MESSAGE_FDS)
      throw new PeerGone(`more than ${MAX_MESSAGE_FDS} fds on one message`);
  }

  /** Moves past the message at `scan`, and returns its size. */
  #advance(): number {
    const size = header.at(this.#data, this.#scan).size;
    this.#scan += size;
    return size;
  }

  /** The fds of the message that was moved past. */
  #takeFds(): number[] {
    const fds = this.#partialFds;
    this.#partialFds = NO_FDS;
    if (this.#laterFdsAt === this.#scan) {
      this.#partialFds = this.#laterFds;
      this.#laterFds = NO_FDS;
      this.#laterFdsAt = -1;
    }
    return fds;
  }

  #fill(frame: Frame, at: number, size: number, fds: number[]): Frame {
    header.at(this.#data, at);
    frame.id = header.id;
    frame.command = header.command;
    frame.flags = header.flags;
    frame.errno = header.errno;
    frame.bytes = this.#bytes;
    frame.data = this.#data;
    frame.offset = at + Header.size;
    frame.length = size - Header.size;
    frame.fds = fds;
    return frame;
  }

  /**
   * Moves waiting commands and the incomplete message together, to `to` in `target`, which may be the buffer itself.
   */
  #relocate(target: Uint8Array<ArrayBuffer>, to: number): void {
    const source = this.#bytes;
    let at = to;
    const move = (start: number, end: number): number => {
      const moved = at;
      // Within the buffer only towards the front, in order: nothing is overwritten that is still to be moved.
      if (target === source) source.copyWithin(at, start, end);
      else target.set(source.subarray(start, end), at);
      at += end - start;
      return moved;
    };
    for (let index = 0; index < this.#queueCount; index++) {
      const slot = (this.#queueHead + index) % MAX_PENDING_COMMANDS;
      this.#queueAt[slot] = move(this.#queueAt[slot], this.#queueAt[slot] + this.#queueSize[slot]);
    }
    const scan = move(this.#scan, this.#end);
    if (this.#laterFdsAt !== -1) this.#laterFdsAt += scan - this.#scan;
    this.#scan = scan;
    this.#end = at;
    if (target !== source) {
      this.#bytes = target;
      this.#data = new DataView(target.buffer);
    }
  }
}
