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
  receive,
  STREAM_WORDS,
  Stream,
  StreamWord,
  send,
} from "../../../native/index.js";
import { systemError } from "../../errors.js";
import { MAX_MESSAGE_FDS } from "../../limits.js";
import { closePeerFd, closePeerSocket, type FdShare } from "../../peer-fds.js";
import type { DeviceAccess } from "../device-access.js";
import type { RegisterMemory } from "../register-memory.js";

export interface Syscalls {
  duplicate(fd: number): number;
  /** Without waiting, whatever it is. */
  close(fd: number): void;
  /** The same for the connection itself; `share` is charged with it for as long as that takes. */
  closeSocket(fd: number, share: FdShare): void;
  /** Whether the peer has closed its end. */
  isHungUp(fd: number): boolean;
  /** `callback` is called with the conditions that `poll` asked for, with POLL_UNSENT, or with a negative errno. */
  open(fd: number, callback: (events: number) => void): SocketIo;
}

/** A connected socket. */
export interface SocketIo {
  /** What came along with the bytes that were received last: see native `receive` for `fds`. */
  readonly fds: Int32Array;
  /** As native `receive`: bytes received, 0 at the end of the stream, -1 when nothing waits. @throws SystemError */
  receive(bytes: Uint8Array, offset: number, length: number): number;
  /** Says where the next `receive` will want its bytes; a length of 0: not before this is called again. */
  expect(bytes: Uint8Array, offset: number, length: number): void;
  /** How many fds may come with the bytes that are received from now on. */
  allowFds(count: number): void;
  /** As native `send`: bytes taken, -1 when the socket is full. @throws SystemError */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number;
  /**
   * Leaves bytes[0, length), alone until then, to be sent after this callback. False when that cannot be.
   */
  answer(bytes: Uint8Array, length: number): boolean;
  /** Takes that back; false when there is nothing that was not sent. */
  recall(): boolean;
  /** What came of an answer, in a callback with POLL_UNSENT: bytes sent. @throws SystemError */
  answered(): number;
  /** Answers reads of registers from their memory where `mayRead` allows it; undefined: no longer. */
  readsFrom(memory: RegisterMemory | undefined): void;
  /** Register accesses go by this path from now on; undefined: no longer. */
  accessesBy(path: AccessPath | undefined): void;
  /** Accesses that it deals with are answered by a device where `mayRead` allows it; undefined: no longer. */
  answersBy(device: DeviceAccess | undefined): void;
  /** In a callback with POLL_UNSENT, if it is about such an answer: what of it was not sent. */
  takeAnswer(): Uint8Array | undefined;
  /** Whether nothing that came before is in flight, or waits to be sent. */
  mayRead(may: boolean): void;
  /** Reads that were answered so since this was asked last. */
  takeServed(): number;
  /** Conditions to wait for, as native POLL_* bits. */
  poll(events: number): void;
  /** Stops; the fd stays open. */
  close(): void;
}

const NO_BYTES = new Uint8Array(0);
/** Room for what a device answers to a plain access. */
const MAX_ANSWER = 64;

export class MessageSocket implements SocketIo {
  readonly fds = new Int32Array(1 + MAX_MESSAGE_FDS);
  readonly #words = new Int32Array(STREAM_WORDS);
  readonly #stream: Stream;
  readonly #pollHandle: Poll;
  /** The buffers that the stream has. */
  #receiveBytes = NO_BYTES;
  #replyBytes = NO_BYTES;
  readonly #answer = new Uint8Array(MAX_ANSWER);
  /** In the callback, after which the stream sends. */
  #isCalled = false;
  readonly #fd: number;
  readonly #callback: (events: number) => void;

  constructor(fd: number, callback: (events: number) => void) {
    this.#fd = fd;
    this.#callback = callback;
    this.#words[StreamWord.RECEIVED] = NOTHING_RECEIVED;
    this.#words[StreamWord.MOST_FDS] = MAX_MESSAGE_FDS;
    this.#stream = new Stream(fd, this.#words, this.fds);
    this.#pollHandle = new Poll(fd, (events) => this.#ready(events), this.#stream);
  }

  receive(bytes: Uint8Array, offset: number, length: number): number {
    const received = this.#words[StreamWord.RECEIVED];
    if (received === NOTHING_RECEIVED)
      return receive(this.#fd, bytes, offset, length, this.fds, this.#words[StreamWord.MOST_FDS]);
    this.#words[StreamWord.RECEIVED] = NOTHING_RECEIVED;
    if (received < 0) throw systemError("recvmsg", -received);
    return received;
  }

  expect(bytes: Uint8Array<ArrayBuffer>, offset: number, length: number): void {
    if (bytes !== this.#receiveBytes) {
      this.#stream.receiveInto(bytes);
      this.#receiveBytes = bytes;
    }
    this.#words[StreamWord.OFFSET] = offset;
    this.#words[StreamWord.ROOM] = length;
  }

  allowFds(count: number): void {
    this.#words[StreamWord.MOST_FDS] = count;
  }

  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number {
    return send(this.#fd, bytes, offset, length, fds);
  }

  answer(bytes: Uint8Array<ArrayBuffer>, length: number): boolean {
    if (!this.#isCalled) return false;
    if (bytes !== this.#replyBytes) {
      this.#stream.replyFrom(bytes);
      this.#replyBytes = bytes;
    }
    this.#words[StreamWord.REPLY] = length;
    return true;
  }

  recall(): boolean {
    if (this.#words[StreamWord.REPLY] === 0) return false;
    this.#words[StreamWord.REPLY] = 0;
    return true;
  }

  answered(): number {
    const replied = this.#words[StreamWord.REPLIED];
    if (replied < 0) throw systemError("send", -replied);
    return replied;
  }

  readsFrom(memory: RegisterMemory | undefined): void {
    this.#stream.readsFrom(memory?.bytes, memory?.areas);
  }

  accessesBy(path: AccessPath | undefined): void {
    this.#stream.accessesBy(path);
  }

  answersBy(device: DeviceAccess | undefined): void {
    this.#stream.answersBy(device?.native, this.#answer);
  }

  takeAnswer(): Uint8Array | undefined {
    const length = this.#words[StreamWord.ANSWERED];
    if (length === 0) return undefined;
    this.#words[StreamWord.ANSWERED] = 0;
    return this.#answer.subarray(Math.max(0, this.#words[StreamWord.REPLIED]), length);
  }

  mayRead(may: boolean): void {
    this.#words[StreamWord.READS] = may ? 1 : 0;
  }

  takeServed(): number {
    const served = this.#words[StreamWord.SERVED];
    this.#words[StreamWord.SERVED] = 0;
    return served;
  }

  poll(events: number): void {
    this.#pollHandle.start(events);
  }

  close(): void {
    this.#words[StreamWord.READS] = 0;
    this.#stream.accessesBy(undefined);
    this.#stream.answersBy(undefined);
    this.#pollHandle.close();
  }

  #ready(events: number): void {
    this.#isCalled = true;
    try {
      this.#callback(events);
    } finally {
      this.#isCalled = false;
    }
  }
}

export const systemCalls: Syscalls = {
  duplicate,
  close: closePeerFd,
  closeSocket: closePeerSocket,
  isHungUp,
  open: (fd, callback) => new MessageSocket(fd, callback),
};

/** Closes every fd of `fds` that was not taken (taken ones are -1), and marks all as taken. */
export function closeAll(syscalls: Pick<Syscalls, "close">, fds: number[]): void {
  for (let index = 0; index < fds.length; index++) {
    if (fds[index] === -1) continue;
    syscalls.close(fds[index]);
    fds[index] = -1;
  }
}
