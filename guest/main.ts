#!/usr/bin/env node
/** vfio-user-device: runs a PCI device, in a device VM or straight on a vfio-user socket. */
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { UserError } from "../shared/errors.js";
import { createLog, type Log } from "../shared/log.js";
import { LimitedLog } from "../shared/log-limit.js";
import type { Device } from "./device.js";
import { DEVICES } from "./devices/index.js";
import type { Link } from "./link/link.js";
import { LocalLink } from "./link/local.js";
import { createVirtioLink } from "./link/open.js";
import { helpText, isModulePath, type Options, type Place, parseOptions } from "./options.js";
import { runDevice } from "./run.js";
import { VfioFunction } from "./vfio/vfio.js";

/** What a module of a user's own exports as its default; it is given every --name=value that is not the program's. */
type DeviceFactory = (values: Readonly<Record<string, string | undefined>>) => Device | Promise<Device>;
type RunOptions = Extract<Options, { action: "run" }>;

async function main(argv: readonly string[]): Promise<number> {
  const options = parseOptions(argv, DEVICES);
  if (options.action === "help") {
    process.stdout.write(helpText(DEVICES));
    return 0;
  }
  const log = LimitedLog.of(createLog("vfio-user-device", options.logLevel));
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stop.abort());
  const device = await createDevice(options);
  const link = await createLink(options.place, options, log);
  const wasStopped = await runDevice(device, link, log, stop.signal);
  log.report();
  return wasStopped ? 0 : 1;
}

async function createDevice({ device, deviceOptions, deviceLists }: RunOptions): Promise<Device> {
  if (!isModulePath(device)) return DEVICES[device].create(deviceOptions, deviceLists);
  const create = await importFactory(device);
  return create(deviceOptions);
}

/** @throws UserError when the module is not there or makes no device */
async function importFactory(path: string): Promise<DeviceFactory> {
  let module: { default?: unknown };
  try {
    module = await import(pathToFileURL(resolve(path)).href);
  } catch (error) {
    throw new UserError(`cannot load the device ${path}: ${error instanceof Error ? error.message : error}`);
  }
  if (typeof module.default !== "function") {
    throw new UserError(`${path} has no default export that makes a device: see the README's "Write a device"`);
  }
  return module.default as DeviceFactory;
}

async function createLink(
  place: Place,
  { trustUnsealedMemory, isolated, linkPolling }: RunOptions,
  log: Log,
): Promise<Link> {
  if (!("pci" in place)) {
    const socket = "fd" in place ? place.fd : place.socketPath;
    return new LocalLink({ socket, log, trustUnsealedMemory });
  }
  const pci = VfioFunction.open(place.pci);
  try {
    return await createVirtioLink(pci, log, isolated, linkPolling);
  } catch (error) {
    pci.close();
    throw error instanceof UserError ? new UserError(`${place.pci}: ${error.message}`, error.exitCode) : error;
  }
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error) => {
    const user = error instanceof UserError;
    process.stderr.write(`vfio-user-device: ${user ? error.message : (error?.stack ?? error)}\n`);
    process.exit(user ? error.exitCode : 1);
  },
);
