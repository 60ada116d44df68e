#!/usr/bin/env node
/**
 * vfio-user-device: runs a PCI device, in a device VM or straight on a vfio-user socket. In this folder: options.ts is
 * its command line, run.ts the life of a device and its link, shown-device.ts what is shown of it, author-module.ts and
 * author-error.ts are about devices of a user's own; device.ts is what such a device is (scatter-list.ts belongs to
 * it), and index.ts what its author imports.
 */
import "../shared/no-debugger.js";
import { helpText } from "../shared/command-line/help.js";
import { versionText } from "../shared/command-line/parse.js";
import { Control } from "../shared/control/control.js";
import type { ShownSession } from "../shared/control/sessions.js";
import { UserError } from "../shared/errors.js";
import type { Log } from "../shared/log.js";
import { LimitedLog } from "../shared/log.js";
import { Program } from "../shared/program.js";
import { capabilitiesText } from "../shared/service/capabilities.js";
import { InheritedSockets } from "../shared/service/inherited-sockets.js";
import { Service } from "../shared/service/service.js";
import { setSocketAccess } from "../shared/service/socket-access.js";
import { createOwnDevice } from "./author-module.js";
import type { Device } from "./device.js";
import { DEVICES } from "./devices/index.js";
import type { Link } from "./link/link.js";
import { LocalLink } from "./link/local/local.js";
import { createVirtioLink } from "./link/virtio/open.js";
import {
  activatedSocket,
  isModulePath,
  type Options,
  type Place,
  parseOptions,
  type RunOptions,
  tableOf,
} from "./options.js";
import { notSilently, runDevice, whenAborted } from "./run.js";
import { showDevice } from "./shown-device.js";
import { VfioFunction } from "./vfio/vfio.js";

const TABLE = tableOf(DEVICES);
async function main(program: Program): Promise<number> {
  const options = parseOptions(process.argv.slice(2), DEVICES);
  if (options.action !== "run") {
    process.stdout.write(textOf(options));
    return 0;
  }
  const inherited = new InheritedSockets();
  const transport = findTransport(options, inherited);
  const { recent } = program;
  const root = await program.openLog(options.service.log);
  const log = LimitedLog.of(root);
  const end = program.endSignal();
  const service = new Service(options.service, log);
  const made = await Promise.race([createDevice(options, log), whenAborted(end)]);
  if (made === true) return 0;
  const link = await createLink(transport, options, log);
  let shown: readonly ShownSession[] = [];
  const { control: controlOptions, device } = options;
  const own = { name: TABLE.name, sessions: () => shown, log: root, recent };
  const control = await Control.open(own, controlOptions, made.methods);
  const wasStopped = await runDevice(made, link, log, end, {
    show: (endpoint) => {
      shown = [showDevice(device, endpoint, link, [whereIs(transport)])];
      return program.showState(log, () => endpoint.inspect());
    },
    once: options.service.once,
    ready: () => {
      if ("socketPath" in transport) setSocketAccess(transport.socketPath, options.service.access);
      service.ready(`serving ${options.device}`);
    },
    ending: () => service.stopping(),
  }).finally(() => control.close());
  log.report();
  return wasStopped ? 0 : 1;
}

/** What is printed, and all that is done. */
function textOf(options: Exclude<Options, RunOptions>): string {
  if (options.action === "help") return helpText(TABLE);
  if (options.action === "version") return versionText(TABLE.name);
  const { device } = options;
  if (device !== undefined) return capabilitiesText(tableOf({ [device]: DEVICES[device] }));
  return capabilitiesText(TABLE, { devices: Object.keys(DEVICES) });
}

/** Where the driver VM is, with a socket that was handed down opened. */
function findTransport({ transport }: RunOptions, inherited: InheritedSockets): Place {
  if (transport === "activation") return { fd: inherited.open(activatedSocket(inherited)) };
  if ("fd" in transport) return { fd: inherited.open(transport.fd) };
  if (inherited.hasNamed()) {
    const what = "a socket was handed down (LISTEN_FDS), and another place is given";
    throw new UserError(`${what}: leave out the one or the other`, 2);
  }
  return transport;
}

function whereIs(transport: Place): string {
  if ("pci" in transport) return transport.pci;
  return "fd" in transport ? `fd ${transport.fd}` : transport.socketPath;
}

function createDevice({ device, deviceOptions, deviceLists }: RunOptions, log: Log): Promise<Device> {
  if (!isModulePath(device)) return DEVICES[device].create(deviceOptions, deviceLists);
  return notSilently(`the module ${device}`, log, createOwnDevice(device, deviceOptions));
}

async function createLink(
  transport: Place,
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

Program.run(TABLE.name, main);
