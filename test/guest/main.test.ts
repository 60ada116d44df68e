/** The program as a process: exit codes, signals, the socket's file. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { close, listen } from "../../native/index.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import { withAddressSpace } from "../native/helpers.js";

const MAIN = fileURLToPath(new URL("../../guest/main.js", import.meta.url));
const DEVICE = fileURLToPath(new URL("../examples/byte-sum.js", import.meta.url));

function start(t: ExecutionContext, ...args: string[]) {
  return watch(t, process.execPath, [MAIN, ...args]);
}

function watch(t: ExecutionContext, program: string, args: readonly string[]) {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  t.teardown(() => child.kill("SIGKILL"));
  const exit = once(child, "close");
  const result = { output: "", errors: "" };
  child.stdout.setEncoding("utf8").on("data", (text) => {
    result.output += text;
  });
  const ready = new Promise<void>((resolve) => {
    child.stderr.setEncoding("utf8").on("data", (text) => {
      result.errors += text;
      if (result.errors.includes("the device is ready")) resolve();
    });
  });
  return { child, exit, ready, result };
}

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), "device-"));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}

test("too little address space is one line", async (t) => {
  const place = ["--socket-path", join(directory(t), "socket")];
  const { exit, result } = watch(t, "bash", withAddressSpace(900, MAIN, "run", "gpio", ...place));
  t.deepEqual(await exit, [1, null]);
  t.regex(
    result.errors,
    /^vfio-user-device: no address space for the driver VM's memory \(ENOMEM\): raise the limit .*\n$/,
  );
});

test("wrong usage ends with 2 and one line, help with 0", async (t) => {
  const wrong = start(t, "run", "nothing-like-it", "--socket-path", "x");
  t.deepEqual(await wrong.exit, [2, null]);
  t.regex(wrong.result.errors, /^vfio-user-device: no such device: nothing-like-it.*\n$/);
  const help = start(t, "--help");
  t.deepEqual(await help.exit, [0, null]);
  t.regex(help.result.output, /^Usage: vfio-user-device run/);
});

test("a machine that is not as needed ends with 1 and one line", async (t) => {
  const path = directory(t);
  writeFileSync(join(path, "nothing.mjs"), "export const x = 1;\n");
  for (const [message, ...args] of [
    ["there is no PCI device ffff:ff:1f.7|only root", DEVICE, "--pci", "ffff:ff:1f.7"],
    ["cannot load the device", join(path, "absent.js"), "--socket-path", join(path, "s")],
    ["no default export", join(path, "nothing.mjs"), "--socket-path", join(path, "s")],
    ["cannot listen on .*: there is no such directory", DEVICE, "--socket-path", join(path, "absent", "s")],
    ["is there and is no socket: remove it", DEVICE, "--socket-path", path],
    ["file descriptor 0 is no listening AF_UNIX stream socket", DEVICE, "--fd", "0"],
    ["file descriptor 99 is no listening AF_UNIX stream socket", DEVICE, "--fd", "99"],
  ]) {
    const { exit, result } = start(t, "run", ...args);
    t.deepEqual(await exit, [1, null], message);
    t.regex(result.errors, new RegExp(`^vfio-user-device: .*(${message}).*\n$`));
  }
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`${signal} lets go of a client, takes the socket away and ends with 0`, async (t) => {
    const socket = join(directory(t), "device.sock");
    const { child, exit, ready, result } = start(t, "run", DEVICE, "--socket-path", socket);
    await ready;
    const client = await Client.connect(socket);
    t.is((await client.getInfo()).numRegions, 9);
    child.kill(signal);
    await client.closed;
    t.deepEqual(await exit, [0, null], result.errors);
    t.false(existsSync(socket));
    t.regex(result.errors, /"readThroughWindow":0/);
  });
}

test("a module that never makes its device is waited for, until a signal comes", async (t) => {
  const path = directory(t);
  const pending = join(path, "pending.mjs");
  writeFileSync(pending, "console.log('loaded');\nexport default () => new Promise(() => {});\n");
  const { child, exit, result } = start(t, "run", pending, "--socket-path", join(path, "s"));
  await once(child.stdout, "data");
  // Nothing can happen in the process any more but what the program itself waits for.
  while (!result.errors.includes("has not finished after 5 seconds")) await once(child.stderr, "data");
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.is(child.exitCode, null);
  child.kill("SIGTERM");
  t.deepEqual(await exit, [0, null]);
});

test("a socket that was handed down is served", async (t) => {
  const path = join(directory(t), "socket");
  const listener = listen(path, 1);
  const child = spawn(process.execPath, [MAIN, "run", DEVICE, "--fd", "3"], {
    stdio: ["ignore", "ignore", "ignore", listener],
  });
  t.teardown(() => child.kill("SIGKILL"));
  close(listener);
  const client = await Client.connect(path);
  t.is((await client.getInfo()).numRegions, 9);
  client.close();
});
