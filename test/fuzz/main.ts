/**
 * `npm run fuzz`: every target in turn. Options: --seconds N for each target (10), --seed S, --target NAME (more than
 * one is possible), --round N to repeat one round alone, --list.
 *
 * run starts a child for each target (target: what one is), whose last steps are in a trace. choices are seeded; mutate
 * bends messages, those of vfio-user-messages, nvme-commands and copies first; peer and fds send them. hostile-pci,
 * bridge and device are what stands around what is attacked.
 */
import "../../shared/no-debugger.js";
import { parseArgs } from "node:util";
import { newSeed, run } from "./run.js";
import { TARGETS } from "./targets/index.js";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "10" },
    seed: { type: "string" },
    target: { type: "string", multiple: true },
    round: { type: "string" },
    list: { type: "boolean" },
  },
});

if (values.list) {
  for (const name of TARGETS) console.log(name);
} else {
  const seed = values.seed === undefined ? newSeed() : Number(values.seed);
  let failed = 0;
  for (const target of values.target ?? TARGETS) {
    const single = values.round === undefined ? {} : { firstRound: Number(values.round), rounds: 1 };
    const { rounds, steps, failure } = await run({ target, seed, seconds: Number(values.seconds), ...single });
    console.log(`${failure === undefined ? "ok" : "FAILED"} ${target}: ${rounds} rounds, ${steps} steps, seed ${seed}`);
    if (failure === undefined) continue;
    failed++;
    console.log(failure);
  }
  process.exitCode = failed === 0 ? 0 : 1;
}
