/**
 * DMA against memcpy of the same sizes: through the window, inside the device process; and by the copy queue, from the
 * device process to the bridge and back.
 */
import { addSeals, close, createMemory, F_SEAL_SHRINK } from "../../../native/index.js";
import { KiB, MiB } from "../../../shared/limits.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import type { Machine, Sample } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type BridgedDevices, startBridged, stopBridged } from "../processes.js";
import { type Row, scale, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly worker: NodeProcess;
  readonly isolated: BridgedDevices;
  readonly client: Client;
}

const SPAN = 8 * MiB;
/** 1 / 0.95: a bound on speed, as one on time. */
const NEARLY = 1 / 0.95;
/** 1 / 0.8, for a copy that somebody else makes. */
const MOSTLY = 1 / 0.8;
const READS = 2000;
const BASE = 0x1_0000_0000;

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

function copyRow(direction: "read" | "write", what: string, size: number, depth: number, ratio?: number): Row<State> {
  const count = Math.ceil(2000 / depth);
  return {
    name: `copy queue, ${direction} of ${what}, ${depth} at once`,
    unit: "us",
    target: ratio === undefined ? {} : { ratio },
    floorName: "memcpy",
    floor: ({ machine }) => machine.us("floor-memcpy", count * depth, direction, size, 1, SPAN),
    measure: ({ isolated }) => isolated.devices.call<Sample>("dma", direction, size, BASE, SPAN, depth, count),
  };
}

/**
 * A register read by the client of a second session, while the device of the first one has the bridge copy without a
 * pause.
 */
function othersRow(what: string, size: number, depth: number): Row<State> {
  return {
    name: `copy queue, REGION_READ of another session beside ${what}, ${depth} at once`,
    unit: "us",
    target: {},
    floorName: "nobody copies",
    floor: ({ machine, isolated }) => machine.us("client-access", READS, "ask", isolated.sockets[1]),
    measure: async ({ machine, isolated }) => {
      await isolated.devices.call("startCopying", size, BASE, SPAN, depth);
      try {
        return await machine.us("client-access", READS, "ask", isolated.sockets[1]);
      } finally {
        await isolated.devices.call("stopCopying");
      }
    },
  };
}

/** A client of the isolated device, with memory at BASE. */
async function connect({ sockets }: BridgedDevices): Promise<Client> {
  const client = await Client.connect(sockets[0]);
  const fd = createMemory("bench-driver-vm", SPAN, false);
  addSeals(fd, F_SEAL_SHRINK);
  await client.mapMemory({ address: BASE, size: SPAN, fd });
  close(fd);
  const command = Uint8Array.of(CommandBits.MEMORY | CommandBits.BUS_MASTER);
  await client.regionWrite(Region.CONFIG, Header.COMMAND, command);
  return client;
}

export const dma: Topic<State> = {
  name: "dma",
  rows: (["read", "write"] as const).flatMap((direction) => [
    row(direction, "4 KiB", 4 * KiB, 1, 2),
    row(direction, "64 KiB", 64 * KiB, 1, NEARLY),
    row(direction, "1 MiB", MiB, 1, NEARLY),
    row(direction, "32 parts of 4 KiB", 4 * KiB, 32, 2),
    copyRow(direction, "1 MiB", MiB, 8, MOSTLY),
    copyRow(direction, "64 KiB", 64 * KiB, 16),
    copyRow(direction, "4 KiB", 4 * KiB, 16),
    copyRow(direction, "4 KiB", 4 * KiB, 1),
    ...(direction === "read" ? [othersRow("1 MiB", MiB, 8), othersRow("64 KiB", 64 * KiB, 16)] : []),
  ]),
  async open(machine) {
    const worker = await NodeProcess.start({ script: "test/bench/worker.js", cpu: machine.cpu });
    const isolated = await startBridged(machine, { isolated: true, sessions: 2 });
    return { machine, worker, isolated, client: await connect(isolated) };
  },
  async close({ worker, isolated, client }) {
    client.close();
    await worker.stop();
    await stopBridged(isolated);
  },
};
