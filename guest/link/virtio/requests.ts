/**
 * Requests of ours to the bridge: their ids, their deadlines, and what becomes of the replies. An id is used again only
 * after its reply, so that a late reply is never taken for another's.
 */
import { ADDRESS_SPACE, exactSpans, meets } from "../../../shared/address.js";
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { Command, DmaAccess, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { Messages, PartsMessage } from "./messages.js";

/** Requests without a reply, those that were given up included. */
const MAX_REQUESTS = 4096;
const MAX_ID = 0xffff;
const NOTHING = new Uint8Array(0);

interface Request {
  readonly command: number;
  /** DMA_READ: where the data goes. */
  readonly target: Uint8Array | undefined;
  /** DMA: bytes asked for. */
  readonly count: number;
  readonly address: number;
  /** Undefined while it is being sent. */
  message: PartsMessage | undefined;
  stopDeadline(): void;
  resolve(body: Uint8Array): void;
  reject(error: Error): void;
  /** Nobody waits any more; only the id is still taken. */
  abandoned: boolean;
}

export class Requests {
  readonly #messages: Messages;
  readonly #requests = new Map<number, Request>();
  readonly #header = Header.view();
  readonly #access = DmaAccess.view();
  #lastId = 0;

  constructor(messages: Messages) {
    this.#messages = messages;
  }

  /** A request of the link's own. Resolves with the reply's body; rejects with ProtocolError or PeerGone. */
  send(command: number, body: Uint8Array): Promise<Uint8Array> {
    return this.#send(command, body, NOTHING, undefined, 0, 0);
  }

  async read(address: number, target: Uint8Array): Promise<void> {
    const body = DmaAccess.encode({ address, count: target.length });
    await this.#send(Command.DMA_READ, body, NOTHING, target, address, target.length);
  }

  async write(address: number, source: Uint8Array): Promise<void> {
    const body = DmaAccess.encode({ address, count: source.length });
    await this.#send(Command.DMA_WRITE, body, source, undefined, address, source.length);
  }

  /** Nobody is to wait any longer: every request rejects with `error`. */
  abandon(error: Error): void {
    for (const id of [...this.#requests.keys()]) this.#giveUp(id, error);
  }

  /**
   * As abandon, but only of DMA that concerns a range, or all, which the client answers. What the bridge itself answers
   * it still does.
   */
  abandonDma(error: Error, address = 0, length = ADDRESS_SPACE): void {
    const spans = exactSpans(address, length);
    for (const [id, request] of [...this.#requests]) {
      if (isDma(request.command) && meets(spans, request.address, request.count)) this.#giveUp(id, error);
    }
  }

  /** The device was reset, after `abandon`: no reply comes any more. */
  restart(): void {
    this.#requests.clear();
  }

  /** Takes a reply of `size` bytes, header included. @throws PeerGone when it answers nothing that was asked */
  reply(bytes: Uint8Array, data: DataView, size: number): void {
    const { id, command, flags, errno } = this.#header.at(data);
    const request = this.#requests.get(id);
    if (request === undefined || request.command !== command) {
      throw new PeerGone(`a reply to command ${command}, id ${id}, which was not sent`);
    }
    this.#requests.delete(id);
    request.stopDeadline();
    if (request.abandoned) return;
    if ((flags & HeaderFlags.ERROR) !== 0) {
      request.reject(new ProtocolError(`command ${command} was refused, errno ${errno}`, errno || Errno.EIO, command));
    } else if (!isDma(command)) {
      request.resolve(bytes.slice(Header.size, size));
    } else if (this.#fits(request, data, size)) {
      if (request.target) copyBytes(bytes, Header.size + DmaAccess.size, request.target, 0, request.count);
      request.resolve(NOTHING);
    } else {
      request.reject(new ProtocolError(`a reply of ${size} bytes to command ${command}`, Errno.EPROTO, command));
    }
  }

  #fits(request: Request, data: DataView, size: number): boolean {
    const payload = request.target === undefined ? 0 : request.count;
    if (size !== Header.size + DmaAccess.size + payload) return false;
    return this.#access.at(data, Header.size).count === request.count;
  }

  #send(
    command: number,
    body: Uint8Array,
    payload: Uint8Array,
    target: Uint8Array | undefined,
    address: number,
    count: number,
  ): Promise<Uint8Array> {
    return new Promise<Uint8Array>((resolve, reject) => {
      const size = Header.size + body.length + payload.length;
      const id = this.#freeId();
      if (id < 0) return reject(new ProtocolError("too many requests wait for a reply", Errno.EBUSY, command));
      if (size > this.#messages.maxMessageSize) {
        return reject(new ProtocolError(`a request of ${size} bytes is too long`, Errno.E2BIG, command));
      }
      const stopDeadline = startDeadline(REPLY_DEADLINE_MS, () => {
        this.#giveUp(id, new ProtocolError(`no reply to command ${command}`, Errno.ETIMEDOUT, command));
      });
      const request: Request = {
        command,
        target,
        address,
        count,
        message: undefined,
        stopDeadline,
        resolve,
        reject,
        abandoned: false,
      };
      this.#requests.set(id, request);
      const header = Header.encode({ id, command, size, flags: HeaderFlags.TYPE_COMMAND });
      request.message = this.#messages.sendParts([header, body, payload], size);
    });
  }

  /** Nothing is read from the caller's bytes, or written to them, afterwards. */
  #giveUp(id: number, error: Error): void {
    const request = this.#requests.get(id);
    if (request === undefined || request.abandoned) return;
    request.stopDeadline();
    request.abandoned = true;
    // What was never sent is never answered.
    if (request.message === undefined || this.#messages.retract(request.message)) this.#requests.delete(id);
    request.reject(error);
  }

  #freeId(): number {
    if (this.#requests.size >= MAX_REQUESTS) return -1;
    do {
      this.#lastId = (this.#lastId + 1) & MAX_ID;
    } while (this.#requests.has(this.#lastId));
    return this.#lastId;
  }
}

function isDma(command: number): boolean {
  return command === Command.DMA_READ || command === Command.DMA_WRITE;
}
