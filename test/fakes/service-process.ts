/** One of our programs that serve, as a process: what it is started with, what it says, how it ends. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { ExecutionContext } from "ava";
import { folder } from "../native/helpers.js";

const main = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url));

/** How each is started, but for its sockets. */
export const PROGRAMS = {
  bridge: [main("host/bridge/main.js"), "--window-size=1G"],
  device: [main("guest/main.js"), "run", "gpio"],
} as const;
export type Name = keyof typeof PROGRAMS;
export const NAMES = Object.keys(PROGRAMS) as Name[];

/** Options for as many sockets as it needs, in a directory. */
export function socketArgs(name: Name, directory: string): string[] {
  const own = [`--socket-path=${join(directory, "a")}`];
  return name === "device" ? own : [...own, `--vhost-user-socket-path=${join(directory, "b")}`];
}

/** Options for descriptors from 3 on. */
export function fdArgs(name: Name): string[] {
  return name === "device" ? ["--fd=3"] : ["--fd=3", "--vhost-user-fd=4"];
}

export interface Start {
  /** Descriptors from 3 on. */
  readonly fds?: readonly number[];
  readonly env?: NodeJS.ProcessEnv;
  /** A script that execs "$@", for what only the process itself can set. */
  readonly shell?: string;
  /** Instead of the shell: Python that runs before exec. */
  readonly python?: string;
}

export class ServiceProcess {
  readonly child: ChildProcess;
  /** Its exit code, when all of its output is here. */
  readonly ended: Promise<number | null>;
  output = "";
  /** Standard error. */
  log = "";

  constructor(t: ExecutionContext, args: readonly string[], { fds = [], env = {}, shell, python }: Start = {}) {
    const exec = `import os, socket, sys\n${python}\nos.execvp(sys.argv[1], sys.argv[1:])`;
    const prefix = python !== undefined ? ["python3", "-c", exec] : ["bash", "-c", shell ?? 'exec "$@"', "bash"];
    // A test that does not come to its end leaves none behind.
    this.child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...prefix, process.execPath, ...args], {
      stdio: ["ignore", "pipe", "pipe", ...fds],
      env: { ...process.env, NOTIFY_SOCKET: undefined, ...env },
    });
    t.teardown(() => this.child.kill("SIGKILL"));
    this.child.stdout?.setEncoding("utf8").on("data", (text) => {
      this.output += text;
    });
    this.child.stderr?.setEncoding("utf8").on("data", (text) => {
      this.log += text;
    });
    this.ended = once(this.child, "close").then(([code]) => code);
  }

  /** Waits until it has said so, so many times. Rejects when it ends before. */
  async said(pattern: RegExp, count = 1): Promise<void> {
    const all = new RegExp(pattern, "g");
    let isOver = false;
    void this.ended.then(() => {
      isOver = true;
    });
    while ((this.log.match(all)?.length ?? 0) < count) {
      if (isOver) throw new Error(`it ended and never said ${pattern}:\n${this.log}`);
      await Promise.race([once(this.child.stderr!, "data"), this.ended]);
    }
  }

  /** Waits until clients can connect to all of its sockets. */
  serving(): Promise<void> {
    return this.said(/serving|the device is ready/);
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    this.child.kill(signal);
    return this.ended;
  }
}

export function start(t: ExecutionContext, name: Name, args: readonly string[], how?: Start): ServiceProcess {
  return new ServiceProcess(t, [...PROGRAMS[name], ...args], how);
}

/** Runs it to its end. */
export async function fails(t: ExecutionContext, name: Name, args: readonly string[], how?: Start) {
  const running = start(t, name, args, how);
  const code = await running.ended;
  return { code, text: running.log.replace(/^vfio-user-(bridge|device): /, "").trimEnd() };
}

const MANAGER = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("bound", flush=True)
while True: print(s.recv(4096).decode(), flush=True)
`;

/** A service manager's socket: its path, and the next message. */
export async function manager(t: ExecutionContext) {
  const path = join(folder(t), "notify");
  const child = spawn("python3", ["-c", MANAGER, path], { stdio: ["ignore", "pipe", "inherit"] });
  t.teardown(() => child.kill("SIGKILL"));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return { path, next: async (): Promise<string> => (await lines.next()).value };
}
