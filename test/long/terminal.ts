/**
 * A terminal window: what runs in it, what it has said so far, and what is typed into it. It dies with this process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { WakeUps } from "../../scripts/vm/wake-ups.js";

export interface TerminalOptions {
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
}

const STOP_DEADLINE_MS = 5000;

export class Terminal {
  output = "";
  readonly #ended: Promise<number | null>;
  readonly #child: ChildProcess;
  readonly #wakeUps = new WakeUps();
  #isEnded = false;

  /** Runs commands in bash. The last becomes the terminal's process itself, which so gets its signals. */
  constructor(commands: readonly string[], options: TerminalOptions) {
    const script = [...commands.slice(0, -1), `exec ${commands.at(-1)}`].join("\n");
    this.#child = spawn("setpriv", ["--pdeathsig", "KILL", "--", "bash", "-ec", script], options);
    for (const stream of [this.#child.stdout, this.#child.stderr])
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text.replaceAll("\r", "");
        this.#wakeUps.wake();
      });
    this.#child.stdin?.on("error", () => {}); // seen by #ended
    this.#ended = once(this.#child, "close").then(() => {
      this.#isEnded = true;
      this.#wakeUps.wake();
      return this.#child.exitCode;
    });
  }

  type(text: string): void {
    this.#child.stdin?.write(text);
  }

  interrupt(): void {
    this.#child.kill("SIGINT");
  }

  /** Waits until `text` comes, at `from` or later; gives the place behind it. */
  async waitFor(text: string, from: number, timeoutMs: number): Promise<number> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const at = this.output.indexOf(text, from);
      if (at >= 0) return at + text.length;
      const left = deadline - performance.now();
      if (this.#isEnded || left <= 0)
        throw new Error(
          `"${text}" did not come; the terminal${this.#isEnded ? " ended and" : ""} said:\n${this.output}`,
        );
      await this.#wakeUps.wait(left);
    }
  }

  /** Waits for its end, and gives its exit code. */
  async end(timeoutMs: number): Promise<number | null> {
    const deadline = performance.now() + timeoutMs;
    while (!this.#isEnded) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`the terminal did not end; it said:\n${this.output}`);
      await this.#wakeUps.wait(left);
    }
    return this.#ended;
  }

  async stop(): Promise<void> {
    if (this.#isEnded) return;
    this.#child.kill("SIGTERM");
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), STOP_DEADLINE_MS);
    await this.#ended;
    clearTimeout(timer);
  }
}
