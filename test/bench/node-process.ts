/** A Node process that is measured: pinned, with the probe in it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";
import type { Answer } from "./probe.js";

const PROBE = join(PROJECT_ROOT, "build/test/bench/probe.js");
const KEPT_LINES = 30;

export interface NodeProcessOptions {
  /** Below the build directory. */
  readonly script: string;
  readonly args?: readonly string[];
  readonly nodeArgs?: readonly string[];
  /** Without it the process runs wherever it likes. */
  readonly cpu?: number;
  /** It is ready when its standard error matched this, so many times. */
  readonly ready?: { readonly text: string; readonly count: number };
}

export class NodeProcess {
  readonly #child: ChildProcess;
  readonly #calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  readonly #lines: string[] = [];
  readonly #exited: Promise<unknown>;
  #nextId = 1;

  private constructor({ script, args = [], nodeArgs = [], cpu }: NodeProcessOptions) {
    const main = join(PROJECT_ROOT, "build", script);
    const node = [process.execPath, "--expose-gc", ...nodeArgs, "--import", PROBE, main, ...args];
    const [program, ...rest] = cpu === undefined ? node : ["taskset", "-c", String(cpu), ...node];
    this.#child = spawn(program, rest, {
      stdio: ["ignore", "inherit", "pipe", "ipc"],
    });
    this.#exited = once(this.#child, "exit");
    this.#child.on("message", ({ id, value, error }: Answer) => {
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      if (error === undefined) call?.resolve(value);
      else call?.reject(new Error(error));
    });
    this.#child.on("exit", () => {
      for (const { reject } of this.#calls.values()) reject(this.#failure(script));
      this.#calls.clear();
    });
  }

  static async start(options: NodeProcessOptions): Promise<NodeProcess> {
    const started = new NodeProcess(options);
    const { text, count } = options.ready ?? { text: "", count: 0 };
    let missing = count;
    const ready = new Promise<void>((resolve, reject) => {
      const { stderr } = started.#child;
      if (stderr === null) throw new Error("no standard error");
      createInterface({ input: stderr }).on("line", (line) => {
        started.#lines.push(line);
        if (started.#lines.length > KEPT_LINES) started.#lines.shift();
        if (missing > 0 && line.includes(text) && --missing === 0) resolve();
      });
      if (missing === 0) resolve();
      void started.#exited.then(() => reject(started.#failure(options.script)));
    });
    await ready;
    return started;
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Asks the probe, or what the program registered with it. */
  call<Value = void>(name: string, ...args: readonly unknown[]): Promise<Value> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve: (value) => resolve(value as Value), reject });
      this.#child.send({ id, name, args }, (error) => {
        if (error !== null) reject(error);
      });
    });
  }

  /** Resident memory in bytes. */
  get resident(): number {
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"))?.[1];
    return Number(kib) * 1024;
  }

  get openFds(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  /** CPU time of all its threads so far, in nanoseconds. */
  get cpuTime(): number {
    const tasks = `/proc/${this.pid}/task`;
    return readdirSync(tasks)
      .map((task) => Number(readFileSync(join(tasks, task, "schedstat"), "utf8").split(" ")[0]))
      .reduce((a, b) => a + b, 0);
  }

  /** Thread ids of the threads with that name. */
  threads(name: string): number[] {
    const tasks = `/proc/${this.pid}/task`;
    return readdirSync(tasks)
      .filter((task) => readFileSync(join(tasks, task, "comm"), "utf8").trim() === name)
      .map(Number);
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill("SIGTERM");
    await this.#exited;
  }

  #failure(script: string): Error {
    const { exitCode, signalCode } = this.#child;
    return new Error(`${script} ended with ${signalCode ?? exitCode}:\n${this.#lines.join("\n")}`);
  }
}
