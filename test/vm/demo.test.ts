/** Ctrl-C in the middle of the demonstration with VMs: both QEMUs, the bridge and every file of it are gone. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import test from "ava";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";

test("Ctrl-C while the driver VM boots leaves no process and no file behind", async (t) => {
  t.timeout(10 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-demo-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const child = spawn(process.execPath, [join(PROJECT_ROOT, "build/scripts/demo/main.js")], {
    env: { ...process.env, TMPDIR: directory },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    if (output.includes("booting the driver VM")) child.kill("SIGINT");
  });
  const [code] = (await once(child, "close")) as [number | null];
  t.is(code, 130, output);
  t.deepEqual(await readdir(directory), []);
  // Every process of the run has the temporary directory in its arguments; pgrep does not count itself.
  await t.throwsAsync(promisify(execFile)("pgrep", ["-f", directory]), { message: /pgrep/ });
});
