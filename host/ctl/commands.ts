/**
 * What vfio-user-ctl can be told: a command for each method of the control socket, by the same table, and those that
 * are more than one method. From here the help, the manual page and the command line are made.
 */
import type { CommandRow, OptionRow } from "../../shared/command-line/table.js";
import { METHODS } from "../../shared/control/methods.js";
import type { MethodRow, Parameter, Params } from "../../shared/control/table.js";
import { UserError } from "../../shared/errors.js";
import { PLUG, UNPLUG } from "./qmp.js";

/** A method by its name. */
const METHOD_COMMANDS: readonly CommandRow[] = METHODS.map((row) => ({
  name: row.name,
  summary: summaryOf(row),
  options: row.parameters.map(optionOf),
}));

const TOP: CommandRow = {
  name: "top",
  summary: "what all sessions do, as a table that goes on; lines, where it is no terminal that they go to (q ends it)",
  options: [
    { name: "interval", value: "SECONDS", summary: "from one look to the next, 0.2 to 3600 (default: 1)" },
    { name: "count", value: "N", summary: "look so many times, and end" },
  ],
};

export const COMMANDS: readonly CommandRow[] = [TOP, PLUG, UNPLUG, ...METHOD_COMMANDS];

/** Whether it asks a VM's QEMU, and none of our programs. */
export const isForQemu = (command: CommandRow) => command === PLUG || command === UNPLUG;

export function findMethod(name: string): MethodRow | undefined {
  return METHODS.find((each) => each.name === name);
}

function summaryOf({ summary, changes, program }: MethodRow): string {
  const notes = [
    ...(changes === true ? ["on the admin socket alone"] : []),
    ...(program === undefined ? [] : [`of a ${program}`]),
  ];
  return notes.length === 0 ? summary : `${summary} (${notes.join(", ")})`;
}

function optionOf({ name, type, summary, words, required, isSize }: Parameter): OptionRow {
  const kind = type === "string" ? "TEXT" : isSize === true ? "SIZE" : "N";
  return {
    name,
    ...(type === "boolean" ? {} : { value: name === "session" ? "NAME" : kind }),
    summary: words === undefined ? summary : `${summary}: ${words.join(", ")}`,
    required: required === true,
  };
}

const UNITS: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** A parameter's value from its text. @throws UserError with exit code 2 */
export function parsedValue({ name, type, isSize }: Parameter, text: string): Params[string] {
  if (type === "string") return text;
  const [, digits, unit] = /^(\d{1,16}|0x[\da-f]{1,14})([KMGT]?)$/i.exec(text) ?? [];
  const value = digits === undefined ? Number.NaN : Number(digits) * UNITS[unit.toUpperCase()];
  if (!Number.isSafeInteger(value) || (unit !== "" && isSize !== true)) {
    const help = isSize === true ? "a whole number, with K, M, G or T behind it for a size" : "a whole number";
    throw new UserError(`--${name} ${text}: it must be ${help}`, 2);
  }
  return value;
}
