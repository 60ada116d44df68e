/** System calls for a connection without a socket: what arrives and what is taken is said by the test. */
import { LOST_FDS, POLL_UNSENT, STREAM_WORDS, StreamWord as Word } from "../../../../native/index.js";
import type { SocketIo, Syscalls } from "../../../../shared/vfio-user/socket/message-socket.js";

const RING_SIZE = 2 ** 22;

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
  #callback: (events: number) => void = () => {};

  /** The reply that is sent when the callback ends. */
  #answer: Uint8Array | undefined;
  #isCalled = false;
  /** What is queued and was not sent. */
  #queued: number[] = [];
  /** As committed last: bytes that are to be sent, and in front of what commands are dealt with. */
  readonly committed = { queued: 0, handled: 0 };
  readonly words = new Int32Array(STREAM_WORDS);
  readonly #bytes = new Uint8Array(2 * RING_SIZE);

  readonly #at = (position: number) => position & (RING_SIZE - 1);

  readonly #io: SocketIo = {
    words: this.words,
    bytes: this.#bytes,
    fds: new Int32Array(254),
    isCalled: false,
    at: this.#at,
    receive: () => {
      const { fds } = this.#io;
      fds[0] = 0;
      const arrival = this.arrivals[0];
      if (arrival === undefined || this.words[Word.ROOM] === 0) return -1;
      if (arrival === "end") return 0;
      if (arrival instanceof Error) throw arrival;
      const count = Math.min(this.words[Word.ROOM], arrival.bytes.length);
      for (let n = 0; n < count; n++) {
        const at = this.#at(this.words[Word.END] + n);
        this.#bytes[at] = arrival.bytes[n];
        this.#bytes[at + RING_SIZE] = arrival.bytes[n];
      }
      this.words[Word.END] += count;
      const isLost = arrival.fds.length > this.words[Word.MOST_FDS];
      fds[0] = isLost ? LOST_FDS : arrival.fds.length;
      if (!isLost) fds.set(arrival.fds, 1);
      arrival.bytes = arrival.bytes.subarray(count);
      arrival.fds = [];
      if (arrival.bytes.length === 0) this.arrivals.shift();
      return count;
    },
    retract: (position) => {
      this.words[Word.END] = position;
      this.words[Word.SCAN] = position;
    },
    queue: (bytes, offset, length) => {
      this.#queued.push(...bytes.subarray(offset, offset + length));
      this.words[Word.QUEUED] += length;
      return true;
    },
    commit: (handled) => {
      this.committed.handled = handled;
      this.committed.queued = this.words[Word.QUEUED];
    },
    send: (length, fds = []) => {
      const take = this.takes.shift() ?? length;
      if (take instanceof Error) throw take;
      if (take <= 0) return 0;
      const count = Math.min(take, length);
      this.sent.push(...this.#queued.splice(0, count));
      this.words[Word.SENT] += count;
      this.sentFds.push(...fds);
      return count;
    },
    unsentSize: () => 1,
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
    readsFrom: () => {},
    accessesBy: () => {},
    answersBy: () => {},
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
    Object.assign(this.#io, { isCalled: true });
    this.#callback(events);
    this.#isCalled = false;
    Object.assign(this.#io, { isCalled: false });
    const answer = this.#answer;
    this.#answer = undefined;
    if (answer !== undefined) this.#io.queue(answer, 0, answer.length);
    this.#io.commit(this.words[Word.HANDLED]);
    if (answer === undefined) return;
    this.words[Word.REPLIED] = this.#io.send(answer.length);
    if (this.words[Word.REPLIED] < answer.length) this.#callback(POLL_UNSENT);
  }
}
