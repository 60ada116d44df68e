/** Many sessions on one bridge: what each costs, busy and idle. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { MiB } from "../../../shared/limits.js";
import type { Machine, Sample } from "../machine.js";
import type { NodeProcess } from "../node-process.js";
import { type BridgedDevices, startBridged, stopBridged } from "../processes.js";
import { type Row, single, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  /** Bridges by number of sessions. */
  readonly one: BridgedDevices;
  readonly many: ReadonlyMap<number, BridgedDevices>;
}

const COUNT = 6400;
const MOST = 64;
const IDLE_MS = 5000;
/** Until V8 has reduced the heaps that the sessions before have left. */
const SETTLE_MS = 10_000;

const reads = ({ machine }: State, { sockets }: BridgedDevices): Promise<Sample> =>
  machine.us("client-access", COUNT, "ask", ...sockets);

function bridged({ many }: State, sessions: number): BridgedDevices {
  const found = many.get(sessions);
  if (found === undefined) throw new Error(`no bridge with ${sessions} sessions`);
  return found;
}

function costRow(sessions: number): Row<State> {
  return {
    name: `REGION_READ, ${sessions} sessions in turn`,
    unit: "us",
    target: { ratio: 1.1 },
    floorName: "a bridge with 1 session",
    floor: (state) => reads(state, state.one),
    measure: (state) => reads(state, bridged(state, sessions)),
  };
}

/** Share of a CPU that processes use while clients are connected to all sessions and do nothing. */
async function idle({ machine }: State, { sockets }: BridgedDevices, processes: readonly NodeProcess[]) {
  const client = spawn(machine.program("client-idle"), sockets, { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(client, "exit");
  await once(client.stdout, "data");
  await delay(SETTLE_MS);
  const used = () => processes.reduce((total, process) => total + process.cpuTime, 0);
  const [start, before] = [performance.now(), used()];
  await delay(IDLE_MS);
  const share = (used() - before) / 1e6 / (performance.now() - start);
  client.stdin.end();
  await exited;
  return single(share * 100);
}

export const sessions: Topic<State> = {
  name: "sessions",
  rows: [
    costRow(16),
    costRow(MOST),
    {
      name: "bridge's memory for each of 64 sessions",
      unit: "MiB",
      target: { value: 2 },
      once: true,
      async measure(state) {
        const many = bridged(state, MOST);
        await Promise.all([many.bridge.call("heap"), state.one.bridge.call("heap")]);
        return single((many.bridge.resident - state.one.bridge.resident) / (MOST - 1) / MiB);
      },
    },
    {
      name: "64 idle sessions, bridge",
      unit: "%",
      target: { value: 1 },
      once: true,
      measure: (state) => idle(state, bridged(state, MOST), [bridged(state, MOST).bridge]),
    },
    {
      name: "64 idle sessions, bridge and devices",
      unit: "%",
      target: { value: 1 },
      once: true,
      measure: (state) => {
        const { bridge, devices } = bridged(state, MOST);
        return idle(state, bridged(state, MOST), [bridge, devices]);
      },
    },
  ],
  async open(machine) {
    const one = await startBridged(machine);
    const many = new Map<number, BridgedDevices>();
    for (const count of [16, MOST]) many.set(count, await startBridged(machine, { sessions: count }));
    return { machine, one, many };
  },
  async close({ one, many }) {
    for (const bridge of [one, ...many.values()]) await stopBridged(bridge);
  },
};
