/**
 * What the benchmarks need of the machine: CPUs to pin to, the C programs (compiled into a temporary directory), and
 * Node processes that can be asked for things.
 */
import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";

const run = promisify(execFile);
const SOURCES = join(PROJECT_ROOT, "test/bench");
const COMPILER = process.env.CC ?? "cc";
const FLAGS = ["-O2", "-Wall", "-D_GNU_SOURCE", "-pthread"];
/** The driver VM has no libraries of this machine. */
const FOR_THE_VM = "client-block";
const PROGRAM_TIMEOUT_MS = 200_000;

/** One round's measurement of a row or of its floor, in the row's unit. */
export interface Sample {
  readonly median: number;
  readonly p99: number;
}

/** What each C program prints: nanoseconds for one operation, and operations per second. */
export interface ProgramResult extends Sample {
  readonly perSecond: number;
}

export class Machine {
  /**
   * Where processes take turns; and another one, for who must not be disturbed by them (the same on a machine with
   * one).
   */
  readonly cpu: number;
  readonly otherCpu: number;
  readonly directory = mkdtempSync(join(tmpdir(), "vvu-bench-"));

  constructor() {
    const cpus = allowedCpus();
    this.cpu = cpus[cpus.length - 1];
    this.otherCpu = cpus[0];
  }

  async compile(): Promise<void> {
    const sources = ["floor", "client"].flatMap((folder) =>
      readdirSync(join(SOURCES, folder))
        .filter((name) => name.endsWith(".c"))
        .map((name) => ({ source: join(SOURCES, folder, name), program: `${folder}-${basename(name, ".c")}` })),
    );
    for (const { source, program } of sources) {
      const place = program === FOR_THE_VM ? ["-static"] : [];
      await run(COMPILER, [...FLAGS, ...place, "-o", this.program(program), source]);
    }
  }

  program(name: string): string {
    return join(this.directory, name);
  }

  /** Runs a C program: its folder and name, and its arguments. */
  async run(name: string, ...args: readonly (string | number)[]): Promise<ProgramResult> {
    const { stdout } = await run(this.program(name), args.map(String), { timeout: PROGRAM_TIMEOUT_MS });
    return JSON.parse(stdout);
  }

  /** The same in microseconds, pinned to `cpu`. */
  async us(name: string, ...args: readonly (string | number)[]): Promise<Sample> {
    const { median, p99 } = await this.run(name, this.cpu, ...args);
    return { median: median / 1000, p99: p99 / 1000 };
  }

  describe(): Readonly<Record<string, string>> {
    const model = /^model name\s*:\s*(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? "unknown";
    const kernel = readFileSync("/proc/sys/kernel/osrelease", "utf8").trim();
    const load = readFileSync("/proc/loadavg", "utf8").split(" ")[0];
    return { processor: model, kernel, node: process.version, loadBefore: load };
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function allowedCpus(): number[] {
  const list = execFileSync("taskset", ["-cp", String(process.pid)], { encoding: "utf8" })
    .split(":")[1]
    .trim();
  return list.split(",").flatMap((part) => {
    const [first, last = first] = part.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, n) => first + n);
  });
}
