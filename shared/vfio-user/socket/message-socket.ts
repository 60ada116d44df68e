/**
 * The socket of a connection on the event loop, and the few other system calls that a connection makes: a test can put
 * EAGAIN, short sends and EPIPE in their place without a socket (`Syscalls`).
 *
 * In the steady state a message costs no call into the addon: it was received before our callback is called, and the
 * reply is sent after (native `Stream`); a read that register memory answers does not even cost the callback.
 * Everything else, such as a second message or a reply with fds, goes by calls.
 */
import {
  type AccessPath,
  duplicate,
  isHungUp,
  NOTHING_RECEIVED,
  Poll,
  Stream,
  StreamWord,
} from "../../../native/index.js";
import { systemError } from "../../errors.js";
import { MAX_MESSAGE_FDS } from "../../limits.js";
import { closePeerFd, closePeerSocket, type FdShare } from "../../peer-fds.js";
import type { DeviceAccess } from "../device-access.js";
import type { RegisterMemory } from "../register-memory.js";
import { StreamMemory } from "./stream-memory.js";

export interface Syscalls {
  duplicate(fd: number): number;
  /** Without waiting, whatever it is. */
  close(fd: number): void;
  /** The same for the connection itself; `share` is charged with it for as long as that takes. */
  closeSocket(fd: number, share: FdShare): void;
  /** Whether the peer has closed its end. */
  isHungUp(fd: number): boolean;
  /**
   * `callback` is called with the conditions that `poll` asked for, with POLL_UNSENT, or with a negative errno.
   * @throws SystemError
   */
  open(fd: number, callback: (events: number) => void, memory?: StreamMemory): SocketIo;
}

/** A connected socket, with the bytes that came and those that are to be sent. */
export interface SocketIo {
  /** StreamWord; the owner sets those that are the owner's. */
  readonly words: Int32Array;
  /** What came: a ring, mapped twice, so that every message is in one piece. */
  readonly bytes: Uint8Array;
  /** What came along with the bytes that were received last: see native `receive`. */
  readonly fds: Int32Array;
  /** Where the byte at a position is in `bytes`. */
  at(position: number): number;
  /** Receives up to ROOM bytes: the count, 0 at the end of the stream, -1 when nothing waits. @throws SystemError */
  receive(): number;
  /** What was received last, from this position on, is dealt with, and its place free. */
  retract(position: number): void;
  /** Queues bytes, which `commit` follows; false when there is no room. */
  queue(bytes: Uint8Array, offset: number, length: number): boolean;
  /** At once: what is queued is to be sent, and commands in front of this position were dealt with. */
  commit(handled: number): void;
  /** Sends the next bytes of what is queued: how many were, 0 when the socket is full. @throws SystemError */
  send(length: number, fds?: readonly number[]): number;
  /** What the message's header says that begins there, of what is to be sent. */
  unsentSize(position: number): number;
  /** Leaves bytes[0, length), alone until then, to be sent after this callback. False when that cannot be. */
  answer(bytes: Uint8Array, length: number): boolean;
  /** Takes that back; false when there is nothing that was not sent. */
  recall(): boolean;
  /** Whether a callback is running, after which HANDLED is committed. */
  readonly isCalled: boolean;
  /** Answers reads of registers from their memory where READS allows it; undefined: no longer. */
  readsFrom(memory: RegisterMemory | undefined): void;
  /** Register accesses go by this path from now on; undefined: no longer. */
  accessesBy(path: AccessPath | undefined): void;
  /** Accesses that it deals with are answered by a device where READS allows it; undefined: no longer. */
  answersBy(device: DeviceAccess | undefined): void;
  /** Conditions to wait for, as native POLL_* bits. */
  poll(events: number): void;
  /** Stops; the fd stays open. */
  close(): void;
}

const NO_BYTES = new Uint8Array(0);

