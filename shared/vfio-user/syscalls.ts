/**
 * The few system calls that a connection makes, gathered in one object: a test can put EAGAIN, short sends and EPIPE in
 * their place without a socket.
 */

import * as native from "../../native/index.js";
import { close } from "../../native/index.js";

export interface Syscalls {
  /** As native `receive`: bytes received, 0 at the end of the stream, -1 when nothing waits; fds[0] is the count of fds. */
  receive(fd: number, bytes: Uint8Array, offset: number, length: number, fds: Int32Array): number;
  /** As native `send`: bytes taken, -1 when the socket is full. */
  send(fd: number, bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number;
  duplicate(fd: number): number;
  close(fd: number): void;
  poll(fd: number, callback: (events: number) => void): native.Poll;
}

export const systemCalls: Syscalls = {
  receive: native.receive,
  send: native.send,
  duplicate: native.duplicate,
  close,
  poll: (fd, callback) => new native.Poll(fd, callback),
};

/** Closes every fd of `fds` that was not taken (taken ones are -1), and marks all as taken. */
export function closeAll(syscalls: Pick<Syscalls, "close">, fds: number[]): void {
  for (let index = 0; index < fds.length; index++) {
    if (fds[index] === -1) continue;
    syscalls.close(fds[index]);
    fds[index] = -1;
  }
}
