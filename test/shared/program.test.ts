/** What all programs are to their processes: no reader of standard error and no signal does them harm. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { LOG_LINES_PER_KIND } from "../../shared/limits.js";
import { Client } from "../../shared/vfio-user/client/client.js";

const program = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url));
const DEVICE = program("test/examples/byte-sum.js");
const { O_RDWR, O_WRONLY, O_NONBLOCK } = fs.constants;

function folder(t: ExecutionContext): string {
  const made = fs.mkdtempSync(path.join(tmpdir(), "program-"));
  t.teardown(() => fs.rmSync(made, { recursive: true }));
  return made;
}

/** The programs that serve, with the socket that tells that they do. */
const SERVERS = {
  bridge: (directory: string) => ({
    socket: path.join(directory, "a"),
    args: [
      program("host/bridge/main.js"),
      "--socket-path",
      path.join(directory, "a"),
      "--vhost-user-socket-path",
      path.join(directory, "b"),
    ],
  }),
  device: (directory: string) => ({
    socket: path.join(directory, "a"),
    args: [program("guest/main.js"), "run", DEVICE, "--socket-path", path.join(directory, "a")],
  }),
} as const;
type Server = keyof typeof SERVERS;

function start(t: ExecutionContext, args: readonly string[], stderr: number | "pipe"): ChildProcess {
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", stderr] });
  t.teardown(() => child.kill("SIGKILL"));
  return child;
}

