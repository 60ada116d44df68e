/**
 * The few system calls that a connection makes, gathered in one object: a test can put EAGAIN, short sends and EPIPE in
 * their place without a socket.
 */
import { duplicate, isHungUp } from "../../native/index.js";
import { closePeerFd } from "../peer-fds.js";
import { MessageSocket } from "./message-socket.js";
import type { RegisterMemory } from "./register-memory.js";

export interface Syscalls {
  duplicate(fd: number): number;
  /** Without waiting, whatever it is. */
  close(fd: number): void;
  /** Whether the peer has closed its end. */
  isHungUp(fd: number): boolean;
  /** `callback` is called with the conditions that `poll` asked for, with POLL_UNSENT, or with a negative errno. */
  open(fd: number, callback: (events: number) => void): SocketIo;
}

/** A connected socket. */
export interface SocketIo {
  /** What came along with the bytes that were received last: fds[0] is their count or LOST_FDS, they follow. */
  readonly fds: Int32Array;
  /** As native `receive`: bytes received, 0 at the end of the stream, -1 when nothing waits. @throws SystemError */
  receive(bytes: Uint8Array, offset: number, length: number): number;
  /** Says where the next `receive` will want its bytes; a length of 0: not before this is called again. */
  expect(bytes: Uint8Array, offset: number, length: number): void;
  /** How many fds may come with the bytes that are received from now on. */
  allowFds(count: number): void;
  /** As native `send`: bytes taken, -1 when the socket is full. @throws SystemError */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number;
  /** Leaves bytes[0, length), alone until then, to be sent after this turn of the callback. False when that cannot be. */
  answer(bytes: Uint8Array, length: number): boolean;
  /** Takes that back; false when there is nothing that was not sent. */
  recall(): boolean;
  /** What came of an answer, in a callback with POLL_UNSENT: bytes sent. @throws SystemError */
  answered(): number;
  /** Answers reads of registers from their memory where `mayRead` allows it; undefined: no longer. */
  readsFrom(memory: RegisterMemory | undefined): void;
  /** Whether nothing that came before is under way, or waits to be sent. */
  mayRead(may: boolean): void;
  /** Reads that were answered so since this was asked last. */
  takeServed(): number;
  /** Conditions to wait for, as native POLL_* bits. */
  poll(events: number): void;
  /** Stops; the fd stays open. */
  close(): void;
}

export const systemCalls: Syscalls = {
  duplicate,
  close: closePeerFd,
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
