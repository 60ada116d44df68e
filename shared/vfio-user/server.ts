/**
 * A vfio-user server: listens on an AF_UNIX socket and serves one client at a time (vfio-user, "Socket", "Client
 * Disconnection"). A second client is refused: its connection is closed. One that comes when the first has just closed
 * its end waits in the socket's backlog until all memory of the first is let go.
 */
import { statSync, unlinkSync } from "node:fs";
import { accept, close, POLL_READABLE, Poll } from "../../native/index.js";
import { startTicks } from "../deadline.js";
import { isSystemError } from "../errors.js";
import { DEVICE_WAIT_MS, REPLY_DEADLINE_MS, VERSION_WAIT_MS } from "../limits.js";
import { checkListener, listenAt } from "../listen.js";
import { type Log, quietLog } from "../log.js";
import { closePeerSocket, FdShare } from "../peer-fds.js";
import { Share } from "../turn.js";
import type { Backend } from "./backend.js";
import { Session, type SessionStats } from "./session.js";

const BACKLOG = 16;
/** Pause after a failed accept, which is mostly for want of fds. */
const ACCEPT_RETRY_MS = 100;
/**
 * Pause after each connection while other sessions want something: connecting again and again takes little from them.
 */
const ACCEPT_REST_MS = 10;

export interface ServerOptions {
  readonly backend: Backend;
  /**
   * Where to listen: a path, whose file is removed by `close`; or a listening AF_UNIX socket, which is closed by
   * `close`.
   */
  readonly socket: string | number;
  readonly log?: Log;
  /** Map also memory that its owner can shrink (its pages then read as zeros). */
  readonly trustUnsealedMemory?: boolean;
  /** Open a twin socket for a client that can have one (default: true). */
  readonly twinSocket?: boolean;
  readonly replyDeadlineMs?: number;
  readonly deviceWaitMs?: number;
  readonly versionWaitMs?: number;
  /** What clients have of the event loop, with whatever else belongs to the same session. */
  readonly share?: Share;
  /** Where clients' fds are counted. */
  readonly fds?: FdShare;
}

export interface ServerStats extends Readonly<SessionStats> {
  /** Whether a client is connected now, and its DMA maps. */
  readonly connected: boolean;
  readonly maps: number;
}

export class Server {
  readonly #log: Log;
  readonly #share: Share;
  readonly #fds: FdShare;
  readonly #counts: SessionStats = {
    clients: 0,
    commands: 0,
    reads: 0,
    readsFromMemory: 0,
    writes: 0,
    errors: 0,
    timeouts: 0,
  };
  #fd = -1;
  #poll: Poll | undefined;
  #inode: number | undefined;
  #session: Session | undefined;
  #retry: NodeJS.Timeout | undefined;
  /** Light turns of other sessions at the last connection. */
  #othersSeen = 0;
  #serving: Promise<void> = Promise.resolve();
  readonly #options: ServerOptions;

  constructor(options: ServerOptions) {
    this.#options = options;
    this.#log = options.log ?? quietLog;
    this.#share = options.share ?? new Share();
    this.#fds = options.fds ?? new FdShare();
  }

  get stats(): ServerStats {
    this.#session?.count();
    return { ...this.#counts, connected: this.#session !== undefined, maps: this.#session?.mapCount ?? 0 };
  }

  /** Begins to serve; from then on clients can connect. @throws UserError when the socket cannot be had */
  open(): void {
    const { socket } = this.#options;
    if (typeof socket === "number") checkListener(socket);
    this.#fd = typeof socket === "number" ? socket : this.#listenAt(socket);
    this.#poll = new Poll(this.#fd, () => this.#acceptOne());
    this.#poll.start(POLL_READABLE);
  }

  /** Ends the session, if any, waits until its memory is let go, and takes the socket away. */
  async close(): Promise<void> {
    if (this.#fd === -1) return;
    this.#poll?.close();
    this.#poll = undefined;
    clearTimeout(this.#retry);
    close(this.#fd);
    this.#fd = -1;
    this.#removeSocketFile();
    this.#session?.close("the server ends");
    await this.#serving;
  }

  #listenAt(path: string): number {
    const fd = listenAt(path, BACKLOG);
    this.#inode = statSync(path).ino;
    return fd;
  }

  /** Somebody may have replaced the file meanwhile; then it is theirs. */
  #removeSocketFile(): void {
    const { socket } = this.#options;
    if (typeof socket === "number") return;
    try {
      if (statSync(socket).ino === this.#inode) unlinkSync(socket);
    } catch (error) {
      if (!isSystemError(error)) throw error;
    }
  }

  #acceptOne(): void {
    if (this.#session?.isEnding) {
      // Its end starts it again.
      this.#poll?.stop();
      return;
    }
    // All are in use, or those of clients that have gone are still being closed.
    if (this.#fds.left() === 0) {
      this.#rest(ACCEPT_RETRY_MS);
      return;
    }
    let fd: number;
    try {
      fd = accept(this.#fd);
    } catch (error) {
      this.#failed(error);
      return;
    }
    if (fd === -1) return;
    const { othersTurns } = this.#share;
    if (othersTurns !== this.#othersSeen) this.#rest(ACCEPT_REST_MS);
    this.#othersSeen = othersTurns;
    if (this.#session !== undefined) {
      this.#log.warn("refused a second client: one at a time");
      closePeerSocket(fd, this.#fds);
      return;
    }
    let session: Session;
    try {
      session = this.#begin(fd);
    } catch (error) {
      close(fd);
      this.#failed(error);
      return;
    }
    this.#serving = this.#serve(session);
  }

  #failed(error: unknown): void {
    if (!isSystemError(error)) throw error;
    const help = error.code === "EMFILE" ? ": raise LimitNOFILE" : "";
    this.#log.error({ err: error }, `cannot accept a client${help}`);
    this.#rest(ACCEPT_RETRY_MS);
  }

  /** Accepts nobody for a while. */
  #rest(milliseconds: number): void {
    this.#poll?.stop();
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#poll?.start(POLL_READABLE);
    }, milliseconds);
  }

  #begin(fd: number): Session {
    return new Session(fd, {
      backend: this.#options.backend,
      log: this.#log,
      stats: this.#counts,
      trustUnsealedMemory: this.#options.trustUnsealedMemory ?? false,
      deviceWaitMs: this.#options.deviceWaitMs ?? DEVICE_WAIT_MS,
      versionWaitMs: this.#options.versionWaitMs ?? VERSION_WAIT_MS,
      twinSocket: this.#options.twinSocket ?? true,
      share: this.#share,
      fds: this.#fds,
    });
  }

  async #serve(session: Session): Promise<void> {
    this.#session = session;
    const stopTicks = startTicks(this.#options.replyDeadlineMs ?? REPLY_DEADLINE_MS, () => session.tick());
    await session.ended;
    stopTicks();
    this.#session = undefined;
    if (this.#retry === undefined) this.#poll?.start(POLL_READABLE);
  }
}
