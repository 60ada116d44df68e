/**
 * One end of a vfio-user connection: messages over a connected AF_UNIX stream socket (vfio-user, "Header", "Command
 * Concurrency").
 *
 * Commands are handed over one at a time, in order: the next one waits in the receive buffer until `finish`. Replies
 * are handed over at once, also when commands wait in front of them; otherwise a command that needs a DMA_READ could
 * never end. While the peer does not read what it was sent, its commands wait: it is slowed down and not cut off. So
 * does what is more than a turn's worth of messages (turn.ts): it stays in the receive buffer, and no more is received
 * meanwhile.
 *
 * What bodies mean is not known here. An unusable header ends the connection: the stream cannot be resynchronised.
 */
import { POLL_DISCONNECT, POLL_PATH, POLL_READABLE, POLL_UNSENT, POLL_WRITABLE } from "../../../native/index.js";
import { Errno, isSystemError, PeerGone } from "../../errors.js";
import { MAX_MESSAGE_FDS, MAX_SEND_BACKLOG } from "../../limits.js";
import { FdShare } from "../../peer-fds.js";
import { Header, HeaderFlags } from "../../spec/vfio-user.js";
import { Rest, Share, Turn } from "../../turn.js";
import type { DeviceAccess } from "../device-access.js";
import type { RegisterMemory } from "../register-memory.js";
import type { AccessPath } from "./access-path.js";
import type { SocketIo } from "./message-socket.js";
import { closeAll, type Syscalls, systemCalls } from "./message-socket.js";
import { type Frame, ReceiveBuffer } from "./receive-buffer.js";
import { SendQueue } from "./send-queue.js";

export type { Frame } from "./receive-buffer.js";

export interface ConnectionHandler {
  /** The next command. `finish` is called when it is done, at once or later. */
  command(frame: Frame): void;
  /** A reply, done when this returns. */
  reply(frame: Frame): void;
  /** Called once, for whatever reason the connection ended; everything is closed. */
  gone(reason: PeerGone): void;
}

export interface ConnectionOptions {
  readonly syscalls?: Syscalls;
  readonly maxSendBacklog?: number;
  /** What the connection has of the event loop, with others of its session. */
  readonly share?: Share;
  /** Where the fds are counted that the peer hands over. */
  readonly fds?: FdShare;
  /** Called before and after the messages that came together; nothing else runs in between. */
  readonly receiving?: (now: boolean) => void;
}

const header = Header.view();

/** Writes a message's header at `offset`; `size` includes it. */
export function putHeader(
  data: DataView,
  offset: number,
  id: number,
  command: number,
  size: number,
  flags: number,
  errno = 0,
): void {
  header.at(data, offset);
  header.id = id;
  header.command = command;
  header.size = size;
  header.flags = flags;
  header.errno = errno;
}

const NOTHING = -1;

export class Connection {
  readonly #syscalls: Syscalls;
  readonly #buffer: ReceiveBuffer;
  readonly #sendQueue: SendQueue;
  readonly #socket: SocketIo;
  readonly #turn: Turn;
  readonly #fds: FdShare;
  readonly #errorReply = new Uint8Array(Header.size);
  readonly #errorReplyData = new DataView(this.#errorReply.buffer);
  readonly #commandFrame: Frame;
  readonly #replyFrame: Frame;
  /** A command was handed over and is not finished. */
  #busy = false;
  /** Messages are being handed over just now. */
  #running = false;
  /** Nothing is received until the commands that wait are served. */
  #paused = false;
  /** Conditions that are polled for. */
  #polled = 0;
  #isClosed = false;
  #path: AccessPath | undefined;
  /** Bytes of the message that was handed over last, or NOTHING. */
  #handedOver = 0;
  readonly #fd: number;
  readonly #handler: ConnectionHandler;
  readonly #options: ConnectionOptions;

  /** Takes over the connected socket `fd`, and closes it in the end. */
  constructor(fd: number, handler: ConnectionHandler, options: ConnectionOptions = {}) {
    this.#fd = fd;
    this.#handler = handler;
    this.#options = options;
    this.#syscalls = options.syscalls ?? systemCalls;
    this.#fds = options.fds ?? new FdShare();
    this.#buffer = new ReceiveBuffer(this.#syscalls, this.#fds);
    this.#turn = new Turn(options.share ?? new Share(), Rest.CONTROL, () => this.#run());
    this.#socket = this.#syscalls.open(fd, (events) => this.#onEvents(events));
    this.#sendQueue = new SendQueue(this.#syscalls, this.#socket, options.maxSendBacklog ?? MAX_SEND_BACKLOG);
    this.#commandFrame = this.#buffer.newFrame();
    this.#replyFrame = this.#buffer.newFrame();
    this.#expect();
    this.#updatePoll();
  }

  get closed(): boolean {
    return this.#isClosed;
  }

