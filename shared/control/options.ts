/** The part of the command line that programs have which can be looked at and steered while they run. */
import type { Given } from "../command-line/parse.js";
import type { OptionRow } from "../command-line/table.js";
import { UserError } from "../errors.js";
import { checkSocketPath } from "../listener.js";
import { parseSocketGroup, parseSocketMode, type SocketAccess } from "../service/socket-access.js";

export interface ControlOptions {
  /** The socket at which the program can be looked at; undefined: none. */
  readonly path: string | undefined;
  readonly access: SocketAccess;
  /** The one at which it can be changed, too. */
  readonly adminPath: string | undefined;
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
    access: {
      mode: mode === undefined ? undefined : parseSocketMode(mode, "--control-mode"),
      group: group === undefined ? undefined : parseSocketGroup(group, "--control-group"),
    },
  };
}
