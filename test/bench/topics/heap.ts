/** That nothing is kept of a register access. */
import { MiB } from "../../../shared/limits.js";
import type { Machine, Sample } from "../machine.js";
import type { NodeProcess } from "../node-process.js";
import { type BridgedDevices, type LocalDevice, startBridged, startLocal, stopBridged } from "../processes.js";
import { single, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly local: LocalDevice;
  readonly bridged: BridgedDevices;
}

const WARM_UP = 20_000;
const HALF = 500_000;

async function growth({ machine }: State, socket: string, processes: readonly NodeProcess[]): Promise<Sample> {
  const accesses = async (count: number) => {
    await machine.us("client-access", count, "ask", socket);
    // Many at once: the same work for the server in less time.
    await machine.run("client-order", machine.cpu, count, socket);
  };
  const heaps = async () => {
    const sizes = await Promise.all(processes.map((process) => process.call<number>("heap")));
    return sizes.reduce((a, b) => a + b, 0);
  };
  await accesses(WARM_UP);
  const before = await heaps();
  await accesses(HALF);
  return single(((await heaps()) - before) / MiB);
}

export const heap: Topic<State> = {
  name: "heap",
  rows: [
    {
      name: "heap after 10^6 accesses, local link",
      unit: "MiB",
      target: { value: 1 },
      once: true,
      measure: (state) => growth(state, state.local.socket, [state.local.device]),
    },
    {
      name: "heap after 10^6 accesses, bridge and device",
      unit: "MiB",
      target: { value: 1 },
      once: true,
      measure: (state) => growth(state, state.bridged.sockets[0], [state.bridged.bridge, state.bridged.devices]),
    },
  ],
  async open(machine) {
    return { machine, local: await startLocal(machine), bridged: await startBridged(machine) };
  },
  async close({ local, bridged }) {
    await local.device.stop();
    await stopBridged(bridged);
  },
};
