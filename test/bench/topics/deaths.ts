/**
 * How long a client waits when its bridge is killed and the next one goes on: the longest of its register reads. The
 * floor is Node.js itself, which starts and does nothing.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { BRIDGE_MAIN, bundle } from "../../../scripts/package/bundle.js";
import type { Machine, Sample } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import type { Row, Topic } from "../row.js";

interface State {
  readonly machine: Machine;
  readonly main: string;
  readonly supervisor: ChildProcess;
  readonly devices: NodeProcess;
  readonly socket: string;
  /** Resolves when the next life serves. */
  readonly serving: () => Promise<void>;
}

const DEATHS = 20;
/** Between two deaths. */
const LIFE_MS = 300;

/** The supervisor's only child: the bridge. */
function bridgePid({ pid }: ChildProcess): number {
  return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ")[0]);
}

async function killedBridge({ machine, supervisor, socket, serving }: State): Promise<Sample> {
  const measured = machine.run("client-deaths", machine.otherCpu, DEATHS, socket);
  let isOver = false;
  void measured.finally(() => {
    isOver = true;
  });
  while (!isOver) {
    await delay(LIFE_MS);
    if (isOver) break;
    const next = serving();
    process.kill(bridgePid(supervisor), "SIGKILL");
    await next;
  }
  const { median, p99 } = await measured;
  return { median: median / 1000, p99: p99 / 1000 };
}

/** From the start of Node.js to its end, with nothing to run. */
async function emptyStart({ machine }: State): Promise<Sample> {
  const times: number[] = [];
  for (let n = 0; n < DEATHS; n++) {
    const start = performance.now();
    const child = spawn("taskset", ["-c", String(machine.cpu), process.execPath, "-e", "0"], { stdio: "ignore" });
    await once(child, "exit");
    times.push((performance.now() - start) * 1000);
  }
  times.sort((a, b) => a - b);
  return { median: times[DEATHS / 2], p99: times[DEATHS - 1] };
}

const killed: Row<State> = {
  name: "a register read while the bridge is killed, and the next one goes on",
  unit: "us",
  target: { value: 300_000 },
  floorName: "Node.js starts and ends",
  measure: killedBridge,
  floor: emptyStart,
};

export const deaths: Topic<State> = {
  name: "deaths",
  rows: [killed],
  async open(machine) {
    const main = BRIDGE_MAIN.replace(/main\.js$/, `bench-${process.pid}.mjs`);
    await bundle(BRIDGE_MAIN, main);
    const [socket, vhostUser] = ["vfio-user", "vhost-user"].map((name) => join(machine.directory, `deaths-${name}`));
    const sockets = ["--socket-path", socket, "--vhost-user-socket-path", vhostUser, "--window-size", "1G"];
    const node = ["-c", String(machine.cpu), process.execPath, main, "--supervised", ...sockets];
    const supervisor = spawn("taskset", node, {
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, VFIO_USER_STARTS: "1000000", RUNTIME_DIRECTORY: machine.directory },
    });
    let served: (() => void) | undefined;
    createInterface({ input: supervisor.stderr as NonNullable<typeof supervisor.stderr> }).on("line", (line) => {
      if (line.includes('"msg":"serving"')) served?.();
    });
    const serving = () =>
      new Promise<void>((resolve) => {
        served = resolve;
      });
    await serving();
    const devices = await NodeProcess.start({
      script: "test/bench/server.js",
      args: ["virtio", vhostUser],
      cpu: machine.otherCpu,
    });
    await devices.call("ready");
    return { machine, main, supervisor, devices, socket, serving };
  },
  async close({ devices, supervisor, main }) {
    await devices.stop();
    const ended = once(supervisor, "exit");
    supervisor.kill("SIGTERM");
    await ended;
    rmSync(main);
  },
};
