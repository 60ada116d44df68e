/**
 * The sending half of a connection: a message goes straight to the socket; what the socket does not take is copied,
 * with duplicates of its fds, and sent when the socket is writable again, in order.
 */
import { isSystemError, PeerGone } from "../../errors.js";
import { KiB } from "../../limits.js";
import type { SocketIo } from "./message-socket.js";
import { closeAll, type Syscalls } from "./message-socket.js";

/** Of the largest backlog, what is left to those who cannot wait. */
const CONGESTED_PART = 4;

/**
 * What waits is gathered in pieces of so many bytes, or of one message: a call for each of many short ones would keep
 * others waiting. Small enough that Linux takes them whole or not at all: QEMU wants a header in one read.
 */
const CHUNK_SIZE = 16 * KiB;

interface Chunk {
  readonly bytes: Uint8Array;
  /** Its bytes are bytes[offset, end). */
  offset: number;
  end: number;
  /** Duplicates that are still to be sent with the first byte. */
  fds: number[];
}

export class SendQueue {
  #chunks: Chunk[] = [];
  /** Bytes that wait. */
  #backlog = 0;
  #answerBytes = new Uint8Array(0);
  #answerLength = 0;
  readonly #syscalls: Syscalls;
  readonly #socket: SocketIo;
  /** Bytes that may wait before the peer counts as gone. */
  readonly #maxBacklog: number;

  constructor(syscalls: Syscalls, socket: SocketIo, maxBacklog: number) {
    this.#syscalls = syscalls;
    this.#socket = socket;
    this.#maxBacklog = maxBacklog;
  }

  /** True while something waits for the socket to become writable. */
  get waiting(): boolean {
    return this.#backlog > 0;
  }

  /** So much waits that nothing is to be done that adds to it. */
  get congested(): boolean {
    return this.#backlog > this.#maxBacklog / CONGESTED_PART;
  }

  /**
   * Sends bytes[offset, offset + length) and duplicates of `fds`; the bytes may be reused afterwards. @throws PeerGone
   */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    this.settle();
    const sent = this.#backlog === 0 ? this.#write(bytes, offset, length, fds) : 0;
    if (sent < length) this.#keep(bytes, offset, sent, length, fds);
  }

  /** The same for bytes[0, length), which are to be left alone until `settle` or the next event. @throws PeerGone */
  answer(bytes: Uint8Array<ArrayBuffer>, length: number): void {
    this.settle();
    if (this.#backlog > 0 || !this.#socket.answer(bytes, length)) {
      this.send(bytes, 0, length);
      return;
    }
    this.#answerBytes = bytes;
    this.#answerLength = length;
  }

  /** Sends what `answer` left to be sent. @throws PeerGone */
  settle(): void {
    if (this.#socket.recall()) this.send(this.#answerBytes, 0, this.#answerLength);
  }

  /** Of what `answer` left to be sent, only so many bytes were. @throws PeerGone */
  unsent(sent: number): void {
    this.#keep(this.#answerBytes, 0, sent, this.#answerLength);
  }

  /** Sends what waits, as far as the socket takes it. @throws PeerGone */
  flush(): void {
    let done = 0;
    for (const chunk of this.#chunks) {
      const length = chunk.end - chunk.offset;
      const sent = this.#write(chunk.bytes, chunk.offset, length, chunk.fds.length > 0 ? chunk.fds : undefined);
      if (sent > 0) {
        closeAll(this.#syscalls, chunk.fds);
        chunk.fds = [];
      }
      chunk.offset += sent;
      this.#backlog -= sent;
      if (sent < length) break;
      done++;
    }
    if (done > 0) this.#chunks.splice(0, done);
  }

  /** Drops what waits. */
  close(): void {
    for (const chunk of this.#chunks) closeAll(this.#syscalls, chunk.fds);
    this.#chunks = [];
    this.#backlog = 0;
  }

  #keep(bytes: Uint8Array, offset: number, sent: number, length: number, fds?: readonly number[]): void {
    const rest = length - sent;
    if (this.#backlog + rest > this.#maxBacklog) throw new PeerGone("the peer does not read what it is sent");
    const kept = sent > 0 || fds === undefined ? [] : this.#duplicateAll(fds);
    const last = this.#chunks.at(-1);
    const from = bytes.subarray(offset + sent, offset + length);
    if (last !== undefined && kept.length === 0 && rest <= last.bytes.length - last.end) {
      last.bytes.set(from, last.end);
      last.end += rest;
    } else {
      const chunk = { bytes: new Uint8Array(Math.max(rest, CHUNK_SIZE)), offset: 0, end: rest, fds: kept };
      chunk.bytes.set(from);
      this.#chunks.push(chunk);
    }
    this.#backlog += rest;
  }

  #write(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number {
    try {
      return Math.max(0, this.#socket.send(bytes, offset, length, fds));
    } catch (error) {
      throw isSystemError(error) ? new PeerGone(`cannot send to the peer: ${error.code}`) : error;
    }
  }

  #duplicateAll(fds: readonly number[]): number[] {
    const copies: number[] = [];
    try {
      for (const fd of fds) copies.push(this.#syscalls.duplicate(fd));
    } catch (error) {
      closeAll(this.#syscalls, copies);
      throw isSystemError(error) ? new PeerGone(`cannot keep fds for a slow peer: ${error.code}`) : error;
    }
    return copies;
  }
}
