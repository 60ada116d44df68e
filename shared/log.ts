/**
 * The log: pino, synchronous, to fd 2. error = the operator acts; warn = a peer misbehaved; info = connect, negotiate,
 * reset; debug = control messages; trace = each I/O. Guard trace lines on hot paths with `isLevelEnabled`.
 */
import { destination, type Logger, pino } from "pino";

export type Log = Logger;

export const LEVELS = ["silent", "error", "warn", "info", "debug", "trace"] as const;
export type Level = (typeof LEVELS)[number];

/** The process's root logger; parts take child loggers that carry {session, queue}. */
export function createLog(name: string, level: Level): Log {
  return pino({ name, level }, destination({ dest: 2, sync: true }));
}

/** A log that says nothing, for tests and embedding. */
export const quietLog: Log = pino({ level: "silent" });
