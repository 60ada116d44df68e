/** The processes that several topics share: a device on the local link, and bridges with devices behind them. */
import { join } from "node:path";
import type { Machine } from "./machine.js";
import { NodeProcess } from "./node-process.js";

const SERVER = "test/bench/server.js";

/** A device on a socket of its own. */
export interface LocalDevice {
  readonly socket: string;
  readonly device: NodeProcess;
}

let count = 0;

export interface StartOptions {
  readonly sessions?: number;
  readonly nodeArgs?: readonly string[];
  /** Where the devices run; beside the bridge if not given. */
  readonly deviceCpu?: number;
  /** Devices for which the bridge copies. */
  readonly isolated?: boolean;
  /**
   * Where the devices of all sessions but the first run, in a process of their own; with the first one's if not given.
   */
  readonly neighbourCpu?: number;
}

export async function startLocal(machine: Machine, { nodeArgs = [] }: StartOptions = {}): Promise<LocalDevice> {
  const socket = join(machine.directory, `local-${count++}.sock`);
  const device = await NodeProcess.start({ script: SERVER, args: ["local", socket], nodeArgs, cpu: machine.cpu });
  await device.call("ready");
  return { socket, device };
}

/** A bridge and one process with a device on each of its sessions. */
export interface BridgedDevices {
  readonly sockets: readonly string[];
  readonly bridge: NodeProcess;
  readonly devices: NodeProcess;
  /** The devices of all sessions but the first, where they are apart. */
  readonly neighbours: NodeProcess | undefined;
}

export async function startBridged(machine: Machine, options: StartOptions = {}): Promise<BridgedDevices> {
  const { sessions = 1, nodeArgs = [], deviceCpu = machine.cpu, isolated = false, neighbourCpu } = options;
  const run = count++;
  const path = (kind: string, n: number) => join(machine.directory, `${kind}-${run}-${n}.sock`);
  const sockets = Array.from({ length: sessions }, (_, n) => path("vfio-user", n));
  const vhostUser = Array.from({ length: sessions }, (_, n) => path("vhost-user", n));
  const pairs = sockets.flatMap((socket, n) => ["--socket-path", socket, "--vhost-user-socket-path", vhostUser[n]]);
  const bridge = await NodeProcess.start({
    script: "host/bridge/main.js",
    args: [...pairs, "--window-size", "1G"],
    nodeArgs,
    cpu: machine.cpu,
    ready: { text: '"msg":"serving"', count: sessions },
  });
  const serve = async (on: readonly string[], cpu: number): Promise<NodeProcess> => {
    const process = await NodeProcess.start({ script: SERVER, args: [isolated ? "isolated" : "virtio", ...on], cpu });
    await process.call("ready");
    return process;
  };
  const apart = neighbourCpu === undefined ? sessions : 1;
  const devices = await serve(vhostUser.slice(0, apart), deviceCpu);
  const neighbours = neighbourCpu === undefined ? undefined : await serve(vhostUser.slice(apart), neighbourCpu);
  return { sockets, bridge, devices, neighbours };
}

export async function stopBridged({ bridge, devices, neighbours }: BridgedDevices): Promise<void> {
  await devices.stop();
  await neighbours?.stop();
  await bridge.stop();
}
