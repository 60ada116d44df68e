/**
 * The command line of vfio-user-device: which device, where its driver VM is, and the device's own options.
 */
import { type Given, parseByTable } from "../shared/command-line/parse.js";
import { didYouMean } from "../shared/command-line/suggest.js";
import { COMMON_ROWS, type OptionGroup, type OptionRow, type ProgramTable } from "../shared/command-line/table.js";
import { CONTROL_ROWS, type ControlOptions, parseControlOptions } from "../shared/control/options.js";
import { UserError } from "../shared/errors.js";
import { checkSocketPath } from "../shared/listener.js";
import { type InheritedSockets, parseFd, VFIO_USER_NAME } from "../shared/service/inherited-sockets.js";
import {
  CAPABILITIES_ROW,
  parseServiceOptions,
  SERVICE_ENVIRONMENT,
  SERVICE_EXIT_CODES,
  SERVICE_ROWS,
  type ServiceOptions,
  SOCKET_ROWS,
} from "../shared/service/options.js";
import type { DeviceKind, DeviceOption } from "./devices/index.js";
import type { LinkPolling } from "./link/virtio/device-path.js";

/**
 * Where the driver VM is: behind the virtio-vfio-user device at a PCI address, or behind a socket; "activation": one
 * that a service manager hands down.
 */
export type Transport = Place | "activation";
export type Place = { readonly pci: string } | { readonly socketPath: string } | { readonly fd: number };

export interface RunOptions {
  readonly action: "run";
  /** A name of the table, or the path of a module. */
  readonly device: string;
  readonly transport: Transport;
  readonly service: ServiceOptions;
  readonly control: ControlOptions;
  readonly trustUnsealedMemory: boolean;
  /** The bridge copies, and puts no driver-VM memory into the window. */
  readonly isolated: boolean;
  /** Whether to poll for the bridge's messages before sleeping. */
  readonly linkPolling: LinkPolling;
  /** The device's own options, and those of them that may be repeated. */
  readonly deviceOptions: Readonly<Record<string, string>>;
  readonly deviceLists: Readonly<Record<string, readonly string[]>>;
}

export type Options =
  | { readonly action: "help" }
  | { readonly action: "version" }
  /** Of one device alone, if it is named. */
  | { readonly action: "capabilities"; readonly device?: string }
  | RunOptions;

type Devices = Readonly<Record<string, DeviceKind>>;

const PROGRAM = "vfio-user-device";
const POLLING: readonly LinkPolling[] = ["adaptive", "always", "never"];

/** The program's own options. */
const OWN: readonly OptionGroup[] = [
  {
    title: "Where the driver VM is",
    options: [
      {
        name: "pci",
        value: "ADDRESS",
        summary: "in a device VM: behind the virtio-vfio-user device at this PCI address, 0000:01:00.0",
      },
      {
        name: "socket-path",
        value: "PATH",
        summary: "on this host: a vfio-user socket to listen on",
        more: "It is made, and taken away at the end.",
      },
      { name: "fd", value: "N", summary: "the same, as a listening socket that was handed down" },
      ...SOCKET_ROWS,
    ],
  },
  {
    title: "Options",
    options: [
      {
        name: "dma",
        value: "WAY",
        summary:
          "with --pci, how driver-VM memory is reached: window, or copy, where the bridge copies and this VM never " +
          "has the memory itself (default: window)",
      },
      {
        name: "link-poll",
        value: "WHEN",
        summary:
          "with --pci, whether to look for the bridge's messages before sleeping: adaptive (as long as it pays), " +
          "always (takes all of a CPU) or never (default: adaptive)",
      },
      { name: "trust-unsealed-memory", summary: "with a socket: map also files of a disk, which may be slow or hang" },
      { name: "once", summary: "end when the first driver VM has come and gone" },
      ...SERVICE_ROWS,
      ...CONTROL_ROWS,
      CAPABILITIES_ROW,
      ...COMMON_ROWS,
    ],
  },
];

