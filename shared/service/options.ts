/** The part of the command line that all programs have which serve, and what comes of it. */
import type { Given } from "../command-line/parse.js";
import { didYouMean } from "../command-line/suggest.js";
import type { Entry, OptionRow } from "../command-line/table.js";
import { UserError } from "../errors.js";
import { LEVELS } from "../log.js";
import { LOG_FORMATS, type LogOptions } from "../log-output.js";
import { parseSocketGroup, parseSocketMode, type SocketAccess } from "./socket-access.js";

export interface ServiceOptions {
  readonly pidFile: string | undefined;
  readonly log: LogOptions;
  /** It ends when its first client, or that of each session, has come and gone. */
  readonly once: boolean;
  readonly access: SocketAccess;
}

export const SOCKET_ROWS: readonly OptionRow[] = [
  {
    name: "socket-mode",
    value: "MODE",
    summary: "permissions of the sockets that are made, in octal (default: 600)",
    more: "They say who may connect. They do not change those of a socket that was handed down.",
  },
  {
    name: "socket-group",
    value: "GROUP",
    summary: "group of the sockets that are made, by name or number",
    more: "With --socket-mode=660 its members may connect.",
  },
];

export const SERVICE_ROWS: readonly OptionRow[] = [
  {
    name: "pid-file",
    value: "PATH",
    summary: "a file that has the process's number while it serves",
    more:
      "It is locked from the start on: a second process that is given it does not start, and one that a killed " +
      "process left behind is used again.",
  },
  {
    name: "log-level",
    value: "LEVEL",
    summary: `${LEVELS.join(", ")} (default: info)`,
    more:
      "error: the operator has to act; warn: a peer misbehaved; info: who connects, resets and leaves; debug: " +
      "control messages; trace: each I/O.",
  },
  {
    name: "log-format",
    value: "FORMAT",
    summary: "json, lines of JSON, or pretty, lines for people (default: pretty on a terminal, else json)",
  },
  {
    name: "log-file",
    value: "PATH",
    summary: "append the log to this file in place of standard error; SIGHUP opens it again",
    more: "Why the process could not start is on standard error all the same.",
  },
];

export const CAPABILITIES_ROW: OptionRow = {
  name: "print-capabilities",
  summary: "print what the program can do, as JSON, whatever else is given",
  more: "The form is that of QEMU's vhost-user back-end programs (docs/vfio-user-backend.schema.json).",
};

export const SERVICE_EXIT_CODES: readonly Entry[] = [
  ["0", "ended by a signal, or with --once by its client"],
  ["1", "the machine is not as needed"],
  ["2", "wrong usage"],
];

export const SERVICE_ENVIRONMENT: readonly Entry[] = [
  [
    "NOTIFY_SOCKET",
    "Set by a service manager (Type=notify): it is sent READY=1, STATUS=, STOPPING=1, and WATCHDOG=1 where " +
      "WATCHDOG_USEC asks for that.",
  ],
  ["NO_COLOR", "If it is set, lines for people have no colours."],
];

/** @throws UserError */
export function parseServiceOptions(given: Given): ServiceOptions {
  const mode = given.value("socket-mode");
  const group = given.value("socket-group");
  return {
    pidFile: path(given, "pid-file"),
    log: {
      level: oneOf("log-level", given.value("log-level"), LEVELS) ?? "info",
      format: oneOf("log-format", given.value("log-format"), LOG_FORMATS),
      file: path(given, "log-file"),
    },
    once: given.has("once"),
    access: {
      mode: mode === undefined ? undefined : parseSocketMode(mode),
      group: group === undefined ? undefined : parseSocketGroup(group),
    },
  };
}

function path(given: Given, name: string): string | undefined {
  const value = given.value(name);
  if (value === "" || value?.includes("\0")) throw new UserError(`--${name} is not the path of a file`, 2);
  return value;
}

function oneOf<Word extends string>(name: string, text: string | undefined, words: readonly Word[]): Word | undefined {
  const word = words.find((each) => each === text);
  if (word !== undefined || text === undefined) return word;
  throw new UserError(`--${name} ${text}: it must be one of ${words.join(", ")}${didYouMean(text, words)}`, 2);
}
