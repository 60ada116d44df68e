/**
 * Where a program's log goes: standard error or a file, as lines of JSON or as lines for people. A thread writes it, so
 * that nobody waits for a reader or a disk (native LineWriter).
 */
import { closeSync, constants, openSync } from "node:fs";
import { isatty } from "node:tty";
import { LineWriter } from "../native/index.js";
import { UserError } from "./errors.js";
import { MAX_LOG_BACKLOG } from "./limits.js";
import type { Level } from "./log.js";

export const LOG_FORMATS = ["json", "pretty"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

export interface LogOptions {
  readonly level: Level;
  /** Undefined: pretty on a terminal, else JSON. */
  readonly format: LogFormat | undefined;
  /** Undefined: standard error. */
  readonly file: string | undefined;
}

const STDERR = 2;
const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;
/** What a pipe has no reader for fails, in place of waiting for one. */
const LOG_FLAGS = O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK;
/** Its owner's group reads it, as in /var/log. */
const LOG_MODE = 0o640;
/** How often it is looked whether a file that was replaced has taken all of its lines. */
const RETIRE_MS = 100;

export class LogOutput {
  readonly #notice: string;
  /** Standard error's. */
  readonly #stderr: LineWriter;
  #writer: LineWriter;
  #file: { readonly path: string; fd: number } | undefined;
  #format: (line: string) => string = (line) => line;

  /** @param notice see LineWriter */
  constructor(stderr: LineWriter, notice: string) {
    this.#notice = notice;
    this.#stderr = stderr;
    this.#writer = stderr;
  }

  /** @throws UserError when the file cannot be had */
  async open({ file, format }: LogOptions): Promise<void> {
    const isTerminal = file === undefined && isatty(STDERR);
    if (file !== undefined) this.#use(file, openLogFile(file));
    if ((format ?? (isTerminal ? "pretty" : "json")) === "json") return;
    // Loaded only when it is wanted: it takes as long as half of the start.
    const { prettyFactory } = await import("pino-pretty");
    this.#format = prettyFactory({
      colorize: isTerminal && !process.env.NO_COLOR,
      ignore: "hostname",
      singleLine: true,
      translateTime: "SYS:yyyy-mm-dd HH:MM:ss.l",
    });
  }

  /** Lines of JSON, each with its newline. */
  write(line: string): void {
    this.#writer.write(this.#format(line));
  }

  /** Whether it is a file, which can be opened again. */
  get isFile(): boolean {
    return this.#file !== undefined;
  }

  /** The file was renamed, as logrotate does: goes on in a new one. @throws UserError, and goes on in the old one */
  reopen(): void {
    const old = this.#file;
    if (old === undefined) return;
    const writer = this.#writer;
    this.#use(old.path, openLogFile(old.path));
    retire(writer, old.fd);
  }

  /** Blocks until all is written, but at most so long. */
  flush(milliseconds: number): void {
    this.#writer.flush(milliseconds);
    if (this.#writer !== this.#stderr) this.#stderr.flush(milliseconds);
  }

  #use(path: string, fd: number): void {
    this.#writer = new LineWriter(fd, MAX_LOG_BACKLOG, this.#notice);
    this.#file = { path, fd };
  }
}

/** Closes a file once its thread has written all lines; one that hangs stays open. */
function retire(writer: LineWriter, fd: number): void {
  if (writer.flush(0)) closeSync(fd);
  else setTimeout(() => retire(writer, fd), RETIRE_MS).unref();
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such directory",
  ENOTDIR: "what should be its directory is none",
  EACCES: "this user may not write there",
  EISDIR: "it is a directory",
  EROFS: "its file system is read-only",
  ENXIO: "it is a pipe that nobody reads, or a socket",
};

function openLogFile(path: string): number {
  try {
    return openSync(path, LOG_FLAGS, LOG_MODE);
  } catch (error) {
    const { code = "", message } = error as NodeJS.ErrnoException;
    throw new UserError(`cannot write the log file ${path}: ${REASONS[code] ?? message}`);
  }
}
