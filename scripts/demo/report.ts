/** How the demonstration talks: a line for each step with the time since the start, and a table at the end. */
import { isSystemError, UserError } from "../../shared/errors.js";

const start = performance.now();

export function say(text: string): void {
  console.log(`${((performance.now() - start) / 1000).toFixed(1).padStart(6)} s  ${text}`);
}

export function table(rows: ReadonlyArray<readonly [string, string]>): void {
  const width = Math.max(...rows.map(([name]) => name.length));
  console.log("");
  for (const [name, value] of rows) console.log(`  ${name.padEnd(width)}  ${value}`);
}

/** The end of a program by an error: what the machine does not have is a sentence, a bug of ours a stack trace. */
export function failed(error: unknown): void {
  console.error(error instanceof UserError || isSystemError(error) ? error.message : error);
  process.exitCode = error instanceof UserError ? error.exitCode : 1;
}
