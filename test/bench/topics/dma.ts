/** DMA through the window, inside the device process, against memcpy of the same sizes. */
import { KiB, MiB } from "../../../shared/limits.js";
import type { Machine } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type Row, type Sample, scale, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly worker: NodeProcess;
}

const SPAN = 8 * MiB;
/** 1 / 0.95: a bound on speed, as one on time. */
const NEARLY = 1 / 0.95;

function row(direction: "read" | "write", what: string, size: number, parts: number, ratio: number): Row<State> {
  const count = Math.min(2000, Math.ceil((256 * MiB) / Math.max(64 * KiB, size * parts)));
  const inUs = (sample: Sample): Sample => scale(sample, 1 / 1000);
  return {
    name: `DMA ${direction} of ${what}`,
    unit: "us",
    target: { ratio },
    floorName: "memcpy",
    floor: ({ machine }) => machine.us("floor-memcpy", count, direction, size, parts, SPAN),
    measure: async ({ worker }) => inUs(await worker.call<Sample>("copy", direction, size, parts, count)),
  };
}

export const dma: Topic<State> = {
  name: "dma",
  rows: (["read", "write"] as const).flatMap((direction) => [
    row(direction, "4 KiB", 4 * KiB, 1, 2),
    row(direction, "64 KiB", 64 * KiB, 1, NEARLY),
    row(direction, "1 MiB", MiB, 1, NEARLY),
    row(direction, "32 parts of 4 KiB", 4 * KiB, 32, 2),
  ]),
  async open(machine) {
    return { machine, worker: await NodeProcess.start({ script: "test/bench/worker.js", cpu: machine.cpu }) };
  },
  close: ({ worker }) => worker.stop(),
};
