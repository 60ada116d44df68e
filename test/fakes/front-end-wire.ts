/**
 * vhost-user's framing as stock QEMU does it: a request is written, and then nothing else happens until its reply is
 * there. So the back-end under test has to live in another process.
 */
import { closeSync } from "node:fs";
import * as native from "../../native/index.js";
import { Header, HeaderFlags } from "../../shared/spec/vhost-user.js";

export interface WireMessage {
  request: number;
  flags: number;
  payload: Uint8Array<ArrayBuffer>;
  data: DataView;
  fds: number[];
}

const PATIENCE_MS = 10_000;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Blocks the thread for a moment. */
function pause(milliseconds: number): void {
  Atomics.wait(sleeper, 0, 0, milliseconds);
}

/** Blocks until `check` gives something. @throws Error after a long while */
export function blockUntil<T>(what: string, check: () => T | undefined): T {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const result = check();
    if (result !== undefined) return result;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    pause(0.1);
  }
}

export class Wire {
  readonly #slots = new Int32Array(1 + 8);
  open = true;

  constructor(readonly fd: number) {}

  send(request: number, flags: number, payload: Uint8Array, fds: readonly number[] = []): void {
    const bytes = new Uint8Array(Header.size + payload.length);
    bytes.set(Header.encode({ request, flags: flags | HeaderFlags.VERSION, size: payload.length }));
    bytes.set(payload, Header.size);
    this.sendBytes(bytes, fds);
  }

  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): void {
    const sent = native.send(this.fd, bytes, 0, bytes.length, fds);
    if (sent !== bytes.length) throw new Error(`sent ${sent} of ${bytes.length} bytes`);
  }

  /** The next message; blocks. @throws Error when the peer closed */
  receive(what: string): WireMessage {
    const fds: number[] = [];
    const header = this.#receiveBytes(what, Header.size, fds);
    const { request, flags, size } = Header.view(new DataView(header.buffer));
    const payload = this.#receiveBytes(what, size, fds);
    return { request, flags, payload, data: new DataView(payload.buffer), fds };
  }

  /** Sends a request and returns its reply, which is checked as QEMU checks it. */
  exchange(request: number, payload: Uint8Array, flags = 0, fds: readonly number[] = []): WireMessage {
    this.send(request, flags, payload, fds);
    const reply = this.receive(`the reply to request ${request}`);
    if (reply.flags !== (HeaderFlags.REPLY | HeaderFlags.VERSION))
      throw new Error(`reply flags 0x${reply.flags.toString(16)}`);
    if (reply.request !== request) throw new Error(`a reply to ${reply.request} instead of ${request}`);
    if (reply.fds.length > 0) throw new Error("fds on a reply");
    return reply;
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    closeSync(this.fd);
  }

  #receiveBytes(what: string, length: number, fds: number[]): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    let have = 0;
    while (have < length) {
      have += blockUntil(what, () => {
        const count = native.receive(this.fd, bytes, have, length - have, this.#slots);
        if (count === 0) throw new Error(`the peer closed the socket instead of sending ${what}`);
        return count < 0 ? undefined : count;
      });
      for (let i = 0; i < this.#slots[0]; i++) fds.push(this.#slots[1 + i]);
    }
    return bytes;
  }
}
