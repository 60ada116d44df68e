/** Interrupts: from the kick of a doorbell in the device VM to the driver VMM's eventfd, through the bridge's relay. */
import { execFileSync } from "node:child_process";
import type { Machine, Sample } from "../machine.js";
import { type BridgedDevices, startBridged, stopBridged } from "../processes.js";
import type { Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly bridged: BridgedDevices;
}

const COUNT = 20_000;
const BUSY_MS = 50;

async function ring({ machine, bridged }: State): Promise<Sample> {
  const { devices, sockets } = bridged;
  const args = [machine.cpu, COUNT, sockets[0]].map(String);
  const { median, p99 } = JSON.parse(
    await devices.call<string>("runWithKick", machine.program("client-doorbell"), args),
  );
  return { median: median / 1000, p99: p99 / 1000 };
}

/** Which CPU the relay's thread and all other threads of the bridge run on. */
function place({ machine, bridged }: State, others: number): void {
  const { pid } = bridged.bridge;
  execFileSync("taskset", ["-a", "-cp", String(others), String(pid)], { stdio: "ignore" });
  for (const thread of bridged.bridge.threads("doorbell-relay")) {
    execFileSync("taskset", ["-cp", String(machine.cpu), String(thread)], { stdio: "ignore" });
  }
}

const floorName = "epoll relay in C";
const floor = ({ machine }: State): Promise<Sample> => machine.us("floor-relay", COUNT);

export const doorbells: Topic<State> = {
  name: "doorbells",
  rows: [
    {
      name: "doorbell, kick to the driver's eventfd",
      unit: "us",
      target: { ratio: 1.1, ratioP99: 1.1 },
      floorName,
      floor,
      measure: ring,
    },
    {
      name: "doorbell, JavaScript busy 50 ms at a time",
      unit: "us",
      target: { ratio: 1.1, ratioP99: 1.1 },
      floorName,
      floor,
      async measure(state) {
        const { bridge } = state.bridged;
        // The client is to be served by somebody, so JavaScript is busy on the other CPU; only the relay stays on ours.
        place(state, state.machine.otherCpu);
        await bridge.call("busy", BUSY_MS);
        try {
          return await ring(state);
        } finally {
          await bridge.call("busy", 0);
          place(state, state.machine.cpu);
        }
      },
    },
  ],
  async open(machine) {
    return { machine, bridged: await startBridged(machine) };
  },
  close: ({ bridged }) => stopBridged(bridged),
};
