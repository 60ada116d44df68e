/**
 * The command in flight, as a backend sees it: where its reply is built, and how it is answered at most once.
 *
 * A session has one of these and uses it again and again. When a backend does not answer in time, the session leaves
 * the object to it, buffers included, and goes on with a fresh one: what comes late finds a dead object and does
 * nothing.
 */
import { Errno } from "../errors.js";
import { KiB, MAX_MESSAGE_SIZE } from "../limits.js";
import { Header, HeaderFlags } from "../spec/vfio-user.js";
import type { PendingCommand } from "./backend.js";
import type { SessionStats } from "./session-stats.js";
import { type Connection, type Frame, putHeader } from "./socket/connection.js";

const INITIAL_REPLY_SIZE = 4 * KiB;

export class Pending implements PendingCommand {
  command = 0;
  id = 0;
  bytes: Uint8Array;
  data: DataView;
  offset = 0;
  length = 0;
  position = 0;
  isAgain = false;
  replyBytes = new Uint8Array(INITIAL_REPLY_SIZE);
  replyData = new DataView(this.replyBytes.buffer);
  readonly replyOffset = Header.size;
  /** When it began, in the session's ticks. */
  startedAt = 0;
  /** True from `begin` to the end of the command. */
  active = false;
  /** False when no reply is wanted, or when it was sent early. */
  wantsReply = false;
  /** When it began, in milliseconds; 0 where latencies are not measured. */
  #measuredAt = 0;
  readonly #connection: Connection;
  readonly #stats: SessionStats;

  /** `stats`: where the latency of each command is noted, if anybody looks. */
  constructor(connection: Connection, stats: SessionStats) {
    this.#connection = connection;
    this.#stats = stats;
    this.bytes = this.replyBytes;
    this.data = this.replyData;
  }

  begin(frame: Frame, now: number): void {
    this.command = frame.command;
    this.id = frame.id;
    this.bytes = frame.bytes;
    this.data = frame.data;
    this.offset = frame.offset;
    this.length = frame.length;
    this.position = frame.position;
    this.isAgain = frame.isAgain;
    this.startedAt = now;
    this.#measuredAt = this.#stats.latencies === undefined ? 0 : performance.now();
    this.wantsReply = (frame.flags & HeaderFlags.NO_REPLY) === 0;
    this.active = true;
  }

  /** It goes on for another one, which came long ago. */
  leaveUnmeasured(): void {
    this.#measuredAt = 0;
  }

  reserve(length: number): void {
    const needed = this.replyOffset + length;
    if (needed <= this.replyBytes.length) return;
    if (!(needed <= MAX_MESSAGE_SIZE)) throw new RangeError(`a reply of ${length} bytes is too long`);
    let size = this.replyBytes.length;
    while (size < needed) size *= 2;
    this.replyBytes = new Uint8Array(size);
    this.replyData = new DataView(this.replyBytes.buffer);
  }

  /** Keeps what somebody may still look at when the command is over. */
  keepBody(): void {
    this.bytes = this.bytes.slice(this.offset, this.offset + this.length);
    this.data = new DataView(this.bytes.buffer);
    this.offset = 0;
  }

  /**
   * Sends the reply while the command goes on: for a posted write. Whoever deals with the command does not wait for it.
   */
  replyEarly(length: number): void {
    if (this.wantsReply) this.#connection.answer(this.replyBytes, this.#putHeader(length));
  }

  reply(length: number, fds?: readonly number[]): void {
    if (!this.active) return;
    if (fds === undefined) this.replyEarly(length);
    else if (this.wantsReply) this.#connection.answer(this.replyBytes, this.#putHeader(length), fds);
    this.active = false;
    this.#connection.finish();
  }

  /** The reply's size with its header. */
  #putHeader(length: number): number {
    this.wantsReply = false;
    if (this.#measuredAt !== 0) this.#measure();
    const size = this.replyOffset + length;
    if (size > this.replyBytes.length) throw new RangeError(`a reply of ${length} bytes that were not reserved`);
    putHeader(this.replyData, 0, this.id, this.command, size, HeaderFlags.TYPE_REPLY);
    return size;
  }

  /** Copies `body` and sends it as the reply; fds are sent along and stay the caller's. */
  replyWith(body: Uint8Array, fds?: readonly number[]): void {
    if (!this.active) return;
    this.reserve(body.length);
    this.replyBytes.set(body, this.replyOffset);
    this.reply(body.length, fds);
  }

  fail(errno: number): void {
    if (!this.active) return;
    if (this.wantsReply) {
      this.#connection.sendError(this.id, this.command, errno > 0 ? errno : Errno.EIO);
      if (this.#measuredAt !== 0) this.#measure();
    }
    this.wantsReply = false;
    this.active = false;
    this.#connection.finish();
  }

  #measure(): void {
    this.#stats.latencies?.record(this.command, performance.now() - this.#measuredAt);
  }
}
