/** The control socket: what it answers, and what becomes of clients that are hostile. */
import { once } from "node:events";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import test, { type ExecutionContext } from "ava";
import { ControlClient } from "../../../shared/control/control-client.js";
import { ControlServer } from "../../../shared/control/control-server.js";
import { Dispatcher } from "../../../shared/control/dispatcher.js";
import { bridgeMethods, genericMethods } from "../../../shared/control/generic-methods.js";
import { RpcError } from "../../../shared/control/json-rpc.js";
import { controlSchema, METHODS } from "../../../shared/control/methods.js";
import { Measuring } from "../../../shared/control/sessions.js";
import type { Params } from "../../../shared/control/table.js";
import { UserError } from "../../../shared/errors.js";
import { Latencies } from "../../../shared/histogram.js";
import { ProgramLog } from "../../../shared/log.js";
import { RecentLines } from "../../../shared/recent-lines.js";
import { Share } from "../../../shared/turn.js";
import { fakeSession, MIB } from "./fake-session.js";

function setUp(t: ExecutionContext, options: { silentMs?: number; slowMs?: number; inspect?: () => unknown } = {}) {
  const directory = mkdtempSync(join(tmpdir(), "control-"));
  const lines: string[] = [];
  const recent = new RecentLines();
  const log = ProgramLog.create("test", "info", {
    write: (line) => {
      lines.push(line);
      recent.note(line);
    },
  });
  const fakes = [fakeSession("a"), fakeSession("b")];
  const program = { name: "test", sessions: () => fakes.map(({ session }) => session), log, recent };
  const measuring = new Measuring(program.sessions, () => new Latencies());
  const { inspect } = options;
  const dispatcher = new Dispatcher(
    { ...genericMethods(program, measuring), ...bridgeMethods(program), ...(inspect && { inspect }) },
    log,
  );
  const share = new Share();
  const servers = (["read", "admin"] as const).map((name) => {
    const path = join(directory, name);
    const access = { mode: name === "read" ? 0o666 : undefined, group: undefined };
    return new ControlServer(dispatcher, { path, access, isAdmin: name === "admin", share, log, ...options });
  });
  t.teardown(() => {
    for (const server of servers) server.close();
    measuring.end();
    rmSync(directory, { recursive: true });
  });
  const connect = async (name: "read" | "admin" = "read") => {
    const client = await ControlClient.connect(join(directory, name));
    t.teardown(() => client.close());
    return client;
  };
  /** A connection that says what it likes; `all` is what it has got when the other side has closed. */
  const raw = () => {
    const socket = createConnection(join(directory, "read"));
    t.teardown(() => socket.destroy());
    let text = "";
    socket.setEncoding("utf8").on("data", (part) => {
      text += part;
    });
    socket.on("error", () => {});
    const closed = once(socket, "close").then(() => text);
    return { socket, closed, text: () => text };
  };
  return { connect, raw, directory, lines, log, fakes, dispatcher };
}

const request = (method: string, params: Params = {}, id: number | string = 1) =>
  `${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`;
const errorOf = async (t: ExecutionContext, work: Promise<unknown>) => {
  const error = await t.throwsAsync(work, { instanceOf: RpcError });
  return { code: error.code, message: error.message };
};

test("each method's result is as the schema has it, and so is each line", async (t) => {
  const { connect, fakes, log } = setUp(t);
  log.warn({ session: "a", reason: "\u001b[2J" }, "something");
  const client = await connect("admin");
  const ajv = new Ajv2020({ strict: false });
  await client.request("latency");
  for (const us of [1, 20, 300]) fakes[0].record(us);
  const params: Readonly<Record<string, Params>> = { disconnect: { session: "a" }, "set-log-level": { level: "warn" } };
  for (const { name, result } of METHODS.filter(({ program }) => program !== "device")) {
    const answer = await client.request(name, params[name] ?? {});
    const validate = ajv.compile(result);
    t.true(validate(answer), `${name}: ${JSON.stringify(answer)} ${ajv.errorsText(validate.errors)}`);
  }
  const line = ajv.compile(controlSchema());
  const document = JSON.parse(request("drain", { off: true }));
  t.true(line(document), ajv.errorsText(line.errors));
  t.false(line({ ...document, params: { of: true } }));
});

test("what the answers say", async (t) => {
  const { connect, fakes } = setUp(t);
  const client = await connect();
  t.like(await client.request("sessions"), [{ name: "a", client: true, mappedBytes: MIB }, { name: "b" }]);
  t.deepEqual(await client.request("counts", { session: "b" }), [
    { session: "b", counts: { reads: 3 }, commands: { REGION_READ: 3 } },
  ]);
  t.deepEqual(await client.request("latency"), []);
  fakes[1].record(50);
  t.like(await client.request("latency"), [{ session: "b", command: "REGION_READ", count: 1, max: 50 }]);
  t.deepEqual(await client.request("inspect", { session: "a" }), [
    { session: "a", state: { big: `0x${(2n ** 60n).toString(16)}`, name: "a" } },
  ]);
  const methods = (await client.request("methods")) as { name: string; changes: boolean; allowed: boolean }[];
  t.deepEqual(
    methods.map(({ name }) => name).sort(),
    METHODS.filter(({ program }) => program !== "device")
      .map(({ name }) => name)
      .sort(),
  );
  for (const { changes, allowed } of methods) t.is(allowed, !changes);
});

