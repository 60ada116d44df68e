/**
 * The sending half of a connection: a message goes straight to the socket; what the socket does not take is copied, with
 * duplicates of its fds, and sent when the socket is writable again, in order.
 */
import { isSystemError, PeerGone } from "../errors.js";
import { closeAll, type Syscalls } from "./syscalls.js";

/** Of the largest backlog, what is left to those who cannot wait. */
const CONGESTED_PART = 4;

interface Chunk {
  readonly bytes: Uint8Array;
  offset: number;
  /** Duplicates that are still to be sent with the first byte. */
  fds: number[];
}

export class SendQueue {
  private chunks: Chunk[] = [];
  /** Bytes that wait. */
  private backlog = 0;

  constructor(
    private readonly syscalls: Syscalls,
    private readonly fd: number,
    /** Bytes that may wait before the peer counts as gone. */
    private readonly maxBacklog: number,
  ) {}

  /** True while something waits for the socket to become writable. */
  get waiting(): boolean {
    return this.backlog > 0;
  }

  /** So much waits that nothing is to be done that adds to it. */
  get congested(): boolean {
    return this.backlog > this.maxBacklog / CONGESTED_PART;
  }

  /** Sends bytes[offset, offset + length) and duplicates of `fds`; the bytes may be reused afterwards. @throws PeerGone */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    let sent = 0;
    if (this.backlog === 0) {
      sent = this.write(bytes, offset, length, fds);
      if (sent === length) return;
    }
    const rest = length - sent;
    if (this.backlog + rest > this.maxBacklog) throw new PeerGone("the peer does not read what it is sent");
    this.chunks.push({
      // Not bytes.slice, which does not copy when it is a Buffer.
      bytes: Uint8Array.from(bytes.subarray(offset + sent, offset + length)),
      offset: 0,
      fds: sent > 0 || fds === undefined ? [] : this.duplicateAll(fds),
    });
    this.backlog += rest;
  }

  /** Sends what waits, as far as the socket takes it. @throws PeerGone */
  flush(): void {
    let done = 0;
    for (const chunk of this.chunks) {
      const length = chunk.bytes.length - chunk.offset;
      const sent = this.write(chunk.bytes, chunk.offset, length, chunk.fds.length > 0 ? chunk.fds : undefined);
      if (sent > 0) {
        closeAll(this.syscalls, chunk.fds);
        chunk.fds = [];
      }
      chunk.offset += sent;
      this.backlog -= sent;
      if (sent < length) break;
      done++;
    }
    if (done > 0) this.chunks.splice(0, done);
  }

  /** Drops what waits. */
  close(): void {
    for (const chunk of this.chunks) closeAll(this.syscalls, chunk.fds);
    this.chunks = [];
    this.backlog = 0;
  }

  private write(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number {
    try {
      return Math.max(0, this.syscalls.send(this.fd, bytes, offset, length, fds));
    } catch (error) {
      throw isSystemError(error) ? new PeerGone(`cannot send to the peer: ${error.code}`) : error;
    }
  }

  private duplicateAll(fds: readonly number[]): number[] {
    const copies: number[] = [];
    try {
      for (const fd of fds) copies.push(this.syscalls.duplicate(fd));
    } catch (error) {
      closeAll(this.syscalls, copies);
      throw isSystemError(error) ? new PeerGone(`cannot keep fds for a slow peer: ${error.code}`) : error;
    }
    return copies;
  }
}
