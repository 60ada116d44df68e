/**
 * A client's requests: how they are sent, and what is made of the replies, all from an untrusted server: whether they
 * fit, and asking again for those that did not.
 */
import { startTicks } from "../../deadline.js";
import { Errno, type PeerGone, ProtocolError } from "../../errors.js";
import { KiB } from "../../limits.js";
import { Header, HeaderFlags, RegionAccess } from "../../spec/vfio-user.js";
import { RequestTable } from "../request-table.js";
import { type Connection, type Frame, putHeader } from "../socket/connection.js";
import { closeAll, systemCalls } from "../socket/message-socket.js";

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
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

const NO_REPLY: Reply = { body: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), fds: [] };
const MAX_ARGSZ = 64 * 1024;
/** What we say that we take with one message. */
export const MAX_FDS = 16;
const MAX_REQUESTS = 0x10000;
/** Of a request without a reply, whose id says nothing. */
const NO_ID = 0;

export class ClientRequests {
  readonly #table = new RequestTable<Request>(MAX_REQUESTS);
  readonly #connection: Connection;
  /** 0: wait forever. */
  readonly #timeoutMs: number;
  /** Runs while somebody waits for a reply. */
  #stopTicks: (() => void) | undefined;
  #out = new Uint8Array(4 * KiB);
  #outData = new DataView(this.#out.buffer);
  #gone: PeerGone | undefined;
  /** Replies that nobody waited for. */
  strays = 0;

  constructor(connection: Connection, timeoutMs: number) {
    this.#connection = connection;
    this.#timeoutMs = timeoutMs;
  }

  /** Sends a command. Rejects with ProtocolError or PeerGone. */
  send(command: number, body: Uint8Array, options: RequestOptions): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) return reject(this.#gone);
      const flags = options.flags ?? 0;
      const wantsReply = (flags & HeaderFlags.NO_REPLY) === 0;
      let id = NO_ID;
      if (wantsReply) {
        id = this.#table.take(command, { command, maxFds: options.maxFds ?? 0, resolve, reject });
        if (id < 0) return reject(new ProtocolError("too many requests at once", Errno.EBUSY, command));
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
      if (!wantsReply) resolve(NO_REPLY);
    });
  }

  /** A reply that nobody waits for came too late, or twice, and is dropped. */
  handleReply(frame: Frame): void {
    const request = this.#table.waiterOf(frame.id);
    this.#table.free(frame.id);
    if (request === undefined) {
      this.strays++;
      return;
    }
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
    for (const { reject } of this.#table.dropAll()) reject(reason);
  }

  #tick(): void {
    for (const { command, reject } of this.#table.tick()) {
      reject(new ProtocolError(`the server does not answer command ${command}`, Errno.ETIMEDOUT, command));
    }
    if (this.#table.waiting > 0) return;
    this.#stopTicks?.();
    this.#stopTicks = undefined;
  }
}

/** Whether the reply, of a proper length, is to that region access. @throws ProtocolError EPROTO */
export function checkAccess(command: number, reply: Reply, region: number, offset: number, count: number): void {
  const echo = RegionAccess.view(reply.data);
  if (echo.region !== region || echo.offset !== offset || echo.count !== count) badReply(command, "another access");
}

/**
 * A request whose reply begins with argsz, made again with as much room as the server says that it needs. fds that
 * `parse` leaves are closed. Rejects as the request does, and with what `parse` throws.
 */
export async function askGrowing<T>(
  client: { request(command: number, body: Uint8Array, options: RequestOptions): Promise<Reply> },
  command: number,
  least: number,
  encode: (argsz: number) => Uint8Array,
  parse: (reply: Reply) => T,
): Promise<T> {
  for (let argsz = least; ; ) {
    const reply = await client.request(command, encode(argsz), { maxFds: MAX_FDS });
    const needed = reply.data.byteLength < least ? 0 : reply.data.getUint32(0, true);
    if (needed > argsz && needed <= MAX_ARGSZ) {
      closeAll(systemCalls, reply.fds);
      argsz = needed;
      continue;
    }
    try {
      return parse(reply);
    } finally {
      closeAll(systemCalls, reply.fds);
    }
  }
}
