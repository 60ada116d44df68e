/**
 * npm run bench: measures what the project promises, each figure beside its floor on this machine, in one table.
 *
 * row is what a benchmark is, run measures rounds of them, report has the table. What is measured are C programs
 * (client/ and floor/, compiled by machine) and Node programs (node-process, with probe in it): device behind server,
 * worker; processes starts those that several topics share. topics/: access, doorbells, dma, lookup, maps, heap,
 * sessions, nvme, and vm with --vm.
 */
import "../../shared/no-debugger.js";
import { parseArgs } from "node:util";
import { Machine } from "./machine.js";
import { keep, load, type Report, table } from "./report.js";
import type { Topic } from "./row.js";
import { type Result, runTopic } from "./run.js";
import { access } from "./topics/access.js";
import { deaths } from "./topics/deaths.js";
import { dma } from "./topics/dma.js";
import { doorbells } from "./topics/doorbells.js";
import { floods } from "./topics/floods.js";
import { heap } from "./topics/heap.js";
import { lookup } from "./topics/lookup.js";
import { maps } from "./topics/maps.js";
import { holes, nvme } from "./topics/nvme.js";
import { sessions } from "./topics/sessions.js";
import { vm } from "./topics/vm.js";

const HELP = `\
Usage: npm run bench -- [OPTION]...

Measures each figure in rounds, right after the floor that it is compared with (small C programs, compiled now), and
prints one table. A missed target is marked; it is no failure.

  --vm             instead: the disk in a driver VM, against QEMU's own (npm run bench:vm)
  --only PATTERN   rows whose "topic: name" matches this regular expression
  --rounds N       rounds for each row (default: 4); the first one is dropped
  --json FILE      keep the results
  --compare FILE   compare with results that were kept
  --help           print this text
`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      vm: { type: "boolean", default: false },
      only: { type: "string", default: "" },
      rounds: { type: "string", default: "4" },
      json: { type: "string" },
      compare: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error("--rounds needs a number of at least 1");
  const earlier = values.compare === undefined ? undefined : load(values.compare);
  const pattern = new RegExp(values.only, "i");
  const wanted = (name: string): boolean => pattern.test(name);
  const isTerminal = process.stderr.isTTY;
  const progress = (text: string): void => {
    if (isTerminal) process.stderr.write(`\r\x1b[K${text}`);
  };

  const machine = new Machine();
  const results: Result[] = [];
  try {
    await machine.compile();
    const about = machine.describe();
    const measure = async <State>(topic: Topic<State>): Promise<void> => {
      results.push(...(await runTopic(topic, machine, rounds, wanted, progress)));
    };
    if (values.vm) {
      await measure(vm);
    } else {
      await measure(access);
      await measure(doorbells);
      await measure(dma);
      await measure(lookup);
      await measure(maps);
      await measure(nvme);
      await measure(holes);
      await measure(sessions);
      await measure(floods);
      await measure(deaths);
      await measure(heap);
    }
    progress("");
    if (results.length === 0) throw new Error(`no row matches ${values.only}`);
    const report: Report = { machine: about, results };
    process.stdout.write(table(report, earlier));
    if (values.json !== undefined) keep(values.json, report);
  } finally {
    machine.remove();
  }
}

await main();
