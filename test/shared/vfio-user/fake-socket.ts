/** System calls for a connection without a socket: what arrives and what is taken is said by the test. */
import type { Poll } from "../../../native/index.js";
import type { Syscalls } from "../../../shared/vfio-user/syscalls.js";

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
  /** Conditions that the connection polls for; 0 when it does not. */
  events = 0;
  private callback: (events: number) => void = () => {};

  readonly syscalls: Syscalls = {
    receive: (_fd, bytes, offset, length, fds) => {
      fds[0] = 0;
      const arrival = this.arrivals[0];
      if (arrival === undefined) return -1;
      if (arrival === "end") return 0;
      if (arrival instanceof Error) throw arrival;
      const count = Math.min(length, arrival.bytes.length);
      bytes.set(arrival.bytes.subarray(0, count), offset);
      fds[0] = arrival.fds.length;
      fds.set(arrival.fds, 1);
      arrival.bytes = arrival.bytes.subarray(count);
      arrival.fds = [];
      if (arrival.bytes.length === 0) this.arrivals.shift();
      return count;
    },
    send: (_fd, bytes, offset, length, fds = []) => {
      const take = this.takes.shift() ?? length;
      if (take instanceof Error) throw take;
      if (take === -1) return -1;
      const count = Math.min(take, length);
      this.sent.push(...bytes.subarray(offset, offset + count));
      this.sentFds.push(...fds);
      return count;
    },
    duplicate: (fd) => {
      this.duplicated.push(fd + 1000);
      return fd + 1000;
    },
    close: (fd) => {
      if (this.closed.includes(fd)) throw new Error(`fd ${fd} closed twice`);
      this.closed.push(fd);
    },
    poll: (_fd, callback): Poll => {
      this.callback = callback;
      const stop = () => {
        this.events = 0;
      };
      const start = (events: number) => {
        this.events = events;
      };
      return { start, stop, close: stop, ref() {}, unref() {} };
    },
  };

  arrive(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.arrivals.push({ bytes, fds });
  }

  emit(events: number): void {
    this.callback(events);
  }
}
