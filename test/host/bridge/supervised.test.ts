/** The bridge under its own supervisor. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { folder } from "../../native/helpers.js";

const MAIN = fileURLToPath(new URL("../../../host/bridge/main.js", import.meta.url));

function start(t: ExecutionContext, ...args: string[]) {
  const dir = folder(t);
  const sockets = [join(dir, "a"), join(dir, "b")];
  const pairs = ["--socket-path", sockets[0], "--vhost-user-socket-path", sockets[1]];
  const parent = spawn(process.execPath, [MAIN, ...pairs, "--window-size", "1G", ...args], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, RUNTIME_DIRECTORY: dir },
  });
  t.teardown(() => parent.kill("SIGTERM"));
  const lines = createInterface({ input: parent.stderr })[Symbol.asyncIterator]();
  /** The next line that says so. */
  const line = async (text: string): Promise<string> => {
    for (let next = await lines.next(); !next.done; next = await lines.next()) {
      if (next.value.includes(text)) return next.value;
    }
    throw new Error(`the bridge ended, and never said ${text}`);
  };
  return {
    parent,
    sockets,
    line,
    serving: async () => (JSON.parse(await line('"msg":"serving"')) as { pid: number }).pid,
  };
}

const end = async (parent: ChildProcess) => ((await once(parent, "close")) as [number])[0];

test("a bridge that was killed serves again, and a signal to its parent ends both", async (t) => {
  const { parent, sockets, line, serving } = start(t, "--supervised");
  const first = await serving();
  t.false(first === parent.pid);
  process.kill(first, "SIGKILL");
  t.regex(await line("started again"), new RegExp(`the bridge, process ${first}, was killed by signal 9`));
  const second = await serving();
  t.not(second, first);
  // Twice, as timeout(1) does.
  parent.kill("SIGTERM");
  parent.kill("SIGTERM");
  await line('"msg":"ending"');
  t.is(await end(parent), 0);
  t.deepEqual(sockets.map(existsSync), [false, false]);
});

test("a bridge that cannot serve ends its parent, with its exit code", async (t) => {
  const { parent, line } = start(t, "--supervised", "--socket-path", "/no/such/a", "--vhost-user-socket-path", "/no/b");
  await line("cannot listen on");
  t.is(await end(parent), 1);
});

test("SIGHUP has the bridge below read its file again; it is started again with what that says", async (t) => {
  const dir = folder(t);
  const at = (name: string) => join(dir, name);
  const write = (...names: string[]) => {
    const sessions = names.map((name) => ({ "socket-path": at(name), "vhost-user-socket-path": at(`${name}.vhost`) }));
    writeFileSync(at("config"), JSON.stringify({ sessions }));
  };
  const pid = () => Number(readFileSync(at("pid"), "utf8"));
  write("a");
  const args = [MAIN, "--supervised", `--config=${at("config")}`, `--pid-file=${at("pid")}`, "--window-size=1G"];
  const parent = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  t.teardown(() => parent.kill("SIGKILL"));
  const lines = createInterface({ input: parent.stderr })[Symbol.asyncIterator]();
  const line = async (text: string): Promise<string> => {
    for (let next = await lines.next(); !next.done; next = await lines.next())
      if (next.value.includes(text)) return next.value;
    throw new Error(`it never said ${text}`);
  };
  const first = (JSON.parse(await line('"serving"')) as { pid: number }).pid;
  while (!existsSync(at("pid")) || pid() !== first) await new Promise((resolve) => setTimeout(resolve, 5));
  write("a", "b");
  parent.kill("SIGHUP");
  await line("was read again");
  process.kill(pid(), "SIGKILL");
  const second = (JSON.parse(await line('"serving"')) as { pid: number }).pid;
  await line('"serving"');
  t.deepEqual(
    ["a", "b"].map((name) => existsSync(at(name))),
    [true, true],
  );
  while (pid() !== second) await new Promise((resolve) => setTimeout(resolve, 5));
  process.kill(pid(), "SIGTERM");
  t.is(await end(parent), 0);
  t.deepEqual(readdirSync(dir), ["config"]);
});
