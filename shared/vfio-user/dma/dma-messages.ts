/**
 * DMA by message: DMA_READ and DMA_WRITE from the server to the client, many at once, for maps without an fd. They go
 * over the one socket, between the replies, or over a twin socket.
 *
 * The specification and libvfio-user have a 64-bit count and the data at byte 32 of the message, and so has QEMU 11.1.
 * The first QEMUs with vfio-user-pci have a 32-bit count and the data at byte 28; as their structure is padded to 32
 * bytes, their messages are equally long and no length tells the two apart. So the first DMA asks first: a DMA_READ of
 * 2^32 bytes. A client that follows the specification refuses it; those QEMUs see the low half, read nothing, and say
 * that all is well.
 */
import { ADDRESS_SPACE, exactSpans, formatAddress, isAddressRange, meets } from "../../address.js";
import { TICKS_PER_DEADLINE } from "../../deadline.js";
import { Errno, ProtocolError } from "../../errors.js";
import { KiB, MAX_DMA_REQUESTS, MAX_DMA_WRITE_BYTES } from "../../limits.js";
import {
  Command,
  DMA_DATA_OFFSET,
  DmaAccess,
  DmaAccessQemu,
  type DmaLayout,
  Header,
  HeaderFlags,
} from "../../spec/vfio-user.js";
import type { ClientMemory } from "../backend.js";
import { RequestTable } from "../request-table.js";
import { type Connection, type Frame, putHeader } from "../socket/connection.js";

const PROBE_COUNT = 0x1_0000_0000;
/** Requests that the client has not answered, abandoned ones included; the others wait here: no client is flooded. */
const MAX_SENT = 1024;
/** Ids that a client can be sent. */
const IDS = 0x1_0000;
/**
 * The most that one DMA_READ asks for. QEMU (11.1 at least) loses the stream when its socket takes a part of a reply;
 * what fits into one of the kernel's socket buffers is taken whole or not at all.
 */
const MAX_READ_COUNT = 32 * KiB;
const NO_BYTES = new Uint8Array(0);

interface Range {
  readonly address: number;
  readonly count: number;
}

/** A transfer before it is made into requests. */
interface Early extends Range {
  readonly command: number;
  readonly reject: (error: Error) => void;
}

interface Request extends Range {
  readonly command: number;
  /** A read's target, a write's source. */
  readonly bytes: Uint8Array;
  /** In ticks of the table: a request that waits to be sent is as old as one that was. */
  readonly startedAt: number;
  readonly sent: (() => void) | undefined;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

const view = DmaAccess.view();

export class DmaMessages implements ClientMemory {
  readonly #sent = new RequestTable<Request>(MAX_SENT);
  readonly #waiting: Request[] = [];
  /** Bytes of the writes that were sent and not answered. */
  #writeBytes = 0;
  #gone: Error | undefined;
  #layout: DmaLayout | undefined;
  #probing: Promise<void> | undefined;
  /** What waits for the end of that. */
  readonly #early = new Set<Early>();
  #out = new Uint8Array(4 * KiB);
  #outData = new DataView(this.#out.buffer);
  readonly #connection: Connection;
  /** The most that one message carries. */
  readonly #maxDataXferSize: number;
  /** Of the ids on the wire; those of the table begin with 0. */
  readonly #firstId: number;
  readonly #life: number;

  /** `life`: how many processes had the client before this one. Each has ids of its own. */
  constructor(connection: Connection, maxDataXferSize: number, life = 0) {
    this.#connection = connection;
    this.#maxDataXferSize = maxDataXferSize;
    this.#life = life;
    this.#firstId = (life * MAX_SENT) % IDS;
  }

  read(address: number, target: Uint8Array): Promise<void> {
    return this.#transfer(Command.DMA_READ, address, target);
  }

  write(address: number, source: Uint8Array, sent?: () => void): Promise<void> {
    return this.#transfer(Command.DMA_WRITE, address, source, sent);
  }

  /** A client deals with one after the other, and the first DMA asks it something. */
  settled(): Promise<void> {
    return this.#layout === undefined ? this.#probed(Command.DMA_READ, 0, 1) : Promise.resolve();
  }

