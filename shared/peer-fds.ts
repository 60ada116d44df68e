/**
 * File descriptors that peers hand over. A process has only so many (RLIMIT_NOFILE), so each session has a share of
 * them, which the others cannot take: it is charged with each from its arrival until it is closed. That may be long
 * after it was given up, since closing waits for a file whose owner does not answer (native `discard`).
 */
import { readFileSync } from "node:fs";
import { close, discard, duplicate, LOST_FDS, takeDiscarded } from "../native/index.js";

let lastNumber = 0;

export class FdShare {
  /** Whose threads close what takes long. */
  readonly number = ++lastNumber;
  #used = 0;
  readonly #most: () => number;

  /** @param most descriptors that its peer may have here at once, asked whenever some are to come */
  constructor(most: () => number = () => Number.POSITIVE_INFINITY) {
    this.#most = most;
  }

  get used(): number {
    return this.#used;
  }

  /** How many may still come. */
  left(): number {
    const left = this.#most() - this.#used;
    if (left > 0) return left;
    settle();
    return Math.max(0, this.#most() - this.#used);
  }

  /** Charges it with `fd`, which just came. `closePeerFd` ends that. */
  adopt(fd: number): void {
    free(fd);
    owners[fd] = this;
    this.#used++;
  }

  /** Charges it with descriptors of ours that are made for its peer. `release` ends that. */
  charge(count: number): void {
    this.#used += count;
  }

  /** So many of them are closed. */
  release(count = 1): void {
    this.#used -= count;
  }
}

/** Of those that threads close, how many are not looked for at most. */
const SETTLED_EVERY = 64;

/** Who has to know of a descriptor's end. */
export interface FdWatcher {
  forget(fd: number): void;
}

/** By fd. */
const watchers: (FdWatcher | undefined)[] = [];

/** `watcher` hears of an fd before it is closed here; undefined: nobody does any more. */
export function watchClose(fd: number, watcher: FdWatcher | undefined): void {
  watchers[fd] = watcher;
}

/** By fd. */
const owners: (FdShare | undefined)[] = [];
/** Of those that a thread closes, by the number that it has there. */
const closing = new Map<number, FdShare>();

/**
 * Closes an fd that a peer handed over, in any case without waiting. `isHeld`: it is memory that this process refers to
 * otherwise, too, so that closing frees nothing.
 */
export function closePeerFd(fd: number, isHeld = false): void {
  watchers[fd]?.forget(fd);
  if (!isHeld) {
    end(fd, false);
    return;
  }
  free(fd);
  close(fd);
}

/**
 * Another descriptor of the same file, charged to the same share; -1 when that has no room for it. @throws SystemError
 */
export function duplicatePeerFd(fd: number): number {
  const owner = owners[fd];
  if (owner?.left() === 0) return -1;
  const copy = duplicate(fd);
  owner?.adopt(copy);
  return copy;
}

/** The same for a connection of a peer's, in which fds may wait; it is charged to `share` for as long as that takes. */
export function closePeerSocket(fd: number, share: FdShare): void {
  watchers[fd]?.forget(fd);
  if (owners[fd] === undefined) share.adopt(fd);
  end(fd, true);
}

function end(fd: number, isOwnSocket: boolean): void {
  const owner = owners[fd];
  owners[fd] = undefined;
  const token = discard(fd, owner?.number, isOwnSocket);
  if (token === 0) owner?.release();
  else if (owner !== undefined) closing.set(token, owner);
  if (token % SETTLED_EVERY === SETTLED_EVERY - 1) settle();
}

function free(fd: number): void {
  owners[fd]?.release();
  owners[fd] = undefined;
}

/** Releases what threads have closed. */
function settle(): void {
  for (const token of takeDiscarded()) {
    closing.get(token)?.release();
    closing.delete(token);
  }
}

/** The fds that native `receive` gave, now charged to `share`; and whether others were lost. */
export function takeReceived(slots: Int32Array, share: FdShare): { fds: number[]; isLost: boolean } {
  const isLost = slots[0] <= LOST_FDS;
  const count = isLost ? LOST_FDS - slots[0] : slots[0];
  const fds: number[] = [];
  for (let n = 1; n <= count; n++) {
    fds.push(slots[n]);
    share.adopt(slots[n]);
  }
  return { fds, isLost };
}

/** What Node and the program have by themselves. */
const OWN = 48;
/**
 * What a session has beside what its peers hand over: its sockets, its relay, eventfds and memory that it makes for
 * them.
 */
const OWN_PER_SESSION = 12;

/** RLIMIT_NOFILE, the soft one, which Node has raised to the hard one. */
export function openFileLimit(): number {
  const limit = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
  return limit === undefined || limit === "unlimited" ? Number.POSITIVE_INFINITY : Number(limit);
}

/** The share of one of `sessions` in `limit` descriptors, for what its peers hand over. */
export function peerFds(limit: number, sessions: number): number {
  return Math.max(0, Math.floor((limit - OWN) / sessions) - OWN_PER_SESSION);
}
