/** The table that a run ends with, and the file that a run can be kept in. */
import { readFileSync, writeFileSync } from "node:fs";
import { HIGHER_IS_BETTER } from "./row.js";
import type { Result } from "./run.js";

export interface Report {
  readonly machine: Readonly<Record<string, string>>;
  readonly results: readonly Result[];
}

/** Differences between two runs below this are noise. */
const NOTEWORTHY = 0.05;

export function keep(path: string, report: Report): void {
  writeFileSync(path, `${JSON.stringify(report, null, 2)}\n`);
}

export function load(path: string): Report {
  return JSON.parse(readFileSync(path, "utf8")) as Report;
}

export function table({ machine, results }: Report, earlier: Report | undefined): string {
  const head = ["figure", "measured", "p99", "floor", "ratio", "target", ""];
  if (earlier) head.push("before");
  const lines = results.map((result) => {
    const { unit, value, floor, floorName, ratio, met } = result;
    const spread = value.p99 === value.median ? "" : number(value.p99);
    const cells = [
      result.name,
      `${number(value.median)} ${unit}`,
      spread,
      floor === undefined ? "" : `${number(floor.median)} ${floorName}`,
      ratio === undefined ? "" : ratioText(result),
      targetText(result),
      met === undefined ? "" : met ? "ok" : "MISSED",
    ];
    if (earlier) cells.push(change(result, earlier));
    return cells;
  });
  const all = [head, ...lines];
  const widths = head.map((_, column) => Math.max(...all.map((cells) => cells[column].length)));
  const text = all.map((cells) =>
    cells
      .map((cell, n) => cell.padEnd(widths[n]))
      .join("  ")
      .trimEnd(),
  );
  const missed = results.filter(({ met }) => met === false).length;
  const targets = results.filter(({ met }) => met !== undefined).length;
  const about = Object.entries(machine).map(([name, what]) => `${name}: ${what}`);
  const verdict = targets === 0 ? [] : ["", `${targets - missed} of ${targets} targets met`];
  return [about.join(", "), "", ...text, ...verdict, ""].join("\n");
}

function number(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}

function ratioText({ ratio = 0, ratioP99, target }: Result): string {
  const text = ratio.toFixed(2);
  return target.ratioP99 === undefined || ratioP99 === undefined ? text : `${text} (p99 ${ratioP99.toFixed(2)})`;
}

function targetText({ target, unit }: Result): string {
  const sign = HIGHER_IS_BETTER.has(unit) ? ">=" : "<=";
  const bounds: string[] = [];
  if (target.value !== undefined) bounds.push(`${sign} ${target.value} ${unit}`);
  if (target.ratio !== undefined) bounds.push(`${sign} ${Number(target.ratio.toFixed(2))} x`);
  if (target.ratioP99 !== undefined) bounds.push(`p99 ${sign} ${target.ratioP99} x`);
  return bounds.join(", ");
}

/** By the ratio to the floor where there is one: another day's machine may be faster. */
function change(result: Result, earlier: Report): string {
  const old = earlier.results.find(({ topic, name }) => topic === result.topic && name === result.name);
  if (old === undefined) return "new";
  const [now, then] =
    result.ratio !== undefined && old.ratio !== undefined
      ? [result.ratio, old.ratio]
      : [result.value.median, old.value.median];
  if (then === 0) return now === 0 ? "same" : "was 0";
  const relative = now / then - 1;
  if (Math.abs(relative) < NOTEWORTHY) return "same";
  const better = HIGHER_IS_BETTER.has(result.unit) ? relative > 0 : relative < 0;
  return `${better ? "better" : "WORSE"} by ${Math.abs(relative * 100).toFixed(0)} %`;
}
