/** What --help prints. */
import type { OptionRow, ProgramTable } from "./table.js";

const COLUMNS = 120;
/** Where summaries begin; an option that is longer has a line for itself. */
const SUMMARY_AT = 33;

export function helpText(table: ProgramTable): string {
  const { name, synopsis, description, groups, signals, exitCodes } = table;
  const usage = synopsis.map((line, i) => `${i === 0 ? "Usage:" : "      "} ${name} ${line}\n`).join("");
  const options = groups.map(({ title, options }) => `${title}:\n${options.map(helpLine).join("")}`).join("\n");
  const entries = [
    ...signals.map(([signal, text]) => entry(`${signal}:`, text)),
    entry("Exit codes:", `${exitCodes.map(([code, text]) => `${code} ${text}`).join("; ")}.`),
    ...(description.length > 1 ? [entry("More:", `man ${name}`)] : []),
  ];
  return `${usage}\n${wrap(description[0], COLUMNS)
    .map((line) => `${line}\n`)
    .join("")}\n${options}\n${entries.join("")}`;
}

function helpLine({ name, value, summary, short }: OptionRow): string {
  const letter = short === undefined ? "" : `-${short}, `;
  const option = `  ${letter}--${name}${value === undefined ? "" : ` ${value}`}`;
  const [first, ...others] = wrap(summary, COLUMNS - SUMMARY_AT);
  const isLong = option.length > SUMMARY_AT - 2;
  const head = isLong ? `${option}\n${" ".repeat(SUMMARY_AT)}${first}` : option.padEnd(SUMMARY_AT) + first;
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
