/** The command line of vfio-user-bridge. */
import { resolve } from "node:path";
import { isPowerOfTwo } from "../../shared/bits.js";
import { UserError } from "../../shared/errors.js";
import { GiB, KiB, MiB, WINDOW_SIZE } from "../../shared/limits.js";
import { checkSocketPath } from "../../shared/listener.js";
import { LEVELS, type Level } from "../../shared/log.js";
import { parseArguments } from "../../shared/usage.js";

/** The two sockets of one session. */
export interface SocketPair {
  readonly socketPath: string;
  readonly vhostUserSocketPath: string;
}

export interface BridgeOptions {
  readonly pairs: readonly SocketPair[];
  /** Bytes; a power of two. */
  readonly windowSize: number;
  readonly trustUnsealedMemory: boolean;
  /** By a parent process that starts the bridge again when it died. */
  readonly supervised: boolean;
  readonly logLevel: Level;
}

export const HELP = `\
Usage: vfio-user-bridge --socket-path PATH --vhost-user-socket-path PATH [OPTION]...

Gives a VM (the driver VM) a PCI device that lives in another VM (the device VM). Both options may be given several
times, in pairs, to serve several devices.

  --socket-path PATH             vfio-user socket: for the driver VM's -device vfio-user-pci
  --vhost-user-socket-path PATH  vhost-user socket: for the device VM's -device vhost-user-test-device-pci
  --window-size SIZE             how much driver-VM memory can be mapped at once, with K, M, G or T;
                                 a power of two (default: 64G)
  --trust-unsealed-memory        put memory that the driver VM's VMM could still shrink into the device VM, instead of
                                 copying, and map also files of a disk: if it shrinks, the device VM's QEMU dies
  --supervised                   run under a small parent process that starts the bridge again when it died; not to be
                                 used under systemd, which does so itself (Restart=on-failure)
  --log-level LEVEL              ${LEVELS.join(", ")} (default: info)
  --help                         print this text
  --version                      print the version

The process stays in the foreground, logs to standard error, and ends on SIGTERM, SIGINT or SIGHUP.
SIGUSR1 makes it write its state to standard error: sessions, DMA maps, doorbells, queues, limits.
`;

const MIN_WINDOW_SIZE = 1 * MiB;
/** Stock QEMU and its firmware do not place larger BARs. */
const MAX_WINDOW_SIZE = 512 * GiB;
const UNITS: Record<string, number> = { "": 1, K: KiB, M: MiB, G: GiB, T: KiB * GiB };

const OPTIONS = {
  "socket-path": { type: "string", multiple: true },
  "vhost-user-socket-path": { type: "string", multiple: true },
  "window-size": { type: "string" },
  "trust-unsealed-memory": { type: "boolean" },
  supervised: { type: "boolean" },
  "log-level": { type: "string" },
  help: { type: "boolean" },
  version: { type: "boolean" },
} as const;

/** Reads the arguments; "help" and "version" where only that was asked for. @throws UserError for wrong usage */
export function parseOptions(args: readonly string[]): BridgeOptions | "help" | "version" {
  const values = parseArguments("vfio-user-bridge", args, OPTIONS);
  if (values.help) return "help";
  if (values.version) return "version";
  const paths = values["socket-path"] ?? [];
  const vhostUserPaths = values["vhost-user-socket-path"] ?? [];
  if (paths.length === 0 && vhostUserPaths.length === 0) {
    throw new UserError("--socket-path and --vhost-user-socket-path are needed; see vfio-user-bridge --help", 2);
  }
  if (paths.length !== vhostUserPaths.length) {
    throw new UserError(
      `--socket-path was given ${times(paths.length)} and --vhost-user-socket-path ` +
        `${times(vhostUserPaths.length)}: they go in pairs`,
      2,
    );
  }
  const all = [...paths, ...vhostUserPaths];
  for (const path of all) checkSocketPath(path);
  const places = all.map((path) => resolve(path));
  const twice = all.find((_, index) => places.indexOf(places[index]) !== index);
  if (twice !== undefined) throw new UserError(`${twice} was given twice: each socket needs a path of its own`, 2);
  return {
    pairs: paths.map((socketPath, i) => ({ socketPath, vhostUserSocketPath: vhostUserPaths[i] })),
    windowSize: values["window-size"] === undefined ? WINDOW_SIZE : parseWindowSize(values["window-size"]),
    trustUnsealedMemory: values["trust-unsealed-memory"] ?? false,
    supervised: values.supervised ?? false,
    logLevel: parseLevel(values["log-level"] ?? "info"),
  };
}

function parseWindowSize(text: string): number {
  const [, digits, unit] = /^(\d{1,15})([KMGT]?)$/.exec(text) ?? [];
  const size = digits === undefined ? Number.NaN : Number(digits) * UNITS[unit];
  if (!isPowerOfTwo(size) || size < MIN_WINDOW_SIZE || size > MAX_WINDOW_SIZE) {
    throw new UserError(`--window-size ${text}: it must be a power of two from 1M to 512G, such as 64G`, 2);
  }
  return size;
}

function parseLevel(text: string): Level {
  const level = LEVELS.find((known) => known === text);
  if (!level) throw new UserError(`--log-level ${text}: it must be one of ${LEVELS.join(", ")}`, 2);
  return level;
}

const times = (count: number) => (count === 1 ? "once" : `${count} times`);
