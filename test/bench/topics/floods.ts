/**
 * What one session's flood costs another one on the same bridge: register reads of a well-behaved client, while another
 * client, with a device of its own, sends all it can. Those two have a CPU to themselves, as other VMs have; the floor
 * keeps that CPU as busy without a flood.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type { Machine, Sample } from "../machine.js";
import { type BridgedDevices, startBridged, stopBridged } from "../processes.js";
import type { Row, Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly bridged: BridgedDevices;
}

const COUNT = 8000;

/** Reads per second as the time of each, so that those that waited long count for what they were. */
async function readsBeside({ machine, bridged }: State, kind: string): Promise<Sample> {
  const [good, other] = bridged.sockets;
  const flood: ChildProcess = spawn(machine.program("client-flood"), [String(machine.otherCpu), kind, other], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const exited = once(flood, "exit");
  try {
    if (flood.stdout !== null) await once(flood.stdout, "data");
    const { perSecond, p99 } = await machine.run("client-access", machine.cpu, COUNT, "ask", good);
    return { median: 1e6 / perSecond, p99: p99 / 1000 };
  } finally {
    flood.stdin?.end();
    await exited;
  }
}

function besideRow(kind: string, what: string): Row<State> {
  return {
    name: `REGION_READ beside a flood of ${what}`,
    unit: "us",
    target: { ratio: 1.1 },
    floorName: "no flood",
    floor: (state) => readsBeside(state, "none"),
    measure: (state) => readsBeside(state, kind),
  };
}

export const floods: Topic<State> = {
  name: "floods",
  rows: [besideRow("writes", "posted writes"), besideRow("reads", "reads"), besideRow("maps", "DMA_MAP and DMA_UNMAP")],
  async open(machine) {
    return { machine, bridged: await startBridged(machine, { sessions: 2, neighbourCpu: machine.otherCpu }) };
  },
  async close({ bridged }) {
    await stopBridged(bridged);
  },
};
