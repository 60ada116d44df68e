/**
 * A listening AF_UNIX socket, whose connections are handed out one by one while there are file descriptors for them;
 * and what can be wrong with the path of one, in an operator's words.
 */
import { accessSync, constants, lstatSync, statSync, unlinkSync } from "node:fs";
import { accept, close, isListener, listen, POLL_READABLE, Poll } from "../native/index.js";
import { isSystemError, UserError } from "./errors.js";
import type { Log } from "./log.js";
import { closePeerFd, type FdShare } from "./peer-fds.js";
import type { Share } from "./turn.js";

const BACKLOG = 16;
/** Pause after a failed accept, which is mostly for want of fds. */
const RETRY_MS = 100;
/**
 * Pause after each connection while other sessions want something: connecting again and again takes little from them.
 */
const REST_MS = 10;

export interface ListenerOptions {
  /** A path, whose file goes with the listener; or a listening AF_UNIX socket. */
  readonly socket: string | number;
  /** The socket that listens at the path already. */
  readonly listening?: number;
  readonly log: Log;
  /** What the session has of the event loop. */
  readonly share: Share;
  /** Where the descriptors of connections, and those that come over them, are counted. */
  readonly fds: FdShare;
  /** Whether the next connection is to wait in the socket's backlog, until `resume`. */
  readonly waits?: () => boolean;
  /** Owns the descriptor. When it throws a SystemError, the descriptor is closed and the error is logged. */
  readonly connected: (fd: number) => void;
}

export class Listener {
  readonly #options: ListenerOptions;
  readonly #fd: number;
  /** Of the file that was made for the socket. */
  readonly #inode: number | undefined;
  readonly #poll: Poll;
  #retry: NodeJS.Timeout | undefined;
  /** Light turns of other sessions at the last connection. */
  #othersSeen = 0;

  /** @throws UserError when the socket cannot be had */
  constructor(options: ListenerOptions) {
    const { socket, listening } = options;
    this.#options = options;
    if (listening !== undefined && typeof socket === "string") {
      this.#fd = listening;
      this.#inode = statSync(socket, { throwIfNoEntry: false })?.ino;
    } else if (typeof socket === "number") {
      checkListener(socket);
      this.#fd = socket;
    } else {
      this.#fd = listenAt(socket);
      this.#inode = statSync(socket).ino;
    }
    this.#poll = new Poll(this.#fd, () => this.#accept());
    this.#poll.start(POLL_READABLE);
  }

  /** The socket that listens. */
  get fd(): number {
    return this.#fd;
  }

  /** What a connection waited for is over. */
  resume(): void {
    if (this.#retry === undefined) this.#poll.start(POLL_READABLE);
  }

  close(): void {
    const { socket } = this.#options;
    clearTimeout(this.#retry);
    this.#poll.close();
    closePeerFd(this.#fd, true);
    if (typeof socket === "number") return;
    try {
      // Somebody may have replaced the file meanwhile; then it is theirs.
      if (statSync(socket).ino === this.#inode) unlinkSync(socket);
    } catch (error) {
      if (!isSystemError(error)) throw error;
    }
  }

  #accept(): void {
    const { fds, share, waits, connected } = this.#options;
    if (waits?.()) {
      this.#poll.stop();
      return;
    }
    // All are in use, or those of peers that have gone are still being closed.
    if (fds.left() === 0) {
      this.#rest(RETRY_MS);
      return;
    }
    let fd = -1;
    try {
      fd = accept(this.#fd);
      if (fd === -1) return;
      const { othersTurns } = share;
      if (othersTurns !== this.#othersSeen) this.#rest(REST_MS);
      this.#othersSeen = othersTurns;
      connected(fd);
    } catch (error) {
      if (fd !== -1) close(fd);
      if (!isSystemError(error)) throw error;
      const help = error.code === "EMFILE" ? ": raise LimitNOFILE" : "";
      this.#options.log.error({ err: error }, `cannot accept a connection${help}`);
      this.#rest(RETRY_MS);
    }
  }

  /** Accepts nobody for a while. */
  #rest(milliseconds: number): void {
    this.#poll.stop();
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#poll.start(POLL_READABLE);
    }, milliseconds);
  }
}

/** sun_path, without its NUL. */
const MAX_PATH_BYTES = 107;

/** Why a socket cannot be made, by errno. */
const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such directory",
  ENOTDIR: "what should be its directory is none",
  EACCES: "this user may not write to its directory",
  EPERM: "its directory takes no sockets",
  EROFS: "its file system is read-only",
  ENOSPC: "its file system is full",
  ELOOP: "its symbolic links go round in circles",
  EMFILE: "this process may have no more file descriptors (LimitNOFILE=, ulimit -n)",
};

/** @throws UserError for a path that no socket can have */
export function checkSocketPath(path: string): void {
  if (path === "") throw new UserError("a socket path is empty", 2);
  if (path.includes("\0")) throw new UserError("a socket path has a byte of zero in it", 2);
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    throw new UserError(`${path} is longer than the ${MAX_PATH_BYTES} bytes that a socket's path may have`, 2);
  }
}

/** @throws UserError when the path cannot be had */
function listenAt(path: string): number {
  checkSocketPath(path);
  try {
    return listen(path, BACKLOG);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const { code, message } = error;
    if (code !== "EADDRINUSE") throw new UserError(`cannot listen on ${path}: ${REASONS[code] ?? message}`);
    throw new UserError(`${path} ${inTheWay(path)}, or choose another path`);
  }
}

/** What is at a path that cannot be had, and what to do. */
function inTheWay(path: string): string {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === false) return "is there and is no socket: remove it";
  try {
    accessSync(path, constants.W_OK);
  } catch {
    return "is another user's socket: remove it as that user";
  }
  return "is served already: stop the process that serves it";
}

/** @throws UserError for a file descriptor that is no listening AF_UNIX stream socket */
function checkListener(fd: number): void {
  if (isListener(fd)) return;
  throw new UserError(
    `file descriptor ${fd} is no listening AF_UNIX stream socket: open one and hand it down (systemd's first is 3)`,
  );
}