test("what changes something is the admin socket's, and its owner's alone", async (t) => {
  const { connect, directory, fakes, log, lines } = setUp(t);
  t.is(statSync(join(directory, "admin")).mode & 0o777, 0o600);
  t.is(statSync(join(directory, "read")).mode & 0o777, 0o666);
  const reader = await connect();
  for (const { name } of METHODS.filter(({ changes }) => changes)) {
    const params: Params = name === "set-log-level" ? { level: "trace" } : name === "drain" ? {} : { session: "a" };
    if (!["set-log-level", "drain", "disconnect"].includes(name)) continue;
    t.is((await errorOf(t, reader.request(name, params))).code, -32001);
  }
  t.deepEqual([log.level, fakes[0].state.draining, fakes[0].state.client], ["info", false, true]);
  const admin = await connect("admin");
  t.deepEqual(await admin.request("set-log-level", { level: "trace" }), { level: "trace" });
  t.is(log.level, "trace");
  t.true(log.child({}).isLevelEnabled("trace"));
  t.deepEqual(await admin.request("disconnect", { session: "a" }), { session: "a", done: true });
  await admin.request("drain");
  t.true(fakes.every(({ state }) => state.draining));
  await admin.request("drain", { session: "b", off: true });
  t.deepEqual(
    fakes.map(({ state }) => state.draining),
    [true, false],
  );
  t.is(lines.filter((line) => line.includes("a change by the control socket")).length, 4);
});

test("what is wrong with a request is said, and the next one is answered", async (t) => {
  const { connect, raw } = setUp(t);
  const client = await connect("admin");
  const cases: [string, Params, number, RegExp][] = [
    ["sesions", {}, -32601, /no such method; did you mean sessions/],
    ["maps", { sesion: "a" }, -32602, /did you mean session/],
    ["maps", { session: 3 }, -32602, /session: it must be a text/],
    ["maps", { session: "c" }, -32002, /there is no session c/],
    ["disconnect", {}, -32602, /session: it is missing/],
    ["set-log-level", { level: "noisy" }, -32602, /one of silent/],
    ["drain", { off: 1 }, -32602, /true or false/],
    ["version", { constructor: "x" }, -32602, /no parameter/],
    ["constructor", {}, -32601, /no such method/],
  ];
  for (const [method, params, code, message] of cases) {
    const error = await errorOf(t, client.request(method, params));
    t.is(error.code, code, method);
    t.regex(error.message, message);
  }
  const { socket, closed } = raw();
  const documents = [
    "{",
    "[]",
    "3",
    "null",
    '{"jsonrpc":"1.0","id":1,"method":"version"}',
    '{"jsonrpc":"2.0","id":{}}',
  ];
  const deep = `${"[".repeat(30_000)}${"]".repeat(30_000)}`;
  const lines = [...documents, deep, '{"jsonrpc":"2.0","id":7}', "", "\ufffd\ufffd"];
  socket.end(`${lines.join("\n")}\n${request("version", {}, "last")}`);
  const answers = (await closed)
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.deepEqual(
    answers.map(({ error, id }) => error?.code ?? id),
    [-32700, -32600, -32600, -32600, -32600, -32600, -32600, -32600, -32700, "last"],
  );
});

test("a notification is carried out and not answered; a last line needs no newline", async (t) => {
  const { raw, log, directory } = setUp(t);
  const socket = createConnection(join(directory, "admin"));
  socket.end('{"jsonrpc":"2.0","method":"set-log-level","params":{"level":"debug"}}\n');
  await once(socket.resume(), "close");
  t.is(log.level, "debug");
  const { socket: other, closed } = raw();
  other.end(request("log-level").trim());
  t.is(JSON.parse(await closed).result.level, "debug");
});

test("a line without end is cut off; so is a client that says nothing, half of a line, or does not read", async (t) => {
  const { raw, connect } = setUp(t, { silentMs: 300, slowMs: 150, inspect: () => "x".repeat(3 * MIB) });
  const endless = raw();
  endless.socket.write("x".repeat(70_000));
  t.is(JSON.parse(await endless.closed).error.code, -32600);
  const silent = raw();
  t.is(await silent.closed, "");
  const half = raw();
  half.socket.write('{"jsonrpc"');
  t.is(await half.closed, "");
  const unread = raw();
  unread.socket.pause();
  for (let n = 0; n < 100; n++) unread.socket.write(request("inspect"));
  const others = await connect();
  await others.request("version");
  // Its end is noticed only when it reads.
  const wait = once(unread.socket, "close");
  setTimeout(() => unread.socket.resume(), 600);
  await wait;
  t.true(unread.text().length < 100 * 3 * MIB);
});

test("clients beyond the limit cost the one its place that was silent for longest", async (t) => {
  const { connect, raw } = setUp(t);
  const busy = await connect();
  const silent = Array.from({ length: 7 }, raw);
  await Promise.all(silent.map(({ socket }) => once(socket, "connect")));
  await busy.request("version");
  const others = await Promise.all([connect(), connect()]);
  for (const client of [busy, ...others]) t.truthy(await client.request("version"));
  await Promise.all([silent[0].closed, silent[1].closed]);
});

test("a flood has a tenth of the time while others want something", async (t) => {
  let busy = 0;
  const { raw } = setUp(t, {
    inspect: () => {
      const start = performance.now();
      while (performance.now() < start + 2);
      busy += performance.now() - start;
      return [];
    },
  });
  const { socket } = raw();
  await once(socket, "connect");
  socket.write(request("inspect").repeat(200));
  // A session that has light turns all the time.
  const session = new Share();
  const start = performance.now();
  while (performance.now() < start + 400) {
    session.countLight();
    await new Promise(setImmediate);
  }
  const elapsed = performance.now() - start;
  t.true(busy > 0 && busy < 0.5 * elapsed, `${busy} of ${elapsed} ms`);
});

test("who cannot be reached is said in a sentence", async (t) => {
  const { directory } = setUp(t);
  const error = await t.throwsAsync(ControlClient.connect(join(directory, "nobody")), { instanceOf: UserError });
  t.regex(error.message, /^cannot connect to .*nobody: there is no such socket/);
});
