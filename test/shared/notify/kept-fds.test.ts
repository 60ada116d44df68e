/** What is said of descriptors that a process was started with, and what of it is refused. */
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { fileURLToPath } from "node:url";
import test from "ava";
import { takeKeptFds } from "../../../shared/notify/kept-fds.js";

const MODULE = fileURLToPath(new URL("../../../shared/notify/kept-fds.js", import.meta.url));
const REFUSED = "the file descriptors of LISTEN_FDS are refused: ";

const refusal = (env: NodeJS.ProcessEnv, pid = 5) => {
  const given = { ...env };
  try {
    takeKeptFds(given, pid);
    return "taken";
  } catch (error) {
    return (error as Error).message.replace(REFUSED, "");
  }
};

test("nothing is said, or none", (t) => {
  t.deepEqual(takeKeptFds({}), []);
  t.deepEqual(takeKeptFds({ LISTEN_PID: "4" }, 5), []);
  const env = { LISTEN_PID: "5", LISTEN_FDS: "0", OTHER: "x" };
  t.deepEqual(takeKeptFds(env, 5), []);
  t.deepEqual(env as object, { OTHER: "x" });
});

test("what does not fit together is refused", (t) => {
  t.is(
    refusal({ LISTEN_PID: "4", LISTEN_FDS: "1" }),
    'LISTEN_PID is "4", and this is process 5: they are another process\'s',
  );
  t.is(refusal({ LISTEN_FDS: "1" }), "LISTEN_PID is not set, and this is process 5: they are another process's");
  t.is(refusal({ LISTEN_PID: "05", LISTEN_FDS: "1" }).slice(0, 18), 'LISTEN_PID is "05"');
  for (const number of ["", "x", "-1", "1.5", "4097", "99999", "1e3", " 1"]) {
    t.is(
      refusal({ LISTEN_PID: "5", LISTEN_FDS: number }),
      `LISTEN_FDS is ${JSON.stringify(number)}: it must be a number up to 4096`,
    );
  }
  const names = (text?: string) => refusal({ LISTEN_PID: "5", LISTEN_FDS: "2", LISTEN_FDNAMES: text });
  t.is(names(), "LISTEN_FDS is 2, and LISTEN_FDNAMES has 0 names");
  t.is(names("a"), "LISTEN_FDS is 2, and LISTEN_FDNAMES has 1 names");
  t.is(names("a:b:c"), "LISTEN_FDS is 2, and LISTEN_FDNAMES has 3 names");
});

/** In a process of its own, with so many descriptors that it inherits. */
function inProcess(stdio: number[], env: NodeJS.ProcessEnv, code: string) {
  const program = `process.env.LISTEN_PID ??= String(process.pid);
    const { takeKeptFds } = await import(${JSON.stringify(MODULE)});
    const fs = await import("node:fs");
    const before = fs.readdirSync("/proc/self/fd").length;
    let taken;
    try { taken = takeKeptFds(); } catch (error) { taken = error.message; }
    const after = fs.readdirSync("/proc/self/fd").length;
    ${code}`;
  const args = ["--input-type=module", "-e", program];
  const result = spawnSync(process.execPath, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit", ...stdio],
    env: { ...process.env, ...env },
  });
  return JSON.parse(result.stdout) as unknown;
}

test("descriptors that came are taken, close-on-exec, and once", (t) => {
  const file = fs.openSync(fileURLToPath(import.meta.url), "r");
  t.teardown(() => fs.closeSync(file));
  const stdio = Array.from({ length: 40 }, () => file);
  const names = stdio.map((_, i) => `n${i}`);
  const env = { LISTEN_FDS: "40", LISTEN_FDNAMES: names.join(":") };
  const code = `
    const info = taken.map(({ fd }) => fs.readFileSync("/proc/self/fdinfo/" + fd, "utf8"));
    const flags = info.map((text) => /flags:\\s(\\d+)/.exec(text)[1]);
    console.log(JSON.stringify([taken, flags.every((each) => Number.parseInt(each, 8) & 0o2000000), takeKeptFds()]));`;
  t.deepEqual(inProcess(stdio, env, code), [names.map((name, i) => ({ name, fd: 3 + i })), true, []]);
});

test("more than came are refused, and nothing is done to what is in their place", (t) => {
  const file = fs.openSync(fileURLToPath(import.meta.url), "r");
  t.teardown(() => fs.closeSync(file));
  const code = "console.log(JSON.stringify([taken, before === after, process.env.LISTEN_FDS]));";
  for (const [given, said] of [
    [[], 1],
    [[], 4],
    [[file], 2],
    [[file, file], 40],
  ] as const) {
    const env = { LISTEN_FDS: String(said), LISTEN_FDNAMES: Array(said).fill("x").join(":") };
    const [text, unchanged, left] = inProcess([...given], env, code) as [string, boolean, string];
    t.regex(text, new RegExp(`^${REFUSED}number ${3 + given.length} \\("x"\\) is `));
    t.true(unchanged);
    t.is(left, String(said));
  }
});

test("a pipe and a directory are nothing that was kept", (t) => {
  const directory = fs.openSync("/", fs.constants.O_DIRECTORY);
  t.teardown(() => fs.closeSync(directory));
  const env = { LISTEN_FDS: "1", LISTEN_FDNAMES: "x" };
  const text = inProcess([directory], env, "console.log(JSON.stringify(taken));");
  t.is(text, `${REFUSED}number 3 ("x") is no socket, eventfd, memory or file: /`);
});
