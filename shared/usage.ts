/** A command line as all programs read theirs, with what is wrong in it as one sentence. */
import { readFileSync } from "node:fs";
import { type ParseArgsConfig, parseArgs } from "node:util";
import { UserError } from "./errors.js";

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
    throw new UserError(`${mistakeOf((error as Error).message)}; see ${program} --help`, 2);
  }
}

/** Node's words without the advice behind them, which is for shells. */
function mistakeOf(message: string): string {
  const [, name] = /'(?:-\w, )?(--[^' ]+)[^']*' argument is ambiguous/.exec(message) ?? [];
  if (name !== undefined) return `${name} needs a value; one that begins with "-" is written ${name}=-...`;
  const [sentence] = message.split(/\. |\n/);
  return sentence.replace(/\.$/, "");
}

/** What --version prints. */
export function versionText(program: string): string {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  return `${program} ${version}\n`;
}
