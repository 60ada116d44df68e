/** The demonstration as a person runs it: what it says, its exit code, and that nothing stays behind. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import test, { type ExecutionContext } from "ava";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";

/** Runs it with a temporary directory of its own, which must be empty afterwards. */
async function run(
  t: ExecutionContext,
  args: readonly string[],
  interruptAt?: RegExp,
  interrupt: (child: ChildProcessByStdio<null, Readable, Readable>) => void = (child) => void child.kill("SIGINT"),
) {
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-demo-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const child = spawn(process.execPath, [join(PROJECT_ROOT, "build/scripts/demo/main.js"), ...args], {
    env: { ...process.env, TMPDIR: directory },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let interrupted = false;
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      if (interrupted || interruptAt === undefined || !interruptAt.test(output)) return;
      interrupted = true;
      interrupt(child);
    });
  const [code] = (await once(child, "close")) as [number | null];
  return { code, output, left: await readdir(directory) };
}

test("--local writes, reads back, reports, and leaves nothing behind", async (t) => {
  const { code, output, left } = await run(t, ["--local", "--data-mib", "2"]);
  t.is(code, 0, output);
  t.regex(output, /checksum +[0-9a-f]{64} both times/);
  t.regex(output, /interrupts +[1-9]/);
  t.deepEqual(left, []);
});

test("Ctrl-C ends --local with status 130 and leaves nothing behind", async (t) => {
  const { code, output, left } = await run(t, ["--local", "--data-mib", "256"], /our driver found/);
  t.is(code, 130, output);
  t.deepEqual(left, []);
});

for (const [what, status, interrupt] of [
  ["a terminal that is gone", 129, (child) => void child.kill("SIGHUP")],
  ["standard output that nobody reads", 1, (child) => void child.stdout.destroy()],
] as [string, number, (child: ChildProcessByStdio<null, Readable, Readable>) => void][]) {
  test(`${what} ends --local with status ${status} and leaves nothing behind`, async (t) => {
    const { code, output, left } = await run(t, ["--local", "--data-mib", "256"], /our driver found/, interrupt);
    t.is(code, status, output);
    t.notRegex(output, /\n +at /);
    t.deepEqual(left, []);
  });
}

test("no place for temporary files is one sentence", async (t) => {
  const child = spawn(process.execPath, [join(PROJECT_ROOT, "build/scripts/demo/main.js"), "--local"], {
    env: { ...process.env, TMPDIR: "/nonexistent" },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const said = text(child.stderr);
  t.deepEqual(await once(child, "exit"), [1, null]);
  t.is(await said, "no directory can be made in /nonexistent (ENOENT): say by TMPDIR where there is room\n");
});

test("wrong usage is one sentence, with status 2", async (t) => {
  for (const args of [["--no-such-option"], ["--data-mib", "0"], ["--data-mib", "many"]]) {
    const { code, output, left } = await run(t, args);
    t.is(code, 2, output);
    t.notRegex(output, /\n +at /);
    t.deepEqual(left, []);
  }
});
