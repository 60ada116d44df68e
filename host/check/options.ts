/** The command line of vfio-user-check. */
import { parseArgs } from "node:util";
import { UserError } from "../../shared/errors.js";

export interface Options {
  readonly socketPath: string;
  readonly timeoutMs: number;
  readonly destructive: boolean;
  readonly json: boolean;
  readonly list: boolean;
  readonly help: boolean;
  /** Matches ids; undefined for all. */
  readonly only: RegExp | undefined;
}

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

exit code: 0 when no check failed, 1 when one did or the server cannot be reached, 2 for wrong usage`;

/** "*" stands for anything, "," separates alternatives. */
function patternOf(text: string): RegExp {
  const alternatives = text.split(",").map((each) => each.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*"));
  return new RegExp(`^(?:${alternatives.join("|")})$`);
}

function wrongUsage(what: string): never {
  throw new UserError(`${what}; see vfio-user-check --help`, 2);
}

/** @throws UserError with exit code 2 */
export function parseOptions(args: readonly string[]): Options {
  let values: ReturnType<typeof parse>;
  try {
    values = parse(args);
  } catch (error) {
    wrongUsage(error instanceof Error ? error.message : String(error));
  }
  const timeoutMs = Number(values["timeout-ms"] ?? DEFAULT_TIMEOUT_MS);
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > MAX_TIMEOUT_MS) {
    wrongUsage(`--timeout-ms must be a whole number from 1 to ${MAX_TIMEOUT_MS}`);
  }
  const { list = false, help = false, json = false, destructive = false, only } = values;
  const socketPath = values["socket-path"] ?? "";
  if (socketPath === "" && !list && !help) wrongUsage("--socket-path is needed");
  return {
    socketPath,
    timeoutMs,
    destructive,
    json,
    list,
    help,
    only: only === undefined ? undefined : patternOf(only),
  };
}

function parse(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    options: {
      "socket-path": { type: "string" },
      "timeout-ms": { type: "string" },
      only: { type: "string" },
      destructive: { type: "boolean" },
      json: { type: "boolean" },
      list: { type: "boolean" },
      help: { type: "boolean" },
    },
  }).values;
}
