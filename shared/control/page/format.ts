/** Numbers for people. */

const COUNTS = ["", "k", "M", "G", "T", "P"];
const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function scaled(value: number, base: number, units: readonly string[], gap: string): string {
  let left = value;
  let unit = 0;
  for (; left >= base && unit < units.length - 1; unit++) left /= base;
  const text = Number.isInteger(left) ? `${left}` : left.toPrecision(left >= 100 ? Math.ceil(Math.log10(left)) : 3);
  return `${text}${gap}${units[unit]}`;
}

export const number = (value: number): string =>
  scaled(value < 10 ? Math.round(value * 10) / 10 : Math.round(value), 1000, COUNTS, "");
export const bytes = (value: number): string => scaled(Math.round(value), 1024, SIZES, " ");

export function duration(seconds: number): string {
  const units = [
    [86_400, "d"],
    [3600, "h"],
    [60, "min"],
  ] as const;
  for (const [size, name] of units) if (seconds >= size) return `${Math.floor(seconds / size)} ${name}`;
  return `${Math.floor(seconds)} s`;
}

export const dateTime = (time: number): string => new Date(time).toISOString().replace("T", " ").slice(0, 19);

/** Nanoseconds as a time, to three digits. */
export function time(ns: number): string {
  const [size, unit] = ns < 1e6 ? [1e3, "µs"] : ns < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  return `${Number((ns / size).toPrecision(3))} ${unit}`;
}
