/**
 * The server's DMA_READ and DMA_WRITE as a client answers them, from memory that was registered; over the one socket,
 * or over the twin socket (vfio-user, "VFIO_USER_VERSION").
 */
import { fileStatus } from "../../../native/index.js";
import { formatAddress } from "../../address.js";
import { Errno, isSystemError, ProtocolError } from "../../errors.js";
import { KiB, MAX_DATA_XFER_SIZE } from "../../limits.js";
import {
  Command,
  DMA_DATA_OFFSET,
  DmaAccess,
  DmaAccessQemu,
  type DmaLayout,
  Header,
  HeaderFlags,
} from "../../spec/vfio-user.js";
import { DmaTable } from "../dma/dma-table.js";
import { Connection, type Frame, putHeader } from "../socket/connection.js";
import { badReply } from "./requests.js";

interface Memory {
  readonly address: number;
  readonly size: number;
  readonly bytes: Uint8Array;
}

const view = DmaAccess.view();
const qemuView = DmaAccessQemu.view();

export class ClientDma {
  readonly #memory = new DmaTable<Memory>(1);
  #out = new Uint8Array(4 * KiB);
  #outData = new DataView(this.#out.buffer);
  readonly #layout: DmaLayout;

  constructor(layout: DmaLayout) {
    this.#layout = layout;
  }

  /** @throws ProtocolError as DmaTable.insert */
  register(address: number, bytes: Uint8Array): () => void {
    const range = { address, size: bytes.length, bytes };
    this.#memory.insert(range);
    return () => {
      if (this.#memory.at(address) === range) this.#memory.remove(address, range.size);
    };
  }

  /** Answers a command of the server's that came over `connection`. */
  command(connection: Connection, frame: Frame): void {
    try {
      const length = this.#handle(frame);
      if (!(frame.flags & HeaderFlags.NO_REPLY)) {
        putHeader(this.#outData, 0, frame.id, frame.command, Header.size + length, HeaderFlags.TYPE_REPLY);
        connection.send(this.#out, 0, Header.size + length);
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      if (!(frame.flags & HeaderFlags.NO_REPLY)) connection.sendError(frame.id, frame.command, error.errno);
    }
    connection.finish();
  }

  /** Writes the reply's body behind the header in `out`; returns its length. */
  #handle(frame: Frame): number {
    const { command, length } = frame;
    const isRead = command === Command.DMA_READ;
    if (!isRead && command !== Command.DMA_WRITE) throw new ProtocolError(`no command ${command} for a client`);
    if (length < DmaAccess.size || (isRead && length > DmaAccess.size)) throw new ProtocolError(`a body of ${length}`);
    const isQemu = this.#layout === "qemu";
    const dataOffset = DMA_DATA_OFFSET[this.#layout];
    const { address, count } = (isQemu ? qemuView : view).at(frame.data, frame.offset);
    if (!Number.isSafeInteger(address)) throw new ProtocolError(`no memory at ${formatAddress(address)}`, Errno.EFAULT);
    if (count > MAX_DATA_XFER_SIZE) throw new ProtocolError(`${count} bytes at once`, Errno.E2BIG);
    if (!isRead && (isQemu ? count > length - DmaAccess.size : count !== length - DmaAccess.size)) {
      throw new ProtocolError(`${count} bytes in a body of ${length}`);
    }
    this.#reserve(DmaAccess.size + (isRead ? count : 0));
    const reply = (isQemu ? qemuView : view).at(this.#outData, Header.size);
    reply.address = address;
    reply.count = count;
    // What early QEMU answers to the question which layout it has.
    if (count === 0 && isQemu) return DmaAccess.size;
    const range = this.#memory.find(address, count);
    if (range === undefined)
      throw new ProtocolError(`no memory at ${formatAddress(address)} of ${count}`, Errno.EFAULT);
    const at = address - range.address;
    const bytes = range.bytes.subarray(at, at + count);
    if (isRead) {
      this.#out.set(bytes, Header.size + dataOffset);
      return DmaAccess.size + count;
    }
    const from = frame.offset + dataOffset;
    bytes.set(frame.bytes.subarray(from, from + count));
    return isQemu ? 0 : DmaAccess.size;
  }

  #reserve(length: number): void {
    const needed = Header.size + length;
    if (this.#out.length < needed) {
      this.#out = new Uint8Array(needed);
      this.#outData = new DataView(this.#out.buffer);
    }
    // QEMU's padding behind the data is zero.
    this.#out.fill(0, Header.size, needed);
  }
}

/**
 * Takes the twin socket, fds[index], out of the fds of VERSION's reply. A server that says it has one and sends none
 * could not be heard: that is an error. @throws ProtocolError EPROTO
 */
export function takeTwin(fds: number[], index: number, command: (twin: Connection, frame: Frame) => void): Connection {
  const fd = fds[index];
  if (fd === undefined || fileStatus(fd).kind !== "socket") badReply(Command.VERSION, "no twin socket");
  try {
    const twin = new Connection(fd, { command: (frame) => command(twin, frame), reply: () => {}, gone: () => {} });
    fds[index] = -1;
    return twin;
  } catch (error) {
    // Opened as a path only, it is a socket that nobody can use.
    if (!isSystemError(error)) throw error;
    badReply(Command.VERSION, "no twin socket");
  }
}
