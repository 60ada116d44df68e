/** System calls for a connection without a socket: what arrives and what is taken is said by the test. */
import { LOST_FDS, POLL_UNSENT } from "../../../../native/index.js";
import type { SocketIo, Syscalls } from "../../../../shared/vfio-user/socket/message-socket.js";

interface Arrival {
  bytes: Uint8Array;
  /** Arrive with the first byte. */
  fds: readonly number[];
}

export function systemError(code: string, errno: number, syscall: string): Error {
  return Object.assign(new Error(`${syscall}: ${code}`), { code, errno, syscall });
}

export class FakeSocket {
  /** What receive calls find, each at most one of these, as the kernel does it with fds between. */
  readonly arrivals: (Arrival | "end" | Error)[] = [];
  /** How many bytes the next send calls take (-1: the socket is full); everything when it is empty. */
  readonly takes: (number | Error)[] = [];
  readonly sent: number[] = [];
  readonly sentFds: number[] = [];
  readonly closed: number[] = [];
  readonly duplicated: number[] = [];
  /** How many fds may come. */
  allowedFds = 0;
  /** Conditions that the connection polls for; 0 when it does not. */
  events = 0;
  #callback: (events: number) => void = () => {};

  /** The reply that is sent when the callback ends. */
  #answer: Uint8Array | undefined;
  #answered = 0;
  #isCalled = false;

  readonly #io: SocketIo = {
    fds: new Int32Array(254),
    receive: (bytes, offset, length) => {
      const { fds } = this.#io;
      fds[0] = 0;
      const arrival = this.arrivals[0];
      if (arrival === undefined) return -1;
      if (arrival === "end") return 0;
      if (arrival instanceof Error) throw arrival;
      const count = Math.min(length, arrival.bytes.length);
      bytes.set(arrival.bytes.subarray(0, count), offset);
      const isLost = arrival.fds.length > this.allowedFds;
      fds[0] = isLost ? LOST_FDS : arrival.fds.length;
      if (!isLost) fds.set(arrival.fds, 1);
      arrival.bytes = arrival.bytes.subarray(count);
      arrival.fds = [];
      if (arrival.bytes.length === 0) this.arrivals.shift();
      return count;
    },
    expect: () => {},
    allowFds: (count) => {
      this.allowedFds = count;
    },
    send: (bytes, offset, length, fds = []) => {
      const take = this.takes.shift() ?? length;
      if (take instanceof Error) throw take;
      if (take === -1) return -1;
      const count = Math.min(take, length);
      this.sent.push(...bytes.subarray(offset, offset + count));
      this.sentFds.push(...fds);
      return count;
    },
    answer: (bytes, length) => {
      if (!this.#isCalled) return false;
      this.#answer = bytes.subarray(0, length);
      return true;
    },
    recall: () => {
      const isThere = this.#answer !== undefined;
      this.#answer = undefined;
      return isThere;
    },
    answered: () => this.#answered,
    readsFrom: () => {},
    accessesBy: () => {},
    answersBy: () => {},
    takeAnswer: () => undefined,
    mayRead: () => {},
    takeServed: () => 0,
    poll: (events) => {
      this.events = events;
    },
    close: () => {
      this.events = 0;
    },
  };

  readonly syscalls: Syscalls = {
    duplicate: (fd) => {
      this.duplicated.push(fd + 1000);
      return fd + 1000;
    },
    close: (fd) => {
      if (this.closed.includes(fd)) throw new Error(`fd ${fd} closed twice`);
      this.closed.push(fd);
    },
    closeSocket: (fd) => void this.closed.push(fd),
    isHungUp: () => this.arrivals.includes("end"),
    open: (_fd, callback) => {
      this.#callback = callback;
      return this.#io;
    },
  };

  arrive(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.arrivals.push({ bytes, fds });
  }

  emit(events: number): void {
    this.#isCalled = true;
    this.#callback(events);
    this.#isCalled = false;
    const answer = this.#answer;
    if (answer === undefined) return;
    this.#answer = undefined;
    this.#answered = Math.max(0, this.#io.send(answer, 0, answer.length));
    if (this.#answered < answer.length) this.#callback(POLL_UNSENT);
  }
}
