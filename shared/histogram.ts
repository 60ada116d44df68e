/**
 * Latencies, as counts of buckets whose width is a sixteenth of their value at most (as HdrHistogram has them): so the
 * memory is constant, and every percentile is exact to 6 %. Nanoseconds, up to 4.3 s, which is longer than any command
 * may take. C++ counts in the same words (native/latency.h).
 */

/** Buckets of one power of two. */
const SUB_BITS = 4;
const SUB = 1 << SUB_BITS;
/** Exact below 16 ns; then 28 powers of two. */
const BUCKETS = SUB * (32 - SUB_BITS + 1);
/** The sum of all values (two words, low one first), the largest, and one that is not used; then the buckets. */
const SUM_LOW = 0;
const SUM_HIGH = 1;
const LARGEST = 2;
const FIRST_BUCKET = 4;
const WORDS = FIRST_BUCKET + BUCKETS;
const MAX_NS = 2 ** 32 - 1;

/** Commands that have a histogram: those of vfio-user, by their number. */
export const MEASURED_COMMANDS = 32;

/** What is known of the latencies of one command. Nanoseconds. */
export interface LatencySummary {
  readonly count: number;
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

/** A histogram for each command. */
export class Latencies {
  /** For C++, which records accesses that JavaScript does not see. */
  readonly words = new Uint32Array(MEASURED_COMMANDS * WORDS);

  record(command: number, milliseconds: number): void {
    if (command >= MEASURED_COMMANDS) return;
    const ns = Math.min(MAX_NS, Math.max(0, Math.round(milliseconds * 1e6)));
    const at = command * WORDS;
    const low = this.words[at + SUM_LOW] + ns;
    this.words[at + SUM_LOW] = low;
    if (low > MAX_NS) this.words[at + SUM_HIGH]++;
    if (ns > this.words[at + LARGEST]) this.words[at + LARGEST] = ns;
    this.words[at + FIRST_BUCKET + bucketOf(ns)]++;
  }

  /** Commands that came. */
  get commands(): number[] {
    return Array.from({ length: MEASURED_COMMANDS }, (_, command) => command).filter((each) => this.#count(each) > 0);
  }

  summary(command: number): LatencySummary {
    const count = this.#count(command);
    const largest = this.words[command * WORDS + LARGEST];
    const at = (share: number) => Math.min(largest, this.#percentile(command, count * share));
    const mean = count === 0 ? 0 : this.sum(command) / count;
    return { count, mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: largest };
  }

  /** Of all values. */
  sum(command: number): number {
    const at = command * WORDS;
    return this.words[at + SUM_HIGH] * 2 ** 32 + this.words[at + SUM_LOW];
  }

  /** How many values were at most each of these, in ascending order; values within a bucket count as its end. */
  cumulative(command: number, bounds: readonly number[]): number[] {
    const first = command * WORDS + FIRST_BUCKET;
    let bucket = 0;
    let count = 0;
    return bounds.map((bound) => {
      for (; bucket < BUCKETS && endOf(bucket) <= bound; bucket++) count += this.words[first + bucket];
      return count;
    });
  }

  #count(command: number): number {
    const first = command * WORDS + FIRST_BUCKET;
    let count = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) count += this.words[first + bucket];
    return count;
  }

  /** The end of the bucket that the value with that rank is in. */
  #percentile(command: number, rank: number): number {
    const first = command * WORDS + FIRST_BUCKET;
    let count = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      count += this.words[first + bucket];
      if (count > 0 && count >= rank) return endOf(bucket);
    }
    return 0;
  }
}

function bucketOf(ns: number): number {
  if (ns < SUB) return ns;
  const exponent = 31 - Math.clz32(ns);
  return (exponent - SUB_BITS + 1) * SUB + ((ns >>> (exponent - SUB_BITS)) & (SUB - 1));
}

/** The largest value of a bucket. */
function endOf(bucket: number): number {
  if (bucket < SUB) return bucket;
  const exponent = Math.floor(bucket / SUB) + SUB_BITS - 1;
  return (SUB + (bucket % SUB) + 1) * 2 ** (exponent - SUB_BITS) - 1;
}
