/** `vfio-user-device run` as a process of this host, straight on a vfio-user socket, for a driver VM. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";

/** What the program logs when clients can connect. */
const READY = "the device is ready";

/** Starts it with these arguments and adds it to `devices`; resolves when it listens at `socket`. */
export async function startDevice(devices: ChildProcess[], socket: string, ...args: string[]): Promise<void> {
  const main = [join(PROJECT_ROOT, "build/guest/main.js"), "run", ...args, "--socket-path", socket];
  const node = [process.execPath, ...main];
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...node], { stdio: ["ignore", "inherit", "pipe"] });
  devices.push(child);
  const said: string[] = [];
  for await (const line of createInterface({ input: child.stderr })) {
    said.push(line);
    if (line.includes(READY)) break;
  }
  if (!said.at(-1)?.includes(READY)) throw new Error(`the device did not start:\n${said.join("\n")}`);
  child.stderr.resume();
}

export async function stopDevices(devices: readonly ChildProcess[]): Promise<void> {
  for (const child of devices) {
    child.kill("SIGTERM");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }
}
