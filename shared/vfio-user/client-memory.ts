/**
 * DMA by message: DMA_READ and DMA_WRITE from the server to the client, many at once, for maps without an fd.
 *
 * The specification and libvfio-user have a 64-bit count and the data at byte 32 of the message, and so has QEMU 11.1. The
 * first QEMUs with vfio-user-pci have a 32-bit count and the data at byte 28; as their structure is padded to 32 bytes,
 * their messages are equally long and no length tells the two apart. So the first DMA asks first: a DMA_READ of 2^32 bytes.
 * A client that follows the specification refuses it; those QEMUs see the low half, read nothing, and say that all is well.
 */
import { Errno, type PeerGone, ProtocolError } from "../errors.js";
import { KiB } from "../limits.js";
import { Command, DmaAccess, DmaAccessQemu, Header, HeaderFlags } from "../spec/vfio-user.js";
import type { ClientMemory } from "./backend.js";
import { type Connection, type Frame, putHeader } from "./connection.js";

/** Where a client puts the data of a DMA_READ and expects that of a DMA_WRITE; "qemu" is how QEMU began. */
export type DmaLayout = "specification" | "qemu";

const DATA_OFFSET = { specification: DmaAccess.size, qemu: DmaAccessQemu.size } as const;
const PROBE_COUNT = 0x1_0000_0000;
const MAX_IDS = 0x10000;
/**
 * The most that one DMA_READ asks for. QEMU (11.1 at least) loses the stream when its socket takes a part of a reply; what
 * fits into one of the kernel's socket buffers is taken whole or not at all.
 */
const MAX_READ_COUNT = 32 * KiB;
const NO_BYTES = new Uint8Array(0);

interface Request {
  readonly command: number;
  readonly address: number;
  readonly count: number;
  readonly target: Uint8Array;
  readonly startedAt: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

const view = DmaAccess.view();

export class DmaMessages implements ClientMemory {
  private readonly requests = new Map<number, Request>();
  private nextId = 0;
  private now = 0;
  private gone: PeerGone | undefined;
  private layout: DmaLayout | undefined;
  private probing: Promise<void> | undefined;
  private out = new Uint8Array(4 * KiB);
  private outData = new DataView(this.out.buffer);

  constructor(
    private readonly connection: Connection,
    /** The most that one message carries. */
    private readonly maxDataXferSize: number,
  ) {}

  read(address: number, target: Uint8Array): Promise<void> {
    return this.transfer(Command.DMA_READ, address, target);
  }

  write(address: number, source: Uint8Array): Promise<void> {
    return this.transfer(Command.DMA_WRITE, address, source);
  }

  /** A reply of the client's. False when nothing waits for it (it came too late, or was never asked for). */
  handleReply(frame: Frame): boolean {
    const request = this.requests.get(frame.id);
    if (request === undefined || request.command !== frame.command) return false;
    this.requests.delete(frame.id);
    if (frame.flags & HeaderFlags.ERROR) {
      request.reject(new ProtocolError("the client refused a DMA", frame.errno || Errno.EIO, frame.command));
      return true;
    }
    const wrong = this.check(request, frame);
    if (wrong !== undefined) {
      request.reject(new ProtocolError(`the client's reply to a DMA: ${wrong}`, Errno.EPROTO, frame.command));
      return true;
    }
    if (request.command === Command.DMA_READ && request.target.length > 0) {
      const from = frame.offset + DATA_OFFSET[this.layout ?? "specification"];
      request.target.set(frame.bytes.subarray(from, from + request.count));
    }
    request.resolve();
    return true;
  }

  /** Gives up requests older than `deadline` ticks. */
  tick(now: number, deadline: number): void {
    this.now = now;
    for (const [id, request] of this.requests) {
      if (now - request.startedAt < deadline) continue;
      this.requests.delete(id);
      request.reject(new ProtocolError("the client does not answer a DMA", Errno.ETIMEDOUT, request.command));
    }
  }

  /** The client is gone. */
  close(reason: PeerGone): void {
    this.gone = reason;
    for (const request of this.requests.values()) request.reject(reason);
    this.requests.clear();
  }

  private async transfer(command: number, address: number, bytes: Uint8Array): Promise<void> {
    if (!Number.isSafeInteger(address) || address < 0 || !Number.isSafeInteger(address + bytes.length)) {
      throw new ProtocolError(`no DMA address: ${address}`, Errno.EINVAL, command);
    }
    if (bytes.length === 0) return;
    if (this.layout === undefined) {
      this.probing ??= this.probe();
      await this.probing;
    }
    const most = command === Command.DMA_READ ? Math.min(this.maxDataXferSize, MAX_READ_COUNT) : this.maxDataXferSize;
    if (bytes.length <= most) return this.request(command, address, bytes.length, bytes);
    const parts: Promise<void>[] = [];
    for (let at = 0; at < bytes.length; at += most) {
      const part = bytes.subarray(at, at + most);
      parts.push(this.request(command, address + at, part.length, part));
    }
    await Promise.all(parts);
  }

  private async probe(): Promise<void> {
    try {
      await this.request(Command.DMA_READ, 0, PROBE_COUNT, NO_BYTES);
      this.layout = "qemu";
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.layout = "specification";
    }
  }

  private request(command: number, address: number, count: number, bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.gone !== undefined) return reject(this.gone);
      if (this.requests.size >= MAX_IDS)
        return reject(new ProtocolError("too many DMAs at once", Errno.EBUSY, command));
      let id = this.nextId;
      while (this.requests.has(id)) id = (id + 1) % MAX_IDS;
      this.nextId = (id + 1) % MAX_IDS;
      this.requests.set(id, { command, address, count, target: bytes, startedAt: this.now, resolve, reject });
      this.send(id, command, address, count, command === Command.DMA_WRITE ? bytes : NO_BYTES);
    });
  }

  private send(id: number, command: number, address: number, count: number, data: Uint8Array): void {
    const size = Header.size + DmaAccess.size + data.length;
    if (this.out.length < size) {
      this.out = new Uint8Array(size);
      this.outData = new DataView(this.out.buffer);
    }
    putHeader(this.outData, 0, id, command, size, HeaderFlags.TYPE_COMMAND);
    view.at(this.outData, Header.size);
    view.address = address;
    view.count = count;
    if (data.length > 0) {
      const at = Header.size + DATA_OFFSET[this.layout ?? "specification"];
      this.out.set(data, at);
      this.out.fill(0, at + data.length, size);
    }
    this.connection.send(this.out, 0, size);
  }

  /** What is wrong with a reply that is no error reply, or undefined. */
  private check(request: Request, frame: Frame): string | undefined {
    if (request.command === Command.DMA_WRITE) {
      // The reply is a header alone (early QEMU), has a 32-bit count (specification) or a 64-bit one (libvfio-user, QEMU).
      if (frame.length === 0) return undefined;
      if (frame.length !== DmaAccessQemu.size && frame.length !== DmaAccess.size) return `${frame.length} bytes`;
    } else if (frame.length !== DmaAccess.size + request.target.length) {
      return `${frame.length} bytes`;
    }
    const { address } = view.at(frame.data, frame.offset);
    // The high half of early QEMU's count is data.
    const count = frame.data.getUint32(frame.offset + DmaAccess.offsets.count, true);
    if (address !== request.address || count !== request.count >>> 0) return `${count} bytes at ${address}`;
    return undefined;
  }
}