/** The whole of what it understands, with these devices. */
export function tableOf(devices: Devices): ProgramTable {
  const groups = Object.entries(devices).map(([name, { summary, options }]) => ({
    title: `The device ${name}: ${summary}`,
    options: Object.entries(options).map(([option, described]) => rowOf(option, described)),
  }));
  return {
    name: PROGRAM,
    title: "run a PCI device for a VM",
    synopsis: ["run DEVICE (--pci ADDRESS | --socket-path PATH | --fd N) [OPTION]..."],
    description: [
      `Runs a PCI device for a driver VM. DEVICE is ${Object.keys(devices).join(", ")}, or the path of a module of ` +
        "your own, ./my-device.js: its default export makes the device, and is given every further --name=value.",
      "In a device VM the device is reached through vfio-user-bridge, which runs on the host. On the host itself the " +
        "driver VM's QEMU connects to the program's own socket, by -device vfio-user-pci.",
      "The socket may be handed down by a service manager, as the only one or as the one that is named vfio-user " +
        "(FileDescriptorName= of a socket unit). Then no socket is given on the command line.",
      "The process stays in the foreground. With --pci it runs as a user who owns the device's VFIO group, if that " +
        "is bound to vfio-pci and its VM was started with iommu_platform=on; otherwise it needs root, and huge pages.",
    ],
    groups: [...OWN, ...groups],
    exitCodes: [
      ["0", "ended by a signal, or with --once by its client"],
      ["1", "the machine is not as needed, or the bridge is gone"],
      ...SERVICE_EXIT_CODES.slice(2),
    ],
    signals: [
      ["SIGTERM, SIGINT", "End it. The same signal once more ends it at once."],
      ["SIGHUP", "With --log-file, opens the log's file again; without, ends it."],
      [
        "SIGUSR1",
        "Writes its state to the log, as one line: registers by name, interrupts, DMA maps, and what the device " +
          "shows of itself.",
      ],
    ],
    environment: [
      [
        "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
        "A socket from a service manager, see above. One of another process is refused.",
      ],
      ...SERVICE_ENVIRONMENT,
    ],
    files: [
      ["/usr/share/vfio-user/50-vfio-user-*.json", "Describe the program to management software, for each device."],
    ],
    examples: [
      [
        "An NVMe disk for a QEMU on the same host:",
        "vfio-user-device run nvme --file=disk.img --socket-path=/run/vms/disk.sock",
      ],
      ["The same disk from within a device VM:", "vfio-user-device run nvme --file=/dev/vda --pci=0000:01:00.0"],
    ],
    seeAlso: ["vfio-user-bridge(1)", "vfio-user-check(1)", "systemd.socket(5)", "qemu(1)"],
  };
}

function rowOf(name: string, { value, summary, required, repeatable }: DeviceOption): OptionRow {
  return {
    name,
    ...(value === undefined ? {} : { value }),
    summary: required === true ? `${summary} (required)` : summary,
    repeatable: repeatable ?? false,
  };
}

/** Domain, bus, device and function as Linux writes them; the domain may be left out. */
const PCI_ADDRESS = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-1][0-9a-f])\.([0-7])$/i;

/** @throws UserError with exit code 2 when the arguments are not right */
export function parseOptions(argv: readonly string[], devices: Devices): Options {
  if (argv.includes("--print-capabilities")) {
    const isNamed = argv[0] === "run" && Object.hasOwn(devices, argv[1] ?? "");
    return isNamed ? { action: "capabilities", device: argv[1] } : { action: "capabilities" };
  }
  if (argv.length === 0) throw usage("nothing to do");
  if (argv.includes("--help") || argv.includes("-h")) return { action: "help" };
  if (argv.includes("--version")) return { action: "version" };
  const [action, device, ...rest] = argv;
  if (action !== "run") throw usage(`no such command: ${action}${didYouMean(action, ["run"]).replace(/\?$/, "")}`);
  if (device === undefined || device.startsWith("-")) throw usage("run needs a device");
  const isModule = isModulePath(device);
  const entry = Object.hasOwn(devices, device) ? devices[device] : undefined;
  if (entry === undefined && !isModule) {
    const path = /\.[cm]?[jt]s$/.test(device) ? `./${device}` : `./${device}.js`;
    throw usage(`no such device: ${device} (there is: ${Object.keys(devices).join(", ")}; or a path such as ${path})`);
  }
  const own = isModule
    ? unknownNames(rest).map((name) => ({ name, value: "VALUE", summary: "" }))
    : Object.entries(entry?.options ?? {}).map(([name, described]) => rowOf(name, described));
  const given = parse(rest, own);
  const deviceOptions: Record<string, string> = {};
  const deviceLists: Record<string, readonly string[]> = {};
  for (const { name, value } of own) {
    const described = entry?.options[name];
    if (!given.has(name)) {
      if (described?.required) throw usage(`${device} needs --${name} ${described.value}`);
    } else if (described?.repeatable) deviceLists[name] = given.values(name);
    else deviceOptions[name] = value === undefined ? "" : (given.value(name) ?? "");
  }
  const transport = parseTransport(given);
  return {
    action: "run",
    device,
    transport,
    isolated: parseDma(given.value("dma") ?? "window", transport),
    linkPolling: parseLinkPolling(given.value("link-poll") ?? "adaptive"),
    service: parseServiceOptions(given),
    control: parseControlOptions(given),
    trustUnsealedMemory: given.has("trust-unsealed-memory"),
    deviceOptions,
    deviceLists,
  };
}

