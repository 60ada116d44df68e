/**
 * A short run of each target, with a seed of its own each time; about a minute in all. `npm run fuzz` runs for longer.
 * And the fuzzer's own test: parsers that are broken on purpose are found out, in every way in which one can be broken.
 */
import test from "ava";
import { run } from "./run.js";
import { TARGETS } from "./targets/index.js";

const SECONDS = 3;
const PLANTED_SECONDS = 10;
const PLANTED_WATCHDOG_SECONDS = 2;

for (const target of TARGETS) {
  test.serial(`${target} withstands a hostile peer`, async (t) => {
    t.timeout(120_000);
    const { seed, rounds, steps, failure } = await run({ target, seconds: SECONDS });
    t.log(`seed ${seed}: ${rounds} rounds, ${steps} steps`);
    t.is(failure, undefined, failure);
    t.true(rounds > 0);
  });
}

const planted: Record<string, RegExp> = {
  exception: /exit code 1;[\s\S]*RangeError/,
  rejection: /exit code 1;[\s\S]*a record of \d+ bytes/,
  hang: /a hang: nothing happened for 2 s;/,
  stall: /a hang: nothing happened for 2 s;/,
  crash: /ended by SIGSEGV;/,
  fds: /file descriptors are open/,
  memory: /bytes of memory more/,
  answer: /the sum of a good stream/,
  canary: /a canary was written/,
};
for (const [bug, message] of Object.entries(planted)) {
  test.serial(`a planted ${bug} is found, and told with what repeats it`, async (t) => {
    const target = `planted-${bug}`;
    const seconds = bug === "memory" ? 1 : PLANTED_SECONDS;
    const hangs = bug === "hang" || bug === "stall";
    const options = { target, seconds, ...(hangs ? { watchdogSeconds: PLANTED_WATCHDOG_SECONDS } : {}) };
    const { seed, failure } = await run(options);
    t.regex(failure ?? "nothing was found", message);
    t.regex(failure ?? "", new RegExp(`npm run fuzz -- --target ${target} --seed ${seed} `));
    t.regex(failure ?? "", /step \d+: parse [0-9a-f]{16}/);
    if (bug !== "exception") return;
    const round = Number(/, round (\d+),/.exec(failure ?? "")?.[1]);
    const again = await run({ ...options, seed, firstRound: round, rounds: 1 });
    t.regex(again.failure ?? "nothing was found", message, "the same seed and round fail again");
  });
}
