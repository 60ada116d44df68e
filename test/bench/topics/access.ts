/**
 * Register accesses of 4 bytes: one round trip of a driver VM's CPU. All processes on one CPU, but where it says
 * otherwise and for posted writes: the client does not wait for the device then, which has a CPU of its own as a device
 * VM has.
 */
import type { Machine, Sample } from "../machine.js";
import { type BridgedDevices, type LocalDevice, startBridged, startLocal, stopBridged } from "../processes.js";
import { single, sum, type Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly local: LocalDevice;
  readonly bridged: BridgedDevices;
  /** With the device on another CPU. */
  readonly apart: BridgedDevices;
}

const COUNT = 8000;
const ORDERED_WRITES = 200_000;

const socketFloor = ({ machine }: State): Promise<Sample> => machine.us("floor-unix-ping-pong", COUNT);
const bridgeFloor = async ({ machine }: State): Promise<Sample> =>
  sum(await machine.us("floor-unix-ping-pong", COUNT), await machine.us("floor-eventfd-ping-pong", COUNT));

export const access: Topic<State> = {
  name: "access",
  rows: [
    {
      name: "REGION_READ, local link",
      unit: "us",
      target: { ratio: 1.1 },
      floorName: "AF_UNIX ping-pong",
      floor: socketFloor,
      measure: ({ machine, local }) => machine.us("client-access", COUNT, "read", local.socket),
    },
    {
      name: "REGION_READ, local link, computed by the device",
      unit: "us",
      target: {},
      floorName: "AF_UNIX ping-pong",
      floor: socketFloor,
      measure: ({ machine, local }) => machine.us("client-access", COUNT, "ask", local.socket),
    },
    {
      name: "REGION_WRITE, local link",
      unit: "us",
      target: { ratio: 1.15 },
      floorName: "AF_UNIX ping-pong",
      floor: socketFloor,
      measure: ({ machine, local }) => machine.us("client-access", COUNT, "write", local.socket),
    },
    {
      name: "REGION_READ, bridge",
      unit: "us",
      target: { ratio: 1.3 },
      floorName: "AF_UNIX + eventfd ping-pong",
      floor: bridgeFloor,
      measure: ({ machine, bridged }) => machine.us("client-access", COUNT, "read", bridged.sockets[0]),
    },
    {
      name: "REGION_READ, bridge, computed by the device",
      unit: "us",
      target: { ratio: 1.4, ratioP99: 1.5 },
      floorName: "AF_UNIX + eventfd ping-pong",
      floor: bridgeFloor,
      measure: ({ machine, bridged }) => machine.us("client-access", COUNT, "ask", bridged.sockets[0]),
    },
    {
      name: "REGION_READ, bridge, computed by the device on another CPU",
      unit: "us",
      target: {},
      floorName: "AF_UNIX + eventfd ping-pong",
      floor: bridgeFloor,
      measure: ({ machine, apart }) => machine.us("client-access", COUNT, "ask", apart.sockets[0]),
    },
    {
      name: "REGION_WRITE (posted), bridge",
      unit: "us",
      target: { ratio: 1.15, ratioP99: 1.5 },
      floorName: "AF_UNIX ping-pong",
      floor: socketFloor,
      measure: ({ machine, apart }) => machine.us("client-access", COUNT, "write", apart.sockets[0]),
    },
    {
      name: "REGION_WRITE (posted), bridge and device on one CPU",
      unit: "us",
      target: {},
      floorName: "AF_UNIX ping-pong",
      floor: socketFloor,
      measure: ({ machine, bridged }) => machine.us("client-access", COUNT, "write", bridged.sockets[0]),
    },
    {
      name: "posted writes out of order, of 200 000",
      unit: "count",
      target: { value: 0 },
      once: true,
      measure: async ({ machine, bridged }) =>
        single((await machine.run("client-order", machine.cpu, ORDERED_WRITES, bridged.sockets[0])).median),
    },
  ],
  async open(machine) {
    return {
      machine,
      local: await startLocal(machine),
      bridged: await startBridged(machine),
      apart: await startBridged(machine, { deviceCpu: machine.otherCpu }),
    };
  },
  async close({ local, bridged, apart }) {
    await local.device.stop();
    await stopBridged(bridged);
    await stopBridged(apart);
  },
};