export class MessageSocket implements SocketIo {
  readonly words: Int32Array;
  readonly bytes: Uint8Array;
  readonly fds = new Int32Array(1 + MAX_MESSAGE_FDS);
  /** In the callback, after which the stream sends. */
  isCalled = false;
  readonly #memory: StreamMemory;
  /** It goes with the socket. */
  readonly #isOwn: boolean;
  readonly #stream: Stream;
  readonly #pollHandle: Poll;
  /** The buffer that the stream has. */
  #replyBytes = NO_BYTES;
  readonly #fd: number;
  readonly #callback: (events: number) => void;

  /** @throws SystemError */
  constructor(fd: number, callback: (events: number) => void, memory?: StreamMemory) {
    this.#fd = fd;
    this.#callback = callback;
    this.#isOwn = memory === undefined;
    this.#memory = memory ?? ownMemory();
    this.words = this.#memory.words;
    this.bytes = this.#memory.bytes;
    this.words[StreamWord.RECEIVED] = NOTHING_RECEIVED;
    this.words[StreamWord.REPLY] = 0;
    this.words[StreamWord.READS] = 0;
    try {
      this.#stream = new Stream(fd, this.#memory.native, this.fds);
      this.#pollHandle = new Poll(fd, (events) => this.#ready(events), this.#stream);
    } catch (error) {
      if (this.#isOwn) this.#memory.release();
      throw error;
    }
  }

  at(position: number): number {
    return this.#memory.at(position);
  }

  receive(): number {
    const received = this.words[StreamWord.RECEIVED];
    if (received === NOTHING_RECEIVED) return this.#memory.receive(this.#fd, this.fds);
    this.words[StreamWord.RECEIVED] = NOTHING_RECEIVED;
    if (received < 0) throw systemError("recvmsg", -received);
    return received;
  }

  retract(position: number): void {
    this.#memory.native.retract(position);
  }

  queue(bytes: Uint8Array, offset: number, length: number): boolean {
    return this.#memory.native.queue(bytes, offset, length);
  }

  commit(handled: number): void {
    this.#memory.native.commit(handled);
  }

  send(length: number, fds?: readonly number[]): number {
    return this.#memory.native.send(this.#fd, length, fds);
  }

  unsentSize(position: number): number {
    return this.#memory.native.unsentSize(position);
  }

  answer(bytes: Uint8Array<ArrayBuffer>, length: number): boolean {
    if (!this.isCalled) return false;
    if (bytes !== this.#replyBytes) {
      this.#stream.replyFrom(bytes);
      this.#replyBytes = bytes;
    }
    this.words[StreamWord.REPLY] = length;
    return true;
  }

  recall(): boolean {
    if (this.words[StreamWord.REPLY] === 0) return false;
    this.words[StreamWord.REPLY] = 0;
    return true;
  }

  readsFrom(memory: RegisterMemory | undefined): void {
    this.#stream.readsFrom(memory?.bytes, memory?.areas);
  }

  accessesBy(path: AccessPath | undefined): void {
    this.#stream.accessesBy(path);
  }

  answersBy(device: DeviceAccess | undefined): void {
    this.#stream.answersBy(device?.native);
  }

  poll(events: number): void {
    this.#pollHandle.start(events);
  }

  close(): void {
    this.#stream.accessesBy(undefined);
    this.#stream.answersBy(undefined);
    this.words[StreamWord.READS] = 0;
    this.#pollHandle.close();
    this.#memory.close();
    if (this.#isOwn) this.#memory.release();
  }

  #ready(events: number): void {
    this.isCalled = true;
    try {
      this.#callback(events);
    } finally {
      this.isCalled = false;
    }
  }
}

function ownMemory(): StreamMemory {
  const memory = new StreamMemory();
  memory.begin();
  return memory;
}

export const systemCalls: Syscalls = {
  duplicate,
  close: closePeerFd,
  closeSocket: closePeerSocket,
  isHungUp,
  open: (fd, callback, memory) => new MessageSocket(fd, callback, memory),
};

/** Closes every fd of `fds` that was not taken (taken ones are -1), and marks all as taken. */
export function closeAll(syscalls: Pick<Syscalls, "close">, fds: number[]): void {
  for (let index = 0; index < fds.length; index++) {
    if (fds[index] === -1) continue;
    syscalls.close(fds[index]);
    fds[index] = -1;
  }
}
