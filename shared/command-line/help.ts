/** What --help prints. */
import type { CommandRow, OptionRow, ProgramTable } from "./table.js";

const COLUMNS = 120;
/** Where summaries begin; an option that is longer has a line for itself. */
const SUMMARY_AT = 33;

export function helpText(table: ProgramTable): string {
  const { name, synopsis, description, groups, commands = [], signals, exitCodes } = table;
  const usage = synopsis.map((line, i) => `${i === 0 ? "Usage:" : "      "} ${name} ${line}\n`).join("");
  const all = [
    ...(commands.length === 0 ? [] : [`Commands:\n${commands.map(commandLine).join("")}`]),
    ...groups.map(({ title, options }) => `${title}:\n${options.map(helpLine).join("")}`),
  ];
  const entries = [
    ...signals.map(([signal, text]) => entry(`${signal}:`, text)),
    entry("Exit codes:", `${exitCodes.map(([code, text]) => `${code} ${text}`).join("; ")}.`),
    ...(description.length > 1 ? [entry("More:", `man ${name}`)] : []),
  ];
  return `${usage}\n${wrap(description[0], COLUMNS)
    .map((line) => `${line}\n`)
    .join("")}\n${all.join("\n")}\n${entries.join("")}`;
}

/** With the options that must be given; all of them are in the command's own help. */
function commandLine({ name, summary, options }: CommandRow): string {
  const marks = options.map(({ name, value, required }) => {
    const text = `--${name}${value === undefined ? "" : ` ${value}`}`;
    return required === true ? text : `[${text}]`;
  });
  return lineOf(`  ${[name, ...marks].join(" ")}`, summary);
}

function helpLine({ name, value, summary, short }: OptionRow): string {
  const letter = short === undefined ? "" : `-${short}, `;
  return lineOf(`  ${letter}--${name}${value === undefined ? "" : ` ${value}`}`, summary);
}

function lineOf(term: string, summary: string): string {
  const [first, ...others] = wrap(summary, COLUMNS - SUMMARY_AT);
  const isLong = term.length > SUMMARY_AT - 2;
  const head = isLong ? `${term}\n${" ".repeat(SUMMARY_AT)}${first}` : term.padEnd(SUMMARY_AT) + first;
  return [head, ...others.map((line) => " ".repeat(SUMMARY_AT) + line)].map((line) => `${line}\n`).join("");
}

/** A paragraph whose further lines are indented. */
function entry(term: string, text: string): string {
  const [first, ...others] = wrap(`${term} ${text}`, COLUMNS - 2);
  return [first, ...others.map((line) => `  ${line}`)].map((line) => `${line}\n`).join("");
}

function wrap(text: string, columns: number): string[] {
  const lines: string[] = [""];
  for (const word of text.split(/\s+/)) {
    const last = lines[lines.length - 1];
    if (last !== "" && last.length + 1 + word.length > columns) lines.push(word);
    else lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
  }
  return lines;
}
