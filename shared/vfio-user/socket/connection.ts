/**
 * One end of a vfio-user connection: messages over an AF_UNIX stream socket ("Header", "Command Concurrency").
 *
 * Commands are handed over one at a time, in order: the next one waits in the receive buffer until `finish`. Replies
 * are handed over at once, also when commands wait in front of them; otherwise a command that needs a DMA_READ could
 * never end. While the peer does not read what it was sent, its commands wait: it is slowed down and not cut off. So
 * does what is more than a turn's worth of messages (turn.ts), and no more is received meanwhile. All that came and
 * was not dealt with, and all that is to be sent, is in the stream's memory (stream-memory.ts). A connection that
 * another process had goes on from there: the command that was in flight is handed over again. What bodies mean is not
 * known here. An unusable header ends the connection: the stream cannot be resynchronised.
 */
import * as native from "../../../native/index.js";
import { Errno, isSystemError, PeerGone } from "../../errors.js";
import { MAX_SEND_BACKLOG } from "../../limits.js";
import { FdShare } from "../../peer-fds.js";
import { Header, HeaderFlags } from "../../spec/vfio-user.js";
import { Rest, Share, Turn } from "../../turn.js";
import type { DeviceAccess } from "../device-access.js";
import type { RegisterMemory } from "../register-memory.js";
import type { AccessPath } from "./access-path.js";
import { type ConnectionHandler, type ConnectionOptions, putHeader } from "./connection-options.js";
import { closeAll, type SocketIo, type Syscalls, systemCalls } from "./message-socket.js";
import { type Frame, ReceiveBuffer } from "./receive-buffer.js";
import { SendQueue } from "./send-queue.js";

export { type ConnectionHandler, type ConnectionOptions, putHeader } from "./connection-options.js";
export type { Frame } from "./receive-buffer.js";

const { StreamWord } = native;
const NOTHING = -1;

export class Connection {
  readonly #syscalls: Syscalls;
  readonly #buffer: ReceiveBuffer;
  readonly #sendQueue: SendQueue;
  readonly #socket: SocketIo;
  readonly #words: Int32Array;
  readonly #turn: Turn;
  readonly #fds: FdShare;
  readonly #errorReply = new DataView(new ArrayBuffer(Header.size));
  readonly #commandFrame: Frame;
  readonly #replyFrame: Frame;
  /** A command was handed over and is not finished; whether it was answered. */
  #busy = false;
  #isAnswered = false;
  /** Messages are being handed over just now; or none are yet. */
  #running = false;
  #waits = false;
  /** The first command that is handed over was so before, by another process. */
  #isAgain = false;
  /** Nothing is received until the commands that wait are served. */
  #paused = false;
  #polled = 0;
  #isClosed = false;
  #path: AccessPath | undefined;
  /** Bytes of the message that was handed over last, or NOTHING. */
  #handedOver = 0;
  readonly #fd: number;
  readonly #handler: ConnectionHandler;
  readonly #options: ConnectionOptions;

  /** Takes over the connected socket `fd`, and closes it in the end. @throws SystemError, and it stays the caller's */
  constructor(fd: number, handler: ConnectionHandler, options: ConnectionOptions = {}) {
    this.#fd = fd;
    this.#handler = handler;
    this.#options = options;
    this.#syscalls = options.syscalls ?? systemCalls;
    this.#fds = options.fds ?? new FdShare();
    if (options.resumes === undefined) options.memory?.begin();
    this.#turn = new Turn(options.share ?? new Share(), Rest.CONTROL, () => this.#run());
    this.#socket = this.#syscalls.open(fd, (events) => this.#onEvents(events), options.memory);
    this.#words = this.#socket.words;
    this.#buffer = new ReceiveBuffer(this.#syscalls, this.#socket, this.#fds);
    this.#sendQueue = new SendQueue(this.#syscalls, this.#socket, options.maxSendBacklog ?? MAX_SEND_BACKLOG);
    this.#commandFrame = this.#buffer.newFrame();
    this.#replyFrame = this.#buffer.newFrame();
    if (options.resumes !== undefined) {
      this.#waits = true;
      this.#buffer.restore(options.resumes);
      this.#sendQueue.restore(this.#words[StreamWord.REPLIED]);
      return;
    }
    this.#paused = !this.#buffer.expect();
    this.#updatePoll();
  }

