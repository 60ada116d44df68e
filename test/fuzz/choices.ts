/** Seeded choices for a fuzzer. Each round has a stream of its own, so that one round can be repeated by itself. */
import { Random } from "../guest/devices/nvme/random.js";

export class Choices extends Random {
  /** The stream of a round. */
  static forRound(seed: number, round: number): Choices {
    return new Choices((Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(round + 1, 0xc2b2ae35)) >>> 0);
  }

  /** A stream of its own, for choices that are made when a peer says something: they do not shift the others. */
  fork(): Choices {
    return new Choices(this.below(2 ** 32));
  }

  /** True `percent` times of a hundred. */
  chance(percent: number): boolean {
    return this.below(100_000) < percent * 1000;
  }

  /** An integer from `least` to `most`. */
  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }

  /** One of the values, as often as their weights say. */
  weighted<T>(values: readonly (readonly [weight: number, value: T])[]): T {
    let left = this.below(values.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, value] of values) {
      left -= weight;
      if (left < 0) return value;
    }
    return values[0][1];
  }

  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    this.fill(bytes);
    return bytes;
  }
}