/** A path is told from a name as in a shell: by a slash. */
export function isModulePath(device: string): boolean {
  return device.includes("/");
}

function usage(message: string): UserError {
  return new UserError(`${message}; see ${PROGRAM} --help`, 2);
}

const OWN_NAMES = new Set(OWN.flatMap(({ options }) => options.map(({ name }) => name)));

function parse(args: readonly string[], deviceOptions: readonly OptionRow[]): Given {
  for (const { name } of deviceOptions) {
    if (OWN_NAMES.has(name)) throw usage(`--${name} is an option of the program, not of a device`);
  }
  return parseByTable({ ...tableOf({}), groups: [...OWN, { title: "", options: deviceOptions }] }, args);
}

/** The options of a user's own device are not known: all --name=value that are not the program's. */
function unknownNames(args: readonly string[]): string[] {
  const names = args.map((arg) => /^--([a-z0-9][a-z0-9-]*)=/.exec(arg)?.[1]);
  return [...new Set(names)].filter((name) => name !== undefined).filter((name) => !OWN_NAMES.has(name));
}

function parseTransport(given: Given): Transport {
  const [pci, socketPath, fd] = ["pci", "socket-path", "fd"].map((name) => given.value(name));
  const count = [pci, socketPath, fd].filter((value) => value !== undefined).length;
  if (count === 0) return "activation";
  if (count > 1) throw usage("exactly one of --pci, --socket-path and --fd is needed");
  if (pci !== undefined) return { pci: parsePciAddress(pci) };
  if (fd !== undefined) return { fd: parseFd(fd, "--fd") };
  checkSocketPath(socketPath ?? "");
  return { socketPath: socketPath ?? "" };
}

/** The socket of a service manager's. @throws UserError when there is none, or it cannot be told which it is */
export function activatedSocket(inherited: InheritedSockets): number {
  const sockets = inherited.activated();
  if (sockets.length === 0) throw usage("exactly one of --pci, --socket-path and --fd is needed");
  const named = sockets.filter(({ name }) => name === VFIO_USER_NAME);
  const [socket, ...others] = named.length > 0 ? named : sockets;
  if (others.length === 0) return socket.fd;
  throw new UserError(
    `LISTEN_FDNAMES is ${sockets.map(({ name }) => name).join(":")}: one socket is needed, or one that is named ` +
      `${VFIO_USER_NAME} (FileDescriptorName=)`,
  );
}

/** Whether it is by copies. */
function parseDma(text: string, transport: Transport): boolean {
  if (text === "window") return false;
  if (text !== "copy") throw usage(`--dma is window or copy, not ${text}`);
  if (transport === "activation" || !("pci" in transport)) {
    throw usage("--dma copy is for a device in a device VM, with --pci");
  }
  return true;
}

function parseLinkPolling(text: string): LinkPolling {
  const found = POLLING.find((each) => each === text);
  if (found === undefined) throw usage(`--link-poll is adaptive, always or never, not ${text}`);
  return found;
}

function parsePciAddress(text: string): string {
  const match = PCI_ADDRESS.exec(text);
  if (match === null) throw usage(`${text} is not a PCI address such as 0000:01:00.0`);
  const [, domain = "0000", bus, device, fn] = match;
  return `${domain}:${bus}:${device}.${fn}`.toLowerCase();
}
