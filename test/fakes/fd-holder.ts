/**
 * The bridge below a service manager that a test has in its hand (fd-holder.py): what it kept can be changed while the
 * bridge is dead.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../../host/bridge/main.js", import.meta.url));
const HOLDER = fileURLToPath(new URL("../../../test/fakes/fd-holder.py", import.meta.url));

/** What becomes of a descriptor, by its name, or of a byte of a file of memory. */
export type Change =
  | readonly ["drop" | "add" | "eventfd" | "socket", name: string]
  | readonly ["rename" | "swap", name: string, other: string]
  | readonly ["file", name: string, path: string]
  | readonly ["memory" | "truncate", name: string, size: number]
  | readonly ["byte", name: string, offset: number, xor: number];

/** Name, what it leads to, and its size. */
export type Kept = readonly [name: string, target: string, size: number];

export class HeldBridge {
  readonly #process: ChildProcess;
  readonly #directory: string;
  readonly #answers: AsyncIterator<string>;
  readonly #watchers = new Set<() => void>();
  log = "";
  pid = 0;

  private constructor(sessions: number, args: readonly string[]) {
    this.#directory = mkdtempSync(join(tmpdir(), "held-"));
    const pairs = Array.from({ length: sessions }, (_, n) => [
      ...["--socket-path", this.path("vfio-user", n), "--vhost-user-socket-path", this.path("vhost-user", n)],
    ]);
    const bridge = [process.execPath, MAIN, ...pairs.flat(), "--window-size=1G", ...args];
    const command = [HOLDER, join(this.#directory, "notify"), ...bridge];
    this.#process = spawn("setpriv", ["--pdeathsig", "TERM", "--", "python3", ...command], {
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#answers = createInterface({ input: this.#process.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.log += text;
      for (const watcher of this.#watchers) watcher();
    });
    this.#process.on("exit", () => {
      for (const watcher of this.#watchers) watcher();
    });
  }

  /** Starts it, and waits until it serves. */
  static async start(sessions = 1, ...args: readonly string[]): Promise<HeldBridge> {
    const held = new HeldBridge(sessions, args);
    held.pid = (await held.#answer<{ pid: number }>()).pid;
    await held.logged(/"msg":"serving"/, sessions);
    return held;
  }

  path(kind: "vfio-user" | "vhost-user", session: number): string {
    return join(this.#directory, `${kind}-${session}.sock`);
  }

  /** Waits until the log has so many matches from `from` on. */
  logged(pattern: RegExp, count = 1, from = 0): Promise<void> {
    const all = new RegExp(pattern, "g");
    return new Promise((resolve, reject) => {
      const look = () => {
        if ((this.log.slice(from).match(all)?.length ?? 0) >= count) resolve();
        else if (this.#process.exitCode !== null) reject(new Error(`it ended before it said ${pattern}:\n${this.log}`));
        else return;
        this.#watchers.delete(look);
      };
      this.#watchers.add(look);
      look();
    });
  }

  async kept(): Promise<readonly Kept[]> {
    return (await this.#order<{ kept: Kept[] }>({ do: "kept" })).kept;
  }

  /** Bytes of a file of memory that is kept. */
  async bytes(name: string, offset: number, length: number): Promise<Buffer> {
    return Buffer.from((await this.#order<{ bytes: string }>({ do: "bytes", name, offset, length })).bytes, "hex");
  }

  /** The bridge dies, what is kept changes, and the next one is started. */
  async restart(changes: readonly Change[], signal = 9): Promise<void> {
    this.pid = (await this.#order<{ pid: number }>({ do: "restart", changes, signal })).pid;
  }

  /** Ends the bridge and waits; its exit code, or a signal as a negative number. */
  async end(signal = 15): Promise<number> {
    return (await this.#order<{ code: number }>({ do: "end", signal })).code;
  }

  /** Whatever is left of it goes. */
  async stop(): Promise<void> {
    if (this.#process.exitCode === null) {
      const exit = once(this.#process, "exit");
      this.#process.stdin?.end();
      await exit;
    }
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #order<Answer>(order: object): Promise<Answer> {
    this.#process.stdin?.write(`${JSON.stringify(order)}\n`);
    return this.#answer<Answer>();
  }

  async #answer<Answer>(): Promise<Answer> {
    const { value, done } = await this.#answers.next();
    if (done) throw new Error(`the manager ended:\n${this.log}`);
    return JSON.parse(value) as Answer;
  }
}