/** Resolves when the socket takes connections. */
async function served(socket: string): Promise<void> {
  for (;;) {
    const connection = connect(socket);
    try {
      await once(connection, "connect");
      connection.destroy();
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

/** A pipe that is full, and that nobody reads. */
function fullPipe(t: ExecutionContext, directory: string): number {
  const file = path.join(directory, "fifo");
  execFileSync("mkfifo", [file]);
  const full = fs.openSync(file, O_RDWR | O_NONBLOCK);
  t.teardown(() => fs.closeSync(full));
  t.throws(() => {
    for (;;) fs.writeSync(full, Buffer.alloc(4096));
  });
  return fs.openSync(file, O_WRONLY);
}

const OUTPUTS: Record<string, (t: ExecutionContext, directory: string) => number> = {
  "a full disk": () => fs.openSync("/dev/full", "w"),
  "a full pipe": fullPipe,
};

for (const server of Object.keys(SERVERS) as Server[]) {
  for (const [name, open] of Object.entries(OUTPUTS)) {
    test(`${name} as standard error: the ${server} serves, and ends`, async (t) => {
      const directory = folder(t);
      const { socket, args } = SERVERS[server](directory);
      const stderr = open(t, directory);
      const child = start(t, [...args, "--log-level", "debug"], stderr);
      fs.closeSync(stderr);
      const exit = once(child, "exit");
      await served(socket);
      if (server === "device") {
        for (let n = 0; n < 50; n++) {
          const client = await Client.connect(socket);
          t.is((await client.getInfo()).numRegions, 9);
          client.close();
        }
      }
      child.kill("SIGTERM");
      t.deepEqual(await exit, [0, null]);
      t.false(fs.existsSync(socket));
    });
  }

  for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
    test(`${signal} ends the ${server} and takes its socket away`, async (t) => {
      const { socket, args } = SERVERS[server](folder(t));
      const child = start(t, args, "pipe");
      const exit = once(child, "exit");
      await served(socket);
      child.kill(signal);
      t.deepEqual(await exit, [0, null]);
      t.false(fs.existsSync(socket));
    });
  }

  test(`SIGUSR1 has the ${server} write its state, and opens no debugger`, async (t) => {
    const { socket, args } = SERVERS[server](folder(t));
    const child = start(t, [...args, "--log-level", "silent"], "pipe");
    let text = "";
    child.stderr?.setEncoding("utf8").on("data", (more) => {
      text += more;
    });
    await served(socket);
    for (let lines = 1; lines <= 2; lines++) {
      child.kill("SIGUSR1");
      while (text.split("\n").length <= lines) await once(child.stderr!, "data");
    }
    const states = text.trimEnd().split("\n");
    t.is(states.length, 2);
    for (const state of states) t.is(JSON.parse(state).msg, "state");
    child.kill("SIGTERM");
    t.deepEqual(await once(child, "exit"), [0, null]);
  });
}

test("every program of ours begins with what keeps SIGUSR1 from opening a debugger", (t) => {
  const { bin, scripts } = JSON.parse(fs.readFileSync(program("../package.json"), "utf8"));
  const started = Object.values<string>(scripts).flatMap((script) => /node build\/(\S+)/.exec(script)?.[1] ?? []);
  const programs = [...Object.values<string>(bin).map((name) => name.replace("build/", "")), ...started];
  t.true(programs.length > 6);
  for (const name of programs) {
    const [first] = /^import .*$/m.exec(fs.readFileSync(program(name), "utf8")) ?? [];
    t.regex(first ?? "", /^import "(\.\.\/)+shared\/no-debugger\.js";$/, name);
  }
});

test("SIGUSR1 does nothing to the checker", async (t) => {
  const socket = path.join(folder(t), "silent");
  const server = createServer().listen(socket);
  t.teardown(() => server.close());
  const args = [
    program("host/check/main.js"),
    "--socket-path",
    socket,
    "--timeout-ms",
    "200",
    "--only",
    "version-minor-0",
  ];
  const child = start(t, args, "pipe");
  let text = "";
  child.stderr?.on("data", (more) => {
    text += more;
  });
  const [connection] = await once(server, "connection");
  child.kill("SIGUSR1");
  t.deepEqual(await once(child, "close"), [1, null]);
  connection.destroy();
  t.notRegex(text, /Debugger/);
});

test("clients that come and go are logged so often, and then counted", async (t) => {
  const { socket, args } = SERVERS.device(folder(t));
  const child = start(t, args, "pipe");
  let text = "";
  child.stderr?.setEncoding("utf8").on("data", (more) => {
    text += more;
  });
  const ended = once(child, "close");
  await served(socket);
  const clients = 3 * LOG_LINES_PER_KIND;
  for (let n = 0; n < clients; n++) {
    const client = await Client.connect(socket);
    client.close();
    await client.closed;
  }
  child.kill("SIGTERM");
  await ended;
  const lines = text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.is(lines.filter(({ msg }) => msg === "client connected").length, LOG_LINES_PER_KIND);
  const [{ suppressed }] = lines.filter(({ kind }) => kind === "client connected");
  t.is(suppressed, clients - LOG_LINES_PER_KIND);
});

test("a debugger that SIGUSR1 opened before the program had begun is closed", async (t) => {
  const { socket, args } = SERVERS.device(folder(t));
  const early = `
    const { url } = await import("node:inspector");
    process.kill(process.pid, "SIGUSR1");
    while (url() === undefined) await new Promise(setImmediate);`;
  const options = ["--inspect-port=0", "--import", `data:text/javascript,${encodeURIComponent(early)}`];
  const child = start(t, [...options, ...args], "pipe");
  let text = "";
  child.stderr?.setEncoding("utf8").on("data", (more) => {
    text += more;
  });
  await served(socket);
  const port = Number(/Debugger listening on ws:\/\/127\.0\.0\.1:(\d+)/.exec(text)?.[1]);
  t.true(port > 0, text);
  const [error] = await once(connect(port, "127.0.0.1"), "error");
  t.is(error.code, "ECONNREFUSED");
});

test("an error that nobody caught is written, and ends the process, whoever reads standard error", async (t) => {
  const script = `
    const { Program } = await import(${JSON.stringify(new URL("../../shared/program.js", import.meta.url).href)});
    Program.run("a-program", () => new Promise(() => setTimeout(() => { throw new Error("a bug"); }, 1)));`;
  const directory = folder(t);
  const file = path.join(directory, "log");
  for (const stderr of [fs.openSync(file, "w"), fullPipe(t, directory)]) {
    const child = start(t, ["--input-type=module", "-e", script], stderr);
    fs.closeSync(stderr);
    t.deepEqual(await once(child, "exit"), [1, null]);
  }
  t.regex(fs.readFileSync(file, "utf8"), /^a-program: Error: a bug\n {4}at .*\n/);
});

test("every program says its version", (t) => {
  const { version } = JSON.parse(fs.readFileSync(program("../package.json"), "utf8"));
  for (const [name, main] of [
    ["vfio-user-bridge", "host/bridge/main.js"],
    ["vfio-user-check", "host/check/main.js"],
    ["vfio-user-device", "guest/main.js"],
  ]) {
    const said = execFileSync(process.execPath, [program(main), "--version"], { encoding: "utf8" });
    t.is(said, `${name} ${version}\n`);
  }
});
