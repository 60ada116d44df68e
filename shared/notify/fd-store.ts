/**
 * The store of file descriptors of whoever started this process: systemd, or our own holder (native/holder.cc). What is
 * put there comes back in its next life (kept-fds.ts).
 *
 * A message is in the manager's socket when a call returns, and outlives this process there. For that the calls wait,
 * where the socket is full, but not for long: a manager takes messages at once, or is not well.
 */
import assert from "node:assert/strict";
import { close } from "../../native/index.js";
import { connectDatagrams, sendDatagram } from "../../native/supervision.js";
import { isSystemError } from "../errors.js";
import { checkName, managerAddress } from "./notifier.js";

/** How long the manager may take to make room. */
const WAIT_MS = 250;
/** As many as the holder keeps (native/fd_store.h), and systemd with the FileDescriptorStoreMax= of our units. */
const MAX_FDS = 4096;

export class FdStore {
  readonly #path: string;
  #socket = -1;
  #count = 0;
  /** It took too long once: nobody waits for it again. */
  #isStuck = false;

  /** @param count descriptors that are in there already */
  constructor(path: string, count = 0) {
    this.#path = path;
    this.#count = count;
  }

  /** The one of this process; undefined when nobody supervises it. */
  static ofProcess(count: number, env: NodeJS.ProcessEnv = process.env): FdStore | undefined {
    const path = managerAddress(env);
    return path === undefined ? undefined : new FdStore(path, count);
  }

  /**
   * Puts a descriptor there by a name of its own, whatever becomes of it (FDPOLL=0): a peer that hung up is to be seen
   * by the next life. False when it is not there: the store is full, or the manager gone.
   */
  store(name: string, fd: number): boolean {
    checkName(name);
    assert(fd >= 0, "a descriptor for the store");
    if (this.#count >= MAX_FDS) return false;
    if (!this.#send(`FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, fd)) return false;
    this.#count++;
    return true;
  }

  remove(name: string): void {
    checkName(name);
    if (this.#send(`FDSTOREREMOVE=1\nFDNAME=${name}`, -1)) this.#count--;
  }

  /** A manager that was started again has another socket behind the same path: one more attempt is made there. */
  #send(text: string, fd: number): boolean {
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        if (this.#socket < 0) this.#socket = connectDatagrams(this.#path);
        const isSent = sendDatagram(this.#socket, Buffer.from(text), fd, this.#isStuck ? 0 : WAIT_MS);
        this.#isStuck = !isSent;
        return isSent;
      } catch (error) {
        if (!isSystemError(error)) throw error;
        if (this.#socket >= 0) close(this.#socket);
        this.#socket = -1;
      }
    }
    return false;
  }
}
