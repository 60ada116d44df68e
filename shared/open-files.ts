/** How many file descriptors this process may have, and how much of that is for peers (RLIMIT_NOFILE). */
import { readFileSync } from "node:fs";

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
