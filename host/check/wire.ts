/**
 * The wire with nothing in between: whole messages or any bytes out, messages in, each wait bounded. It is not the
 * client of shared/vfio-user: a checker has to see what a well-behaved client hides (ids, flags, what else is in an
 * error reply), and shares no code with a server that it checks.
 */
import { close, connect, POLL_READABLE, POLL_WRITABLE, Poll, receive, send } from "../../native/index.js";
import { startDeadline } from "../../shared/deadline.js";
import { isSystemError } from "../../shared/errors.js";
import { MAX_MESSAGE_FDS, MiB } from "../../shared/limits.js";
import { Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import { Failure } from "./verdict.js";

/** A server may announce more than the usual megabyte of data, but a longer message than this is a broken header. */
const MAX_REPLY_SIZE = 64 * MiB;

export interface Message {
  readonly id: number;
  readonly command: number;
  /** HeaderFlags. */
  readonly flags: number;
  readonly errno: number;
  readonly body: Uint8Array;
  readonly data: DataView;
  /** Closed with the wire, unless they are taken out. */
  readonly fds: number[];
}

export interface HeaderFields {
  readonly id?: number;
  readonly flags?: number;
  /** In place of the true size. */
  readonly size?: number;
  readonly errno?: number;
}

/** A message's bytes, header included. */
export function encode(command: number, body: Uint8Array = new Uint8Array(0), fields: HeaderFields = {}): Buffer {
  const { id = 1, flags = 0, errno = 0, size = Header.size + body.length } = fields;
  return Buffer.concat([Header.encode({ id, command, size, flags, errno }), body]);
}

export function isReply(message: Message): boolean {
  return (message.flags & HeaderFlags.TYPE_MASK) === HeaderFlags.TYPE_REPLY;
}

export class Wire {
  readonly #fds: number[] = [];
  readonly #scratch = new Int32Array(1 + MAX_MESSAGE_FDS);
  #closed = false;

  private constructor(readonly fd: number) {}

  /** @throws SystemError */
  static connect(path: string): Wire {
    return new Wire(connect(path));
  }

  /** Sends all of it. False when the server has closed the connection. @throws Failure when the server does not read */
  async send(bytes: Uint8Array, timeoutMs: number, fds?: readonly number[]): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    let rest = fds?.length ? fds : undefined;
    for (let at = 0; at < bytes.length; ) {
      let sent: number;
      try {
        sent = send(this.fd, bytes, at, bytes.length - at, rest);
      } catch (error) {
        if (isSystemError(error)) return false;
        throw error;
      }
      if (sent > 0) {
        at += sent;
        rest = undefined;
      } else if (!(await this.#wait(POLL_WRITABLE, deadline))) {
        throw new Failure("the server to read what it is sent", `${bytes.length - at} bytes unread in ${timeoutMs} ms`);
      }
    }
    return true;
  }

  /**
   * The next message; "closed" when the server closed the connection, "silent" when nothing complete came in time.
   * @throws Failure when the header makes no sense
   */
  async receive(timeoutMs: number): Promise<Message | "closed" | "silent"> {
    const deadline = performance.now() + timeoutMs;
    const fds: number[] = [];
    const header = await this.#read(Header.size, deadline, fds);
    if (typeof header === "string") return header;
    const { id, command, size, flags, errno } = Header.view(new DataView(header.buffer));
    if (size < Header.size || size > MAX_REPLY_SIZE) {
      throw new Failure("a message size of at least 16 in each header", `a header with the size ${size}`);
    }
    const body = await this.#read(size - Header.size, deadline, fds);
    if (typeof body === "string") return body;
    return { id, command, flags, errno, body, data: new DataView(body.buffer), fds };
  }

  /** Closes the connection and all fds that came over it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const fd of this.#fds) close(fd);
    close(this.fd);
  }

  async #read(length: number, deadline: number, fds: number[]): Promise<Uint8Array<ArrayBuffer> | "closed" | "silent"> {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      let count: number;
      try {
        count = receive(this.fd, bytes, at, length - at, this.#scratch);
      } catch (error) {
        if (isSystemError(error)) return "closed";
        throw error;
      }
      if (count === 0) return "closed";
      if (count === -1) {
        if (!(await this.#wait(POLL_READABLE, deadline))) return "silent";
        continue;
      }
      const came = this.#scratch.subarray(1, 1 + this.#scratch[0]);
      this.#fds.push(...came);
      fds.push(...came);
      at += count;
    }
    return bytes;
  }

  #wait(events: number, deadline: number): Promise<boolean> {
    return waitFor(this.fd, events, deadline - performance.now());
  }
}

/** Resolves with true when the fd is ready (or failed: the next system call tells), with false after `timeoutMs`. */
export function waitFor(fd: number, events: number, timeoutMs: number): Promise<boolean> {
  if (timeoutMs <= 0) return Promise.resolve(false);
  return new Promise((resolve) => {
    const finish = (ready: boolean) => {
      stop();
      poll.close();
      resolve(ready);
    };
    const stop = startDeadline(timeoutMs, () => finish(false));
    const poll = new Poll(fd, () => finish(true));
    poll.start(events);
  });
}
