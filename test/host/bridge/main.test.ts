/** The bridge as a process: exit codes, what it prints, and what it leaves behind. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import * as native from "../../../native/index.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { withAddressSpace } from "../../native/helpers.js";
import { closeFd } from "./raw-peer.js";

const MAIN = fileURLToPath(new URL("../../../host/bridge/main.js", import.meta.url));
const run = (...args: string[]) => spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8", timeout: 60_000 });

function directory(t: { teardown(run: () => void): void }): string {
  const path = mkdtempSync(join(tmpdir(), "bridge-test-"));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

test("--help and --version go to stdout and end well", (t) => {
  const help = run("--help");
  t.is(help.status, 0);
  t.regex(help.stdout, /^Usage: vfio-user-bridge/);
  t.is(help.stderr, "");
  const version = run("--version");
  t.is(version.status, 0);
  t.regex(version.stdout, /^vfio-user-bridge \d+\.\d+\.\d+\n$/);
});

test("wrong usage is one sentence on stderr and exit code 2", (t) => {
  const result = run("--socket-path", "/tmp/x");
  t.is(result.status, 2);
  t.is(result.stdout, "");
  t.regex(result.stderr, /^vfio-user-bridge: --socket-path was given once .*\n$/);
});

test("too little address space is one sentence on stderr and exit code 1", (t) => {
  const dir = directory(t);
  const sockets = ["--socket-path", join(dir, "a"), "--vhost-user-socket-path", join(dir, "b")];
  const result = spawnSync("bash", withAddressSpace(900, MAIN, ...sockets), { encoding: "utf8", timeout: 60_000 });
  t.regex(
    result.stderr,
    /^vfio-user-bridge: no address space for the device VM's memory \(ENOMEM\): raise the limit .*\n$/,
  );
  t.is(result.status, 1);
});

test("a directory that is not there is one sentence on stderr and exit code 1", (t) => {
  const dir = directory(t);
  const result = run("--socket-path", join(dir, "no/a"), "--vhost-user-socket-path", join(dir, "b"));
  t.is(result.status, 1);
  t.regex(result.stderr, /vfio-user-bridge: cannot listen on .*no\/a: .*\n$/);
  t.false(existsSync(join(dir, "b")), "the other socket was taken away again");
});

test("a socket that is served already is refused, and stays", async (t) => {
  const bridge = await BridgeProcess.start();
  t.teardown(() => bridge.stop());
  const dir = directory(t);
  for (const args of [
    ["--socket-path", bridge.socketPath, "--vhost-user-socket-path", join(dir, "b")],
    ["--socket-path", join(dir, "a"), "--vhost-user-socket-path", bridge.vhostUserSocketPath],
  ]) {
    const result = run(...args);
    t.is(result.status, 1);
    t.regex(result.stderr, /^vfio-user-bridge: .* is served already: stop the process that serves it.*\n$/m);
  }
  const file = join(dir, "disk.img");
  writeFileSync(file, "precious");
  for (const args of [
    ["--socket-path", file, "--vhost-user-socket-path", join(dir, "b")],
    ["--socket-path", join(dir, "a"), "--vhost-user-socket-path", file],
  ]) {
    const result = run(...args);
    t.is(result.status, 1);
    t.true(result.stderr.endsWith(`: ${file} is there and is no socket: remove it, or choose another path\n`));
  }
  t.is(readFileSync(file, "utf8"), "precious");
  t.true(existsSync(bridge.socketPath));
  t.true(existsSync(bridge.vhostUserSocketPath));
  closeFd(native.connect(bridge.vhostUserSocketPath));
});

test("SIGTERM takes the sockets away and ends with 0; the log says so and nothing else does", async (t) => {
  const bridge = await BridgeProcess.start({ sessions: 2 });
  const paths = (["vfio-user", "vhost-user"] as const).flatMap((kind) => [0, 1].map((i) => bridge.path(kind, i)));
  for (const path of paths) t.true(statSync(path).isSocket());
  const exited = new Promise<number | null>((resolve) => bridge.process.once("close", resolve));
  bridge.process.kill("SIGTERM");
  t.is(await exited, 0);
  for (const path of paths) t.false(existsSync(path), path);
  for (const line of bridge.log.trim().split("\n")) t.notThrows(() => JSON.parse(line), line);
  t.regex(bridge.log, /"signal":"SIGTERM","msg":"ending"/);
  await bridge.stop();
});

test("a socket file that was replaced meanwhile is not taken away", async (t) => {
  const bridge = await BridgeProcess.start();
  rmSync(bridge.vhostUserSocketPath);
  writeFileSync(bridge.vhostUserSocketPath, "somebody else's");
  const exited = new Promise<number | null>((resolve) => bridge.process.once("close", resolve));
  bridge.process.kill("SIGINT");
  t.is(await exited, 0);
  t.true(existsSync(bridge.vhostUserSocketPath));
  await bridge.stop();
});

test("a stale socket file is replaced", async (t) => {
  const dir = directory(t);
  const path = join(dir, "stale");
  closeFd(native.listen(path, 1));
  t.true(existsSync(path));
  const bridge = await BridgeProcess.start({
    args: ["--socket-path", path, "--vhost-user-socket-path", join(dir, "b")],
  });
  await bridge.logged(/"msg":"serving"/, 2);
  t.is(await bridge.stop(), 0);
});
