/** The part of the command line that programs have which can be looked at and steered while they run. */
import { isIP } from "node:net";
import type { Given } from "../command-line/parse.js";
import type { OptionRow } from "../command-line/table.js";
import { UserError } from "../errors.js";
import { checkSocketPath } from "../listener.js";
import { parseSocketGroup, parseSocketMode, type SocketAccess } from "../service/socket-access.js";
import { hostName, isLoopback } from "./metrics/host-check.js";

const MAX_PORT = 65535;

export interface ControlOptions {
  /** The socket at which the program can be looked at; undefined: none. */
  readonly path: string | undefined;
  readonly access: SocketAccess;
  /** The one at which it can be changed, too. */
  readonly adminPath: string | undefined;
  readonly metrics: MetricsOptions | undefined;
}

export interface MetricsOptions {
  /** An IP address. */
  readonly address: string;
  /** 0: any. */
  readonly port: number;
  /** Names by which it may be asked, beside the address's own. */
  readonly hosts: readonly string[];
}

export const CONTROL_ROWS: readonly OptionRow[] = [
  {
    name: "control",
    value: "PATH",
    summary: "a socket at which vfio-user-ctl can look at the program",
    more: "It is JSON-RPC 2.0, one document a line; docs/vfio-user-control.schema.json is its JSON Schema.",
  },
  {
    name: "control-mode",
    value: "MODE",
    summary: "permissions of that socket, in octal (default: 600)",
    more: "Whoever may connect sees all sessions, and changes none.",
  },
  { name: "control-group", value: "GROUP", summary: "group of that socket, by name or number" },
  {
    name: "control-admin",
    value: "PATH",
    summary: "a second one, its owner's alone, at which the program can be changed, too",
  },
  {
    name: "metrics",
    value: "ADDRESS",
    summary: "serve a status page, and /metrics for Prometheus, at this port or address, 9400 or 127.0.0.1:9400",
    more:
      "Without an address it is 127.0.0.1. An address that other machines reach needs --metrics-host. There is " +
      "nothing to change by it, and no password: whoever reaches it sees all sessions.",
  },
  {
    name: "metrics-host",
    value: "NAME",
    summary: "a name by which it may be asked, beside its own address; others are refused",
    repeatable: true,
  },
];

/** @throws UserError */
export function parseControlOptions(given: Given): ControlOptions {
  const [path, adminPath] = [given.value("control"), given.value("control-admin")];
  for (const each of [path, adminPath]) if (each !== undefined) checkSocketPath(each);
  if (path !== undefined && path === adminPath) {
    throw new UserError(`${path} was given twice: each socket needs a path of its own`, 2);
  }
  const [mode, group] = [given.value("control-mode"), given.value("control-group")];
  if (path === undefined && (mode ?? group) !== undefined) {
    throw new UserError("--control-mode and --control-group are about --control, which is missing", 2);
  }
  return {
    path,
    adminPath,
    metrics: parseMetrics(given),
    access: {
      mode: mode === undefined ? undefined : parseSocketMode(mode, "--control-mode"),
      group: group === undefined ? undefined : parseSocketGroup(group, "--control-group"),
    },
  };
}

function parseMetrics(given: Given): MetricsOptions | undefined {
  const text = given.value("metrics");
  const hosts = given.values("metrics-host");
  if (text === undefined) {
    if (hosts.length === 0) return undefined;
    throw new UserError("--metrics-host is about --metrics, which is missing", 2);
  }
  const [, host, digits] = /^(?:(\[[^\]]*\]|[^:[\]]*):)?(\d{1,5})$/.exec(text) ?? [];
  const address = (host ?? "127.0.0.1").replace(/^localhost$/, "127.0.0.1").replaceAll(/[[\]]/g, "");
  const port = Number(digits);
  if (digits === undefined || port > MAX_PORT || isIP(address) === 0) {
    throw new UserError(`--metrics ${text}: it must be a port, or an IP address and a port, such as 127.0.0.1:9400`, 2);
  }
  const wrong = hosts.find((each) => hostName(each) === undefined);
  if (wrong !== undefined) throw new UserError(`--metrics-host ${wrong}: it is no host's name`, 2);
  if (!isLoopback(address) && hosts.length === 0) {
    throw new UserError(
      `--metrics ${text} can be reached from other machines: if it shall be, --metrics-host gives the name by which`,
      2,
    );
  }
  return { address, port, hosts };
}
