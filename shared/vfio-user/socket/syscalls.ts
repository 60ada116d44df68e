/**
 * The few system calls that a connection makes, gathered in one object: a test can put EAGAIN, short sends and EPIPE in
 * their place without a socket.
 */
import { duplicate, isHungUp } from "../../../native/index.js";
import { closePeerFd, closePeerSocket, type FdShare } from "../../peer-fds.js";
import { MessageSocket, type SocketIo } from "./message-socket.js";

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
