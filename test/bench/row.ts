/** What a benchmark is: rows as data, grouped by topic, each measured in rounds together with its floor. */
import type { Machine, Sample } from "./machine.js";

/** Lower is better for all units but those of `HIGHER_IS_BETTER`. */
export type Unit = "us" | "ns" | "k/s" | "KiB" | "MiB" | "%" | "count";
export const HIGHER_IS_BETTER: ReadonlySet<Unit> = new Set<Unit>(["k/s"]);

/** What a row is to reach: a bound on the value, on its ratio to the floor, or on both. */
export interface Target {
  readonly value?: number;
  readonly ratio?: number;
  /** The ratio of the 99th percentiles, too. */
  readonly ratioP99?: number;
}

export interface Row<State> {
  readonly name: string;
  readonly unit: Unit;
  readonly target: Target;
  /** What the floor is, in a few words. */
  readonly floorName?: string;
  /** Takes long or changes what it measures: measured in one round only. */
  readonly once?: boolean;
  measure(state: State): Promise<Sample>;
  floor?(state: State): Promise<Sample>;
}

export interface Topic<State> {
  readonly name: string;
  readonly rows: readonly Row<State>[];
  /** Starts the processes that the rows share. */
  open(machine: Machine): Promise<State>;
  close(state: State): Promise<void>;
}

/** Two floors one after the other. */
export function sum(...samples: readonly Sample[]): Sample {
  return samples.reduce((a, b) => ({ median: a.median + b.median, p99: a.p99 + b.p99 }));
}

export function scale({ median, p99 }: Sample, factor: number): Sample {
  return { median: median * factor, p99: p99 * factor };
}

export function single(value: number): Sample {
  return { median: value, p99: value };
}
