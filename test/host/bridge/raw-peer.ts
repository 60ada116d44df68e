/**
 * The other end of a vhost-user socket, in raw bytes, for the parts of the bridge that run in the test's own process.
 */
import { closeSync, readdirSync, readlinkSync } from "node:fs";
import * as native from "../../../native/index.js";
import { Header } from "../../../shared/spec/vhost-user.js";

export interface RawMessage {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly fds: number[];
}

export const closeFd = (fd: number) => closeSync(fd);

/** How many fds this process has open on the file that `fd` is; other tests run in the same process. */
export function openFds(fd: number): number {
  const link = (name: string | number) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`);
    } catch {
      return undefined;
    }
  };
  const file = link(fd);
  return readdirSync("/proc/self/fd").filter((name) => link(name) === file).length;
}

let memories = 0;
/** A memfd whose name no other has, for `openFds`. */
export const uniqueMemory = (size: number) =>
  native.createMemory(`test-${process.hrtime.bigint()}-${memories++}`, size, false);

/** Lets every callback run that is due. */
export const turn = () => new Promise<void>((resolve) => setImmediate(() => setImmediate(resolve)));

export class RawPeer {
  readonly #poll: native.Poll;
  #waiting: (() => void) | undefined;
  /** The peer closed its end. */
  ended = false;
  #closed = false;
  #bytes = new Uint8Array(0);
  readonly #fds: number[] = [];

  constructor(readonly fd: number) {
    const buffer = new Uint8Array(65536);
    const slots = new Int32Array(65);
    this.#poll = new native.Poll(fd, () => {
      let count = 0;
      try {
        count = native.receive(fd, buffer, 0, buffer.length, slots);
      } catch {
        // A reset connection has ended, too.
      }
      if (count === 0) {
        this.ended = true;
        this.#poll.stop();
      } else if (count > 0) {
        this.#bytes = Uint8Array.from([...this.#bytes, ...buffer.subarray(0, count)]);
        this.#fds.push(...slots.subarray(1, 1 + slots[0]));
      }
      this.#waiting?.();
    });
    this.#poll.start(native.POLL_READABLE | native.POLL_DISCONNECT);
  }

  /** Bytes that came and were not taken. */
  get pending(): number {
    return this.#bytes.length;
  }

  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): void {
    native.send(this.fd, bytes, 0, bytes.length, fds);
  }

  send(request: number, flags: number, payload: Uint8Array = new Uint8Array(0), fds: readonly number[] = []): void {
    const header = Header.encode({ request, flags, size: payload.length });
    this.sendBytes(Uint8Array.from([...header, ...payload]), fds);
  }

  async receive(): Promise<RawMessage> {
    await this.#until(() => {
      const { size } = this.#bytes.length < Header.size ? { size: 0 } : this.#header();
      return this.#bytes.length >= Header.size + size;
    });
    const { request, flags, size } = this.#header();
    const payload = this.#bytes.slice(Header.size, Header.size + size);
    this.#bytes = this.#bytes.slice(Header.size + size);
    return { request, flags, payload, fds: this.#fds.splice(0) };
  }

  /** Resolves when the peer has closed its end. */
  async end(): Promise<void> {
    await this.#until(() => this.ended, true);
  }

  /** Once more is nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#poll.close();
    for (const fd of this.#fds) closeSync(fd);
    closeSync(this.fd);
  }

  #header() {
    return Header.view(new DataView(this.#bytes.buffer, this.#bytes.byteOffset));
  }

  async #until(done: () => boolean, atEnd = false): Promise<void> {
    while (!done()) {
      if (this.ended && !atEnd) throw new Error("the peer closed the socket");
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }
}
