/**
 * The log: lines of JSON (pino's). error = the operator acts; warn = a peer misbehaved; info = connect, negotiate,
 * reset; debug = control messages; trace = each I/O. Guard trace lines on hot paths with `isLevelEnabled`.
 *
 * A line's message is a constant that names its kind, and what a peer chose is in the details: log-limit.ts counts by
 * message.
 */
import { pino } from "pino";

export const LEVELS = ["silent", "error", "warn", "info", "debug", "trace"] as const;
export type Level = (typeof LEVELS)[number];

/** Writes one line; the details become its fields, `err` with name, message and stack. */
export interface LogMethod {
  (message: string): void;
  (details: object, message: string): void;
}

/** What a part of a program logs to. */
export interface Log {
  readonly error: LogMethod;
  readonly warn: LogMethod;
  readonly info: LogMethod;
  readonly debug: LogMethod;
  readonly trace: LogMethod;
  isLevelEnabled(level: Level): boolean;
  /** The same log with fields that each line has. */
  child(fields: Readonly<Record<string, unknown>>): Log;
}

/** The process's root logger; parts take child loggers that carry {session, queue}. `output` is given whole lines. */
export function createLog(name: string, level: Level, output: { write(line: string): void }): Log {
  return pino({ name, level }, output);
}

/** A log that says nothing, for tests and embedding. */
export const quietLog: Log = pino({ level: "silent" });
