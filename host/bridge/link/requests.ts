/**
 * Commands of ours that the device process has not answered: each has an id, which is a slot here. A slot is free again
 * only when its reply came, however late: a reply that belongs to nothing would otherwise be taken for the next one's.
 */
import { PeerGone } from "../../../shared/errors.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";

/** More than a session ever has: one at a time, and those that it gave up on. */
const SLOTS = 256;
/** Kept for what the bridge itself asks: that a process is to let go of a client whose commands it has not answered. */
const RESERVED = 16;

/** A command of the bridge's own. */
export interface OwnRequest {
  /** With the reply's body, a copy. */
  resolve(body: Uint8Array): void;
  reject(error: Error): void;
}

/** Takes the place of who gave up: the id stays taken until the reply comes. */
const NOBODY: OwnRequest = { resolve() {}, reject() {} };

export class Requests {
  readonly #commands = new Uint16Array(SLOTS);
  readonly #relayed: (PendingCommand | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #own: (OwnRequest | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #free = new Uint16Array(SLOTS);
  #freeCount = SLOTS;

  constructor() {
    this.#reset();
  }

  /** Takes an id for `command`; -1 when none is free. One of `relayed` and `own` waits for the reply. */
  take(command: number, relayed: PendingCommand | undefined, own: OwnRequest | undefined): number {
    if (this.#freeCount <= (relayed ? RESERVED : 0)) return -1;
    const id = this.#free[--this.#freeCount];
    this.#commands[id] = command;
    this.#relayed[id] = relayed;
    this.#own[id] = own;
    return id;
  }

  /** Whether `id` waits for a reply to `command`. */
  waitsFor(id: number, command: number): boolean {
    const waits = id < SLOTS && (this.#relayed[id] !== undefined || this.#own[id] !== undefined);
    return waits && this.#commands[id] === command;
  }

  relayed(id: number): PendingCommand | undefined {
    return this.#relayed[id];
  }

  own(id: number): OwnRequest | undefined {
    return this.#own[id];
  }

  /** The reply came. */
  free(id: number): void {
    this.#relayed[id] = undefined;
    this.#own[id] = undefined;
    this.#free[this.#freeCount++] = id;
  }

  /**
   * No reply is waited for any more: rejects what is the bridge's own, and hands each relayed command to `orphaned`.
   * With `mayCome` there may be replies all the same, which then go to nobody.
   */
  dropAll(reason: string, orphaned: (command: PendingCommand) => void, mayCome: boolean): void {
    const relayed = this.#relayed.filter((command) => command !== undefined);
    const own = this.#own.filter((request) => request !== undefined);
    if (mayCome) this.#abandon();
    else this.#reset();
    for (const request of own) request.reject(new PeerGone(reason));
    for (const command of relayed) orphaned(command);
  }

  /** The same for relayed commands alone: the channel stays, and their replies go to nobody. */
  dropRelayed(orphaned: (command: PendingCommand) => void): void {
    const relayed = this.#relayed.filter((command) => command !== undefined);
    for (let id = 0; id < SLOTS; id++) {
      if (this.#relayed[id] === undefined) continue;
      this.#relayed[id] = undefined;
      this.#own[id] = NOBODY;
    }
    for (const command of relayed) orphaned(command);
  }

  #abandon(): void {
    for (let id = 0; id < SLOTS; id++) {
      if (this.#relayed[id] === undefined && this.#own[id] === undefined) continue;
      this.#relayed[id] = undefined;
      this.#own[id] = NOBODY;
    }
  }

  #reset(): void {
    this.#relayed.fill(undefined);
    this.#own.fill(undefined);
    for (let i = 0; i < SLOTS; i++) this.#free[i] = SLOTS - 1 - i;
    this.#freeCount = SLOTS;
  }
}
