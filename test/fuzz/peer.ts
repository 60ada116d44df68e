/** The near end of a socket whose far end is under attack: sends anything, reads what comes, and never blocks. */
import { close, receive, send } from "../../native/index.js";
import type { Message } from "./mutate.js";

/** Turns of the event loop in which a peer must take or send something before it counts as stuck. */
const PATIENCE_TURNS = 200;
const BUFFER_SIZE = 256 * 1024;

export const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

export class Peer {
  /** Bytes received and not yet taken by `onBytes`. */
  #received = Buffer.alloc(0);
  readonly #buffer = new Uint8Array(BUFFER_SIZE);
  readonly #fds = new Int32Array(254);
  #open = true;
  /** The far end closed, or reset the connection. */
  ended = false;
  /** Gets an fd that came along, and owns it. */
  onFd: (fd: number) => void = close;
  /** Given all that is there after each receive; returns how many bytes it took. */
  onBytes: (bytes: Buffer) => number = (bytes) => bytes.length;

  /** Takes the connected socket `fd` over. */
  constructor(readonly fd: number) {}

  /** Sends a piece; false when the far end does not take it, or is gone. */
  async send({ bytes, fds }: Message): Promise<boolean> {
    let stuck = 0;
    for (let at = 0; at < bytes.length; ) {
      if (this.ended || !this.#open) return false;
      let count: number;
      try {
        count = send(this.fd, bytes, at, bytes.length - at, at === 0 ? fds : undefined);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // Fds may have been closed by now, or be more than a message carries.
        if (code === "EBADF" || code === "EINVAL" || code === "ETOOMANYREFS") return false;
        if (code !== "EPIPE" && code !== "ECONNRESET") throw error;
        this.ended = true;
        return false;
      }
      if (count > 0) {
        at += count;
        stuck = 0;
        continue;
      }
      if (++stuck > PATIENCE_TURNS) return false;
      await turn();
      this.drain();
    }
    return true;
  }

  /** Reads what is there. */
  drain(): void {
    while (this.#open && !this.ended) {
      let count: number;
      try {
        count = receive(this.fd, this.#buffer, 0, this.#buffer.length, this.#fds);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ECONNRESET") throw error;
        count = 0;
      }
      if (count === -1) return;
      for (let n = 1; n <= this.#fds[0]; n++) this.onFd(this.#fds[n]);
      this.#fds[0] = 0;
      if (count === 0) {
        this.ended = true;
        return;
      }
      const all = Buffer.concat([this.#received, this.#buffer.subarray(0, count)]);
      this.#received = Buffer.from(all.subarray(this.onBytes(all)));
    }
  }

  /** Lets the far end work for some turns of the event loop, or until it has hung up. */
  async linger(turns: number): Promise<void> {
    for (let n = 0; n < turns && !this.ended; n++) {
      await turn();
      this.drain();
    }
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    close(this.fd);
  }
}
