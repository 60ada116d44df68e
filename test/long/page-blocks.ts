/**
 * The commands of a page, with what is to come of them. A block of commands (```sh) begins with a
 * comment that says where they are typed: "# on the host, terminal 2" starts what stays in that terminal, "# in the
 * device VM, terminal 2" is typed into it, and without a number the commands come to an end. The block of text behind
 * it (```text) has lines that must come, in that order.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";

export interface Block {
  /** "on the host", or in which VM. */
  readonly where: string;
  /** The terminal that it stays in, or is typed into. */
  readonly terminal: number | undefined;
  /** Commands; a line that ends in a backslash is one with the next. */
  readonly commands: readonly string[];
  readonly expected: readonly string[];
}

const BLOCK = /^```(sh|text)\n(.*?)^```$/gms;
const WHERE = /^# ((?:on|in) the [^,\n]+)(?:, terminal (\d))?/;

/** Of a page in docs/. */
export async function pageBlocks(name: string): Promise<Block[]> {
  const text = await readFile(join(PROJECT_ROOT, "docs", name), "utf8");
  const blocks: Block[] = [];
  for (const [, kind, content] of text.matchAll(BLOCK)) {
    const lines = content.trim().split("\n");
    const last = blocks.at(-1);
    if (kind === "text" && last !== undefined) blocks[blocks.length - 1] = { ...last, expected: lines };
    else blocks.push(commandBlock(lines));
  }
  return blocks;
}

function commandBlock([first, ...lines]: readonly string[]): Block {
  const [, where, terminal] = WHERE.exec(first) ?? [];
  if (where === undefined) throw new Error(`a block of commands does not say where they are typed: ${first}`);
  const commands = lines.join("\n").split(/(?<!\\)\n/);
  return { where, terminal: terminal === undefined ? undefined : Number(terminal), commands, expected: [] };
}
