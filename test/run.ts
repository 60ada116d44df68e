/**
 * What `npm test` runs: lint, then every AVA test, the ones with VMs last and one at a time (two VMs fill a small
 * machine). `npm run test:long` (--long) runs the tests in test/long instead, which take longer and fetch more. Other
 * arguments are passed to AVA as file patterns, and then lint is left out. The last line is `N passed, N failed`.
 */
import "../shared/no-debugger.js";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

const BUILT_TESTS = "build/test";

let passed = 0;
let failed = 0;

async function lint(): Promise<void> {
  const child = spawn("node_modules/.bin/biome", ["check", "--error-on-warnings", "."], { stdio: "inherit" });
  const [code] = (await once(child, "exit")) as [number | null];
  code === 0 ? passed++ : failed++;
}

/** Runs AVA with TAP output, which is passed on line by line and counted; a crash of AVA itself counts as a failure. */
async function ava(...args: string[]): Promise<void> {
  const child = spawn("node_modules/.bin/ava", ["--tap", ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit") as Promise<[number | null]>;
  let failedHere = 0;
  for await (const line of createInterface({ input: child.stdout })) {
    console.log(line);
    if (line.startsWith("ok ") && !/# (SKIP|TODO)/.test(line)) passed++;
    else if (line.startsWith("not ok ")) failedHere++;
  }
  const [code] = await exited;
  if (code !== 0 && failedHere === 0) failedHere = 1;
  failed += failedHere;
}

const ONE_VM_AT_A_TIME = ["--serial", "--concurrency=1", "--no-worker-threads", "--timeout=15m"];

/** The compiled tests below a directory of test/. */
function testsIn(directory: string): string[] {
  const files = readdirSync(join(BUILT_TESTS, directory), { recursive: true, encoding: "utf8" });
  return files.filter((name) => name.endsWith(".test.js")).map((name) => join(BUILT_TESTS, directory, name));
}

const patterns = process.argv.slice(2);
if (patterns[0] === "--long") {
  await ava(...ONE_VM_AT_A_TIME, ...testsIn("long"));
} else if (patterns.length > 0) {
  await ava(...patterns);
} else {
  await lint();
  const [vm, long] = [testsIn("vm"), testsIn("long")];
  await ava(...testsIn(".").filter((name) => !vm.includes(name) && !long.includes(name)));
  await ava(...ONE_VM_AT_A_TIME, ...vm);
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
