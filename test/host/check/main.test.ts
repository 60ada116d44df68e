/** The command line: usage, what is printed, exit codes. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import test from "ava";
import { parseOptions } from "../../../host/check/options.js";
import { ALL_CHECKS } from "../../../host/check/topics/index.js";
import { HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { withServer } from "./fixture.js";

const MAIN = fileURLToPath(new URL("../../../host/check/main.js", import.meta.url));

function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, ...args], (error, stdout, stderr) => {
      resolve({ code: typeof error?.code === "number" ? error.code : 0, stdout, stderr });
    });
  });
}

test("options", (t) => {
  const options = parseOptions(["--socket-path=/a", "--only", "dma-*,reply-id", "--timeout-ms", "10", "--destructive"]);
  t.like(options, { socketPath: "/a", timeoutMs: 10, destructive: true, json: false });
  const matches = (id: string) => options.only?.test(id);
  t.deepEqual(["dma-map", "reply-id", "reply-id-2", "a-dma-map", "dma"].map(matches), [
    true,
    true,
    false,
    false,
    false,
  ]);
  t.like(parseOptions(["--socket-path", "/a"]), { timeoutMs: 2000, destructive: false, only: undefined });
  t.true(parseOptions(["--socket-path", "/a", "--only", "a.b*"]).only?.test("a.bc"));
  t.false(parseOptions(["--socket-path", "/a", "--only", "a.b*"]).only?.test("axbc"));
});

for (const args of [
  [],
  ["--socket-path"],
  ["--socket-path", ""],
  ["--socket-path", "/a", "--timeout-ms", "0"],
  ["--socket-path", "/a", "--timeout-ms", "x"],
  ["--socket-path", "/a", "--nonsense"],
  ["--socket-path", "/a", "more"],
]) {
  test(`wrong usage: ${JSON.stringify(args)}`, (t) => {
    t.like(
      t.throws(() => parseOptions(args)),
      { name: "UserError", exitCode: 2 },
    );
  });
}

test("wrong usage: a line on stderr, and exit code 2", async (t) => {
  for (const args of [[], ["--socket-path", "/nonexistent", "--only", "no-such-check"]]) {
    const { code, stdout, stderr } = await run(...args);
    t.is(code, 2);
    t.is(stdout, "");
    t.regex(stderr, /^vfio-user-check: [^\n]*--(help|list)\n$/);
  }
});

test("standard output that takes nothing is said, and exits with 1", async (t) => {
  const full = openSync("/dev/full", "w");
  t.teardown(() => closeSync(full));
  const child = spawn(process.execPath, [MAIN, "--list"], { stdio: ["ignore", full, "pipe"] });
  const said = text(child.stderr!);
  const [code] = (await once(child, "exit")) as [number | null];
  t.is(code, 1);
  t.regex(await said, /^vfio-user-check: standard output takes no more: ENOSPC[^\n]*\n$/);
});

test("a path that is no server's: what is there", async (t) => {
  const { code, stderr } = await run("--socket-path", "/", "--timeout-ms", "50");
  t.is(code, 1);
  t.is(stderr, "vfio-user-check: cannot connect to /: it is no socket; is that the server's path?\n");
  const long = await run("--socket-path", "x".repeat(108));
  t.is(long.code, 2);
  t.regex(long.stderr, /^vfio-user-check: x+ is longer than the 107 bytes [^\n]*\n$/);
});

test("--help and --list need no server", async (t) => {
  const help = await run("--help");
  t.is(help.code, 0);
  t.regex(help.stdout, /^Usage: vfio-user-check --socket-path PATH/);
  const list = await run("--list");
  t.is(list.code, 0);
  t.is(list.stdout.trim().split("\n").length, ALL_CHECKS.length);
  t.regex(list.stdout, /^dma-map +Memory without an fd .* \(vfio-user\.rst, VFIO_USER_DMA_MAP\)$/m);
  t.regex(list.stdout, /^device-reset .*\[destructive\]$/m);
});

test("no server: exit code 1", async (t) => {
  const { code, stderr } = await run("--socket-path", "/nonexistent", "--timeout-ms", "50");
  t.is(code, 1);
  t.is(stderr, "vfio-user-check: cannot connect to /nonexistent: there is no such file; is the server running?\n");
});

test("a good server: a line for each check, a summary, exit code 0", async (t) => {
  const only = ["--only", "device-info,device-reset,device-reset-unannounced"];
  const { code, stdout } = await withServer({}, (path) => run("--socket-path", path, ...only));
  t.is(code, 0);
  const [first, second, third, summary] = stdout.split("\n");
  t.regex(first, /^pass {2}device-info +The device is .* \[10 regions, 5 interrupt types, can be reset\]$/);
  t.regex(second, /^skip {2}device-reset .* \[it writes to the device: give --destructive\]$/);
  t.regex(third, /^skip {2}device-reset-unannounced .* \[.+\]$/);
  t.is(summary, "1 passed, 0 failed, 2 skipped");
});

const errorsWithBody = {
  reply: (reply: { flags: number; body: Buffer }) => {
    if (reply.flags & HeaderFlags.ERROR) reply.body = Buffer.alloc(4);
    return false;
  },
};

test("a failure says what was expected, where that is written, and what came; exit code 1", async (t) => {
  const { code, stdout } = await withServer({ meddling: errorsWithBody }, (path) =>
    run("--socket-path", path, "--only", "reply-error-alone"),
  );
  t.is(code, 1);
  const lines = stdout.trim().split("\n");
  t.is(lines[1], "      vfio-user.rst, Header");
  t.is(lines[2], "      expected: Every error reply is a header alone");
  t.regex(lines[3], /^ {6}came: {5}an error reply to DEVICE_GET_REGION_INFO with a body of 4 bytes/);
  t.is(lines[4], "0 passed, 1 failed, 0 skipped");
});

test("--json", async (t) => {
  const only = ["--only", "reply-error-alone,reply-id,device-reset"];
  const { code, stdout } = await withServer({ meddling: errorsWithBody }, (path) =>
    run("--socket-path", path, "--json", ...only),
  );
  t.is(code, 1);
  const { checks, ...counts } = JSON.parse(stdout);
  t.like(counts, { passed: 1, failed: 1, skipped: 1 });
  t.like(checks[0], { id: "device-reset", outcome: "skip", section: "vfio-user.rst, VFIO_USER_DEVICE_RESET" });
  t.like(checks[1], { id: "reply-id", outcome: "pass" });
  t.like(checks[2], { id: "reply-error-alone", outcome: "fail", expected: "Every error reply is a header alone" });
});
