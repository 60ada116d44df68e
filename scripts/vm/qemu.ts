/**
 * One QEMU process: its console as lines to wait for, commands in its guest, QMP, and an end that leaves nothing
 * behind.
 *
 * TCG (software emulation) unless VVU_ACCEL=kvm. QMP is a socket pair that QEMU inherits, so there is no file to clean
 * up. QEMU dies with its parent, however that ends: the kernel sees to it (PR_SET_PDEATHSIG, through setpriv).
 */
import { type ChildProcess, spawn } from "node:child_process";
import type { Duplex } from "node:stream";
import { QmpClient } from "../../shared/qmp.js";
import type { VmEnvironment } from "./environment.js";
import { WakeUps } from "./wake-ups.js";

const MAX_LOG_LINES = 5000;
/** What is longer is cut: a device's state with hundreds of maps is not. */
const MAX_LINE_LENGTH = 2 ** 20;
/** How many of the last lines an error quotes. */
const QUOTED_LINES = 25;
const STOP_DEADLINE_MS = 5000;
/** What a terminal in canonical mode takes as one line. */
const MAX_COMMAND_LINE = 4000;

interface VmExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

interface ConsoleLine {
  readonly text: string;
  /** Counted from 0 at power-on. */
  readonly number: number;
  readonly match: RegExpMatchArray;
}

interface CommandResult {
  readonly status: number;
  /** What came over the console meanwhile, without the last newline. */
  readonly output: string;
}

/** The accelerator's name: "tcg", or what VVU_ACCEL says. */
export function accelerator(): "tcg" | "kvm" {
  return process.env.VVU_ACCEL === "kvm" ? "kvm" : "tcg";
}

export class Vm {
  /** Resolves when QEMU has ended and all its output has been read; never rejects. */
  readonly exited: Promise<VmExit>;
  readonly #child: ChildProcess;
  readonly #qmpClient: QmpClient;
  readonly #lines: string[] = [];
  #droppedLines = 0;
  readonly #partial = { console: "", qemu: "" };
  #exit: VmExit | undefined;
  readonly #wakeUps = new WakeUps();
  #nextCommand = 1;

