/** A client's requests under way: ids, replies found again, and time-outs. */
import { startTicks, TICKS_PER_DEADLINE } from "../deadline.js";
import { Errno, type PeerGone, ProtocolError } from "../errors.js";
import { KiB } from "../limits.js";
import { Header, HeaderFlags } from "../spec/vfio-user.js";
import { type Connection, type Frame, putHeader } from "./connection.js";

export interface RequestOptions {
  /** Sent along; they stay the caller's. */
  readonly fds?: readonly number[];
  /** HeaderFlags; with NO_REPLY the promise resolves as soon as the request is sent. */
  readonly flags?: number;
  /** How many fds a reply may carry; more are an error. */
  readonly maxFds?: number;
}

export interface Reply {
  readonly body: Uint8Array;
  readonly data: DataView;
  /** The caller's from now on. */
  readonly fds: number[];
}

/** @throws ProtocolError EPROTO */
export function badReply(command: number, what: string): never {
  throw new ProtocolError(`the server's reply to command ${command}: ${what}`, Errno.EPROTO, command);
}

interface Request {
  readonly command: number;
  readonly maxFds: number;
  /** In ticks. */
  readonly startedAt: number;
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

const NO_REPLY: Reply = { body: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), fds: [] };
const MAX_IDS = 0x10000;

export class Requests {
  readonly #pending = new Map<number, Request>();
  #now = 0;
  #stopTicks: (() => void) | undefined;
  #out = new Uint8Array(4 * KiB);
  #outData = new DataView(this.#out.buffer);
  #nextId = 1;
  #gone: PeerGone | undefined;
  readonly #connection: Connection;
  /** 0: wait for ever. */
  readonly #timeoutMs: number;

  constructor(connection: Connection, timeoutMs: number) {
    this.#connection = connection;
    this.#timeoutMs = timeoutMs;
  }

  /** Sends a command. Rejects with ProtocolError or PeerGone. */
  send(command: number, body: Uint8Array, options: RequestOptions): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) return reject(this.#gone);
      const flags = options.flags ?? 0;
      const id = this.#takeId();
      if (!(flags & HeaderFlags.NO_REPLY)) {
        this.#pending.set(id, { command, maxFds: options.maxFds ?? 0, startedAt: this.#now, resolve, reject });
        if (this.#timeoutMs > 0) this.#stopTicks ??= startTicks(this.#timeoutMs, () => this.#tick());
      }
      const size = Header.size + body.length;
      if (this.#out.length < size) {
        this.#out = new Uint8Array(size);
        this.#outData = new DataView(this.#out.buffer);
      }
      putHeader(this.#outData, 0, id, command, size, flags);
      this.#out.set(body, Header.size);
      this.#connection.send(this.#out, 0, size, options.fds);
      if (flags & HeaderFlags.NO_REPLY) resolve(NO_REPLY);
    });
  }

  /** A reply that nothing waits for came too late, and is dropped. */
  handleReply(frame: Frame): void {
    const request = this.#pending.get(frame.id);
    if (request === undefined) return;
    this.#pending.delete(frame.id);
    const { command } = request;
    if (frame.flags & HeaderFlags.ERROR) {
      const errno = frame.errno || Errno.EIO;
      request.reject(new ProtocolError(`the server refused command ${command}: errno ${errno}`, errno, command));
    } else if (frame.command !== command || frame.fds.length > request.maxFds) {
      const what = `the server's reply to command ${command}: command ${frame.command}, ${frame.fds.length} fds`;
      request.reject(new ProtocolError(what, Errno.EPROTO, command));
    } else {
      const body = frame.bytes.slice(frame.offset, frame.offset + frame.length);
      const fds = frame.fds.slice();
      frame.fds.fill(-1);
      request.resolve({ body, data: new DataView(body.buffer), fds });
    }
  }

  close(reason: PeerGone): void {
    this.#gone = reason;
    this.#stopTicks?.();
    for (const request of this.#pending.values()) request.reject(reason);
    this.#pending.clear();
  }

  #takeId(): number {
    if (this.#pending.size >= MAX_IDS) throw new ProtocolError("too many requests at once", Errno.EBUSY);
    let id = this.#nextId;
    while (this.#pending.has(id)) id = (id + 1) % MAX_IDS;
    this.#nextId = (id + 1) % MAX_IDS;
    return id;
  }

  #tick(): void {
    this.#now++;
    if (this.#pending.size === 0) {
      this.#stopTicks?.();
      this.#stopTicks = undefined;
      return;
    }
    for (const [id, { command, startedAt, reject }] of this.#pending) {
      if (this.#now - startedAt < TICKS_PER_DEADLINE) continue;
      this.#pending.delete(id);
      reject(new ProtocolError(`the server does not answer command ${command}`, Errno.ETIMEDOUT, command));
    }
  }
}
