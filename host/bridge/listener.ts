/** A listening AF_UNIX socket whose connections are handed out one by one, and whose file goes when it is closed. */
import { statSync, unlinkSync } from "node:fs";
import { accept, close, POLL_READABLE, Poll } from "../../native/index.js";
import { isSystemError } from "../../shared/errors.js";
import { listenAt } from "../../shared/listen.js";
import type { Log } from "../../shared/log.js";

const BACKLOG = 4;
/**
 * Pause after a failed accept, which is mostly for want of fds; and after each, so that connecting again and again
 * takes nothing from others.
 */
const ACCEPT_RETRY_MS = 100;
const ACCEPT_REST_MS = 10;

export interface ListenerOwner {
  /** Whether another connection can be had. */
  hasRoom(): boolean;
  /** Owns the fd that it gets. */
  connected(fd: number): void;
}

export class Listener {
  readonly #path: string;
  readonly #fd: number;
  readonly #inode: number;
  readonly #poll: Poll;
  readonly #log: Log;
  #retry: NodeJS.Timeout | undefined;

  /** @throws UserError when the socket cannot be had */
  constructor(path: string, log: Log, owner: ListenerOwner) {
    this.#path = path;
    this.#log = log;
    this.#fd = listenAt(path, BACKLOG);
    this.#inode = statSync(path).ino;
    this.#poll = new Poll(this.#fd, () => this.#accept(owner));
    this.#poll.start(POLL_READABLE);
  }

  close(): void {
    clearTimeout(this.#retry);
    this.#poll.close();
    close(this.#fd);
    try {
      // Somebody may have replaced the file meanwhile; then it is theirs.
      if (statSync(this.#path).ino === this.#inode) unlinkSync(this.#path);
    } catch (error) {
      if (!isSystemError(error)) throw error;
    }
  }

  #accept({ hasRoom, connected }: ListenerOwner): void {
    if (!hasRoom()) {
      this.#rest(ACCEPT_RETRY_MS);
      return;
    }
    try {
      const fd = accept(this.#fd);
      if (fd < 0) return;
      this.#rest(ACCEPT_REST_MS);
      connected(fd);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const help = error.code === "EMFILE" ? ": raise LimitNOFILE" : "";
      this.#log.error({ err: error }, `cannot accept a connection${help}`);
      this.#rest(ACCEPT_RETRY_MS);
    }
  }

  #rest(milliseconds: number): void {
    this.#poll.stop();
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#poll.start(POLL_READABLE), milliseconds);
  }
}