  /** A reply of the client's. False when it is one to nothing. */
  handleReply(frame: Frame): boolean {
    const id = frame.id - this.#firstId;
    // One that another process waited for is late, and nobody's.
    if (id < 0 || id >= MAX_SENT) return this.#life > 0;
    if (!this.#sent.expects(id, frame.command)) return false;
    const request = this.#sent.waiterOf(id);
    this.#sent.free(id);
    if (request !== undefined) {
      const wrong = this.#finish(request, frame);
      if (wrong === undefined) request.resolve();
      else request.reject(wrong);
      this.#release(request);
    }
    this.#sendWaiting();
    return true;
  }

  /** Called TICKS_PER_DEADLINE times within the deadline: gives up what has waited for all of it. */
  tick(): void {
    for (const request of this.#sent.tick()) {
      this.#giveUp(request);
      this.#release(request);
    }
    // In the order in which they came: behind one that is not late, none is.
    const isLate = (request: Request) => this.#sent.now - request.startedAt >= TICKS_PER_DEADLINE;
    while (this.#waiting.length > 0 && isLate(this.#waiting[0])) {
      const request = this.#waiting.shift();
      if (request !== undefined) this.#giveUp(request);
    }
    this.#sendWaiting();
  }

  abandon(address = 0, length = ADDRESS_SPACE): void {
    const spans = exactSpans(address, length);
    const concerns = (range: Range) => meets(spans, range.address, range.count);
    const isTransfer = (request: Request) => request.bytes !== NO_BYTES && concerns(request);
    const reason = (command: number) => new ProtocolError("a DMA was given up", Errno.ECANCELED, command);
    for (const request of this.#sent.abandon(isTransfer)) {
      request.reject(reason(request.command));
      this.#release(request);
    }
    for (const request of this.#waiting.splice(0)) {
      if (isTransfer(request)) request.reject(reason(request.command));
      else this.#waiting.push(request);
    }
    for (const early of this.#early) if (concerns(early)) early.reject(reason(early.command));
    this.#sendWaiting();
  }

  /** The client cannot be reached any more: everything rejects with `reason`. */
  close(reason: Error): void {
    if (this.#gone !== undefined) return;
    this.#gone = reason;
    for (const request of [...this.#sent.dropAll(), ...this.#waiting.splice(0)]) request.reject(reason);
  }

  async #transfer(command: number, address: number, bytes: Uint8Array, sent?: () => void): Promise<void> {
    if (bytes.length === 0) return;
    if (!isAddressRange(address, bytes.length)) {
      throw new ProtocolError(`no DMA address: ${formatAddress(address)}`, Errno.EINVAL, command);
    }
    if (this.#layout === undefined) {
      await this.#probed(command, address, bytes.length);
    }
    const most = command === Command.DMA_READ ? Math.min(this.#maxDataXferSize, MAX_READ_COUNT) : this.#maxDataXferSize;
    if (bytes.length <= most) return this.#request(command, address, bytes.length, bytes, sent);
    if (bytes.length > most * MAX_DMA_REQUESTS) {
      throw new ProtocolError(`a DMA of ${bytes.length} bytes in parts of ${most}`, Errno.EBUSY, command);
    }
    const parts: Promise<void>[] = [];
    for (let at = 0; at < bytes.length; at += most) {
      const part = bytes.subarray(at, at + most);
      parts.push(this.#request(command, address + at, part.length, part));
    }
    // All have to end before the bytes are the caller's again, also when one fails.
    for (const part of await Promise.allSettled(parts)) if (part.status === "rejected") throw part.reason;
  }

  /** Resolves when the layout is known, or cannot be found out. */
  async #probed(command: number, address: number, count: number): Promise<void> {
    this.#probing ??= this.#probe();
    const probing = this.#probing;
    let early: Early | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        early = { command, address, count, reject };
        this.#early.add(early);
        probing.then(resolve, reject);
      });
    } finally {
      if (early !== undefined) this.#early.delete(early);
    }
  }

  async #probe(): Promise<void> {
    try {
      await this.#request(Command.DMA_READ, 0, PROBE_COUNT, NO_BYTES);
      this.#layout = "qemu";
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      if (error.errno === Errno.ETIMEDOUT) this.#probing = undefined;
      else this.#layout = "specification";
    }
  }

  #request(command: number, address: number, count: number, bytes: Uint8Array, sent?: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) return reject(this.#gone);
      if (this.#waiting.length >= MAX_DMA_REQUESTS)
        return reject(new ProtocolError("too many DMAs at once", Errno.EBUSY, command));
      this.#waiting.push({ command, address, count, bytes, startedAt: this.#sent.now, sent, resolve, reject });
      this.#sendWaiting();
    });
  }

