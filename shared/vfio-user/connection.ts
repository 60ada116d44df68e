/**
 * One end of a vfio-user connection: messages over a connected AF_UNIX stream socket (vfio-user, "Header", "Command
 * Concurrency").
 *
 * Commands are handed over one at a time, in order: the next one waits in the receive buffer until `finish`. Replies are
 * handed over at once, also when commands wait in front of them; otherwise a command that needs a DMA_READ could never end.
 *
 * What bodies mean is not known here. An unusable header ends the connection: the stream cannot be resynchronised.
 */
import { POLL_DISCONNECT, POLL_READABLE, POLL_WRITABLE, type Poll } from "../../native/index.js";
import { Errno, isSystemError, PeerGone } from "../errors.js";
import { KiB, MAX_MESSAGE_FDS, MAX_MESSAGE_SIZE, MAX_PENDING_COMMANDS, MAX_SEND_BACKLOG } from "../limits.js";
import { Header, HeaderFlags } from "../spec/vfio-user.js";
import { SendQueue } from "./send-queue.js";
import { closeAll, type Syscalls, systemCalls } from "./syscalls.js";

const INITIAL_BUFFER_SIZE = 64 * KiB;
/** Room for the largest message behind as many waiting commands. */
const MAX_BUFFER_SIZE = 2 * MAX_MESSAGE_SIZE;
/** Reads for one wake-up, so that a peer that never stops sending does not keep the event loop. */
const MAX_READS = 8;
const NO_FDS: number[] = [];

/** A received message. One object for all commands of a connection and one for all replies: valid during the call only. */
export interface Frame {
  id: number;
  command: number;
  flags: number;
  errno: number;
  /** The body is bytes[offset, offset + length); `data` views the same buffer. A command's body stays valid until `finish`. */
  bytes: Uint8Array;
  data: DataView;
  offset: number;
  length: number;
  /** Who takes one puts -1 in its place; the rest is closed when the message is done. */
  fds: number[];
}

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

export class Connection {
  private readonly syscalls: Syscalls;
  private readonly sendQueue: SendQueue;
  private readonly poll: Poll;
  private readonly receivedFds = new Int32Array(1 + MAX_MESSAGE_FDS);
  private readonly errorReply = new Uint8Array(Header.size);
  private readonly errorReplyData = new DataView(this.errorReply.buffer);

  private bytes = new Uint8Array(INITIAL_BUFFER_SIZE);
  private data = new DataView(this.bytes.buffer);
  /** Everything in front was handed over or is in the queue; a message begins here. */
  private scan = 0;
  /** End of the received bytes. */
  private end = 0;
  /** Fds that came with the message at `scan`. */
  private partialFds = NO_FDS;
  /** Fds for messages behind the one at `scan`, from the receive call being handled: at most one message has any. */
  private laterFds = NO_FDS;
  private laterFdsAt = -1;

  /** A command was handed over and is not finished. */
  private busy = false;
  private readonly commandFrame: Frame;
  private readonly replyFrame: Frame;

  /** Commands that wait, a ring: where they begin (header included), how long they are, and their fds. */
  private readonly queueAt = new Int32Array(MAX_PENDING_COMMANDS);
  private readonly queueSize = new Int32Array(MAX_PENDING_COMMANDS);
  private readonly queueFds: number[][] = new Array(MAX_PENDING_COMMANDS).fill(NO_FDS);
  private queueHead = 0;
  private queueCount = 0;
  private queueBytes = 0;
  private queueFdCount = 0;

  private running = false;
  private paused = false;
  private polled = 0;
  private isClosed = false;

  /** Takes over the connected socket `fd`, and closes it in the end. */
  constructor(
    private readonly fd: number,
    private readonly handler: ConnectionHandler,
    options: ConnectionOptions = {},
  ) {
    this.syscalls = options.syscalls ?? systemCalls;
    this.sendQueue = new SendQueue(this.syscalls, fd, options.maxSendBacklog ?? MAX_SEND_BACKLOG);
    const frame = () => ({ bytes: this.bytes, data: this.data, offset: 0, length: 0, fds: NO_FDS });
    this.commandFrame = { id: 0, command: 0, flags: 0, errno: 0, ...frame() };
    this.replyFrame = { id: 0, command: 0, flags: 0, errno: 0, ...frame() };
    this.poll = this.syscalls.poll(fd, (events) => this.onEvents(events));
    this.updatePoll();
  }

  get closed(): boolean {
    return this.isClosed;
  }

  /**
   * Sends a whole message, bytes[offset, offset + length), with `fds`, which stay the caller's. The bytes may be reused
   * afterwards. A failure ends the connection; nothing is thrown.
   */
  send(bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): void {
    if (this.isClosed) return;
    try {
      this.sendQueue.send(bytes, offset, length, fds);
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
      this.fail(error);
      return;
    }
    if (this.sendQueue.waiting) this.updatePoll();
  }

