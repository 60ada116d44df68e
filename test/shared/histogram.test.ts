/** Histograms of latencies: what they say of values that are known, and that C++ counts as TypeScript does. */
import test from "ava";
import { Latencies } from "../../shared/histogram.js";
import { Command } from "../../shared/spec/vfio-user.js";

const READ = Command.REGION_READ;

test("percentiles are exact to a sixteenth, whatever the values", (t) => {
  for (const scale of [1, 17, 1000, 123_456, 40_000_000]) {
    const latencies = new Latencies();
    for (let n = 1; n <= 100; n++) latencies.record(READ, (n * scale) / 1e6);
    const { count, mean, p50, p90, p99, p999, max } = latencies.summary(READ);
    t.is(count, 100);
    t.is(max, 100 * scale);
    t.true(Math.abs(mean - 50.5 * scale) <= 1, `${mean}`);
    for (const [found, wanted] of [
      [p50, 50],
      [p90, 90],
      [p99, 99],
      [p999, 100],
    ]) {
      t.true(found >= wanted * scale && found <= wanted * scale * (1 + 1 / 16), `${scale}: ${found} for ${wanted}`);
    }
  }
});

test("commands are apart; what is too long counts as the longest; a sum goes beyond 32 bits", (t) => {
  const latencies = new Latencies();
  t.deepEqual(latencies.commands, []);
  t.deepEqual(latencies.summary(READ), { count: 0, mean: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 });
  latencies.record(READ, 0);
  for (let n = 0; n < 4; n++) latencies.record(Command.REGION_WRITE, 60_000);
  latencies.record(1000, 1);
  t.deepEqual(latencies.commands, [READ, Command.REGION_WRITE]);
  t.is(latencies.summary(READ).max, 0);
  t.is(latencies.summary(Command.REGION_WRITE).max, 2 ** 32 - 1);
  t.is(latencies.sum(Command.REGION_WRITE), 4 * (2 ** 32 - 1));
});

test("cumulative counts, as Prometheus wants them", (t) => {
  const latencies = new Latencies();
  for (const microseconds of [1, 2, 50, 900, 20_000]) latencies.record(READ, microseconds / 1000);
  t.deepEqual(latencies.cumulative(READ, [500, 10_000, 100_000, 1_000_000, 100_000_000]), [0, 2, 3, 4, 5]);
});
