/**
 * The sending half of a connection: a message is queued in the stream's memory and goes straight to the socket; what
 * the socket does not take waits there, with duplicates of its fds, and is sent when the socket is writable again, in
 * order.
 *
 * What is queued is sent by the next process, when this one is killed; so a reply is queued at once with the word that
 * its command is dealt with. But fds are this process's: a message with fds counts as queued when it was sent, until
 * then as one that is still to be made, and nothing behind it counts either.
 */
import { StreamWord } from "../../../native/index.js";
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
  /** Bytes, with those that were sent. */
  size: number;
  left: number;
  /** Duplicates that are still to be sent with the first byte. */
  readonly fds: number[];
}

export class SendQueue {
  #chunks: Chunk[] = [];
  /** Bytes that wait. */
  #backlog = 0;
  /** Messages with fds that wait. */
  #withFds = 0;
  #answerBytes = new Uint8Array(0);
  #answerLength = 0;
  #isDeferred = false;
  /** As they were committed last. */
  #handled: number;
  #queued: number;
  readonly #syscalls: Syscalls;
  readonly #socket: SocketIo;
  readonly #words: Int32Array;
  /** Bytes that may wait before the peer counts as gone. */
  readonly #maxBacklog: number;

  constructor(syscalls: Syscalls, socket: SocketIo, maxBacklog: number) {
    this.#syscalls = syscalls;
    this.#socket = socket;
    this.#words = socket.words;
    this.#handled = this.#words[StreamWord.HANDLED];
    this.#queued = this.#words[StreamWord.QUEUED];
    this.#maxBacklog = maxBacklog;
  }

  /** True while something waits for the socket to become writable. */
  get waiting(): boolean {
    return this.#backlog > 0;
  }

  /** So much waits, or what must be sent first, that nothing is to be done that adds to it. */
  get congested(): boolean {
    return this.#backlog > this.#maxBacklog / CONGESTED_PART || this.#withFds > 0;
  }

  /** Goes on with what another process has queued; `rest` bytes are of a message that it began to send. */
  restore(rest: number): void {
    const { QUEUED, SENT } = StreamWord;
    if (rest > 0) this.#keep(rest, []);
    for (let at = this.#words[SENT] + rest; ((this.#words[QUEUED] - at) | 0) > 0; ) {
      const size = Math.min(this.#socket.unsentSize(at >>> 0), (this.#words[QUEUED] - at) >>> 0);
      this.#keep(size, []);
      at += size;
    }
  }

  /**
   * Sends bytes[offset, offset + length) and duplicates of `fds`; the bytes may be reused afterwards. @throws PeerGone
   */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    this.settle();
    const isFirst = this.#backlog === 0;
    if ((!isFirst && this.#backlog + length > this.#maxBacklog) || !this.#socket.queue(bytes, offset, length)) {
      throw new PeerGone("the peer does not read what it is sent");
    }
    const withFds = fds !== undefined && fds.length > 0 ? fds : undefined;
    if (withFds === undefined) this.commit();
    const sent = isFirst ? this.#send(length, withFds) : 0;
    if (sent === length) return;
    if (length - sent > this.#maxBacklog) throw new PeerGone("the peer does not read what it is sent");
    this.#keep(length - sent, sent > 0 || withFds === undefined ? [] : this.#duplicateAll(withFds));
  }

  /**
   * The same for the reply to the command in flight, bytes[0, length), which are to be left alone until `settle` or the
   * next event. `mayWait`: `settle` is going to be called. @throws PeerGone
   */
  answer(bytes: Uint8Array<ArrayBuffer>, length: number, mayWait: boolean): void {
    this.settle();
    this.#answerBytes = bytes;
    this.#answerLength = length;
    if (this.#backlog === 0 && this.#socket.answer(bytes, length)) return;
    if (mayWait) this.#isDeferred = true;
    else this.send(bytes, 0, length);
  }

  /** Sends what `answer` left to be sent. @throws PeerGone */
  settle(): void {
    const isLeft = this.#socket.recall() || this.#isDeferred;
    this.#isDeferred = false;
    if (isLeft) this.send(this.#answerBytes, 0, this.#answerLength);
  }

  /** The same, but what can be is left to be sent after the callback. Commits how far commands are dealt with. */
  end(): void {
    if (this.#isDeferred) this.settle();
    if (!this.#socket.isCalled) this.commit();
  }

  /** Commands are dealt with up to HANDLED, at once with what was queued. */
  commit(): void {
    const { HANDLED, QUEUED } = StreamWord;
    if (this.#withFds > 0 || (this.#handled === this.#words[HANDLED] && this.#queued === this.#words[QUEUED])) return;
    this.#handled = this.#words[HANDLED];
    this.#queued = this.#words[QUEUED];
    this.#socket.commit(this.#handled >>> 0);
  }

  /** C++ queued something, or sent less than it wanted. @throws PeerGone */
  adopt(): void {
    const { QUEUED, SENT, REPLIED } = StreamWord;
    if (this.#words[REPLIED] < 0) throw new PeerGone(`cannot send to the peer: errno ${-this.#words[REPLIED]}`);
    const backlog = (this.#words[QUEUED] - this.#words[SENT]) >>> 0;
    if (backlog > this.#backlog) this.#keep(backlog - this.#backlog, []);
  }

  /** Sends what waits, as far as the socket takes it. @throws PeerGone */
  flush(): void {
    let done = 0;
    for (const chunk of this.#chunks) {
      const hasFds = chunk.fds.length > 0;
      const sent = this.#send(chunk.left, hasFds ? chunk.fds : undefined);
      if (sent > 0 && hasFds) {
        closeAll(this.#syscalls, chunk.fds);
        chunk.fds.length = 0;
      }
      chunk.left -= sent;
      this.#backlog -= sent;
      if (chunk.left > 0) break;
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

  #keep(rest: number, fds: number[]): void {
    const last = this.#chunks.at(-1);
    if (last !== undefined && fds.length === 0 && last.size + rest <= CHUNK_SIZE) {
      last.size += rest;
      last.left += rest;
    } else {
      this.#chunks.push({ size: rest, left: rest, fds });
    }
    this.#backlog += rest;
    if (fds.length > 0) this.#withFds++;
  }

  #send(length: number, fds?: readonly number[]): number {
    try {
      const sent = Math.max(0, this.#socket.send(length, fds));
      if (sent > 0 && fds !== undefined) {
        if (this.#withFds > 0) this.#withFds--;
        this.commit();
      }
      return sent;
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
