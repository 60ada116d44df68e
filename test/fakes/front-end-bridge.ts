/** The real bridge in a process of its own, with sockets in a directory that goes with it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../../host/bridge/main.js", import.meta.url));

export interface BridgeProcessOptions {
  readonly windowSize?: string;
  readonly sessions?: number;
  readonly args?: readonly string[];
  /** RLIMIT_NOFILE. */
  readonly maxFds?: number;
  readonly env?: NodeJS.ProcessEnv;
  /** Another program than the bridge's main file. */
  readonly main?: string;
}

export class BridgeProcess {
  readonly directory = mkdtempSync(join(tmpdir(), "bridge-"));
  /** For the first session. */
  readonly socketPath = this.path("vfio-user", 0);
  readonly vhostUserSocketPath = this.path("vhost-user", 0);
  readonly process: ChildProcess;
  #log = "";
  readonly #watchers = new Set<() => void>();

  private constructor(options: BridgeProcessOptions) {
    const pairs = Array.from({ length: options.sessions ?? 1 }, (_, i) => [
      ...["--socket-path", this.path("vfio-user", i)],
      ...["--vhost-user-socket-path", this.path("vhost-user", i)],
    ]);
    const size = options.windowSize ?? "1G";
    const limit = options.maxFds === undefined ? "" : `ulimit -n ${options.maxFds}; `;
    // A test that fails before it can end the bridge leaves none behind.
    this.process = spawn(
      "setpriv",
      [
        "--pdeathsig",
        "KILL",
        "--",
        "bash",
        "-c",
        `${limit}exec "$@"`,
        "bash",
        process.execPath,
        options.main ?? MAIN,
        ...pairs.flat(),
        "--window-size",
        size,
        "--log-level",
        "debug",
        ...(options.args ?? []),
      ],
      { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, ...options.env } },
    );
    this.process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#log += text;
      for (const watcher of this.#watchers) watcher();
    });
    this.process.on("exit", () => {
      for (const watcher of this.#watchers) watcher();
    });
  }

  /** Starts the bridge and waits until it serves all its sockets. */
  static async start(options: BridgeProcessOptions = {}): Promise<BridgeProcess> {
    const bridge = new BridgeProcess(options);
    await bridge.logged(/"msg":"serving"/, options.sessions ?? 1);
    return bridge;
  }

  path(kind: "vfio-user" | "vhost-user", session: number): string {
    return join(this.directory, `${kind}-${session}.sock`);
  }

  /** All that it wrote to its stderr. */
  get log(): string {
    return this.#log;
  }

  get alive(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  /** Waits until the log holds `count` matches. Rejects when the bridge ends before. */
  logged(pattern: RegExp, count = 1): Promise<void> {
    const all = new RegExp(pattern, "g");
    return new Promise((resolve, reject) => {
      const look = () => {
        if ((this.#log.match(all)?.length ?? 0) >= count) resolve();
        else if (!this.alive) reject(new Error(`the bridge ended before it logged ${pattern}:\n${this.#log}`));
        else return;
        this.#watchers.delete(look);
      };
      this.#watchers.add(look);
      look();
    });
  }

  /** What the bridge's open fds are. */
  fds(): string[] {
    const directory = `/proc/${this.process.pid}/fd`;
    return readdirSync(directory)
      .map((fd) => readlinkSync(join(directory, fd)).replace(/\d+/g, "N"))
      .sort();
  }

  /** Ends it with SIGTERM; resolves with its exit code. */
  async stop(): Promise<number | null> {
    if (this.alive) {
      const exit = once(this.process, "exit");
      this.process.kill("SIGTERM");
      await exit;
    }
    rmSync(this.directory, { recursive: true, force: true });
    return this.process.exitCode;
  }
}
