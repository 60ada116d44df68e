/** docs/running.md: its commands, from top to bottom in one shell, and what comes of each. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { folder } from "../native/helpers.js";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const BLOCK = /^```sh\n(.*?)^```$\n\n^```text\n(.*?)^```$/gms;

test("its commands do what it says", async (t) => {
  const blocks = [...readFileSync(join(ROOT, "docs/running.md"), "utf8").matchAll(BLOCK)];
  t.true(blocks.length > 5);
  const directory = folder(t);
  const bin = folder(t);
  const programs: Record<string, string> = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")).bin;
  for (const [name, path] of Object.entries(programs)) symlinkSync(join(ROOT, path), join(bin, name));
  mkdirSync(join(directory, "work"));
  const shell = spawn("setpriv", ["--pdeathsig", "TERM", "--", "bash", "-e"], {
    cwd: join(directory, "work"),
    env: { ...process.env, PATH: `${bin}:${process.env.PATH}` },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const ended = once(shell, "exit");
  // The bridge is ended by the commands, or with the shell's jobs.
  t.teardown(() => shell.kill());
  let errors = "";
  shell.stderr.setEncoding("utf8").on("data", (text) => {
    errors += text;
  });
  let output = "";
  shell.stdout.setEncoding("utf8").on("data", (text) => {
    output += text;
  });
  shell.stdin.write("trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n");
  for (const [index, [, commands, expected]] of blocks.entries()) {
    output = "";
    shell.stdin.write(`${commands}echo end-of-block-${index}\n`);
    while (!output.includes(`end-of-block-${index}\n`)) {
      if (shell.exitCode !== null) return t.fail(`${commands}${output}${errors}`);
      await Promise.race([once(shell.stdout, "data"), ended]);
    }
    let from = 0;
    for (const line of expected.trim().split("\n")) {
      const found = output.indexOf(line, from);
      t.true(found >= 0, `${commands}\nhas not printed ${line}:\n${output}${errors}`);
      from = found + line.length;
    }
    if (/^ls/m.test(commands))
      t.is(output.match(/\.(sock|pid)$/gm)?.length ?? 0, expected.match(/\.(sock|pid)$/gm)?.length ?? 0);
  }
  shell.stdin.end();
  t.deepEqual(await ended, [0, null], errors);
});
