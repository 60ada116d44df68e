/**
 * `node build/test/host/bridge/survival/sample.js [PART|all] [SECONDS] [SEED]`: has the bridge die at places that a
 * seed chooses, again and again, and says at which of them it was not gone on with rightly.
 */
import "../../../../shared/no-debugger.js";
import type { ExecutionContext } from "ava";
import { Crashes } from "./crashes.js";
import { EVERYTHING, PARTS } from "./parts.js";

const [name = "all", seconds = "60", seed = String(Date.now() % 100_000)] = process.argv.slice(2);
const parts = [...PARTS, EVERYTHING].filter((part) => name === "all" || part.name === name);
if (parts.length === 0) throw new Error(`no part "${name}": ${PARTS.map((part) => part.name).join(", ")}`);

let state = Number(seed);
/** A linear congruential generator's, which is enough to choose a place. */
function below(limit: number): number {
  state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
  return (state >> 8) % limit;
}

let ends: (() => unknown)[] = [];
/** What is used of a test here. */
const context = { teardown: (end: () => unknown) => ends.push(end), log: console.log } as unknown as ExecutionContext;
let crashes = await Crashes.start(context);
const places = new Map<string, number>();
for (const part of parts) places.set(part.name, await crashes.places(part));

const end = Date.now() + Number(seconds) * 1000;
let [right, wrong] = [0, 0];
for (let n = 0; Date.now() < end; n++) {
  const part = parts[n % parts.length];
  const point = 1 + below(places.get(part.name) ?? 1);
  try {
    await crashes.play(part, { point });
    right++;
  } catch (error) {
    wrong++;
    console.log(`${part.name}, place ${point}: ${(error as Error).message}`);
    const before = ends;
    ends = [];
    for (const each of before) await Promise.resolve(each()).catch(() => {});
    crashes = await Crashes.start(context);
  }
}
console.log(`seed ${seed}: gone on with at ${right} places, not at ${wrong}`);
for (const each of ends) await each();
process.exit(wrong === 0 ? 0 : 1);
