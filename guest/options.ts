/**
 * The command line of vfio-user-device: which device, where its driver VM is, and the device's own options.
 */
import { UserError } from "../shared/errors.js";
import { checkSocketPath } from "../shared/listener.js";
import { LEVELS, type Level } from "../shared/log.js";
import { parseArguments } from "../shared/usage.js";
import type { DeviceKind } from "./devices/index.js";
import type { LinkPolling } from "./link/virtio/busy-polling.js";

/** Where the driver VM is: behind the virtio-vfio-user device at a PCI address, or behind a socket. */
export type Transport = { readonly pci: string } | { readonly socketPath: string } | { readonly fd: number };

export type Options =
  | { readonly action: "help" }
  | { readonly action: "version" }
  | {
      readonly action: "run";
      /** A name of the table, or the path of a module. */
      readonly device: string;
      readonly transport: Transport;
      readonly logLevel: Level;
      readonly trustUnsealedMemory: boolean;
      /** The bridge copies, and puts no driver-VM memory into the window. */
      readonly isolated: boolean;
      /** Whether to poll for the bridge's messages before sleeping. */
      readonly linkPolling: LinkPolling;
      /** The device's own options, and those of them that may be repeated. */
      readonly deviceOptions: Readonly<Record<string, string>>;
      readonly deviceLists: Readonly<Record<string, readonly string[]>>;
    };

const PROGRAM = "vfio-user-device";

/** The program's own options, by name. */
const OWN = {
  pci: { type: "string" },
  "socket-path": { type: "string" },
  fd: { type: "string" },
  dma: { type: "string", default: "window" },
  "link-poll": { type: "string", default: "adaptive" },
  "log-level": { type: "string", default: "info" },
  "trust-unsealed-memory": { type: "boolean", default: false },
  help: { type: "boolean", short: "h", default: false },
} as const;

/** Domain, bus, device and function as Linux writes them; the domain may be left out. */
const PCI_ADDRESS = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-1][0-9a-f])\.([0-7])$/i;

/** @throws UserError with exit code 2 when the arguments are not right */
export function parseOptions(argv: readonly string[], devices: Readonly<Record<string, DeviceKind>>): Options {
  if (argv.length === 0) throw usage("nothing to do");
  if (argv.includes("--help") || argv.includes("-h")) return { action: "help" };
  if (argv[0] === "--version") return { action: "version" };
  const [action, device, ...rest] = argv;
  if (action !== "run") throw usage(`no such command: ${action}`);
  if (device === undefined || device.startsWith("-")) throw usage("run needs a device");
  const isModule = isModulePath(device);
  const entry = Object.hasOwn(devices, device) ? devices[device] : undefined;
  if (entry === undefined && !isModule) {
    const path = /\.[cm]?[jt]s$/.test(device) ? `./${device}` : `./${device}.js`;
    throw usage(`no such device: ${device} (there is: ${Object.keys(devices).join(", ")}; or a path such as ${path})`);
  }
  const names = isModule ? unknownNames(rest) : Object.keys(entry?.options ?? {});
  const values = parse(rest, names, entry?.options);
  const deviceOptions: Record<string, string> = {};
  const deviceLists: Record<string, readonly string[]> = {};
  for (const name of names) {
    const value = values[name];
    if (typeof value === "string") deviceOptions[name] = value;
    else if (value === true) deviceOptions[name] = "";
    else if (Array.isArray(value)) deviceLists[name] = value.filter((item) => typeof item === "string");
    else if (entry?.options[name].required) throw usage(`${device} needs --${name} ${entry.options[name].value}`);
  }
  const transport = parseTransport(values);
  return {
    action: "run",
    device,
    transport,
    isolated: parseDma(String(values.dma), transport),
    linkPolling: parseLinkPolling(String(values["link-poll"])),
    logLevel: parseLevel(String(values["log-level"])),
    trustUnsealedMemory: values["trust-unsealed-memory"] === true,
    deviceOptions,
    deviceLists,
  };
}

/** A path is told from a name as in a shell: by a slash. */
export function isModulePath(device: string): boolean {
  return device.includes("/");
}

