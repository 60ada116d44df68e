/** The NVMe controller on the local link, its disk a file in memory; the driver is a C program. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MiB } from "../../../shared/limits.js";
import type { Machine } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type Row, type Sample, single, type Target, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly directory: string;
  readonly device: NodeProcess;
  readonly socket: string;
}

const DISK = 128 * MiB;
const MEMORY_FILES = "/dev/shm";
const COUNT = { 1: 5000, 32: 20_000 } as const;
type Depth = keyof typeof COUNT;

const rate = (perSecond: number): Sample => single(perSecond / 1000);

/** A copy and a turn of the shared flag, both CPUs awake. */
async function pollFloor({ machine }: State, depth: Depth): Promise<Sample> {
  const { cpu, otherCpu } = machine;
  return rate((await machine.run("floor-shared-flag", otherCpu, cpu, 20 * COUNT[depth], depth)).perSecond);
}

/** Two doorbells by socket and an interrupt by eventfd, for as many requests as go together. */
async function sleepFloor({ machine }: State, depth: Depth): Promise<Sample> {
  const unix = await machine.run("floor-unix-ping-pong", machine.cpu, COUNT[1]);
  const eventfd = await machine.run("floor-eventfd-ping-pong", machine.cpu, COUNT[1]);
  return rate((depth * 1e9) / (2 * unix.median + eventfd.median));
}

function row(operation: "read" | "write", how: "poll" | "sleep", depth: Depth, target: Target): Row<State> {
  const polls = how === "poll";
  return {
    name: `NVMe 4 KiB ${operation}, ${polls ? "driver polls" : "driver sleeps"}, QD${depth}`,
    unit: "k/s",
    target,
    floorName: polls ? "shared flag + memcpy" : "2 AF_UNIX + 1 eventfd ping-pong",
    floor: (state) => (polls ? pollFloor(state, depth) : sleepFloor(state, depth)),
    // Who polls needs a CPU of its own; who sleeps shares the device's.
    measure: async ({ machine, socket }) => {
      const cpu = polls ? machine.otherCpu : machine.cpu;
      return rate((await machine.run("client-nvme", cpu, COUNT[depth], operation, how, depth, socket)).perSecond);
    },
  };
}

export const nvme: Topic<State> = {
  name: "nvme",
  rows: (["read", "write"] as const).flatMap((operation) => [
    row(operation, "poll", 1, {}),
    row(operation, "poll", 32, {}),
    row(operation, "sleep", 1, { value: 24 }),
    row(operation, "sleep", 32, { value: 500 }),
  ]),
  async open(machine) {
    const directory = mkdtempSync(join(existsSync(MEMORY_FILES) ? MEMORY_FILES : tmpdir(), "vvu-bench-"));
    const file = join(directory, "disk.img");
    writeFileSync(file, Buffer.alloc(DISK, 1));
    const socket = join(directory, "nvme.sock");
    const device = await NodeProcess.start({
      script: "guest/main.js",
      args: ["run", "nvme", "--file", file, "--socket-path", socket],
      cpu: machine.cpu,
      ready: { text: '"msg":"the device is ready"', count: 1 },
    });
    return { machine, directory, device, socket };
  },
  async close({ device, directory }) {
    await device.stop();
    rmSync(directory, { recursive: true, force: true });
  },
};
