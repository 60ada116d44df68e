/** The command line of vfio-user-ctl: a command, what goes with it, and where the program is that it is for. */
import { type Given, parseByTable } from "../../shared/command-line/parse.js";
import { didYouMean } from "../../shared/command-line/suggest.js";
import { COMMON_ROWS, type CommandRow, type OptionRow, type ProgramTable } from "../../shared/command-line/table.js";
import type { Params } from "../../shared/control/table.js";
import { UserError } from "../../shared/errors.js";
import { checkSocketPath } from "../../shared/listener.js";
import { COMMANDS, findMethod, isForQemu, parsedValue } from "./commands.js";

export interface Options {
  /** Empty for a command that is for a VM's QEMU. */
  readonly socket: string;
  readonly command: CommandRow;
  readonly given: Given;
  readonly json: boolean;
}

const PROGRAM = "vfio-user-ctl";
const VARIABLE = "VFIO_USER_CONTROL";

const OWN: readonly OptionRow[] = [
  {
    name: "control",
    value: "PATH",
    summary: `the program's control socket, --control or --control-admin (default: $${VARIABLE})`,
  },
  { name: "json", summary: "print what the program says as JSON" },
  ...COMMON_ROWS,
];

export const TABLE: ProgramTable = {
  name: PROGRAM,
  title: "look at and steer a running vfio-user-bridge or vfio-user-device",
  synopsis: ["[--control PATH] [--json] COMMAND [OPTION]..."],
  description: [
    "Asks a running vfio-user-bridge or vfio-user-device by its control socket. What changes something needs the " +
      "socket of --control-admin, which is its owner's alone.",
    "Each command is a method of the socket, which speaks JSON-RPC 2.0, one document a line: " +
      "docs/vfio-user-control.schema.json.",
  ],
  commands: COMMANDS,
  groups: [{ title: "Options", options: OWN }],
  exitCodes: [
    ["0", "it is done"],
    ["1", "nobody is there, or it was refused"],
    ["2", "wrong usage"],
  ],
  signals: [],
  environment: [
    [VARIABLE, "The control socket, where --control is not given."],
    ["NO_COLOR", "If it is set, what is printed has no colours."],
  ],
  files: [],
  examples: [
    ["What is connected:", "vfio-user-ctl --control=/run/vms/control.sock sessions"],
    ["How long register accesses take, every ten seconds:", "vfio-user-ctl top --interval=10"],
    [
      "A running VM is to have the disk of a bridge:",
      "vfio-user-ctl plug --qmp=/run/vms/qmp.sock --socket-path=/run/vms/disk.sock",
    ],
    [
      "A host is to be maintained: no new driver VMs, until the last one has gone.",
      "vfio-user-ctl --control=/run/vms/admin.sock drain",
    ],
  ],
  seeAlso: ["vfio-user-bridge(1)", "vfio-user-device(1)"],
};

/** Reads the arguments; words where only that was asked for. @throws UserError for wrong usage */
export function parseOptions(args: readonly string[]): Options | "help" | "version" | CommandRow {
  const at = commandAt(args);
  const name = args[at];
  const command = COMMANDS.find((each) => each.name === name);
  if (at >= 0 && command === undefined) {
    const near = didYouMean(
      name,
      COMMANDS.map((each) => each.name),
    );
    throw usage(`there is no command ${name}${near.replace(/\?$/, "")}`);
  }
  const groups = [{ title: "Options", options: [...(command?.options ?? []), ...OWN] }];
  const rest = args.filter((_, n) => n !== at);
  const given = parseByTable({ ...TABLE, groups }, rest);
  if (given.has("version")) return "version";
  if (given.has("help")) return command ?? "help";
  if (command === undefined) throw usage("nothing to do");
  if (isForQemu(command)) return { socket: "", command, given, json: given.has("json") };
  const socket = given.value("control") ?? process.env[VARIABLE] ?? "";
  if (socket === "") throw usage(`--control PATH is needed, or ${VARIABLE}`);
  checkSocketPath(socket);
  return { socket, command, given, json: given.has("json") };
}

/** The first argument that is neither an option nor the value of one. */
function commandAt(args: readonly string[]): number {
  const takesValue = (arg: string) => OWN.some(({ name, value }) => value !== undefined && arg === `--${name}`);
  for (let n = 0; n < args.length; n++) {
    if (!args[n].startsWith("-")) return n;
    if (takesValue(args[n])) n++;
  }
  return -1;
}

/** A method's parameters as they were given. @throws UserError with exit code 2 */
export function paramsOf({ command, given }: Options): Params {
  const params: Record<string, Params[string]> = {};
  for (const parameter of findMethod(command.name)?.parameters ?? []) {
    const { name, type, required } = parameter;
    const text = given.value(name);
    if (type === "boolean" ? given.has(name) : text !== undefined) {
      params[name] = type === "boolean" ? true : parsedValue(parameter, text ?? "");
    } else if (required === true) throw usage(`${command.name} needs --${name}`);
  }
  return params;
}

export function usage(message: string): UserError {
  return new UserError(`${message}; see ${PROGRAM} --help`, 2);
}

/** What a command's own help is made of. */
export function tableOf(command: CommandRow): ProgramTable {
  return {
    ...TABLE,
    synopsis: [`[--control PATH] [--json] ${command.name} [OPTION]...`],
    description: [`${command.summary[0].toUpperCase()}${command.summary.slice(1)}.`],
    commands: [],
    groups: [{ title: "Options", options: [...command.options, ...OWN] }],
  };
}
