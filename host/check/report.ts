/** Results as text, a line each as they come and a summary, or as JSON. */
import type { Check } from "./check.js";
import type { Outcome, Result } from "./run.js";

const WORDS: Readonly<Record<Outcome, string>> = { pass: "pass", fail: "FAIL", skip: "skip" };
const COLOURS: Readonly<Record<Outcome, string>> = { pass: "\x1b[32m", fail: "\x1b[31m", skip: "\x1b[33m" };
const NO_COLOUR = "\x1b[0m";
const MAX_NOTE_LENGTH = 160;

/** What a server says may be long, and may hold what a terminal would take for commands. */
function printable(text: string): string {
  const clean = text.replace(/[^\x20-\x7e]/g, "?");
  return clean.length <= MAX_NOTE_LENGTH ? clean : `${clean.slice(0, MAX_NOTE_LENGTH)}...`;
}

/** One result; a failure takes several lines. `width`: that of the longest id. */
export function formatResult(result: Result, width: number, colour: boolean): string {
  const { id, outcome, title, section, note, reason } = result;
  const word = colour ? `${COLOURS[outcome]}${WORDS[outcome]}${NO_COLOUR}` : WORDS[outcome];
  const remark = note ?? reason;
  const line = `${word}  ${id.padEnd(width)}  ${title}${remark === undefined ? "" : ` [${printable(remark)}]`}`;
  if (outcome !== "fail") return line;
  const indent = " ".repeat(6);
  const { expected = "", came = "" } = result;
  return [
    line,
    `${indent}${section}`,
    `${indent}expected: ${printable(expected)}`,
    `${indent}came:     ${printable(came)}`,
  ].join("\n");
}

export function formatCheck({ id, section, title, destructive }: Check, width: number): string {
  return `${id.padEnd(width)}  ${title} (${section})${destructive ? " [destructive]" : ""}`;
}

export function tally(results: readonly Result[]): { passed: number; failed: number; skipped: number } {
  const count = (outcome: Outcome) => results.filter((result) => result.outcome === outcome).length;
  return { passed: count("pass"), failed: count("fail"), skipped: count("skip") };
}

export function formatSummary(results: readonly Result[]): string {
  const { passed, failed, skipped } = tally(results);
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/** Indented JSON with all that is known. */
export function formatJson(socketPath: string, results: readonly Result[]): string {
  return JSON.stringify({ socketPath, ...tally(results), checks: results }, undefined, 2);
}
