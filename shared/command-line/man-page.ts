/** A program's manual page, in section 1, as troff with man(7)'s macros. */
import type { CommandRow, Entry, OptionRow, ProgramTable } from "./table.js";

export function manPage(table: ProgramTable, version: string): string {
  const { name, title, synopsis, description, groups, commands = [] } = table;
  const { exitCodes, signals, environment, files, examples } = table;
  const parts = [
    `.\\" Made from the program's table of options by "npm run man": to be changed there.`,
    `.TH ${name.toUpperCase()} 1 "" "virtio\\-vfio\\-user ${version}" "User Commands"`,
    section("NAME", [`${literal(name)} \\- ${literal(title)}`]),
    section(
      "SYNOPSIS",
      synopsis.flatMap((line, i) => [...(i === 0 ? [] : [".br"]), `.B ${literal(name)}`, italicValues(line)]),
    ),
    section("DESCRIPTION", description.map(literal).join("\n.PP\n").split("\n")),
    section("COMMANDS", commands.flatMap(command)),
    section(
      "OPTIONS",
      groups.flatMap(({ title, options }) => [`.SS ${literal(title)}`, ...options.flatMap(option)]),
    ),
    section("EXIT STATUS", exitCodes.flatMap(entry)),
    section("SIGNALS", signals.flatMap(entry)),
    section("ENVIRONMENT", environment.flatMap(entry)),
    section("FILES", files.flatMap(entry)),
    section("EXAMPLES", examples.flatMap(example)),
    section("SEE ALSO", [
      table.seeAlso.map((page) => literal(page).replace(/^(.*)\((\d)\)$/, ".BR $1 ($2)")).join(",\n"),
    ]),
  ];
  return `${parts.filter((part) => part !== "").join("\n")}\n`;
}

function section(title: string, lines: readonly string[]): string {
  return lines.length === 0 || lines[0] === "" ? "" : `.SH ${title}\n${lines.join("\n")}`;
}

function command({ name, summary, options }: CommandRow): string[] {
  const own = options.flatMap(option);
  const indented = own.length === 0 ? [] : [".RS", ...own, ".RE"];
  return [".TP", `.B ${literal(name)}`, literal(asSentence(summary)), ...indented];
}

function option({ name, value, summary, more, short, repeatable }: OptionRow): string[] {
  const letter = short === undefined ? "" : `\\fB\\-${short}\\fR, `;
  const argument = value === undefined ? "" : `=\\fI${literal(value)}\\fR`;
  const sentences = [summary, more, repeatable === true ? "It may be given several times." : undefined];
  return [
    ".TP",
    `${letter}\\fB\\-\\-${literal(name)}\\fR${argument}`,
    ...sentences.filter((each) => each !== undefined).map((each) => literal(asSentence(each))),
  ];
}

/** A summary as a sentence that others can follow; words that are to be typed stay as they are. */
function asSentence(text: string): string {
  const ended = /[.:?]$/.test(text) ? text : `${text}.`;
  return /^[a-z]+ /.test(ended) ? ended[0].toUpperCase() + ended.slice(1) : ended;
}

function entry([term, text]: Entry): string[] {
  return [".TP", `.B ${literal(term)}`, literal(text)];
}

function example([text, command]: Entry): string[] {
  return [".PP", literal(text), ".PP", ".RS 4", ".nf", ...command.split("\n").map(literal), ".fi", ".RE"];
}

/** The synopsis: what is to be replaced is in italics. */
function italicValues(line: string): string {
  return literal(line).replaceAll(/\b[A-Z]{1,}\b/g, "\\fI$&\\fR");
}

/** Text that troff takes literally. */
function literal(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("~", "\\(ti")
    .replaceAll("^", "\\(ha")
    .replaceAll("`", "\\(ga")
    .replaceAll("'", "\\(aq")
    .replaceAll(/^\./gm, "\\&.");
}