  /** Goes on after `resumes`; accesses go by the path that it has, if any. */
  goOn(): void {
    if (!this.#waits || this.#isClosed) return;
    this.#waits = false;
    const isByPath = this.#path?.isBusy === true && this.#path.position === this.handled;
    // The reply to an access in flight may have come since `resumes`, and then that is dealt with.
    this.#words[StreamWord.SCAN] = isByPath ? (this.#path?.end ?? 0) : this.#words[StreamWord.HANDLED];
    this.#isAgain = !isByPath && this.#buffer.hasPartial;
    this.#flush();
  }

  get handled(): number {
    return this.#words[StreamWord.HANDLED] >>> 0;
  }

  get closed(): boolean {
    return this.#isClosed;
  }

  /** The peer has closed its end; what it sent before may still be here. */
  get isHungUp(): boolean {
    return this.#isClosed || this.#syscalls.isHungUp(this.#fd);
  }

  /**
   * Sends a whole message, bytes[offset, offset + length). The bytes may be reused afterwards. A failure ends the
   * connection; nothing is thrown.
   */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    if (this.#isClosed) return;
    this.#options.commit?.();
    try {
      this.#sendQueue.send(bytes, offset, length, fds);
    } catch (error) {
      this.#failWith(error);
    }
    if (this.#sendQueue.waiting) this.#updatePoll();
  }

  /**
   * Sends the reply to the command in flight, bytes[0, length), which are to be left alone until the next command; with
   * `fds`, which stay the caller's. From then on the command is dealt with, whatever becomes of this process.
   */
  answer(bytes: Uint8Array<ArrayBuffer>, length: number, fds?: readonly number[]): void {
    if (this.#isClosed) return;
    this.#options.commit?.();
    try {
      this.#sendQueue.settle();
      this.#isAnswered = true;
      this.#updatePositions();
      if (fds === undefined) this.#sendQueue.answer(bytes, length, this.#running);
      else this.#sendQueue.send(bytes, 0, length, fds);
    } catch (error) {
      this.#failWith(error);
    }
    if (this.#sendQueue.waiting) this.#updatePoll();
  }

  /** Answers reads of registers from their memory, where it has them, and without telling the handler. */
  readsFrom(memory: RegisterMemory | undefined): void {
    if (!this.#isClosed) this.#socket.readsFrom(memory);
  }

  /** Register accesses go by this path, as far as it takes them, without telling the handler; undefined: no longer. */
  accessesBy(path: AccessPath | undefined): void {
    if (path === this.#path || this.#isClosed) return;
    if (this.#path?.client === this) this.#path.client = undefined;
    this.#path = path;
    if (path) path.client = this;
    this.#socket.accessesBy(path?.native);
  }

  /** Plain register accesses are answered by the device, without telling the handler; undefined: no longer. */
  answersBy(device: DeviceAccess | undefined): void {
    if (!this.#isClosed) this.#socket.answersBy(device);
  }

  /** See PathClient. */
  resume(): void {
    this.#run();
  }

  /** See PathClient. */
  attend(): void {
    if (!this.#send("adopt")) return;
    if (this.#sendQueue.waiting && !(this.#polled & native.POLL_WRITABLE) && !this.#send("flush")) return;
    this.#updatePoll();
  }

  /** Takes the access that the path asked the device for, as the command in flight; undefined when there is none. */
  takeAccess(): Frame | undefined {
    const path = this.#path;
    if (this.#isClosed || this.#busy || !path?.isBusy) return undefined;
    this.#busy = true;
    this.#isAnswered = false;
    this.#buffer.again(this.#commandFrame, path.position);
    path.abandon();
    return this.#commandFrame;
  }

  /** Reads that were answered so since this was asked last. */
  takeServed(): number {
    const served = this.#words[StreamWord.SERVED];
    this.#words[StreamWord.SERVED] = 0;
    return served;
  }

  /** Answers the command in flight. */
  sendError(id: number, command: number, errno: number): void {
    this.#settle();
    putHeader(this.#errorReply, 0, id, command, Header.size, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno);
    this.answer(new Uint8Array(this.#errorReply.buffer), Header.size);
  }

  /** The command handed over last is done: its body may be overwritten, and its fds that nobody took are closed. */
  finish(): void {
    if (this.#busy && !this.#isClosed) {
      this.#busy = false;
      this.#isAgain = false;
      this.#updatePositions();
      const { fds } = this.#commandFrame;
      // Before they go nobody is to ask for the command again.
      if (fds.length > 0) {
        if (!this.#send("settle") || !this.#send("commit")) return;
        closeAll(this.#syscalls, fds);
      }
    }
    this.#run();
  }

  /** Ends the connection from this side. */
  close(reason = new PeerGone("the connection was closed on this side")): void {
    if (this.#isClosed) return;
    // The last answer is on its way before the connection ends, if the peer takes it.
    this.#settle();
    this.#isClosed = true;
    this.#turn.close();
    // It may be the next client's already.
    if (this.#path?.client === this) this.#path.client = undefined;
    this.#socket.close();
    this.#sendQueue.close();
    this.#syscalls.closeSocket(this.#fd, this.#fds);
    closeAll(this.#syscalls, this.#commandFrame.fds);
    this.#buffer.close();
    this.#handler.gone(reason);
  }

  /** Ends the connection for what a peer can bring about; anything else is our own bug. */
  #failWith(error: unknown): void {
    if (error instanceof PeerGone) this.close(error);
    else if (isSystemError(error)) this.close(new PeerGone(`the connection failed: ${error.message}`));
    else throw error;
  }

  #onEvents(events: number): void {
    if (this.#isClosed) return;
    if (events < 0) {
      this.close(new PeerGone(`the socket failed: errno ${-events}`));
      return;
    }
    if (events & native.POLL_UNSENT) {
      if (this.#send("adopt")) this.#updatePoll();
      return;
    }
    if (events & native.POLL_PATH) {
      this.#path?.endTurn(this.#turn);
      this.#path?.attend();
    }
    if (events & native.POLL_WRITABLE) this.#flush();
    if (this.#isClosed) return;
    if (!this.#paused && events & (native.POLL_READABLE | native.POLL_DISCONNECT)) this.#receive();
    else if (events & native.POLL_DISCONNECT) this.close(new PeerGone("the peer closed the connection"));
  }

  /** Sends what `answer` left to be sent, if the peer takes it. */
  #settle(): void {
    try {
      this.#sendQueue.settle();
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }

  /** A step of the send queue's; false when it ended the connection. */
  #send(step: "settle" | "commit" | "adopt" | "flush" | "end"): boolean {
    try {
      this.#sendQueue[step]();
      return true;
    } catch (error) {
      this.#failWith(error);
      return false;
    }
  }

  #flush(): void {
    if (!this.#send("flush")) return;
    this.#updatePoll();
    // Commands may have waited for this.
    this.#run();
  }

  #receive(): void {
    let received: number;
    try {
      received = this.#buffer.receive();
    } catch (error) {
      this.#failWith(error);
      return;
    }
    const where = this.#buffer.hasPartial ? " in the middle of a message" : "";
    if (received > 0) this.#run();
    else if (received === 0) this.close(new PeerGone(`the peer closed the connection${where}`));
  }

  /** Hands over what can be handed over, then makes ready for the next receive call. */
  #run(): void {
    if (this.#running || this.#isClosed || this.#waits) return;
    const turn = this.#turn;
    if (turn.begin()) {
      this.#running = true;
      const { receiving } = this.#options;
      receiving?.(true);
      let hasTime = true;
      try {
        while (hasTime && !this.#isClosed && this.#handOver()) {
          // What only waits in the queue, which has its bound, is counted when it is handed over.
          if (this.#handedOver !== NOTHING) hasTime = turn.spend(this.#handedOver);
        }
      } finally {
        this.#running = false;
        receiving?.(false);
      }
      if (this.#isClosed) return;
      turn.end(!hasTime, this.#isHeld && !this.#buffer.queueIsEmpty);
    }
    if (this.#path?.isBusy) this.#path.hold();
    const { bad } = this.#buffer;
    if (bad !== undefined) {
      if (bad.isCommand) this.sendError(bad.id, bad.command, Errno.EINVAL);
      this.close(bad.reason);
      return;
    }
    this.#updatePositions();
    if (!this.#send("end")) return;
    this.#paused = !this.#buffer.expect();
    this.#updatePoll();
    this.#updateReads();
  }

  #updatePositions(): void {
    if (this.#busy) this.#buffer.inUse(this.#commandFrame.position, this.#isAnswered);
    else this.#buffer.inUse(this.#path?.isBusy ? this.#path.position : this.#buffer.front, false);
  }

  /** Deals with one message; false when none is complete, or the next has to wait where it is. */
  #handOver(): boolean {
    const buffer = this.#buffer;
    const held = this.#isHeld || this.#sendQueue.congested;
    if (!held && !buffer.queueIsEmpty) {
      this.#begin(buffer.dequeue(this.#commandFrame));
      return true;
    }
    const type = buffer.peek();
    if (type === -1) return false;
    if (type === HeaderFlags.TYPE_REPLY) {
      const { fds } = buffer.take(this.#replyFrame);
      // Its bytes were asked for.
      this.#handedOver = 0;
      this.#handler.reply(this.#replyFrame);
      closeAll(this.#syscalls, fds);
      this.#buffer.release(this.#replyFrame);
    } else if (!held) {
      this.#begin(buffer.take(this.#commandFrame));
    } else {
      if (buffer.queueIsFull) return false;
      this.#handedOver = NOTHING;
      buffer.enqueue();
    }
    return true;
  }

  /** The command before is in flight. */
  get #isHeld(): boolean {
    return this.#busy || this.#path?.isBusy === true;
  }

  #begin(frame: Frame): void {
    this.#busy = true;
    this.#isAnswered = false;
    frame.isAgain = this.#isAgain;
    this.#handedOver = frame.length;
    this.#updatePositions();
    // The answer to the command before is where the answer to this one will be. And of two commands in flight nobody
    // could say which were dealt with.
    if (this.#send("settle") && this.#send("commit")) this.#handler.command(frame);
  }

  #updatePoll(): void {
    const events =
      native.POLL_DISCONNECT |
      (this.#paused ? 0 : native.POLL_READABLE) |
      (this.#sendQueue.waiting ? native.POLL_WRITABLE : 0);
    if (events === this.#polled || this.#isClosed) return;
    this.#polled = events;
    this.#socket.poll(events);
    this.#updateReads();
  }

  /** What C++ answers is answered at once: nothing may be in front of it. */
  #updateReads(): void {
    const isFirst = !this.#busy && !this.#isAgain && this.#buffer.isIdle && !this.#sendQueue.waiting;
    this.#words[StreamWord.READS] = isFirst ? 1 : 0;
  }
}
