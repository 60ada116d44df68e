/** Places at which a test has a process die, counted by number and in a file. */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { crashPoint } from "../../native/supervision.js";
import { folder } from "./helpers.js";

const ADDON = fileURLToPath(new URL("../../native/supervision.js", import.meta.url));
/** Passes four places, and says how far it came. */
const PROGRAM = `const { crashPoint } = await import(${JSON.stringify(ADDON)});
for (let n = 1; n <= 4; n++) { process.stdout.write(String(n)); crashPoint(); }`;

function run(crashAt: string) {
  const env = { ...process.env, VFIO_USER_CRASH_AT: crashAt };
  const { stdout, signal } = spawnSync(process.execPath, ["--input-type=module", "-e", PROGRAM], { env });
  return [String(stdout), signal];
}

test("there are none while nobody tests", (t) => {
  t.is(crashPoint, undefined);
});

test("a process dies at the one that has the number", (t) => {
  t.deepEqual(run("1"), ["1", "SIGKILL"]);
  t.deepEqual(run("4"), ["1234", "SIGKILL"]);
  t.deepEqual(run("5"), ["1234", null]);
});

test("words in a file say so for this process and for the next one, and count all", (t) => {
  const file = join(folder(t), "words");
  const words = (...values: number[]) => writeFileSync(file, Uint32Array.from([...values, 0, 0, 0].slice(0, 3)));
  const read = () => [...new Uint32Array(new Uint8Array(readFileSync(file)).buffer)];
  words(3);
  t.deepEqual(run(file), ["123", "SIGKILL"]);
  t.deepEqual(read(), [0, 0, 3]);
  t.deepEqual(run(file), ["1234", null]);
  t.deepEqual(read(), [0, 0, 7]);
  words(0, 2);
  t.deepEqual(run(file), ["12", "SIGKILL"]);
  t.deepEqual(read(), [0, 0, 2]);
});
