/** Requests of the device process to the bridge: how they are sent, and what is made of the replies. */
import { ADDRESS_SPACE, exactSpans, meets } from "../../../shared/address.js";
import { startTicks } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { Command, DmaAccess, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { RequestTable } from "../../../shared/vfio-user/request-table.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { Messages, PartsMessage } from "./messages.js";

/** Requests without a reply, abandoned ones included. */
const MAX_REQUESTS = 4096;
const NOTHING = new Uint8Array(0);

interface Request {
  /** -1 before it has one. */
  id: number;
  readonly command: number;
  /** DMA_READ: where the data goes. */
  readonly target: Uint8Array | undefined;
  /** DMA: bytes asked for. */
  readonly count: number;
  readonly address: number;
  /** Undefined while it is being sent. */
  message: PartsMessage | undefined;
  resolve(body: Uint8Array): void;
  reject(error: Error): void;
}

export class BridgeRequests {
  readonly #messages: Messages;
  readonly #table = new RequestTable<Request>(MAX_REQUESTS);
  readonly #header = Header.view();
  readonly #access = DmaAccess.view();
  /** Runs while somebody waits for a reply. */
  #stopTicks: (() => void) | undefined;

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

  /** Nobody waits any longer: every request rejects with `error`. */
  abandon(error: Error): void {
    for (const request of this.#table.abandon()) this.#giveUp(request, error);
    this.#stopTicks?.();
    this.#stopTicks = undefined;
  }

  /**
   * As abandon, but only of DMA that concerns a range, or all, which the client answers. What the bridge itself answers
   * it still does.
   */
  abandonDma(error: Error, address = 0, length = ADDRESS_SPACE): void {
    const spans = exactSpans(address, length);
    const abandoned = this.#table.abandon(
      (request) => isDma(request.command) && meets(spans, request.address, request.count),
    );
    for (const request of abandoned) this.#giveUp(request, error);
  }

  /** The device was reset, after `abandon`: no reply comes any more. */
  restart(): void {
    this.#table.dropAll();
  }

  /** Takes a reply of `size` bytes, header included. @throws PeerGone when it answers nothing that was asked */
  reply(bytes: Uint8Array, data: DataView, size: number): void {
    const { id, command, flags, errno } = this.#header.at(data);
    if (!this.#table.expects(id, command)) {
      throw new PeerGone(`a reply to command ${command}, id ${id}, which was not sent`);
    }
    const request = this.#table.waiterOf(id);
    this.#table.free(id);
    if (request === undefined) return;
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
      if (size > this.#messages.maxMessageSize) {
        return reject(new ProtocolError(`a request of ${size} bytes is too long`, Errno.E2BIG, command));
      }
      const request: Request = { id: -1, command, target, address, count, message: undefined, resolve, reject };
      const id = this.#table.take(command, request);
      if (id < 0) return reject(new ProtocolError("too many requests wait for a reply", Errno.EBUSY, command));
      request.id = id;
      this.#stopTicks ??= startTicks(REPLY_DEADLINE_MS, () => this.#tick());
      const header = Header.encode({ id, command, size, flags: HeaderFlags.TYPE_COMMAND });
      request.message = this.#messages.sendParts([header, body, payload], size);
    });
  }

  #tick(): void {
    for (const request of this.#table.tick()) {
      const { command } = request;
      this.#giveUp(request, new ProtocolError(`no reply to command ${command}`, Errno.ETIMEDOUT, command));
    }
    if (this.#table.waiting > 0) return;
    this.#stopTicks?.();
    this.#stopTicks = undefined;
  }

  /** After its end in the table: nothing is read from the caller's bytes, or written to them, afterwards. */
  #giveUp({ id, message, reject }: Request, error: Error): void {
    // What was never sent is never answered.
    if (message === undefined || this.#messages.retract(message)) this.#table.free(id);
    reject(error);
  }
}

function isDma(command: number): boolean {
  return command === Command.DMA_READ || command === Command.DMA_WRITE;
}
