/** From an address of the driver VM to a place in the window. */
import type { Machine, Sample } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type Row, single, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly worker: NodeProcess;
}

const COUNT = 300;

function row(maps: number, value: number): Row<State> {
  return {
    name: `address lookup, ${maps} map${maps > 1 ? "s" : ""}`,
    unit: "ns",
    target: { value },
    floorName: "binary search in C",
    floor: ({ machine }) => machine.run("floor-lookup", machine.cpu, COUNT, maps),
    measure: ({ worker }) => worker.call<Sample>("lookup", maps, COUNT),
  };
}

export const lookup: Topic<State> = {
  name: "lookup",
  rows: [
    row(1, 30),
    row(64, 60),
    row(10_000, 120),
    {
      name: "heap used by 10^6 lookups",
      unit: "KiB",
      // Less than a byte each: what the compiler and the measurement allocate.
      target: { value: 900 },
      measure: async ({ worker }) => single((await worker.call<number>("lookupAllocation", 10_000)) / 1024),
    },
  ],
  async open(machine) {
    return { machine, worker: await NodeProcess.start({ script: "test/bench/worker.js", cpu: machine.cpu }) };
  },
  close: ({ worker }) => worker.stop(),
};
