/** The command line of vfio-user-bridge. */
import { type Given, parseByTable } from "../../shared/command-line/parse.js";
import { COMMON_ROWS, type ProgramTable } from "../../shared/command-line/table.js";
import { CONTROL_ROWS, type ControlOptions, parseControlOptions } from "../../shared/control/options.js";
import { UserError } from "../../shared/errors.js";
import { WINDOW_SIZE } from "../../shared/limits.js";
import { checkSocketPath } from "../../shared/listener.js";
import {
  type InheritedSockets,
  parseFd,
  type SocketSource,
  VFIO_USER_NAME,
  VHOST_USER_NAME,
} from "../../shared/service/inherited-sockets.js";
import {
  CAPABILITIES_ROW,
  parseServiceOptions,
  SERVICE_ENVIRONMENT,
  SERVICE_EXIT_CODES,
  SERVICE_ROWS,
  type ServiceOptions,
  SOCKET_ROWS,
} from "../../shared/service/options.js";
import {
  defaultName,
  findTwice,
  givenTwice,
  parseWindowSize,
  type SessionDefaults,
  type SessionSettings,
} from "./session-settings.js";

export interface BridgeOptions {
  /** Where sessions are from: the command line, a file, or a service manager's sockets. */
  readonly sessions: readonly SessionSettings[] | { readonly config: string } | "activation";
  readonly defaults: SessionDefaults;
  /** By a parent process that starts the bridge again when it died. */
  readonly supervised: boolean;
  readonly service: ServiceOptions;
  readonly control: ControlOptions;
}

export const TABLE: ProgramTable = {
  name: "vfio-user-bridge",
  title: "give a VM a PCI device that lives in another VM",
  synopsis: [
    "(--socket-path PATH | --fd N) (--vhost-user-socket-path PATH | --vhost-user-fd N) [OPTION]...",
    "--config FILE [OPTION]...",
  ],
  description: [
    "Gives a VM (the driver VM) a PCI device that lives in another VM (the device VM). The sockets of a session, one " +
      "for each VM, are given as a pair; several pairs serve several devices.",
    "The driver VM's QEMU connects by -device vfio-user-pci to the vfio-user socket, the device VM's by -device " +
      "vhost-user-test-device-pci to the vhost-user socket. Either may come, go and come again as it likes; the " +
      "other one is kept.",
    "The process stays in the foreground. It needs no privileges beyond those that its sockets and files ask for.",
    "Sockets may be handed down by a service manager: sockets named vfio-user and vhost-user (FileDescriptorName= of " +
      "a socket unit), as many of the one as of the other; the first of each are the first session's, and so on. " +
      "Then no socket is given on the command line.",
  ],
  groups: [
    {
      title: "Sessions",
      options: [
        {
          name: "socket-path",
          value: "PATH",
          summary: "vfio-user socket: for the driver VM's -device vfio-user-pci",
          more: "It is made, and taken away at the end.",
          repeatable: true,
        },
        {
          name: "fd",
          value: "N",
          summary: "the same, as a listening socket that was handed down",
          repeatable: true,
        },
        {
          name: "vhost-user-socket-path",
          value: "PATH",
          summary: "vhost-user socket: for the device VM's -device vhost-user-test-device-pci",
          repeatable: true,
        },
        {
          name: "vhost-user-fd",
          value: "N",
          summary: "the same, as a listening socket that was handed down",
          repeatable: true,
        },
        {
          name: "config",
          value: "FILE",
          summary: "sessions from a JSON file, in place of those above; SIGHUP has it read again",
          more:
            "docs/vfio-user-bridge.schema.json is its JSON Schema. What a session leaves out is as the file's top " +
            "level says, and then as the command line does.",
        },
        {
          name: "window-size",
          value: "SIZE",
          summary: "how much driver-VM memory can be mapped at once, with K, M, G or T; a power of two (default: 64G)",
        },
        {
          name: "trust-unsealed-memory",
          summary:
            "put memory that the driver VM's VMM could still shrink into the device VM, instead of copying, and map " +
            "also files of a disk: if it shrinks, the device VM's QEMU dies",
        },
        ...SOCKET_ROWS,
      ],
    },
    {
      title: "The process",
      options: [
        { name: "once", summary: "end when each session's first driver VM has come and gone" },
        {
          name: "supervised",
          summary:
            "run under a small parent process that starts the bridge again when it died; not to be used under " +
            "systemd, which does so itself (Restart=on-failure)",
          more: "Sockets cannot be handed down then.",
        },
        ...SERVICE_ROWS,
        ...CONTROL_ROWS,
        CAPABILITIES_ROW,
        ...COMMON_ROWS,
      ],
    },
  ],
  exitCodes: SERVICE_EXIT_CODES,
  signals: [
    ["SIGTERM, SIGINT", "End it. The same signal once more ends it at once."],
    [
      "SIGHUP",
      "With --log-file, opens the log's file again; with --config, reads it again: sessions are added and removed, " +
        "the others are not touched, and a file that is wrong changes nothing. With neither, ends it.",
    ],
    ["SIGUSR1", "Writes its state to the log, as one line: sessions, DMA maps, doorbells, queues, limits."],
  ],
  environment: [
    [
      "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
      "Sockets from a service manager, see above. Those of another process are refused.",
    ],
    ...SERVICE_ENVIRONMENT,
  ],
  files: [["/usr/share/vfio-user/50-virtio-vfio-user.json", "Describes the program to management software."]],
  examples: [
    [
      "One device, whose driver VM runs as a member of the group kvm:",
      "vfio-user-bridge --socket-path=/run/vms/disk.sock --vhost-user-socket-path=/run/vms/device.sock \\\n" +
        "  --socket-mode=660 --socket-group=kvm",
    ],
    [
      "Many devices, with a log that logrotate may rename:",
      "vfio-user-bridge --config=/etc/vfio-user/bridge.json --log-file=/var/log/vfio-user-bridge.log",
    ],
  ],
  seeAlso: ["vfio-user-device(1)", "vfio-user-check(1)", "systemd.socket(5)", "qemu(1)"],
};

