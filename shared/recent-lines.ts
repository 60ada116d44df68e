/** The last warnings and errors of a log, for whoever looks at the process and not at its log; so many, and no more. */

/** Lines, and bytes of one; what is longer is left out. */
const MAX_LINES = 64;
const MAX_LINE = 2048;
/** As pino begins lines of these levels. */
const STARTS = ['{"level":40,', '{"level":50,'];

export interface RecentLine {
  readonly level: "warn" | "error";
  /** Milliseconds since 1970. */
  readonly time: number;
  readonly message: string;
  /** All other fields of the line, such as its session. */
  readonly details: Readonly<Record<string, unknown>>;
}

export class RecentLines {
  readonly #lines: string[] = [];
  #next = 0;

  /** A line of the log, whatever its level. */
  note(line: string): void {
    if (!STARTS.some((start) => line.startsWith(start)) || line.length > MAX_LINE) return;
    this.#lines[this.#next] = line;
    this.#next = (this.#next + 1) % MAX_LINES;
  }

  /** The oldest first. */
  get lines(): RecentLine[] {
    const inOrder = [...this.#lines.slice(this.#next), ...this.#lines.slice(0, this.#next)];
    return inOrder.map((line) => {
      const { level, time, msg, pid: _pid, hostname: _hostname, name: _name, ...details } = JSON.parse(line);
      return { level: level >= 50 ? "error" : "warn", time, message: msg, details };
    });
  }
}