  /** The peer has closed its end; what it sent before may still be here. */
  get isHungUp(): boolean {
    return this.#isClosed || this.#syscalls.isHungUp(this.#fd);
  }

  /**
   * Sends a whole message, bytes[offset, offset + length), with `fds`, which stay the caller's. The bytes may be reused
   * afterwards. A failure ends the connection; nothing is thrown.
   */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    if (this.#isClosed) return;
    try {
      this.#sendQueue.send(bytes, offset, length, fds);
    } catch (error) {
      this.#failWith(error);
      return;
    }
    if (this.#sendQueue.waiting) this.#updatePoll();
  }

  /**
   * Sends the reply to the command in flight, bytes[0, length), which are to be left alone until the next command.
   * Where it spares a system call, that is when the callback ends.
   */
  answer(bytes: Uint8Array<ArrayBuffer>, length: number): void {
    if (this.#isClosed) return;
    try {
      this.#sendQueue.answer(bytes, length);
    } catch (error) {
      this.#failWith(error);
      return;
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

  /** Reads that were answered so since this was asked last. */
  takeServed(): number {
    return this.#socket.takeServed();
  }

  sendError(id: number, command: number, errno: number): void {
    putHeader(this.#errorReplyData, 0, id, command, Header.size, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno);
    this.send(this.#errorReply, 0, Header.size);
  }

  /**
   * The command handed over last is done: its body may be overwritten and its fds that nobody took are closed. Or an
   * access was answered that was taken from the path.
   */
  finish(): void {
    if (this.#busy) closeAll(this.#syscalls, this.#commandFrame.fds);
    this.#busy = false;
    this.#run();
  }

  /**
   * Leaves the body of the command in flight alone from now on, for somebody who may still look at it after `finish`.
   */
  leaveBody(): void {
    if (this.#busy && !this.#isClosed) this.#buffer.renew();
  }

  /** Ends the connection from this side. */
  close(reason = new PeerGone("the connection was closed on this side")): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#settleLast();
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
    if (events & POLL_UNSENT) {
      this.#unsent();
      return;
    }
    if (events & POLL_PATH) {
      this.#path?.endTurn(this.#turn);
      this.#path?.attend();
    }
    if (events & POLL_WRITABLE) this.#flush();
    if (this.#isClosed) return;
    if (!this.#paused && events & (POLL_READABLE | POLL_DISCONNECT)) this.#receive();
    else if (events & POLL_DISCONNECT) this.close(new PeerGone("the peer closed the connection"));
  }

  /** The last answer is on its way before the connection ends, if the peer takes it. */
  #settleLast(): void {
    try {
      this.#sendQueue.settle();
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }

  #unsent(): void {
    const answer = this.#socket.takeAnswer();
    try {
      if (answer === undefined) this.#sendQueue.unsent(this.#socket.answered());
      else this.#sendQueue.send(answer, 0, answer.length);
    } catch (error) {
      this.#failWith(error);
      return;
    }
    this.#updatePoll();
  }

  #flush(): void {
    try {
      this.#sendQueue.flush();
    } catch (error) {
      this.#failWith(error);
      return;
    }
    this.#updatePoll();
    // Commands may have waited for this.
    this.#run();
  }

  #receive(): void {
    let received: number;
    try {
      received = this.#buffer.receive(this.#socket);
    } catch (error) {
      this.#failWith(error);
      return;
    }
    if (received > 0) {
      this.#run();
    } else if (received === 0) {
      const where = this.#buffer.hasPartial ? " in the middle of a message" : "";
      this.close(new PeerGone(`the peer closed the connection${where}`));
    }
  }

  /** Hands over what can be handed over, then makes ready for the next receive call. */
  #run(): void {
    if (this.#running || this.#isClosed) return;
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
    this.#paused = !this.#buffer.makeRoom(this.#busy ? this.#commandFrame : undefined);
    this.#expect();
    this.#updatePoll();
    this.#updateReads();
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
    this.#handedOver = frame.length;
    try {
      // The answer to the command before is where the answer to this one will be.
      this.#sendQueue.settle();
    } catch (error) {
      this.#failWith(error);
      return;
    }
    this.#handler.command(frame);
  }

  /** Makes the next receive call possible, or impossible. */
  #expect(): void {
    this.#socket.allowFds(Math.min(this.#fds.left(), MAX_MESSAGE_FDS));
    this.#buffer.expect(this.#socket, !this.#paused);
  }

  #updatePoll(): void {
    const events = POLL_DISCONNECT | (this.#paused ? 0 : POLL_READABLE) | (this.#sendQueue.waiting ? POLL_WRITABLE : 0);
    if (events === this.#polled || this.#isClosed) return;
    this.#polled = events;
    this.#socket.poll(events);
    this.#updateReads();
  }

  /** A read from memory is answered at once: nothing may be in front of it. */
  #updateReads(): void {
    this.#socket.mayRead(!this.#busy && !this.#sendQueue.waiting);
  }
}