/** Which options give a socket of which side. */
const SOURCES: Readonly<Record<string, "vfioUser" | "vhostUser">> = {
  "socket-path": "vfioUser",
  fd: "vfioUser",
  "vhost-user-socket-path": "vhostUser",
  "vhost-user-fd": "vhostUser",
};

/** Reads the arguments; words where only that was asked for. @throws UserError for wrong usage */
export function parseOptions(args: readonly string[]): BridgeOptions | "capabilities" | "help" | "version" {
  if (args.includes("--print-capabilities")) return "capabilities";
  const given = parseByTable(TABLE, args);
  if (given.has("help")) return "help";
  if (given.has("version")) return "version";
  const size = given.value("window-size");
  const service = parseServiceOptions(given);
  const defaults = {
    windowSize: size === undefined ? WINDOW_SIZE : parseWindowSize(size),
    trustUnsealedMemory: given.has("trust-unsealed-memory"),
    access: service.access,
  };
  const sessions = parseSessions(given, defaults);
  const supervised = given.has("supervised");
  if (supervised && (sessions === "activation" || given.has("fd") || given.has("vhost-user-fd"))) {
    throw new UserError("--supervised makes its sockets itself: it needs --socket-path, or --config, for each", 2);
  }
  return { sessions, defaults, supervised, service, control: parseControlOptions(given) };
}

function parseSessions(given: Given, defaults: SessionDefaults): BridgeOptions["sessions"] {
  const sides = { vfioUser: [] as SocketSource[], vhostUser: [] as SocketSource[] };
  for (const { name, value } of given.inOrder) {
    const side = SOURCES[name];
    if (side !== undefined) sides[side].push(parseSource(name, value));
  }
  const { vfioUser, vhostUser } = sides;
  const config = given.value("config");
  if (config !== undefined) {
    if (vfioUser.length + vhostUser.length > 0) {
      throw new UserError("--config has the sessions, so no socket goes with it; see vfio-user-bridge --help", 2);
    }
    if (config === "" || config.includes("\0")) throw new UserError("--config is not the path of a file", 2);
    return { config };
  }
  if (vfioUser.length + vhostUser.length === 0) return "activation";
  if (vfioUser.length !== vhostUser.length) {
    throw new UserError(
      `--socket-path ${orFd(given, "fd")}was given ${times(vfioUser.length)} and --vhost-user-socket-path ` +
        `${orFd(given, "vhost-user-fd")}${times(vhostUser.length)}: they go in pairs`,
      2,
    );
  }
  return pairUp(vfioUser, vhostUser, defaults);
}

function parseSource(option: string, value: string): SocketSource {
  if (option.endsWith("fd")) return { fd: parseFd(value, `--${option}`) };
  checkSocketPath(value);
  return { path: value };
}

function pairUp(
  vfioUser: readonly SocketSource[],
  vhostUser: readonly SocketSource[],
  defaults: SessionDefaults,
): SessionSettings[] {
  const sessions = vfioUser.map((source, i) => ({
    name: defaultName(source),
    vfioUser: source,
    vhostUser: vhostUser[i],
    ...defaults,
  }));
  const twice = findTwice(sessions);
  if (twice !== undefined) throw new UserError(givenTwice(twice.source), 2);
  return sessions;
}

/**
 * The sessions of the sockets that a service manager handed down.
 * @throws UserError when there are none, or they do not make pairs
 */
export function activatedSessions(inherited: InheritedSockets, defaults: SessionDefaults): SessionSettings[] {
  const sockets = inherited.activated();
  if (sockets.length === 0) {
    throw new UserError("--socket-path and --vhost-user-socket-path are needed; see vfio-user-bridge --help", 2);
  }
  const named = (name: string) => sockets.filter((each) => each.name === name).map(({ fd }) => ({ fd }));
  const [vfioUser, vhostUser] = [named(VFIO_USER_NAME), named(VHOST_USER_NAME)];
  if (vfioUser.length === 0 || vfioUser.length !== vhostUser.length) {
    throw new UserError(
      `LISTEN_FDNAMES is ${sockets.map(({ name }) => name).join(":")}: as many sockets are needed that are named ` +
        `${VFIO_USER_NAME} as ${VHOST_USER_NAME} (FileDescriptorName=)`,
    );
  }
  return pairUp(vfioUser, vhostUser, defaults);
}

const orFd = (given: Given, name: string) => (given.has(name) ? `or --${name} ` : "");
const times = (count: number) => (count === 1 ? "once" : `${count} times`);
