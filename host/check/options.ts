/** The command line of vfio-user-check. */
import { UserError } from "../../shared/errors.js";
import { checkSocketPath } from "../../shared/listener.js";
import { parseArguments } from "../../shared/usage.js";

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

const OPTIONS = {
  "socket-path": { type: "string" },
  "timeout-ms": { type: "string" },
  only: { type: "string" },
  destructive: { type: "boolean" },
  json: { type: "boolean" },
  list: { type: "boolean" },
  help: { type: "boolean" },
  version: { type: "boolean" },
} as const;

const DEFAULT_TIMEOUT_MS = 2000;
const MAX_TIMEOUT_MS = 600_000;

export const USAGE = `usage: vfio-user-check --socket-path PATH [options]

Connects to a vfio-user server as a client, again and again, and checks what it does against the specification.

  --socket-path PATH  the server's AF_UNIX socket
  --destructive       run the checks that write to the device, reset it or change its state as well
  --only PATTERN      run the checks whose id matches, as in "dma-*" or "version-*,reply-*"
  --timeout-ms N      how long a reply may take (${DEFAULT_TIMEOUT_MS})
  --json              print the result as JSON
  --list              list the checks and leave
  --help              print this and leave
  --version           print the version and leave

exit code: 0 when no check failed, 1 when one did or the server cannot be reached, 2 for wrong usage`;

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
  const values = parseArguments(PROGRAM, args, OPTIONS);
  const timeoutMs = Number(values["timeout-ms"] ?? DEFAULT_TIMEOUT_MS);
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > MAX_TIMEOUT_MS) {
    wrongUsage(`--timeout-ms must be a whole number from 1 to ${MAX_TIMEOUT_MS}`);
  }
  const { list = false, help = false, version = false, json = false, destructive = false, only } = values;
  const socketPath = values["socket-path"] ?? "";
  if (!list && !help && !version) {
    if (socketPath === "") wrongUsage("--socket-path is needed");
    checkSocketPath(socketPath);
  }
  return {
    socketPath,
    timeoutMs,
    destructive,
    json,
    list,
    help,
    version,
    only: only === undefined ? undefined : patternOf(only),
  };
}
