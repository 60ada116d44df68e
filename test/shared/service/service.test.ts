/** A program as a service: its manager, its pid file, its log, its one client, and what it says that it can do. */
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ajv2020 } from "ajv/dist/2020.js";
import test from "ava";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { TestDevice } from "../../fakes/front-end-device.js";
import { fails, manager, NAMES, PROGRAMS, socketArgs, start } from "../../fakes/service-process.js";
import { folder } from "../../native/helpers.js";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));
const { devices } = JSON.parse(
  execFileSync(process.execPath, [PROGRAMS.device[0], "--print-capabilities"], { encoding: "utf8" }),
);
const schema = JSON.parse(fs.readFileSync(join(ROOT, "docs/vfio-user-backend.schema.json"), "utf8"));
const ajv = new Ajv2020({ allErrors: true }).addSchema(schema, "schema");

for (const name of NAMES) {
  test(`${name}: a service manager hears that it is ready, alive and stopping`, async (t) => {
    const { path, next } = await manager(t);
    const env = { NOTIFY_SOCKET: path, WATCHDOG_USEC: "200000" };
    const running = start(t, name, socketArgs(name, folder(t)), { env });
    const heard: string[] = [];
    const until = async (text: string) => {
      do heard.push(await next());
      while (heard.at(-1) !== text);
    };
    await until("READY=1");
    t.regex(heard.filter((each) => each.startsWith("STATUS=")).join(), /^STATUS=serving (one session|gpio)$/);
    for (let n = 0; n < 5; n++) await until("WATCHDOG=1");
    running.child.kill("SIGTERM");
    await until("STOPPING=1");
    t.is(await running.ended, 0);
  });

  test(`${name}: a pid file is there while it serves, and is nobody else's`, async (t) => {
    const directory = folder(t);
    const file = join(directory, "pid");
    const args = [...socketArgs(name, directory), `--pid-file=${file}`];
    const first = start(t, name, args);
    await first.serving();
    while (!fs.readFileSync(file, "utf8").endsWith("\n")) await new Promise(setImmediate);
    t.is(fs.readFileSync(file, "utf8"), `${first.child.pid}\n`);
    const second = await fails(t, name, [...socketArgs(name, folder(t)), `--pid-file=${file}`]);
    t.is(second.code, 1);
    t.is(
      second.text,
      `the pid file ${file} is that of process ${first.child.pid}, which runs: stop it, or choose another path`,
    );
    t.is(fs.readFileSync(file, "utf8"), `${first.child.pid}\n`);
    await first.stop("SIGKILL");
    t.true(fs.existsSync(file));
    const third = start(t, name, args);
    await third.serving();
    while (fs.readFileSync(file, "utf8") !== `${third.child.pid}\n`) await new Promise(setImmediate);
    t.is(await third.stop(), 0);
    t.false(fs.existsSync(file));
  });

  test(`${name}: a pid file that cannot be is refused before anything is made`, async (t) => {
    const directory = folder(t);
    const at = (each: string) => join(directory, each);
    fs.writeFileSync(at("other"), "precious\n");
    fs.symlinkSync(at("other"), at("link"));
    execFileSync("mkfifo", [at("pipe")]);
    for (const [path, what] of [
      [at("other"), /is there and is no pid file: remove it/],
      [at("link"), /it is a symbolic link/],
      [at("no/pid"), /there is no such directory/],
      [at("other/pid"), /what should be its directory is none/],
      [directory, /it is a directory/],
      [at("pipe"), /is no pid file/],
      ["/proc/1/pid", /cannot write the pid file/],
    ] as const) {
      const { code, text } = await fails(t, name, [...socketArgs(name, directory), `--pid-file=${path}`]);
      t.is(code, 1, text);
      t.regex(text, what);
      t.notRegex(text, /\n/);
    }
    t.is(fs.readFileSync(at("other"), "utf8"), "precious\n");
    t.false(fs.existsSync(at("a")));
  });

  test(`${name}: a start that fails takes its pid file away`, async (t) => {
    const directory = folder(t);
    const file = join(directory, "pid");
    const { code } = await fails(t, name, [...socketArgs(name, join(directory, "no")), `--pid-file=${file}`]);
    t.is(code, 1);
    t.false(fs.existsSync(file));
  });

  test(`${name}: a log in a file is opened again by SIGHUP, which ends nothing then`, async (t) => {
    const directory = folder(t);
    const [file, old] = ["log", "log.1"].map((each) => join(directory, each));
    const running = start(t, name, [...socketArgs(name, directory), `--log-file=${file}`]);
    const read = (path: string) => (fs.existsSync(path) ? fs.readFileSync(path, "utf8") : "");
    const until = async (isSo: () => boolean) => {
      while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 5));
    };
    await until(() => /serving|ready/.test(read(file)));
    t.is(fs.statSync(file).mode & 0o777, 0o640 & ~process.umask());
    fs.renameSync(file, old);
    running.child.kill("SIGHUP");
    await until(() => fs.existsSync(file));
    const before = read(old);
    running.child.kill("SIGUSR1");
    await until(() => read(file).includes('"msg":"state"'));
    // What takes its place so that it cannot be opened leaves the log where it was.
    fs.renameSync(file, join(directory, "log.2"));
    fs.mkdirSync(file);
    running.child.kill("SIGHUP");
    await until(() => /it is a directory: the log goes on where it was/.test(read(join(directory, "log.2"))));
    t.is(await running.stop(), 0);
    t.regex(read(join(directory, "log.2")), /"msg":"(ending|the device has ended)"/);
    t.is(read(old), before);
    t.is(running.log, "");
  });

  test(`${name}: a log file that cannot be had is refused; why it cannot serve is there, too`, async (t) => {
    const directory = folder(t);
    execFileSync("mkfifo", [join(directory, "pipe")]);
    for (const [path, what] of [
      [directory, /it is a directory$/],
      [join(directory, "no/log"), /there is no such directory$/],
      [join(directory, "pipe"), /a pipe that nobody reads/],
    ] as const) {
      const { code, text } = await fails(t, name, [...socketArgs(name, directory), `--log-file=${path}`]);
      t.is(code, 1);
      t.regex(text, /^cannot write the log file [^\n]*$/);
      t.regex(text, what);
    }
    const file = join(directory, "log");
    const { text } = await fails(t, name, [...socketArgs(name, join(directory, "no")), `--log-file=${file}`]);
    t.regex(text, /cannot listen on/);
    t.regex(fs.readFileSync(file, "utf8"), /"reason":"cannot listen on .*"msg":"ends by an error"/);
  });

  test(`${name}: lines for people, on a terminal or when they are asked for`, async (t) => {
    const pretty = start(t, name, [...socketArgs(name, folder(t)), "--log-format=pretty"]);
    await pretty.serving();
    t.is(await pretty.stop(), 0);
    t.regex(pretty.log, /^\[\d{4}-\d\d-\d\d [\d:.]+\] INFO \(vfio-user-(bridge|device)\/\d+\): (serving|the device)/m);
    t.false(pretty.log.includes("\u001b") || pretty.log.includes(`"msg"`));
    const wrong = await fails(t, name, [...socketArgs(name, folder(t)), "--log-format=jsn"]);
    t.deepEqual([wrong.code, wrong.text], [2, "--log-format jsn: it must be one of json, pretty; did you mean json?"]);
    const pty = [
      "import os, pty, sys",
      "pid, fd = pty.fork()",
      "if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])",
      'out = b""',
      'while b"serving" not in out and b"the device is ready" not in out: out += os.read(fd, 4096)',
      "os.kill(pid, 15)",
      "sys.stdout.buffer.write(out)",
    ].join("\n");
    for (const [format, what] of [
      [[], /INFO/],
      [["--log-format=json"], /"msg":"/],
    ] as const) {
      const args = [process.execPath, ...PROGRAMS[name], ...socketArgs(name, folder(t)), ...format];
      t.regex(execFileSync("python3", ["-c", pty, ...args], { encoding: "utf8" }), what);
    }
  });

  test(`${name}: what it says that it can do has the form of back-end programs`, (t) => {
    const args = [...PROGRAMS[name], "--nonsense", "--print-capabilities", "--fd=99"];
    const text = execFileSync(process.execPath, args, { encoding: "utf8" });
    const validate = ajv.getSchema("schema#/$defs/VfioUserBackendCapabilities");
    t.true(validate?.(JSON.parse(text)), JSON.stringify(validate?.errors));
    const { type, features } = JSON.parse(text);
    t.is(type, "pci");
    for (const feature of ["once", "pid-file", "socket-activation", "socket-mode"]) t.true(features.includes(feature));
    t.is(features.includes("vhost-user-fd"), name === "bridge");
    t.is(features.includes("dma"), name === "device");
  });
}

test("each program and device has a description for management software", (t) => {
  const directory = join(ROOT, "docs/vfio-user");
  const validate = ajv.getSchema("schema#/$defs/VfioUserBackend");
  const files = fs.readdirSync(directory).sort();
  t.deepEqual(
    files,
    [...devices.map((each: string) => `50-vfio-user-${each}.json`), "50-virtio-vfio-user.json"].sort(),
  );
  const { bin } = JSON.parse(fs.readFileSync(join(ROOT, "package.json"), "utf8"));
  for (const file of files) {
    const description = JSON.parse(fs.readFileSync(join(directory, file), "utf8"));
    t.true(validate?.(description), JSON.stringify(validate?.errors));
    const program = description.binary.replace("/usr/bin/", "");
    t.true(Object.hasOwn(bin, program));
    const whole = [join(ROOT, bin[program]), ...(description.arguments ?? []), "--print-capabilities"];
    const capabilities = JSON.parse(execFileSync(process.execPath, whole, { encoding: "utf8" }));
    t.is(capabilities.features.includes("queues"), file.includes("nvme"));
    t.is(capabilities.devices, undefined);
    // Management software adds --socket-path or --fd, as here one that cannot be.
    const args = [join(ROOT, bin[program]), ...(description.arguments ?? []), "--socket-path="];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
    t.is(status, 2);
    t.regex(stderr, /a socket path is empty/);
  }
  t.false(validate?.({ description: "x", type: "block", binary: "x" }));
});

test("device: --once ends it when its client has gone", async (t) => {
  const directory = folder(t);
  const running = start(t, "device", [...socketArgs("device", directory), "--once"]);
  await running.serving();
  const client = await Client.connect(join(directory, "a"));
  t.is((await client.getInfo()).numRegions, 9);
  t.is(running.child.exitCode, null);
  client.close();
  t.is(await running.ended, 0);
  t.false(fs.existsSync(join(directory, "a")));
});

test("bridge: --once ends it when each session's client has gone", async (t) => {
  const directory = folder(t);
  const at = (each: string) => join(directory, each);
  const pairs = [0, 1].flatMap((i) => [`--socket-path=${at(`a${i}`)}`, `--vhost-user-socket-path=${at(`b${i}`)}`]);
  const running = start(t, "bridge", [...pairs, "--once"]);
  await running.said(/"serving"/, 2);
  for (const i of [0, 1]) {
    const frontEnd = new FrontEnd(at(`b${i}`));
    t.teardown(() => frontEnd.quit());
    await new TestDevice(frontEnd).startAndGreet();
    const client = await Client.connect(at(`a${i}`));
    await client.getInfo();
    t.is(running.child.exitCode, null);
    client.close();
    await client.closed;
  }
  t.is(await running.ended, 0);
  t.regex(running.log, /"reason":"--once","msg":"ending"/);
});

test("--once ends by a signal, too", async (t) => {
  for (const name of NAMES) {
    const running = start(t, name, [...socketArgs(name, folder(t)), "--once"]);
    await running.serving();
    t.is(await running.stop(), 0);
  }
});
