/**
 * DMA maps that come and go, of 64 MiB as a VMM makes them, and of 4 KiB as a driver VM with an IOMMU makes them: the
 * cost of a pair of DMA_MAP and DMA_UNMAP, and that nothing is left behind.
 */
import { KiB, MiB } from "../../../shared/limits.js";
import type { Machine, Sample } from "../machine.js";
import type { NodeProcess } from "../node-process.js";
import { type BridgedDevices, type LocalDevice, startBridged, startLocal, stopBridged } from "../processes.js";
import { type Row, single, sum, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly local: LocalDevice;
  readonly bridged: BridgedDevices;
  /** For the rows on what is left behind. */
  readonly smallLocal: LocalDevice;
  readonly smallBridged: BridgedDevices;
}

const SIZE = 64 * MiB;
const SMALL_SIZE = 4 * KiB;
const COUNT = 2000;
const BRIDGED_COUNT = 500;
/**
 * Until the heap of young objects has its final size, which is kept small: it would grow for 20 000 cycles otherwise.
 */
const WARM_UP_CYCLES = 4000;
const SMALL_HEAP = ["--max-semi-space-size=1"];
const CYCLES = 100_000;
const BRIDGED_CYCLES = 10_000;

const bareFloor = ({ machine }: State): Promise<Sample> => machine.us("floor-map", COUNT, SIZE);
/** A map and an unmap are a round trip each. */
const roundTripFloor = async (state: State): Promise<Sample> => {
  const roundTrip = await state.machine.us("floor-unix-ping-pong", COUNT);
  return sum(await bareFloor(state), roundTrip, roundTrip);
};

/** What a process holds more after many cycles than before them. */
async function growth(
  { machine }: State,
  process: NodeProcess,
  socket: string,
  size: number,
  cycles: number,
  held: () => number | Promise<number>,
): Promise<Sample> {
  await machine.us("client-map", Math.min(WARM_UP_CYCLES, cycles), size, socket);
  await process.call("heap");
  const before = await held();
  await machine.us("client-map", cycles, size, socket);
  await process.call("heap");
  return single((await held()) - before);
}

function growthRows(
  name: string,
  size: number,
  cycles: number,
  of: (state: State) => [NodeProcess, string],
): Row<State>[] {
  let fds: number;
  return [
    {
      name: `resident memory after ${cycles} cycles, ${name}`,
      unit: "MiB",
      target: { value: 1 },
      once: true,
      async measure(state) {
        const [process, socket] = of(state);
        const fdsBefore = process.openFds;
        const grown = await growth(state, process, socket, size, cycles, () => process.resident / MiB);
        fds = process.openFds - fdsBefore;
        return grown;
      },
    },
    {
      name: `fds left by them, ${name}`,
      unit: "count",
      target: { value: 0 },
      once: true,
      measure: async () => single(fds),
    },
  ];
}

export const maps: Topic<State> = {
  name: "maps",
  rows: [
    {
      name: "DMA_MAP + DMA_UNMAP, local link",
      unit: "us",
      target: { value: 40, ratio: 3 },
      floorName: "mmap + munmap",
      floor: bareFloor,
      measure: ({ machine, local }) => machine.us("client-map", COUNT, SIZE, local.socket),
    },
    {
      name: "DMA_MAP + DMA_UNMAP of 4 KiB, local link",
      unit: "us",
      target: { value: 20 },
      measure: ({ machine, local }) => machine.us("client-map", COUNT, SMALL_SIZE, local.socket),
    },
    {
      name: "DMA_MAP + DMA_UNMAP, bridge and SHMEM",
      unit: "us",
      target: {},
      floorName: "mmap + munmap, 2 AF_UNIX ping-pongs",
      floor: roundTripFloor,
      measure: ({ machine, bridged }) => machine.us("client-map", BRIDGED_COUNT, SIZE, bridged.sockets[0]),
    },
    ...growthRows("local link", SIZE, CYCLES, ({ smallLocal }) => [smallLocal.device, smallLocal.socket]),
    ...growthRows("local link, 4 KiB", SMALL_SIZE, CYCLES, ({ smallLocal }) => [smallLocal.device, smallLocal.socket]),
    ...growthRows("bridge", SIZE, BRIDGED_CYCLES, ({ smallBridged }) => [smallBridged.bridge, smallBridged.sockets[0]]),
  ],
  async open(machine) {
    return {
      machine,
      local: await startLocal(machine),
      bridged: await startBridged(machine),
      smallLocal: await startLocal(machine, { nodeArgs: SMALL_HEAP }),
      smallBridged: await startBridged(machine, { nodeArgs: SMALL_HEAP }),
    };
  },
  async close({ local, bridged, smallLocal, smallBridged }) {
    for (const { device } of [local, smallLocal]) await device.stop();
    for (const pair of [bridged, smallBridged]) await stopBridged(pair);
  },
};