  sendError(id: number, command: number, errno: number): void {
    putHeader(this.errorReplyData, 0, id, command, Header.size, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno);
    this.send(this.errorReply, 0, Header.size);
  }

  /** The command handed over last is done: its body may be overwritten and its fds that nobody took are closed. */
  finish(): void {
    if (!this.busy) return;
    closeAll(this.syscalls, this.commandFrame.fds);
    this.commandFrame.fds = NO_FDS;
    this.busy = false;
    this.run();
  }

  /** Leaves the body of the command under way alone for ever, for somebody who may still look at it after `finish`. */
  leaveBody(): void {
    if (this.busy && !this.isClosed) this.relocate(this.bytes.length, true);
  }

  /** Ends the connection from this side. */
  close(reason = new PeerGone("the connection was closed on this side")): void {
    this.fail(reason);
  }

  private onEvents(events: number): void {
    if (this.isClosed) return;
    if (events < 0) {
      this.fail(new PeerGone(`the socket failed: errno ${-events}`));
      return;
    }
    if (events & POLL_WRITABLE) this.flush();
    if (this.isClosed) return;
    if (!this.paused && events & (POLL_READABLE | POLL_DISCONNECT)) this.read();
    else if (events & POLL_DISCONNECT) this.fail(new PeerGone("the peer closed the connection"));
  }

  private flush(): void {
    try {
      this.sendQueue.flush();
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
      this.fail(error);
      return;
    }
    this.updatePoll();
  }

  private read(): void {
    for (let reads = 0; reads < MAX_READS && !this.isClosed && !this.paused; reads++) {
      const room = this.bytes.length - this.end;
      let received: number;
      try {
        received = this.syscalls.receive(this.fd, this.bytes, this.end, room, this.receivedFds);
      } catch (error) {
        if (!isSystemError(error)) throw error;
        this.fail(new PeerGone(`cannot receive from the peer: ${error.code}`));
        return;
      }
      if (received === -1) return;
      if (received === 0) {
        const where = this.end > this.scan ? " in the middle of a message" : "";
        this.fail(new PeerGone(`the peer closed the connection${where}`));
        return;
      }
      this.end += received;
      if (this.receivedFds[0] > 0 && !this.attachFds(this.receivedFds[0])) return;
      this.run();
      if (received < room) return;
    }
  }

  /** Fds belong to the last message that begins before the end of what was received with them. */
  private attachFds(count: number): boolean {
    let at = this.scan;
    while (this.end - at >= Header.size) {
      const size = header.at(this.data, at).size;
      // A bad header ends the connection when it is its turn.
      if (size < Header.size || size >= this.end - at) break;
      at += size;
    }
    const fds = Array.from(this.receivedFds.subarray(1, 1 + count));
    if (at !== this.scan) {
      this.laterFds = fds;
      this.laterFdsAt = at;
      return true;
    }
    this.partialFds = this.partialFds.concat(fds);
    if (this.partialFds.length <= MAX_MESSAGE_FDS) return true;
    this.fail(new PeerGone(`more than ${MAX_MESSAGE_FDS} fds on one message`));
    return false;
  }

  /** Hands over what can be handed over, then makes ready for the next receive call. */
  private run(): void {
    if (this.running || this.isClosed) return;
    this.running = true;
    try {
      while (!this.isClosed && (this.handOverQueued() || this.scanMessage()));
    } finally {
      this.running = false;
    }
    if (this.isClosed) return;
    this.paused = !this.makeRoom();
    this.updatePoll();
  }

  private handOverQueued(): boolean {
    if (this.busy || this.queueCount === 0) return false;
    const slot = this.queueHead;
    const fds = this.queueFds[slot];
    const size = this.queueSize[slot];
    this.queueFds[slot] = NO_FDS;
    this.queueHead = (slot + 1) % MAX_PENDING_COMMANDS;
    this.queueCount--;
    this.queueBytes -= size;
    this.queueFdCount -= fds.length;
    this.handOverCommand(this.queueAt[slot], size, fds);
    return true;
  }

