/** Runs a target in a process of its own, watches it, and tells how to repeat a failure. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { close, createMemory } from "../../native/index.js";
import { TRACE_SIZE, Trace } from "./trace.js";

const CHILD = fileURLToPath(new URL("child.js", import.meta.url));
/** No step for so long is a hang. Generous: the machine may be busy, and a device has 4 s for a command. */
const WATCHDOG_SECONDS = 30;
const WATCH_INTERVAL_MS = 250;
const MAX_STDERR = 16 * 1024;

export interface RunOptions {
  readonly target: string;
  readonly seconds: number;
  /** Chosen at random when left out. */
  readonly seed?: number;
  readonly firstRound?: number;
  readonly rounds?: number;
  readonly watchdogSeconds?: number;
}

export interface Result {
  readonly target: string;
  readonly seed: number;
  readonly rounds: number;
  readonly steps: number;
  /** What went wrong, with the last messages; undefined when nothing did. */
  readonly failure: string | undefined;
}

export const newSeed = () => Math.floor(Math.random() * 2 ** 32);

export async function run(options: RunOptions): Promise<Result> {
  const { target, seconds, firstRound = 0, rounds = Number.MAX_SAFE_INTEGER } = options;
  const seed = options.seed ?? newSeed();
  const fd = createMemory("fuzz-trace", TRACE_SIZE, false);
  try {
    const trace = new Trace(fd);
    const child = spawn(
      process.execPath,
      [
        "--expose-gc",
        "--unhandled-rejections=throw",
        CHILD,
        target,
        ...[seed, firstRound, rounds, seconds].map(String),
      ],
      { stdio: ["ignore", "ignore", "pipe", fd] },
    );
    let stderr = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      stderr = (stderr + text).slice(-MAX_STDERR);
    });
    const hang = watch(child, trace, options.watchdogSeconds ?? WATCHDOG_SECONDS);
    const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
    const hung = hang();
    endProcess(trace.process, code === 0);
    const result = { target, seed, rounds: trace.rounds, steps: trace.steps };
    if (code === 0) return { ...result, failure: undefined };
    const how = hung ?? (signal ? `ended by ${signal}` : `ended with exit code ${code}`);
    const { round } = trace;
    const repeat = `npm run fuzz -- --target ${target} --seed ${seed}`;
    const failure = [
      `fuzz target ${target}: ${how}; seed ${seed}, round ${round}, step ${trace.steps - 1}`,
      `repeat it with: ${repeat}  (or, for that round alone, with --round ${round})`,
      ...(stderr === "" ? [] : [stderr.trimEnd()]),
      "the last steps:",
      ...trace.lines(),
    ];
    return { ...result, failure: failure.join("\n") };
  } finally {
    close(fd);
  }
}

/** Kills the child when it stands still. The function returned ends the watch, and tells what was seen. */
function watch(child: ChildProcess, trace: Trace, seconds: number): () => string | undefined {
  let hung: string | undefined;
  let steps = trace.steps;
  let since = Date.now();
  const timer = setInterval(() => {
    if (trace.steps !== steps) {
      steps = trace.steps;
      since = Date.now();
    } else if (Date.now() - since > seconds * 1000 && hung === undefined) {
      hung = `a hang: nothing happened for ${seconds} s`;
      child.kill("SIGKILL");
    }
  }, WATCH_INTERVAL_MS);
  return () => {
    clearInterval(timer);
    return hung;
  };
}

/** What a child that was killed left behind. */
function endProcess(pid: number, ended: boolean): void {
  if (pid === 0 || ended) return;
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It is gone.
  }
}
