/**
 * The NVMe controller on the local link, with a disk in memory, one that is a file in memory, and one that is a file on
 * a real disk, in the page cache or not; the driver is a C program. Doorbells that are mapped are polled by the device;
 * a driver that sleeps rings them by message.
 */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { PROJECT_ROOT } from "../../../scripts/vm/environment.js";
import { MiB } from "../../../shared/limits.js";
import type { Machine, Sample } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type Row, single, type Target, type Topic } from "../row.js";

/** How the driver waits, and with it the doorbells of the device that it is measured with. */
type How = "shared" | "sleep";

interface Controller {
  readonly device: NodeProcess;
  readonly socket: string;
  /** The file on a real disk. */
  readonly file: string;
}

interface State {
  readonly machine: Machine;
  readonly directories: readonly string[];
  readonly controllers: Readonly<Record<How, Controller>>;
}

const DISK_MIB = 128;
const MEMORY_FILES = "/dev/shm";
const TMPFS = 0x0102_1994;
/** Namespaces by what they are. */
const NAMESPACES = { file: 1, "file on disk": 2, memory: 3 } as const;
type Disk = keyof typeof NAMESPACES;
const COUNT = { shared: { 1: 100_000, 32: 400_000 }, sleep: { 1: 10_000, 32: 60_000 } } as const;
/** Few of the blocks, so that few of them are read again. */
const UNCACHED_COUNT = { 1: 4000, 32: 16_000 } as const;
const FLOOR_COUNT = 5000;
type Depth = 1 | 32;
const ZERO_DEPTH = 16;
const IDLE_MS = 4000;

const rate = (perSecond: number): Sample => single(perSecond / 1000);

/** A copy and a turn of the shared flag, both CPUs awake. */
async function sharedFloor({ machine }: State, depth: Depth): Promise<Sample> {
  const { cpu, otherCpu } = machine;
  return rate((await machine.run("floor-shared-flag", otherCpu, cpu, COUNT.shared[depth], depth)).perSecond);
}

/** Two doorbells by socket and an interrupt by eventfd, for as many requests as go together. */
async function sleepFloor({ machine }: State, depth: Depth): Promise<Sample> {
  const unix = await machine.run("floor-unix-ping-pong", machine.cpu, FLOOR_COUNT);
  const eventfd = await machine.run("floor-eventfd-ping-pong", machine.cpu, FLOOR_COUNT);
  return rate((depth * 1e9) / (2 * unix.median + eventfd.median));
}

function row(disk: Disk, operation: "read" | "write", how: How, depth: Depth, target: Target): Row<State> {
  const polls = how === "shared";
  return {
    name: `NVMe ${disk}, 4 KiB ${operation}, ${polls ? "doorbells mapped" : "driver sleeps"}, QD${depth}`,
    unit: "k/s",
    target,
    floorName: polls ? "shared flag + memcpy" : "2 AF_UNIX + 1 eventfd ping-pong",
    floor: (state) => (polls ? sharedFloor(state, depth) : sleepFloor(state, depth)),
    // Who polls needs a CPU of its own; who sleeps shares the device's.
    measure: async ({ machine, controllers }) => {
      const cpu = polls ? machine.otherCpu : machine.cpu;
      const { socket } = controllers[how];
      const count = COUNT[how][depth];
      const args = [cpu, count, operation, how, depth, socket, NAMESPACES[disk]];
      return rate((await machine.run("client-nvme", ...args)).perSecond);
    },
  };
}

/** Reads of what the page cache has not. */
function uncached(depth: Depth): Row<State> {
  return {
    name: `NVMe file on disk, 4 KiB read, not cached, doorbells mapped, QD${depth}`,
    unit: "k/s",
    target: {},
    measure: async ({ machine, controllers }) => {
      const { socket, file } = controllers.shared;
      execFileSync("dd", [`of=${file}`, "oflag=nocache", "conv=notrunc,fdatasync", "count=0"], { stdio: "ignore" });
      const args = [
        machine.otherCpu,
        UNCACHED_COUNT[depth],
        "read",
        "shared",
        depth,
        socket,
        NAMESPACES["file on disk"],
      ];
      return rate((await machine.run("client-nvme", ...args)).perSecond);
    },
  };
}