  /** Sends what waits, in order, as far as the client is to have it at once. */
  #sendWaiting(): void {
    while (this.#waiting.length > 0 && this.#sent.size < MAX_SENT && this.#gone === undefined) {
      const request = this.#waiting[0];
      const isWrite = request.command === Command.DMA_WRITE;
      if (isWrite && this.#writeBytes > 0 && this.#writeBytes + request.count > MAX_DMA_WRITE_BYTES) return;
      this.#waiting.shift();
      if (isWrite) this.#writeBytes += request.count;
      const id = this.#sent.take(request.command, request, false, request.startedAt);
      this.#send(id, request, isWrite ? request.bytes : NO_BYTES);
      request.sent?.();
    }
  }

  #send(id: number, { command, address, count }: Request, data: Uint8Array): void {
    const size = Header.size + DmaAccess.size + data.length;
    if (this.#out.length < size) {
      this.#out = new Uint8Array(size);
      this.#outData = new DataView(this.#out.buffer);
    }
    putHeader(this.#outData, 0, this.#firstId + id, command, size, HeaderFlags.TYPE_COMMAND);
    view.at(this.#outData, Header.size);
    view.address = address;
    view.count = count;
    if (data.length > 0) {
      const at = Header.size + DMA_DATA_OFFSET[this.#layout ?? "specification"];
      this.#out.set(data, at);
      this.#out.fill(0, at + data.length, size);
    }
    this.#connection.send(this.#out, 0, size);
  }

  /** The request is over: makes room for the next. */
  #release(request: Request): void {
    if (request.command === Command.DMA_WRITE) this.#writeBytes -= request.count;
  }

  #giveUp({ command, reject }: Request): void {
    reject(new ProtocolError("the client does not answer a DMA", Errno.ETIMEDOUT, command));
  }

  /** Takes a reply's data; what is wrong with it, or undefined. */
  #finish(request: Request, frame: Frame): ProtocolError | undefined {
    const { command, bytes, count } = request;
    if (frame.flags & HeaderFlags.ERROR) {
      return new ProtocolError("the client refused a DMA", frame.errno || Errno.EIO, command);
    }
    const wrong = this.#check(request, frame);
    if (wrong !== undefined) return new ProtocolError(`the client's reply to a DMA: ${wrong}`, Errno.EPROTO, command);
    if (command === Command.DMA_READ && bytes.length > 0) {
      const from = frame.offset + DMA_DATA_OFFSET[this.#layout ?? "specification"];
      bytes.set(frame.bytes.subarray(from, from + count));
    }
    return undefined;
  }

  /** What is wrong with a reply that is no error reply, or undefined. */
  #check(request: Request, frame: Frame): string | undefined {
    if (request.command === Command.DMA_WRITE) {
      // The reply is a header alone (early QEMU), has a 32-bit count (specification) or a 64-bit one (libvfio-user,
      // QEMU).
      if (frame.length === 0) return undefined;
      if (frame.length !== DmaAccessQemu.size && frame.length !== DmaAccess.size) return `${frame.length} bytes`;
    } else if (frame.length !== DmaAccess.size + request.bytes.length) {
      return `${frame.length} bytes`;
    }
    const { address } = view.at(frame.data, frame.offset);
    // The high half of early QEMU's count is data.
    const count = frame.data.getUint32(frame.offset + DmaAccess.offsets.count, true);
    if (address !== request.address || count !== request.count >>> 0)
      return `${count} bytes at ${formatAddress(address)}`;
    return undefined;
  }
}
