/** A command line as all programs read theirs, with what is wrong in it as one sentence. */
import { readFileSync } from "node:fs";
import { type ParseArgsConfig, parseArgs } from "node:util";
import { UserError } from "../errors.js";
import { didYouMean } from "./suggest.js";
import { optionsOf, type ProgramTable } from "./table.js";

/**
 * The values by name (node:util's parseArgs, without positional arguments). An option that may not be repeated and is,
 * is a mistake: one of its values would be lost. @throws UserError with exit code 2
 */
export function parseArguments<const Options extends NonNullable<ParseArgsConfig["options"]>>(
  program: string,
  args: readonly string[],
  options: Options,
): ReturnType<typeof parseArgs<{ options: Options }>>["values"] {
  try {
    const { values, tokens } = parseArgs({ args: [...args], options, allowPositionals: false, tokens: true });
    const seen = new Set<string>();
    for (const token of tokens) {
      if (token.kind !== "option" || options[token.name]?.type !== "string" || options[token.name]?.multiple) continue;
      if (seen.has(token.name)) throw new UserError(`--${token.name} was given twice; see ${program} --help`, 2);
      seen.add(token.name);
    }
    return values;
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`${mistakeOf(error as Error, Object.keys(options))}; see ${program} --help`, 2);
  }
}

/** What was given of a table's options. */
export class Given {
  /** Those with a value, in the order in which they came. */
  readonly inOrder: readonly { readonly name: string; readonly value: string }[];
  readonly #switches: ReadonlySet<string>;

  constructor(inOrder: Given["inOrder"], switches: ReadonlySet<string>) {
    this.inOrder = inOrder;
    this.#switches = switches;
  }

  has(name: string): boolean {
    return this.#switches.has(name) || this.value(name) !== undefined;
  }

  value(name: string): string | undefined {
    return this.inOrder.find((each) => each.name === name)?.value;
  }

  values(name: string): string[] {
    return this.inOrder.filter((each) => each.name === name).map(({ value }) => value);
  }
}

/** Reads a command line by its table. @throws UserError with exit code 2 */
export function parseByTable(table: ProgramTable, args: readonly string[]): Given {
  const options = Object.fromEntries(
    optionsOf(table).map(({ name, value, repeatable, short }) => [
      name,
      {
        type: value === undefined ? "boolean" : "string",
        multiple: repeatable ?? false,
        ...(short === undefined ? {} : { short }),
      } as const,
    ]),
  );
  const values = parseArguments(table.name, args, options);
  const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true });
  const inOrder = tokens.flatMap((token) =>
    token.kind === "option" && token.value !== undefined ? [{ name: token.name, value: token.value }] : [],
  );
  return new Given(inOrder, new Set(Object.keys(values).filter((name) => values[name] === true)));
}

/** Node's words without the advice behind them, which is for shells. */
function mistakeOf({ message }: Error, names: readonly string[]): string {
  const [, ambiguous] = /'(?:-\w, )?(--[^' ]+)[^']*' argument is ambiguous/.exec(message) ?? [];
  if (ambiguous !== undefined) {
    return `${ambiguous} needs a value; one that begins with "-" is written ${ambiguous}=-...`;
  }
  const [, unknown] = /^Unknown option '(-[^']*)'/.exec(message) ?? [];
  if (unknown !== undefined) {
    return `there is no option ${unknown}${didYouMean(unknown.replace(/^-+/, ""), names, "--").replace(/\?$/, "")}`;
  }
  const [sentence] = message.split(/\. |\n/);
  return sentence.replace(/\.$/, "");
}

/** The package's version. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8")).version;
}

/** What --version prints. */
export function versionText(program: string): string {
  return `${program} ${packageVersion()}\n`;
}
