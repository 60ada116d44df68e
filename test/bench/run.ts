/**
 * Rounds: in each one every row of a topic is measured right after its floor, so that what disturbs the machine
 * disturbs both. Figures are medians over the rounds; a ratio is the median of the rounds' ratios.
 */
import type { Machine, Sample } from "./machine.js";
import { HIGHER_IS_BETTER, type Row, type Target, type Topic, type Unit } from "./row.js";

/** What came out for a row. */
export interface Result {
  readonly topic: string;
  readonly name: string;
  readonly unit: Unit;
  readonly target: Target;
  readonly floorName: string | undefined;
  readonly value: Sample;
  readonly floor: Sample | undefined;
  readonly ratio: number | undefined;
  readonly ratioP99: number | undefined;
  readonly rounds: number;
  /** Undefined where there is no target. */
  readonly met: boolean | undefined;
}

interface Round {
  readonly value: Sample;
  readonly floor: Sample | undefined;
}

export async function runTopic<State>(
  topic: Topic<State>,
  machine: Machine,
  rounds: number,
  wanted: (name: string) => boolean,
  progress: (text: string) => void,
): Promise<Result[]> {
  const rows = topic.rows.filter(({ name }) => wanted(`${topic.name}: ${name}`));
  if (rows.length === 0) return [];
  progress(`${topic.name}: starting`);
  const measured = new Map<Row<State>, Round[]>(rows.map((row) => [row, []]));
  const state = await topic.open(machine);
  try {
    for (let round = 0; round < rounds; round++) {
      for (const [row, all] of measured) {
        if (row.once && round > 0) continue;
        progress(`${topic.name}: round ${round + 1} of ${rounds}, ${row.name}`);
        const floor = await row.floor?.(state);
        all.push({ floor, value: await row.measure(state) });
      }
    }
  } finally {
    await topic.close(state);
  }
  return rows.map((row) => judge(topic.name, row, measured.get(row) ?? []));
}

function judge<State>(topic: string, row: Row<State>, all: readonly Round[]): Result {
  const { name, unit, target, floorName } = row;
  // The first round also compiled the code that it measured.
  const rounds = all.length > 2 ? all.slice(1) : all;
  const value = middle(rounds.map((round) => round.value));
  const floors = rounds.flatMap((round) => round.floor ?? []);
  const floor = floors.length > 0 ? middle(floors) : undefined;
  const ratios = (key: keyof Sample) => median(rounds.map((round) => round.value[key] / (round.floor?.[key] ?? 1)));
  const ratio = floor && ratios("median");
  const ratioP99 = floor && ratios("p99");
  const within = (measured: number | undefined, bound: number | undefined): boolean =>
    bound === undefined ||
    (measured !== undefined && (HIGHER_IS_BETTER.has(unit) ? measured >= bound : measured <= bound));
  const met =
    Object.keys(target).length === 0
      ? undefined
      : within(value.median, target.value) && within(ratio, target.ratio) && within(ratioP99, target.ratioP99);
  return { topic, name, unit, target, floorName, value, floor, ratio, ratioP99, rounds: rounds.length, met };
}

function middle(samples: readonly Sample[]): Sample {
  return { median: median(samples.map((sample) => sample.median)), p99: median(samples.map((sample) => sample.p99)) };
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
