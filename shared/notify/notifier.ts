/**
 * What a process tells its service manager: systemd, or our own holder (native/holder.cc). sd_notify(3) has the
 * messages, and systemd's "File Descriptor Store" what becomes of descriptors. kept-fds.ts is how they come back.
 *
 * A message is in the manager's socket once it was sent, and outlives this process there. When the socket is full,
 * messages wait in their order, without anybody's waiting for them.
 */
import assert from "node:assert/strict";
import { close, POLL_WRITABLE, Poll, send } from "../../native/index.js";
import { connectDatagrams } from "../../native/supervision.js";

import { isSystemError } from "../errors.js";
import { MAX_MESSAGE_FDS } from "../limits.js";

/** Names of stored descriptors (fdname_is_valid(), FDNAME_MAX). */
const NAME = /^[\x20-\x39\x3b-\x7e]{1,255}$/;
/** A status is for people. */
const MAX_STATUS = 1024;

interface Message {
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
  readonly sent: (isSent: boolean) => void;
}

export class Notifier {
  readonly #path: string;
  #socket = -1;
  #poll: Poll | undefined;
  readonly #waiting: Message[] = [];

  /** @param path $NOTIFY_SOCKET: a path, or an abstract name behind "@" */
  constructor(path: string) {
    this.#path = path;
  }

  /** The one of this process; undefined when nobody supervises it. */
  static ofProcess(env: NodeJS.ProcessEnv = process.env): Notifier | undefined {
    const path = managerAddress(env);
    return path === undefined ? undefined : new Notifier(path);
  }

  /** How often `watchdog` is to be called at least, in milliseconds; undefined when nobody waits for it. */
  static watchdogPeriod(env: NodeJS.ProcessEnv = process.env, pid = process.pid): number | undefined {
    const { WATCHDOG_USEC, WATCHDOG_PID } = env;
    if (WATCHDOG_USEC === undefined || !/^\d{1,15}$/.test(WATCHDOG_USEC) || Number(WATCHDOG_USEC) === 0)
      return undefined;
    return WATCHDOG_PID === undefined || WATCHDOG_PID === String(pid) ? Number(WATCHDOG_USEC) / 1000 : undefined;
  }

  // Each of these resolves with whether the message was sent: false when the manager is gone.

  /** It serves from now on. */
  ready(): Promise<boolean> {
    return this.#notify("READY=1");
  }

  /** What it does, in one line. */
  status(text: string): Promise<boolean> {
    return this.#notify(`STATUS=${text.replaceAll(/\p{Cc}/gu, " ").slice(0, MAX_STATUS)}`);
  }

  /** It is about to end, and wants no other start. */
  stopping(): Promise<boolean> {
    return this.#notify("STOPPING=1");
  }

  watchdog(): Promise<boolean> {
    return this.#notify("WATCHDOG=1");
  }

  /**
   * Has descriptors kept, under one name that need not be new. They have to stay open until it resolves. They stay in
   * the store whatever becomes of them (FDPOLL=0): a peer that hung up is to be seen by the next life.
   */
  store(name: string, fds: readonly number[]): Promise<boolean> {
    checkName(name);
    assert(fds.length > 0 && fds.length <= MAX_MESSAGE_FDS, "descriptors for one message");
    return this.#notify(`FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, fds);
  }

  /** Drops all that are kept under the name. */
  remove(name: string): Promise<boolean> {
    checkName(name);
    return this.#notify(`FDSTOREREMOVE=1\nFDNAME=${name}`);
  }

  /** What waits is not sent any more. */
  close(): void {
    this.#drop();
  }

  #notify(text: string, fds: readonly number[] = []): Promise<boolean> {
    return new Promise((sent) => {
      this.#waiting.push({ bytes: Buffer.from(text), fds, sent });
      if (this.#waiting.length === 1) this.#send();
    });
  }

  #send(): void {
    for (let message = this.#waiting[0]; message; message = this.#waiting[0]) {
      const result = this.#trySend(message);
      if (result === "full") return;
      this.#waiting.shift();
      message.sent(result === "sent");
    }
    this.#poll?.stop();
  }

  /** A manager that was started again has another socket behind the same path: one more attempt is made there. */
  #trySend({ bytes, fds }: Message): "sent" | "full" | "gone" {
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        if (this.#socket < 0) this.#socket = connectDatagrams(this.#path);
        if (send(this.#socket, bytes, 0, bytes.length, fds) >= 0) return "sent";
        this.#poll ??= new Poll(this.#socket, () => this.#send());
        this.#poll.start(POLL_WRITABLE);
        return "full";
      } catch (error) {
        if (!isSystemError(error)) throw error;
        this.#disconnect();
      }
    }
    return "gone";
  }

  #disconnect(): void {
    this.#poll?.close();
    this.#poll = undefined;
    if (this.#socket >= 0) close(this.#socket);
    this.#socket = -1;
  }

  #drop(): void {
    this.#disconnect();
    for (const { sent } of this.#waiting.splice(0)) sent(false);
  }
}

/** $NOTIFY_SOCKET: a path, or an abstract name behind "@"; undefined when nobody supervises the process. */
export function managerAddress({ NOTIFY_SOCKET }: NodeJS.ProcessEnv): string | undefined {
  return NOTIFY_SOCKET?.startsWith("/") || NOTIFY_SOCKET?.startsWith("@") ? NOTIFY_SOCKET : undefined;
}

export function checkName(name: string): void {
  assert(NAME.test(name), "a name for a stored descriptor");
}