  /** Deals with one message at `scan`; false when it is not complete or has to wait in the buffer unseen. */
  private scanMessage(): boolean {
    const at = this.scan;
    const available = this.end - at;
    if (available < Header.size) return false;
    header.at(this.data, at);
    const size = header.size;
    const type = header.flags & HeaderFlags.TYPE_MASK;
    if (type !== HeaderFlags.TYPE_COMMAND && type !== HeaderFlags.TYPE_REPLY) {
      this.fail(new PeerGone(`a message of unknown type ${type}`));
      return false;
    }
    if (size < Header.size || size > MAX_MESSAGE_SIZE) {
      if (type === HeaderFlags.TYPE_COMMAND) this.sendError(header.id, header.command, Errno.EINVAL);
      this.fail(new PeerGone(`a message of ${size} bytes`));
      return false;
    }
    if (available < size) return false;
    const isReply = type === HeaderFlags.TYPE_REPLY;
    if (!isReply && this.busy && this.queueIsFull()) return false;

    this.scan += size;
    const fds = this.partialFds;
    this.partialFds = NO_FDS;
    if (this.laterFdsAt === this.scan) {
      this.partialFds = this.laterFds;
      this.laterFds = NO_FDS;
      this.laterFdsAt = -1;
    }
    if (isReply) {
      this.handler.reply(this.fill(this.replyFrame, at, size, fds));
      closeAll(this.syscalls, fds);
    } else if (this.busy) {
      const slot = (this.queueHead + this.queueCount) % MAX_PENDING_COMMANDS;
      this.queueAt[slot] = at;
      this.queueSize[slot] = size;
      this.queueFds[slot] = fds;
      this.queueCount++;
      this.queueBytes += size;
      this.queueFdCount += fds.length;
    } else {
      this.handOverCommand(at, size, fds);
    }
    return true;
  }

  private queueIsFull(): boolean {
    return this.queueCount === MAX_PENDING_COMMANDS || this.queueFdCount >= MAX_MESSAGE_FDS;
  }

  private handOverCommand(at: number, size: number, fds: number[]): void {
    this.busy = true;
    this.handler.command(this.fill(this.commandFrame, at, size, fds));
  }

  private fill(frame: Frame, at: number, size: number, fds: number[]): Frame {
    header.at(this.data, at);
    frame.id = header.id;
    frame.command = header.command;
    frame.flags = header.flags;
    frame.errno = header.errno;
    frame.bytes = this.bytes;
    frame.data = this.data;
    frame.offset = at + Header.size;
    frame.length = size - Header.size;
    frame.fds = fds;
    return frame;
  }

  /** Sees to it that the message at `scan` fits; false when the queue must be served first. */
  private makeRoom(): boolean {
    const partial = this.end - this.scan;
    if (partial === 0 && !this.busy) {
      // With nothing under way, the queue is empty too.
      this.scan = 0;
      this.end = 0;
    }
    const needed = partial < Header.size ? Header.size : header.at(this.data, this.scan).size;
    if (partial >= needed) return false;
    if (this.scan + needed <= this.bytes.length) return true;

    const retained = this.queueBytes + needed;
    if (retained > MAX_BUFFER_SIZE) return false;
    let size = this.bytes.length;
    while (size < retained) size = Math.min(2 * size, MAX_BUFFER_SIZE);
    this.relocate(size, this.floor() + retained > this.bytes.length);
    return true;
  }

  /** Where bytes may be moved to: behind the command under way, which must stay where it is. */
  private floor(): number {
    const frame = this.commandFrame;
    return this.busy && frame.bytes === this.bytes ? frame.offset + frame.length : 0;
  }

  /** Moves waiting commands and the incomplete message together, to a fresh buffer or to the front of the old one. */
  private relocate(size: number, fresh: boolean): void {
    let to = fresh ? 0 : this.floor();
    const from = this.bytes;
    if (fresh) {
      this.bytes = new Uint8Array(size);
      this.data = new DataView(this.bytes.buffer);
    }
    const move = (start: number, end: number) => {
      if (fresh) this.bytes.set(from.subarray(start, end), to);
      else this.bytes.copyWithin(to, start, end);
      to += end - start;
    };
    for (let index = 0; index < this.queueCount; index++) {
      const slot = (this.queueHead + index) % MAX_PENDING_COMMANDS;
      const start = this.queueAt[slot];
      this.queueAt[slot] = to;
      move(start, start + this.queueSize[slot]);
    }
    const start = this.scan;
    this.scan = to;
    if (this.laterFdsAt !== -1) this.laterFdsAt += to - start;
    move(start, this.end);
    this.end = to;
  }

  private updatePoll(): void {
    const events = POLL_DISCONNECT | (this.paused ? 0 : POLL_READABLE) | (this.sendQueue.waiting ? POLL_WRITABLE : 0);
    if (events === this.polled || this.isClosed) return;
    this.polled = events;
    this.poll.start(events);
  }

  private fail(reason: PeerGone): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.poll.close();
    this.sendQueue.close();
    this.syscalls.close(this.fd);
    closeAll(this.syscalls, this.commandFrame.fds);
    for (const fds of this.queueFds) closeAll(this.syscalls, fds);
    closeAll(this.syscalls, this.partialFds);
    closeAll(this.syscalls, this.laterFds);
    this.handler.gone(reason);
  }
}
