/** A client without manners: sends any bytes and fds, and shows what comes back. */
import { closeSync } from "node:fs";
import { connect, POLL_READABLE, POLL_WRITABLE, Poll, receive, send } from "../../../native/index.js";
import { Command, Header, HeaderFlags, Version } from "../../../shared/spec/vfio-user.js";

export interface RawMessage {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly body: Buffer;
  readonly fds: readonly number[];
}

export interface MessageFields {
  readonly id?: number;
  readonly flags?: number;
  /** In place of the true size. */
  readonly size?: number;
  readonly errno?: number;
}

/** A whole message. */
export function message(command: number, body: Uint8Array = new Uint8Array(0), fields: MessageFields = {}): Buffer {
  const { id = 1, flags = 0, errno = 0 } = fields;
  const size = fields.size ?? Header.size + body.length;
  return Buffer.concat([Header.encode({ id, command, size, flags, errno }), body]);
}

export function versionBody(json = '{"capabilities":{"max_msg_fds":16}}', fields = { major: 0, minor: 2 }): Buffer {
  return Buffer.concat([Version.encode(fields), Buffer.from(json), Buffer.alloc(1)]);
}

export class RawClient {
  readonly fd: number;
  #received = Buffer.alloc(0);
  readonly #fds: number[] = [];
  #isClosed = false;

  constructor(target: string | number) {
    this.fd = typeof target === "number" ? target : connect(target);
  }

  send(bytes: Uint8Array, fds?: readonly number[]): void {
    for (let at = 0; at < bytes.length; ) {
      const sent = send(this.fd, bytes, at, bytes.length - at, at === 0 ? fds : undefined);
      if (sent === -1) throw new Error("the socket is full");
      at += sent;
    }
  }

  /** As `send`, but waits while the socket is full. */
  async sendAll(bytes: Uint8Array, fds?: readonly number[]): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const sent = send(this.fd, bytes, at, bytes.length - at, at === 0 ? fds : undefined);
      if (sent === -1) await this.#ready(POLL_WRITABLE);
      else at += sent;
    }
  }

  /** The next message; rejects when the server closes the connection. Fds of replies are collected with them. */
  async receive(): Promise<RawMessage> {
    for (;;) {
      if (this.#received.length >= Header.size) {
        const size = this.#received.readUInt32LE(4);
        if (this.#received.length >= size) {
          const bytes = this.#received.subarray(0, size);
          this.#received = Buffer.from(this.#received.subarray(size));
          const body = Buffer.from(bytes.subarray(Header.size));
          const fields = {
            id: bytes.readUInt16LE(0),
            command: bytes.readUInt16LE(2),
            flags: bytes.readUInt32LE(8),
            errno: bytes.readUInt32LE(12),
          };
          return { ...fields, body, fds: this.#fds.splice(0) };
        }
      }
      if (!(await this.#more())) throw new Error("closed by the server");
    }
  }

  async exchange(bytes: Uint8Array, fds?: readonly number[]): Promise<RawMessage> {
    this.send(bytes, fds);
    return this.receive();
  }

  async negotiate(): Promise<RawMessage> {
    return this.exchange(message(Command.VERSION, versionBody()));
  }

  /** Resolves when the server has closed the connection; messages in front of that are errors. */
  async closedByServer(): Promise<void> {
    while (await this.#more());
    if (this.#received.length > 0) throw new Error(`${this.#received.length} bytes before the end`);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const fd of this.#fds) closeSync(fd);
    closeSync(this.fd);
  }

  #ready(events: number): Promise<void> {
    return new Promise((resolve) => {
      const poll = new Poll(this.fd, () => {
        poll.close();
        resolve();
      });
      poll.start(events);
    });
  }

  /** Waits for more bytes; false at the end. */
  async #more(): Promise<boolean> {
    const buffer = new Uint8Array(1 << 16);
    const fds = new Int32Array(254);
    for (;;) {
      let count: number;
      try {
        count = receive(this.fd, buffer, 0, buffer.length, fds);
      } catch (error) {
        // The server closed while something of ours was unread.
        if ((error as NodeJS.ErrnoException).code === "ECONNRESET") return false;
        throw error;
      }
      if (count === 0) return false;
      if (count > 0) {
        this.#received = Buffer.concat([this.#received, buffer.subarray(0, count)]);
        this.#fds.push(...fds.subarray(1, 1 + fds[0]));
        return true;
      }
      await this.#ready(POLL_READABLE);
    }
  }
}

/** True for an error reply with that errno. */
export function isError(reply: RawMessage, errno: number): boolean {
  return (
    reply.flags === (HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR) && reply.errno === errno && reply.body.length === 0
  );
}
