/**
 * The process that is fuzzed: runs rounds on one target until its time is over, and looks after each whether everything
 * is as it was. Arguments: target, seed, first round, rounds at most, seconds at most. Any failure ends it with a text
 * on stderr; the parent (run.ts) adds what happened last.
 */
import { readdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import type { Log } from "../../shared/log.js";
import { Choices } from "./choices.js";
import { type Instance, tellsBug } from "./target.js";
import { targets } from "./targets/index.js";
import { TRACE_FD, Trace } from "./trace.js";

/** Rounds after which caches and compiled code are there. */
const WARM_UP_ROUNDS = 12;
/** How long what was closed by the first probes takes to be gone everywhere. */
const SETTLE_MS = 100;
const FDS_PATIENCE_MS = 5000;
/** A leak is growth of both: in all, and for each round. */
const MEMORY_SLACK = 8 * 1024 * 1024;
const MEMORY_SLACK_ELSEWHERE = 192 * 1024 * 1024;
const MEMORY_PER_ROUND = 512;

const [name, seed, first, most, seconds] = process.argv.slice(2);
const trace = new Trace(TRACE_FD);
const unexpected: string[] = [];
const log: Log = pino(
  { name: "fuzz", level: "warn" },
  { write: (line: string) => void (tellsBug(line) && unexpected.push(line)) },
);

const ownFds = () => readdirSync("/proc/self/fd").length;

async function ownMemory(): Promise<number> {
  for (let n = 0; n < 5; n++) {
    globalThis.gc?.();
    // What is the addon's is given back behind a collection, in a turn of its own.
    await delay(SETTLE_MS);
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** Closing takes a turn of the event loop or two, on whichever side. */
async function settled(count: () => number, expected: number, whose: string): Promise<void> {
  const end = Date.now() + FDS_PATIENCE_MS;
  while (count() > expected) {
    if (Date.now() > end) throw new Error(`${count()} file descriptors ${whose}, ${expected} before`);
    await delay(1);
  }
}

async function check(instance: Instance, fds: readonly number[]): Promise<void> {
  await instance.probe();
  if (unexpected.length > 0) throw new Error(`logged as a bug: ${unexpected[0]}`);
  await settled(ownFds, fds[0], "are open");
  if (instance.fds) await settled(() => instance.fds?.() ?? 0, fds[1], "are open in the target's process");
}

async function main(): Promise<void> {
  const target = await targets[name]?.();
  if (target === undefined) throw new Error(`no target ${name}: there are ${Object.keys(targets).join(", ")}`);
  const instance = await target({ trace, log });
  const measure = async () => [await ownMemory(), instance.memory?.() ?? 0];
  const end = Date.now() + Number(seconds) * 1000;
  // Twice, so that what is opened once for all is there.
  for (let n = 0; n < 2; n++) await instance.probe();
  await delay(SETTLE_MS);
  const fds = [ownFds(), instance.fds?.() ?? 0];
  let before: number[] | undefined;
  let rounds = 0;
  for (; rounds < Number(most) && (rounds < WARM_UP_ROUNDS || Date.now() < end); rounds++) {
    const round = Number(first) + rounds;
    trace.begin(round);
    await instance.round(Choices.forRound(Number(seed), round));
    trace.note("probe");
    await check(instance, fds);
    trace.done();
    if (rounds === WARM_UP_ROUNDS) before = await measure();
  }
  if (before !== undefined) {
    const after = await measure();
    const measured = rounds - WARM_UP_ROUNDS;
    for (const [index, slack] of [MEMORY_SLACK, MEMORY_SLACK_ELSEWHERE].entries()) {
      const growth = after[index] - before[index];
      if (growth > slack && growth > measured * MEMORY_PER_ROUND) {
        throw new Error(
          `${growth} bytes of memory more after ${measured} rounds${index > 0 ? " in the target's process" : ""}`,
        );
      }
    }
  }
  trace.note("close");
  await instance.close();
}

await main();
// What keeps the event loop is nobody's business: a target may have watchers of its own.
process.exit(0);
