/**
 * One connection of the checker: whole messages or any bytes out, messages in, each wait bounded. The server's own
 * commands (DMA_READ, DMA_WRITE) are answered in between: a read from mapped memory gives zeros, a write is swallowed,
 * anything else is refused. What is wrong with any reply is noted in `Conduct`.
 */
import { close, connect, POLL_READABLE, POLL_WRITABLE, Poll, receive, send } from "../../native/index.js";
import { startDeadline } from "../../shared/deadline.js";
import { Errno, isSystemError } from "../../shared/errors.js";
import { MAX_MESSAGE_FDS, MiB } from "../../shared/limits.js";
import { Command, DmaAccess, Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import type { Conduct } from "./conduct.js";
import { describe, expectRefusal, expectReply, expectSuccess, Failure } from "./expect.js";
import { type Answer, commandName, encode, type HeaderFields, isReply, type Message } from "./messages.js";

/** A server may announce more than the usual megabyte of data, but a longer message than this is a broken header. */
const MAX_REPLY_SIZE = 64 * MiB;
const MAX_DMA_ANSWER = 1 * MiB;

/** What a request has beside its body. */
interface RequestFields extends HeaderFields {
  readonly fds?: readonly number[];
}

export class CheckerSession {
  readonly timeoutMs: number;
  /** The reply to VERSION, when there was one. */
  version: Message | undefined;
  readonly #fd: number;
  readonly #conduct: Conduct;
  /** What came over the connection. */
  readonly #fds: number[] = [];
  readonly #scratch = new Int32Array(1 + MAX_MESSAGE_FDS);
  #nextId = 0x1000;
  #closed = false;

  /** @throws SystemError when nobody accepts the connection */
  constructor(path: string, conduct: Conduct, timeoutMs: number) {
    this.#fd = connect(path);
    this.#conduct = conduct;
    this.timeoutMs = timeoutMs;
  }

  /** @throws Failure when nothing comes in time */
  async request(command: number, body?: Uint8Array, fields: RequestFields = {}): Promise<Answer> {
    this.#nextId = (this.#nextId + 1) & 0xffff;
    const { id = this.#nextId } = fields;
    if (!(await this.send(encode(command, body, { ...fields, id }), fields.fds))) return undefined;
    return this.answer(id, command);
  }

  /** A request that succeeds, with a reply of `length` bytes if given. @throws Failure */
  async success(command: number, body?: Uint8Array, length?: number, fields?: RequestFields): Promise<Message> {
    return expectSuccess(await this.request(command, body, fields), command, length);
  }

  /** A request that is refused by an error reply. Resolves with a note. @throws Failure */
  async refusal(command: number, body?: Uint8Array): Promise<string> {
    return expectRefusal(await this.request(command, body), command);
  }

  /** A request that is answered in any way. Resolves with a note. @throws Failure */
  async reply(command: number, body?: Uint8Array): Promise<string> {
    return describe(expectReply(await this.request(command, body), command));
  }

  /** The reply to a request that was sent. @throws Failure when nothing comes in time */
  async answer(id: number, command: number): Promise<Answer> {
    const message = await this.next(`a reply to ${commandName(command)}`);
    if (message !== undefined) this.#conduct.reply({ id, command }, message);
    return message;
  }

  /** The next reply of any kind, or undefined for a closed connection. @throws Failure when nothing comes in time */
  async next(expected: string): Promise<Answer> {
    for (;;) {
      const message = await this.#receive();
      if (message === "silent") throw new Failure(expected, `none within ${this.timeoutMs} ms`);
      if (message === "closed") return undefined;
      if (isReply(message)) return message;
      this.#conduct.unasked(message);
      await this.#serve(message);
    }
  }

  /** Sends all of it. False when the server has closed the connection. @throws Failure when the server does not read */
  async send(bytes: Uint8Array, fds?: readonly number[]): Promise<boolean> {
    const deadline = performance.now() + this.timeoutMs;
    let rest = fds?.length ? fds : undefined;
    for (let at = 0; at < bytes.length; ) {
      let sent: number;
      try {
        sent = send(this.#fd, bytes, at, bytes.length - at, rest);
      } catch (error) {
        if (isSystemError(error)) return false;
        throw error;
      }
      if (sent > 0) {
        at += sent;
        rest = undefined;
      } else if (!(await waitFor(this.#fd, POLL_WRITABLE, deadline - performance.now()))) {
        throw new Failure("the server to read what it is sent", `${bytes.length - at} bytes unread`);
      }
    }
    return true;
  }

  /** Closes the connection and all fds that came over it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const fd of [...this.#fds, this.#fd]) close(fd);
  }

  /** @throws Failure when the header makes no sense */
  async #receive(): Promise<Message | "closed" | "silent"> {
    const deadline = performance.now() + this.timeoutMs;
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

  async #read(length: number, deadline: number, fds: number[]): Promise<Uint8Array<ArrayBuffer> | "closed" | "silent"> {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      let count: number;
      try {
        count = receive(this.#fd, bytes, at, length - at, this.#scratch);
      } catch (error) {
        if (isSystemError(error)) return "closed";
        throw error;
      }
      if (count === 0) return "closed";
      if (count === -1) {
        if (!(await waitFor(this.#fd, POLL_READABLE, deadline - performance.now()))) return "silent";
        continue;
      }
      const came = this.#scratch.subarray(1, 1 + this.#scratch[0]);
      this.#fds.push(...came);
      fds.push(...came);
      at += count;
    }
    return bytes;
  }

  /** Answers a command of the server's. */
  async #serve({ id, command, flags, body, data }: Message): Promise<void> {
    if (flags & HeaderFlags.NO_REPLY) return;
    const isDma = (command === Command.DMA_READ || command === Command.DMA_WRITE) && body.length >= DmaAccess.size;
    const count = isDma ? DmaAccess.view(data).count : Number.POSITIVE_INFINITY;
    if (count > MAX_DMA_ANSWER) {
      const error = { id, flags: HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno: Errno.EINVAL };
      await this.send(encode(command, undefined, error));
      return;
    }
    const reply = new Uint8Array(DmaAccess.size + (command === Command.DMA_READ ? count : 0));
    reply.set(body.subarray(0, DmaAccess.size));
    await this.send(encode(command, reply, { id, flags: HeaderFlags.TYPE_REPLY }));
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
