/** The command line of vfio-user-check. */
import { parseByTable } from "../../shared/command-line/parse.js";
import { COMMON_ROWS, type ProgramTable } from "../../shared/command-line/table.js";
import { UserError } from "../../shared/errors.js";
import { checkSocketPath } from "../../shared/listener.js";

export interface Options {
  readonly socketPath: string;
  readonly timeoutMs: number;
  readonly destructive: boolean;
  readonly json: boolean;
  readonly list: boolean;
  readonly help: boolean;
  readonly version: boolean;
  /** Matches ids; undefined for all. */
  readonly only: RegExp | undefined;
}

export const PROGRAM = "vfio-user-check";

const DEFAULT_TIMEOUT_MS = 2000;
const MAX_TIMEOUT_MS = 600_000;

export const TABLE: ProgramTable = {
  name: PROGRAM,
  title: "check what a vfio-user server does against the specification",
  synopsis: ["--socket-path PATH [OPTION]...", "--list [--only PATTERN]"],
  description: [
    "Connects to a vfio-user server as a client, again and again, and checks what it does against the specification.",
    "It writes nothing to the device unless it is told so with --destructive. A server serves one client at a time, " +
      "so no driver VM may be connected.",
  ],
  groups: [
    {
      title: "Options",
      options: [
        { name: "socket-path", value: "PATH", summary: "the server's AF_UNIX socket" },
        {
          name: "destructive",
          summary: "run the checks that write to the device, reset it or change its state as well",
        },
        {
          name: "only",
          value: "PATTERN",
          summary: 'run the checks whose id matches, as in "dma-*" or "version-*,reply-*"',
        },
        { name: "timeout-ms", value: "N", summary: `how long a reply may take (default: ${DEFAULT_TIMEOUT_MS})` },
        { name: "json", summary: "print the result as JSON" },
        { name: "list", summary: "list the checks" },
        ...COMMON_ROWS,
      ],
    },
  ],
  exitCodes: [
    ["0", "no check failed"],
    ["1", "one failed, or the server cannot be reached"],
    ["2", "wrong usage"],
  ],
  signals: [],
  environment: [["NO_COLOR", "If it is set, what is printed has no colours."]],
  files: [],
  examples: [
    ["All that does no harm to a device in use:", "vfio-user-check --socket-path=/run/vms/disk.sock"],
    [
      "What concerns DMA, on a device that may be reset:",
      "vfio-user-check --socket-path=/run/vms/disk.sock --destructive --only='dma-*'",
    ],
  ],
  seeAlso: ["vfio-user-bridge(1)", "vfio-user-device(1)"],
};

/** "*" stands for anything, "," separates alternatives. */
function patternOf(text: string): RegExp {
  const alternatives = text.split(",").map((each) => each.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*"));
  return new RegExp(`^(?:${alternatives.join("|")})$`);
}

function wrongUsage(what: string): never {
  throw new UserError(`${what}; see ${PROGRAM} --help`, 2);
}

/** @throws UserError with exit code 2 */
export function parseOptions(args: readonly string[]): Options {
  const given = parseByTable(TABLE, args);
  const timeoutMs = Number(given.value("timeout-ms") ?? DEFAULT_TIMEOUT_MS);
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > MAX_TIMEOUT_MS) {
    wrongUsage(`--timeout-ms must be a whole number from 1 to ${MAX_TIMEOUT_MS}`);
  }
  const [list, help, version] = ["list", "help", "version"].map((name) => given.has(name));
  const socketPath = given.value("socket-path") ?? "";
  if (!list && !help && !version) {
    if (socketPath === "") wrongUsage("--socket-path is needed");
    checkSocketPath(socketPath);
  }
  const only = given.value("only");
  return {
    socketPath,
    timeoutMs,
    destructive: given.has("destructive"),
    json: given.has("json"),
    list,
    help,
    version,
    only: only === undefined ? undefined : patternOf(only),
  };
}
