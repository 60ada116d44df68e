/**
 * The log: lines of JSON (pino's). error = the operator acts; warn = a peer misbehaved; info = connect, negotiate,
 * reset; debug = control messages; trace = each I/O. Guard trace lines on hot paths with `isLevelEnabled`.
 *
 * What a session's peers can cause is bounded: a session has one limited log for as long as it lives, whoever connects
 * meanwhile. A line's message is a constant that names its kind; what a peer chose is in the details. Lines of a kind
 * (a level and a message) and of a level are counted over a period; what is above the limits is left out, and the
 * period's end says how many and of what kind. So a flood of one kind hides no other kind, and a flood of warnings no
 * error. debug and trace, which an operator asks for, have no limit.
 */
import { pino } from "pino";
import { LOG_LINES_PER_KIND, LOG_LINES_PER_LEVEL, LOG_PERIOD_MS } from "./limits.js";

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

/** What of a log is written, however many children it has; it can change while they log. */
interface LogLevel {
  /** An index of LEVELS: levels up to it are written. */
  most: number;
}

/**
 * The process's root logger, and its children, of which parts take one that carries {session, queue}. pino's children
 * each have a level of their own; these have one level, which can change.
 */
export class ProgramLog implements Log {
  readonly #log: Log;
  readonly #level: LogLevel;
  readonly error = this.#method("error");
  readonly warn = this.#method("warn");
  readonly info = this.#method("info");
  readonly debug = this.#method("debug");
  readonly trace = this.#method("trace");

  private constructor(log: Log, level: LogLevel) {
    this.#log = log;
    this.#level = level;
  }

  /** `output` is given whole lines. */
  static create(name: string, level: Level, output: { write(line: string): void }): ProgramLog {
    return new ProgramLog(pino({ name, level: "trace" }, output), { most: LEVELS.indexOf(level) });
  }

  get level(): Level {
    return LEVELS[this.#level.most];
  }

  set level(level: Level) {
    this.#level.most = LEVELS.indexOf(level);
  }

  isLevelEnabled(level: Level): boolean {
    return LEVELS.indexOf(level) <= this.#level.most;
  }

  child(fields: Readonly<Record<string, unknown>>): Log {
    return new ProgramLog(this.#log.child(fields), this.#level);
  }

  #method(level: Exclude<Level, "silent">): LogMethod {
    const number = LEVELS.indexOf(level);
    return (details: object | string, message?: string): void => {
      if (number > this.#level.most) return;
      if (typeof details === "string") this.#log[level](details);
      else this.#log[level](details, message ?? "");
    };
  }
}

/** A log that says nothing, for tests and embedding. */
export const quietLog: Log = pino({ level: "silent" });

const LIMITED = ["error", "warn", "info"] as const;
type LimitedLevel = (typeof LIMITED)[number];

interface Kind {
  lines: number;
  suppressed: number;
}

/** The lines of one level in one period. */
class LevelLimit {
  readonly #kinds = new Map<string, Kind>();
  #lines = 0;
  /** Lines of kinds that came when the level had all its lines. */
  #others = 0;

  /** Counts a line, and tells whether it may be written. */
  permits(message: string): boolean {
    let kind = this.#kinds.get(message);
    if (kind === undefined) {
      if (this.#lines >= LOG_LINES_PER_LEVEL) {
        this.#others++;
        return false;
      }
      kind = { lines: 0, suppressed: 0 };
      this.#kinds.set(message, kind);
    }
    if (kind.lines >= LOG_LINES_PER_KIND || this.#lines >= LOG_LINES_PER_LEVEL) {
      kind.suppressed++;
      return false;
    }
    kind.lines++;
    this.#lines++;
    return true;
  }

  /** Writes how many lines were left out, and starts counting again. */
  report(write: (details: object, message: string) => void): void {
    for (const [message, { suppressed }] of this.#kinds) {
      if (suppressed > 0) write({ suppressed, kind: message }, "more lines of one kind");
    }
    if (this.#others > 0) write({ suppressed: this.#others }, "more lines of other kinds");
    this.#kinds.clear();
    this.#lines = 0;
    this.#others = 0;
  }
}

class Limits {
  readonly #log: Log;
  readonly #periodMs: number;
  readonly #levels: Readonly<Record<LimitedLevel, LevelLimit>>;
  #period: NodeJS.Timeout | undefined;

  constructor(log: Log, periodMs: number) {
    this.#log = log;
    this.#periodMs = periodMs;
    this.#levels = { error: new LevelLimit(), warn: new LevelLimit(), info: new LevelLimit() };
  }

  permits(level: LimitedLevel, message: string): boolean {
    this.#period ??= setTimeout(() => this.report(), this.#periodMs).unref();
    return this.#levels[level].permits(message);
  }

  report(): void {
    clearTimeout(this.#period);
    this.#period = undefined;
    const log = this.#log;
    for (const level of LIMITED) {
      this.#levels[level].report((details, message) => log[level](details, message));
    }
  }
}

export class LimitedLog implements Log {
  readonly #log: Log;
  readonly #limits: Limits;
  readonly error: LogMethod;
  readonly warn: LogMethod;
  readonly info: LogMethod;
  readonly debug: LogMethod;
  readonly trace: LogMethod;

  private constructor(log: Log, limits: Limits) {
    this.#log = log;
    this.#limits = limits;
    this.error = this.#limited("error");
    this.warn = this.#limited("warn");
    this.info = this.#limited("info");
    this.debug = log.debug.bind(log);
    this.trace = log.trace.bind(log);
  }

  /** The log of one session; its children share its limits. */
  static of(log: Log, periodMs = LOG_PERIOD_MS): LimitedLog {
    return new LimitedLog(log, new Limits(log, periodMs));
  }

  isLevelEnabled(level: Level): boolean {
    return this.#log.isLevelEnabled(level);
  }

  child(fields: Readonly<Record<string, unknown>>): Log {
    return new LimitedLog(this.#log.child(fields), this.#limits);
  }

  /** Says now what was left out so far: the session ends. */
  report(): void {
    this.#limits.report();
  }

  #limited(level: LimitedLevel): LogMethod {
    return (details: object | string, message?: string): void => {
      if (typeof details === "string") {
        if (this.#limits.permits(level, details)) this.#log[level](details);
      } else if (this.#limits.permits(level, message ?? "")) this.#log[level](details, message ?? "");
    };
  }
}