  /** Starts QEMU; `name` is for messages, `args` come from deviceVmArguments or driverVmArguments. */
  constructor(
    environment: VmEnvironment,
    readonly name: string,
    args: readonly string[],
  ) {
    const { program, args: prefix, environment: variables } = environment.qemu;
    const own = ["-chardev", "socket,id=qmp,fd=3", "-object", "monitor-qmp,id=monitor0,chardev=qmp"];
    this.#child = spawn("setpriv", ["--pdeathsig", "KILL", "--", program, ...prefix, ...args, ...own], {
      stdio: ["pipe", "pipe", "pipe", "pipe"],
      env: { ...process.env, ...variables },
    });
    this.#child.stdin?.on("error", () => {}); // QEMU's end is seen by `exited`
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => this.#receive("console", text));
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => this.#receive("qemu", text));
    this.#qmpClient = new QmpClient(this.#child.stdio[3] as Duplex, name);
    this.exited = new Promise((resolve) => {
      const finish = (exit: VmExit) => {
        this.#exit ??= exit;
        this.#wakeUps.wake();
        resolve(this.#exit);
      };
      this.#child.on("close", (code, signal) => finish({ code, signal }));
      this.#child.on("error", (error) => {
        this.#receive("qemu", `${error.message}\n`);
        if (this.#child.pid === undefined) finish({ code: 127, signal: null });
      });
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The console's last lines; those of QEMU itself (its stderr) begin with "[qemu] ". */
  get log(): string {
    return this.#lines.slice(-QUOTED_LINES).join("\n");
  }

  /** The number that the console's next line will have: with waitForLine's `from`, only lines from now on count. */
  get nextLine(): number {
    return this.#droppedLines + this.#lines.length;
  }

  /**
   * The first line at or after number `from` that matches; one that came before the call counts too. When it does not
   * come in time, or QEMU ends, the error quotes the last lines.
   */
  async waitForLine(pattern: RegExp, timeoutMs: number, from = 0): Promise<ConsoleLine> {
    const deadline = performance.now() + timeoutMs;
    let next = from;
    for (;;) {
      for (next = Math.max(next, this.#droppedLines); next < this.nextLine; next++) {
        const text = this.#lines[next - this.#droppedLines];
        const match = text.match(pattern);
        if (match !== null) return { text, number: next, match };
      }
      if (this.#exit !== undefined) throw this.#failure(`ended (${describe(this.#exit)}) before ${pattern} came`);
      const left = deadline - performance.now();
      if (left <= 0) throw this.#failure(`${pattern} did not come in ${timeoutMs} ms`);
      await this.#wakeUps.wait(left);
    }
  }

  /**
   * Runs shell commands in a guest whose init script ended with the command loop (initScript with `afterwards:
   * "commands"`). Each call is a shell of its own with no standard input; a background process it starts lives on.
   */
  async run(command: string, timeoutMs: number): Promise<CommandResult> {
    const number = this.#nextCommand++;
    const line = `${number} ${Buffer.from(command).toString("base64")}\n`;
    if (line.length > MAX_COMMAND_LINE) throw new RangeError(`a command of ${command.length} bytes is too long`);
    const from = this.nextLine;
    this.write(line);
    const end = await this.waitForLine(new RegExp(`^(.*)@@end ${number} (\\d+)$`), timeoutMs, from);
    const output = this.#lines.slice(Math.max(0, from - this.#droppedLines), end.number - this.#droppedLines);
    if (end.match[1] !== "") output.push(end.match[1]);
    return { status: Number(end.match[2]), output: output.join("\n") };
  }

  /** As `run`, but a status other than 0 is an error that quotes the output. Gives the output. */
  async check(command: string, timeoutMs: number): Promise<string> {
    const { status, output } = await this.run(command, timeoutMs);
    if (status !== 0) throw new Error(`${this.name}: "${command}" gave status ${status}:\n${output}`);
    return output;
  }

  /** Types on the guest's console. */
  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** Runs one QMP command and gives its `return`. */
  qmp(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    return this.#qmpClient.execute(command, args);
  }

  /** The data of the next QMP event of this name, from now on. */
  waitForEvent(name: string, timeoutMs: number, matches?: (data: Record<string, unknown>) => boolean) {
    return this.#qmpClient.waitForEvent(name, timeoutMs, matches);
  }

  /** Ends QEMU: SIGTERM, and SIGKILL when that is not enough. May be called at any time. */
  async stop(): Promise<VmExit> {
    this.#child.kill("SIGTERM");
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), STOP_DEADLINE_MS);
    const exit = await this.exited;
    clearTimeout(timer);
    return exit;
  }

  /** Ends QEMU at once, as a crash would. */
  async kill(): Promise<VmExit> {
    this.#child.kill("SIGKILL");
    return await this.exited;
  }

  #receive(from: "console" | "qemu", text: string): void {
    const lines = (this.#partial[from] + text).split("\n");
    this.#partial[from] = (lines.pop() ?? "").slice(0, MAX_LINE_LENGTH);
    const prefix = from === "qemu" ? "[qemu] " : "";
    for (const line of lines) this.#lines.push(prefix + line.replaceAll("\r", "").slice(0, MAX_LINE_LENGTH));
    const excess = this.#lines.length - MAX_LOG_LINES;
    if (excess > 0) {
      this.#lines.splice(0, excess);
      this.#droppedLines += excess;
    }
    if (lines.length > 0) this.#wakeUps.wake();
  }

  #failure(what: string): Error {
    return new Error(`${this.name}: ${what}; its last lines:\n${this.log}\n${this.#partial.console}`);
  }
}

function describe(exit: VmExit): string {
  return exit.signal ?? `status ${exit.code}`;
}