export function helpText(devices: Readonly<Record<string, DeviceKind>>): string {
  const lines = Object.entries(devices).map(([name, { summary, options }]) => {
    const own = Object.entries(options).map(([option, { value, summary: text, required }]) => {
      return `      ${`--${option} ${value ?? ""}`.padEnd(22)}${text}${required ? " (required)" : ""}\n`;
    });
    return `  ${name.padEnd(26)}${summary}\n${own.join("")}`;
  });
  return `Usage: vfio-user-device run DEVICE (--pci ADDRESS | --socket-path PATH | --fd N) [options]

Runs a PCI device for a driver VM.

Devices:
${lines.join("")}  ./my-device.js            your own: the module's default export makes the device, and is given
                            every further --name=value

Where the driver VM is:
  --pci ADDRESS             in a device VM: behind the virtio-vfio-user device at this PCI address, 0000:01:00.0
  --socket-path PATH        on this host: a vfio-user socket to listen on
  --fd N                    the same, with a listening socket that was handed down

Options:
  --dma WAY                 with --pci, how driver-VM memory is reached: window, or copy, where the bridge copies and
                            this VM never has the memory itself (default: window)
  --link-poll WHEN          with --pci, whether to look for the bridge's messages before sleeping: adaptive (as long
                            as it pays), always (takes all of a CPU) or never (default: adaptive)
  --log-level LEVEL         ${LEVELS.join(", ")} (default: info)
  --trust-unsealed-memory   with a socket: map also files of a disk, which may be slow or hang
  --help                    this text
  --version                 the version, without anything else

SIGUSR1 writes the device's state to stderr: registers by name, interrupts, DMA maps, and what the device shows of
itself.

Exit codes: 0 ended by SIGINT, SIGTERM or SIGHUP, 1 the machine is not as needed, 2 wrong usage.
`;
}

function usage(message: string): UserError {
  return new UserError(`${message}; see ${PROGRAM} --help`, 2);
}

type Value = string | boolean;
type Values = Readonly<Record<string, Value | Value[] | undefined>>;

function parse(
  args: readonly string[],
  deviceOptions: readonly string[],
  described: DeviceKind["options"] | undefined,
): Values {
  for (const name of deviceOptions) {
    if (Object.hasOwn(OWN, name)) throw usage(`--${name} is an option of the program, not of a device`);
  }
  const own = Object.fromEntries(
    deviceOptions.map((name) => {
      const { value, repeatable = false } = described?.[name] ?? { value: "VALUE" };
      return [name, { type: value === undefined ? "boolean" : "string", multiple: repeatable }] as const;
    }),
  );
  return parseArguments(PROGRAM, args, { ...own, ...OWN });
}

/** The options of a user's own device are not known: all --name=value that are not the program's. */
function unknownNames(args: readonly string[]): string[] {
  const names = args.map((arg) => /^--([a-z0-9][a-z0-9-]*)=/.exec(arg)?.[1]);
  return [...new Set(names)].filter((name) => name !== undefined).filter((name) => !Object.hasOwn(OWN, name));
}

function parseTransport(values: Values): Transport {
  const { pci, "socket-path": socketPath, fd } = values;
  const given = [pci, socketPath, fd].filter((value) => value !== undefined);
  if (given.length !== 1) throw usage("exactly one of --pci, --socket-path and --fd is needed");
  if (typeof pci === "string") return { pci: parsePciAddress(pci) };
  if (typeof socketPath === "string") {
    checkSocketPath(socketPath);
    return { socketPath };
  }
  if (typeof fd === "string" && /^\d{1,9}$/.test(fd)) return { fd: Number(fd) };
  throw usage(`--fd is the number of a file descriptor, not "${fd}"`);
}

/** Whether it is by copies. */
function parseDma(text: string, transport: Transport): boolean {
  if (text === "window") return false;
  if (text !== "copy") throw usage(`--dma is window or copy, not ${text}`);
  if (!("pci" in transport)) throw usage("--dma copy is for a device in a device VM, with --pci");
  return true;
}

function parseLinkPolling(text: string): LinkPolling {
  if (text === "adaptive" || text === "always" || text === "never") return text;
  throw usage(`--link-poll is adaptive, always or never, not ${text}`);
}

function parsePciAddress(text: string): string {
  const match = PCI_ADDRESS.exec(text);
  if (match === null) throw usage(`${text} is not a PCI address such as 0000:01:00.0`);
  const [, domain = "0000", bus, device, fn] = match;
  return `${domain}:${bus}:${device}.${fn}`.toLowerCase();
}

function parseLevel(text: string): Level {
  const level = LEVELS.find((name) => name === text);
  if (level === undefined) throw usage(`no such log level: ${text} (there is: ${LEVELS.join(", ")})`);
  return level;
}
