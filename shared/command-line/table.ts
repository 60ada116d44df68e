/**
 * A program's command line as a table. All that says what a program can do is made from it: the parser (parse.ts, with
 * suggest.ts for what is misspelt), `--help` (help.ts) and the manual page (man-page.ts).
 */

/** An option, without its leading dashes. */
export interface OptionRow {
  readonly name: string;
  /** What the value is: "PATH"; undefined for a switch. */
  readonly value?: string;
  /** One or two lines, for `--help` and the manual page. */
  readonly summary: string;
  /** Sentences for the manual page alone. */
  readonly more?: string;
  /** It may be given several times. */
  readonly repeatable?: boolean;
  /** It has to be given; said in a command's line. */
  readonly required?: boolean;
  /** One letter that stands for it. */
  readonly short?: string;
}

export interface OptionGroup {
  readonly title: string;
  readonly options: readonly OptionRow[];
}

/** A term and what is said of it: an exit code, a signal, a variable, a file. */
export type Entry = readonly [term: string, text: string];

/** A word that says what is to be done, and what goes with it. */
export interface CommandRow {
  readonly name: string;
  readonly summary: string;
  readonly options: readonly OptionRow[];
}

export interface ProgramTable {
  readonly name: string;
  /** What it is, for whatis(1): half a sentence. */
  readonly title: string;
  /** What follows the name, one line for each way to call it. */
  readonly synopsis: readonly string[];
  /** The first paragraph is `--help`'s, too. */
  readonly description: readonly string[];
  readonly groups: readonly OptionGroup[];
  readonly commands?: readonly CommandRow[];
  readonly exitCodes: readonly Entry[];
  readonly signals: readonly Entry[];
  readonly environment: readonly Entry[];
  readonly files: readonly Entry[];
  /** What a command does, and the command's lines. */
  readonly examples: readonly Entry[];
  /** Pages, as "qemu(1)". */
  readonly seeAlso: readonly string[];
}

/** All of its options, in the table's order. */
export function optionsOf(table: ProgramTable): readonly OptionRow[] {
  return table.groups.flatMap(({ options }) => options);
}

/** What every program has. */
export const COMMON_ROWS: readonly OptionRow[] = [
  { name: "help", summary: "print this text", short: "h" },
  { name: "version", summary: "print the version" },
];
