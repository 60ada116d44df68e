#!/usr/bin/env node
/**
 * vfio-user-device: runs a PCI device, in a device VM or straight on a vfio-user socket. In this folder: options.ts is
 * its command line, run.ts the life of a device and its link, author-module.ts and author-error.ts are about devices of
 * a user's own; device.ts is what such a device is (scatter-list.ts belongs to it), and index.ts what its author
 * imports.
 */
import "../shared/no-debugger.js";
import { UserError } from "../shared/errors.js";
import type { Log } from "../shared/log.js";
import { LimitedLog } from "../shared/log.js";
import { Program } from "../shared/program.js";
import { versionText } from "../shared/usage.js";
import { createOwnDevice } from "./author-module.js";
import type { Device } from "./device.js";
import { DEVICES } from "./devices/index.js";
import type { Link } from "./link/link.js";
import { LocalLink } from "./link/local/local.js";
import { createVirtioLink } from "./link/virtio/open.js";
import { helpText, isModulePath, type Options, parseOptions, type Transport } from "./options.js";
import { notSilently, runDevice, whenAborted } from "./run.js";
import { VfioFunction } from "./vfio/vfio.js";

type RunOptions = Extract<Options, { action: "run" }>;

async function main(program: Program): Promise<number> {
  const options = parseOptions(process.argv.slice(2), DEVICES);
  if (options.action === "help") {
    process.stdout.write(helpText(DEVICES));
    return 0;
  }
  if (options.action === "version") {
    process.stdout.write(versionText("vfio-user-device"));
    return 0;
  }
  const log = LimitedLog.of(program.log(options.logLevel));
  const end = program.endSignal();
  const made = await Promise.race([createDevice(options, log), whenAborted(end)]);
  if (made === true) return 0;
  const link = await createLink(options.transport, options, log);
  const wasStopped = await runDevice(made, link, log, end, (inspect) => program.showState(log, inspect));
  log.report();
  return wasStopped ? 0 : 1;
}

function createDevice({ device, deviceOptions, deviceLists }: RunOptions, log: Log): Promise<Device> {
  if (!isModulePath(device)) return DEVICES[device].create(deviceOptions, deviceLists);
  return notSilently(`the module ${device}`, log, createOwnDevice(device, deviceOptions));
}

async function createLink(
  transport: Transport,
  { trustUnsealedMemory, isolated, linkPolling }: RunOptions,
  log: Log,
): Promise<Link> {
  if (!("pci" in transport)) {
    const socket = "fd" in transport ? transport.fd : transport.socketPath;
    return new LocalLink({ socket, log, trustUnsealedMemory });
  }
  const pci = VfioFunction.open(transport.pci);
  try {
    return await createVirtioLink(pci, log, isolated, linkPolling);
  } catch (error) {
    pci.close();
    throw error instanceof UserError ? new UserError(`${transport.pci}: ${error.message}`, error.exitCode) : error;
  }
}

Program.run("vfio-user-device", main);
