/**
 * What each of our programs is to its process: what it writes to standard error, the signals that end it, and the exit
 * code. Nothing of it waits for whoever reads standard error.
 */
import { writeSync } from "node:fs";
import { hostname } from "node:os";
import { LineWriter } from "../native/index.js";
import { isSystemError, UserError } from "./errors.js";
import { toJson } from "./json.js";
import { LOG_FLUSH_MS, MAX_LOG_BACKLOG } from "./limits.js";
import { type Log, ProgramLog } from "./log.js";
import { type LogOptions, LogOutput } from "./log-output.js";
import { RecentLines } from "./recent-lines.js";

const STDERR = 2;
/** As long as a timer can be. */
const FOREVER_MS = 2 ** 31 - 1;
/** pino's numbers of levels. */
const INFO_LEVEL = 30;
const ERROR_LEVEL = 50;
const END_SIGNALS = ["SIGINT", "SIGTERM"] as const;

export class Program {
  readonly #name: string;
  readonly #stderr: LineWriter;
  readonly #output: LogOutput;
  /** The log's last warnings and errors. */
  readonly recent = new RecentLines();
  #log: ProgramLog | undefined;

  private constructor(name: string) {
    this.#name = name;
    const notice = {
      level: ERROR_LEVEL,
      pid: process.pid,
      hostname: hostname(),
      name,
      msg: "lines of the log are lost",
    };
    const text = JSON.stringify(notice).slice(0, -1);
    this.#stderr = openStderr(name, text);
    this.#output = new LogOutput(this.#stderr, text);
    process.on("exit", () => this.#output.flush(LOG_FLUSH_MS));
    process.on("uncaughtException", (error) => this.#fail(error));
  }

  /**
   * Runs `main`, and ends the process with the code that it resolves with; or, for an error, with that of the error.
   */
  static run(name: string, main: (program: Program) => Promise<number>): void {
    const program = new Program(name);
    // Node ends a process in which nothing can happen any more, with 0, whatever still waits: a device's start() that
    // never resolves.
    setInterval(() => {}, FOREVER_MS);
    process.stdout.on("error", (error) => program.#fail(outputFailure(error)));
    main(program).then(
      // What a pipe has not taken yet would be lost, and an error of a file not heard of.
      (code) => process.stdout.write("", () => setImmediate(() => process.exit(code))),
      (error) => program.#fail(error),
    );
  }

  /** @throws UserError when the log's file cannot be had */
  async openLog(options: LogOptions): Promise<ProgramLog> {
    await this.#output.open(options);
    const write = (line: string) => {
      this.recent.note(line);
      this.#output.write(line);
    };
    this.#log = ProgramLog.create(this.#name, options.level, { write });
    return this.#log;
  }

  /**
   * Aborted, with the signal as the reason, when the process is to end. The same signal once more ends it at once.
   * SIGHUP opens the log's file again, if it has one, and then has `reload` called; with neither it ends the process:
   * the terminal is gone.
   */
  endSignal(reload?: () => void): AbortSignal {
    const end = new AbortController();
    for (const signal of END_SIGNALS) process.once(signal, () => end.abort(signal));
    if (reload === undefined && !this.#output.isFile) {
      process.once("SIGHUP", () => end.abort("SIGHUP"));
      return end.signal;
    }
    process.on("SIGHUP", () => {
      this.#reopenLog();
      if (!end.signal.aborted) reload?.();
    });
    return end.signal;
  }

  /**
   * Whenever SIGUSR1 asks for it, writes what `inspect` returns as a line of JSON like the log's, whatever the log's
   * level. Returns what ends that.
   */
  showState(log: Log, inspect: () => unknown): () => void {
    const show = () => {
      try {
        const line = { level: INFO_LEVEL, time: Date.now(), msg: "state", state: inspect() };
        this.#output.write(`${toJson(line)}\n`);
      } catch (error) {
        log.error({ err: error }, "the state cannot be written");
      }
    };
    process.on("SIGUSR1", show);
    return () => process.off("SIGUSR1", show);
  }

  #reopenLog(): void {
    try {
      this.#output.reopen();
    } catch (error) {
      this.#log?.error(`${(error as Error).message}: the log goes on where it was`);
    }
  }

  /** A user's mistake is one sentence, a bug of ours a stack trace. With a log in a file, it is there too. */
  #fail(error: unknown): void {
    const isUsers = error instanceof UserError;
    const what = isUsers ? error.message : error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#stderr.write(`${this.#name}: ${what}\n`);
    if (this.#output.isFile) this.#log?.error({ reason: what }, "ends by an error");
    if (isUsers && error.cause instanceof SyntaxError) showSource(error.cause, () => this.#output.flush(LOG_FLUSH_MS));
    else process.exit(isUsers ? error.exitCode : 1);
  }
}

/** A process that may not have one thread more serves nobody, and is over. */
function openStderr(name: string, notice: string): LineWriter {
  try {
    return new LineWriter(STDERR, MAX_LOG_BACKLOG, notice);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const help = "raise the limit (ulimit -u, or TasksMax= of a unit)";
    try {
      writeSync(STDERR, `${name}: no thread for the log (${error.code}): ${help}\n`);
    } catch {
      // Then there is nobody to tell.
    }
    process.exit(1);
  }
}

/** What standard output did not take is what the user asked for. */
function outputFailure({ code = "an error" }: NodeJS.ErrnoException): UserError {
  return new UserError(
    code === "EPIPE"
      ? "nobody reads standard output any more"
      : `standard output takes no more: ${code}; give it a place that has room`,
  );
}

/** Node alone knows the file and the line of what is not JavaScript, and writes them as it ends for that error. */
function showSource(error: SyntaxError, flush: () => void): void {
  flush();
  process.removeAllListeners("uncaughtException");
  setImmediate(() => {
    throw error;
  });
}
