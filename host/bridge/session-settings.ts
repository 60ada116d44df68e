/** What the command line and the configuration file say of a session, and what of it cannot be. */
import { basename } from "node:path";
import { isPowerOfTwo } from "../../shared/bits.js";
import { UserError } from "../../shared/errors.js";
import { GiB, KiB, MiB } from "../../shared/limits.js";
import { keyOf, type SocketSource } from "../../shared/service/inherited-sockets.js";
import type { SocketAccess } from "../../shared/service/socket-access.js";

export interface SessionSettings {
  /** A short text that the device VM can read, and that is in the log. */
  readonly name: string;
  readonly vfioUser: SocketSource;
  readonly vhostUser: SocketSource;
  /** Bytes; a power of two. */
  readonly windowSize: number;
  readonly trustUnsealedMemory: boolean;
  readonly access: SocketAccess;
}

/** What all sessions have that do not say otherwise. */
export type SessionDefaults = Pick<SessionSettings, "windowSize" | "trustUnsealedMemory" | "access">;

const MIN_WINDOW_SIZE = 1 * MiB;
/** Stock QEMU and its firmware do not place larger BARs. */
const MAX_WINDOW_SIZE = 512 * GiB;
const UNITS: Record<string, number> = { "": 1, K: KiB, M: MiB, G: GiB, T: KiB * GiB };

/** @throws UserError with exit code 2 */
export function parseWindowSize(text: string, option = "--window-size"): number {
  const [, digits, unit] = /^(\d{1,15})([KMGT]?)$/.exec(text) ?? [];
  const size = digits === undefined ? Number.NaN : Number(digits) * UNITS[unit];
  if (!isPowerOfTwo(size) || size < MIN_WINDOW_SIZE || size > MAX_WINDOW_SIZE) {
    throw new UserError(`${option} ${text}: it must be a power of two from 1M to 512G, such as 64G`, 2);
  }
  return size;
}

/** The name of a session that was given none. */
export function defaultName(vfioUser: SocketSource): string {
  return "path" in vfioUser ? basename(vfioUser.path) : `fd-${vfioUser.fd}`;
}

export function isSame(a: SessionSettings, b: SessionSettings): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** The first socket that comes up twice, with the number of the session that has it again. */
export function findTwice(
  sessions: readonly Pick<SessionSettings, "vfioUser" | "vhostUser">[],
): { readonly index: number; readonly source: SocketSource; readonly isVhostUser: boolean } | undefined {
  const seen = new Set<string>();
  for (const [index, { vfioUser, vhostUser }] of sessions.entries()) {
    for (const source of [vfioUser, vhostUser]) {
      const key = keyOf(source);
      if (seen.has(key)) return { index, source, isVhostUser: source === vhostUser };
      seen.add(key);
    }
  }
  return undefined;
}

export function givenTwice(source: SocketSource): string {
  return "path" in source
    ? `${source.path} was given twice: each socket needs a path of its own`
    : `file descriptor ${source.fd} was given twice: each socket needs one of its own`;
}
