/** The bridge as its users start it: a process, its sockets, and its log as lines to wait for. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { PROJECT_ROOT } from "./environment.js";
import { WakeUps } from "./wake-ups.js";

const START_MS = 30_000;

/** A line of a pino log. */
export type LogLine = Record<string, unknown> & { msg: string };

/** The sockets of one device. */
interface SocketPair {
  readonly vfioUser: string;
  readonly vhostUser: string;
}

export class BridgeProcess {
  /** A pair for each device. */
  readonly sockets: readonly SocketPair[];
  /** Where it can be looked at. */
  readonly control: string;
  readonly lines: LogLine[] = [];
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;
  readonly #wakeUps = new WakeUps();

  /** The sockets are made in `directory`, which stays the caller's. `args` are more for its command line. */
  constructor(directory: string, devices = 1, args: readonly string[] = []) {
    this.sockets = Array.from({ length: devices }, (_, n) => ({
      vfioUser: join(directory, `vfio-user${n || ""}.sock`),
      vhostUser: join(directory, `vhost-user${n || ""}.sock`),
    }));
    this.control = join(directory, "control.sock");
    const main = join(PROJECT_ROOT, "build/host/bridge/main.js");
    const pairs = this.sockets.flatMap(({ vfioUser, vhostUser }) => [
      ...["--socket-path", vfioUser],
      ...["--vhost-user-socket-path", vhostUser],
    ]);
    const node = [process.execPath, main, ...pairs, "--control", this.control, "--log-level", "debug", ...args];
    this.#child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...node], { stdio: ["ignore", "inherit", "pipe"] });
    this.#exited = once(this.#child, "close").finally(() => this.#wakeUps.wake());
    const reader = createInterface({ input: this.#child.stderr as NonNullable<ChildProcess["stderr"]> });
    reader.on("line", (line) => {
      this.lines.push(parseLogLine(line));
      this.#wakeUps.wake();
    });
  }

  /** The first device's. */
  get vfioUserSocket(): string {
    return this.sockets[0].vfioUser;
  }

  /** The first device's. */
  get vhostUserSocket(): string {
    return this.sockets[0].vhostUser;
  }

  /** The first log line from number `from` on that `matches`, past or future. */
  async waitForLog(matches: (line: LogLine) => boolean, timeoutMs = START_MS, from = 0): Promise<LogLine> {
    const deadline = performance.now() + timeoutMs;
    for (let next = from; ; ) {
      for (; next < this.lines.length; next++) if (matches(this.lines[next])) return this.lines[next];
      const left = deadline - performance.now();
      if (left <= 0) throw this.#failure("did not say what was waited for");
      if (!this.alive) throw this.#failure("ended");
      await this.#wakeUps.wait(left);
    }
  }

  async listening(): Promise<void> {
    await this.waitForLog((line) => line.msg === "serving");
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** With --supervised, the process below that is the bridge for now; undefined between two. */
  get supervisedPid(): number | undefined {
    const [child] = readFileSync(`/proc/${this.pid}/task/${this.pid}/children`, "utf8").split(" ");
    return child === "" ? undefined : Number(child);
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** SIGTERM, as a supervisor does; gives the exit code. */
  async stop(): Promise<number | null> {
    this.#child.kill("SIGTERM");
    await this.#exited;
    return this.#child.exitCode;
  }

  #failure(what: string): Error {
    const last = this.lines.slice(-10).map((line) => JSON.stringify(line));
    return new Error(`the bridge ${what}; it said last:\n${last.join("\n")}`);
  }
}

/** A line of a program's standard error; what is no log line counts as a message. */
export function parseLogLine(line: string): LogLine {
  try {
    return JSON.parse(line) as LogLine;
  } catch {
    return { msg: line };
  }
}