/** Deallocate (Dataset Management, of one range) and Write Zeroes. */
function withoutData(disk: Disk, operation: "deallocate" | "zero", target: Target): Row<State> {
  return {
    name: `NVMe ${disk}, 4 KiB ${operation}, doorbells mapped, QD${ZERO_DEPTH}`,
    unit: "k/s",
    target,
    measure: async ({ machine, controllers }) => {
      const count = disk === "file on disk" ? UNCACHED_COUNT[32] : COUNT.shared[32];
      const { socket } = controllers.shared;
      const args = [machine.otherCpu, count, operation, "shared", ZERO_DEPTH, socket, NAMESPACES[disk]];
      return rate((await machine.run("client-nvme", ...args)).perSecond);
    },
  };
}

/** Share of a CPU that a device takes whose doorbells are mapped, while its driver wants nothing of it. */
async function idle({ machine, controllers }: State): Promise<Sample> {
  const { device, socket } = controllers.shared;
  const args = [machine.otherCpu, 1000, "read", "idle", 1, socket, NAMESPACES.memory].map(String);
  const client = spawn(machine.program("client-nvme"), args, { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(client, "exit");
  await once(client.stdout, "data");
  await delay(500);
  const [start, before] = [performance.now(), device.cpuTime];
  await delay(IDLE_MS);
  const share = (device.cpuTime - before) / 1e6 / (performance.now() - start);
  client.stdin.end();
  await exited;
  return single(share * 100);
}

export const nvme: Topic<State> = {
  name: "nvme",
  rows: [
    ...(["memory", "file"] as const).flatMap((disk) =>
      (["read", "write"] as const).flatMap((operation) => [
        row(disk, operation, "shared", 1, disk === "memory" ? { ratio: 0.6 } : { ratio: 0.35 }),
        row(disk, operation, "shared", 32, disk === "memory" ? { ratio: 0.6 } : { ratio: 0.35 }),
        row(disk, operation, "sleep", 1, disk === "memory" ? { value: 24 } : {}),
        row(disk, operation, "sleep", 32, disk === "memory" ? { value: 500 } : {}),
      ]),
    ),
    // Reads that the page cache has are as those of the file in memory.
    ...([1, 32] as const).flatMap((depth) => [
      row("file on disk", "write", "shared", depth, {}),
      row("file on disk", "write", "sleep", depth, {}),
    ]),
    uncached(1),
    uncached(32),
    { name: "NVMe, doorbells mapped, idle", unit: "%", target: { value: 1 }, once: true, measure: idle },
  ],
  async open(machine) {
    const inMemory = mkdtempSync(join(existsSync(MEMORY_FILES) ? MEMORY_FILES : tmpdir(), "vvu-bench-"));
    const realDisk = statfsSync(tmpdir()).type === TMPFS ? join(PROJECT_ROOT, "build") : tmpdir();
    const onDisk = mkdtempSync(join(realDisk, "vvu-bench-"));
    const start = async (how: How, doorbells: string): Promise<Controller> => {
      const files = [inMemory, onDisk].map((directory) => join(directory, `${how}.img`));
      for (const file of files) writeFileSync(file, Buffer.alloc(DISK_MIB * MiB, 1));
      const socket = join(inMemory, `${how}.sock`);
      const disks = [...files.flatMap((file) => ["--file", file]), "--memory", `${DISK_MIB}M`];
      const device = await NodeProcess.start({
        script: "guest/main.js",
        args: ["run", "nvme", ...disks, "--doorbells", doorbells, "--socket-path", socket],
        cpu: machine.cpu,
        ready: { text: '"msg":"the device is ready"', count: 1 },
      });
      await machine.run("client-nvme", machine.otherCpu, 0, "fill", "poll", 32, socket, NAMESPACES.memory);
      return { device, socket, file: files[1] };
    };
    const controllers = { shared: await start("shared", "shared"), sleep: await start("sleep", "trapped") };
    return { machine, directories: [inMemory, onDisk], controllers };
  },
  async close({ controllers, directories }) {
    await Promise.all(Object.values(controllers).map(({ device }) => device.stop()));
    for (const directory of directories) rmSync(directory, { recursive: true, force: true });
  },
};

/** By themselves, on disks of their own: what is read and written where they left holes costs something else. */
export const holes: Topic<State> = {
  ...nvme,
  name: "holes",
  rows: (["memory", "file", "file on disk"] as const).flatMap((disk) => [
    withoutData(disk, "zero", disk === "memory" ? { value: 500 } : {}),
    withoutData(disk, "deallocate", disk === "memory" ? { value: 300 } : {}),
  ]),
};
