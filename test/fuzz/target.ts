/** What a fuzzer's target is: something that sees a peer's bytes, and how to tell that it is still well. */
import assert from "node:assert/strict";
import type { Log } from "../../shared/log.js";
import type { Choices } from "./choices.js";
import type { Trace } from "./trace.js";

export interface Context {
  readonly trace: Trace;
  /** For what is tested: passes over what a peer did wrong, keeps what must not happen ("unexpected"). */
  readonly log: Log;
}

export interface Instance {
  /** One attack. Whatever it makes the target do wrong is thrown here, or by `probe`, or kills the process. */
  round(random: Choices): Promise<void> | void;
  /** A valid peer is served right. @throws when not */
  probe(): Promise<void> | void;
  /** Descriptors, when the target is another process: how many it has. */
  fds?(): number;
  /** Bytes that the target's process holds on to, when it is another process. */
  memory?(): number;
  close(): Promise<void> | void;
}

export type Target = (context: Context) => Promise<Instance> | Instance;

/** What only a bug of ours makes somebody log; the devices here never throw. */
const BUG = new RegExp(
  [
    '"msg":"(unexpected|a bug in |a command of the bridge\'s failed|the device threw',
    "the device's [a-z]+ failed|a job of the device's failed)",
  ].join("|"),
);
/**
 * What the language says of a program's mistake, and nobody of a peer's: it may have become the reason for ending
 * something.
 */
const MISTAKE = new RegExp(
  [
    "is not a function|is not iterable|Cannot (read|set|convert|mix)|Invalid (typed array|DataView|array)",
    "[Oo]ffset is out|outside the bounds|not an unsigned 53-bit|call stack",
  ].join("|"),
);

/** Whether a line of the log tells of a bug. */
export const tellsBug = (line: string): boolean => BUG.test(line) || MISTAKE.test(line);

/** What a memory of ours is filled with where nobody may write. */
export const CANARY = 0xa5;

/** @throws when a byte of bytes[from, to) is no canary any more */
export function checkCanary(bytes: Uint8Array, from: number, to: number, what: string): void {
  const part = Buffer.from(bytes.buffer, bytes.byteOffset + from, to - from);
  if (part.length === 0) return;
  // A range that is equal to itself shifted by one, and begins with the canary, is all canaries.
  const intact = part[0] === CANARY && part.compare(part, 1, part.length, 0, part.length - 1) === 0;
  assert.ok(intact, `${what} was written`);
}
