/** The bridge's configuration file: what is served, what is wrong in it and where, and what SIGHUP does. */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { listen } from "../../../native/index.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { TestDevice } from "../../fakes/front-end-device.js";
import { fails, type Start, start } from "../../fakes/service-process.js";
import { folder, owned } from "../../native/helpers.js";

function setUp(t: ExecutionContext) {
  const directory = folder(t);
  const at = (name: string) => join(directory, name);
  const file = at("bridge.json");
  /** Sessions of these names, whose sockets are NAME and NAME.vhost. */
  const session = (name: string, more: object = {}) => ({
    "socket-path": at(name),
    "vhost-user-socket-path": at(`${name}.vhost`),
    ...more,
  });
  const write = (config: object | string) =>
    fs.writeFileSync(file, typeof config === "string" ? config : JSON.stringify(config, null, 2));
  const begin = (how?: Start, ...args: string[]) => start(t, "bridge", [`--config=${file}`, ...args], how);
  return { at, file, session, write, begin };
}

test("sessions as the file says, and where it says nothing as the command line does", async (t) => {
  const { at, session, write, begin } = setUp(t);
  const [fd] = [owned(t, listen(at("given"), 4))];
  const given = { name: "a disk", fd: 3, "vhost-user-socket-path": at("b.vhost"), "window-size": "2M" };
  write({
    $schema: "vfio-user-bridge.schema.json",
    "socket-mode": "660",
    sessions: [session("a", { "socket-mode": "0666", "socket-group": "1" }), given],
  });
  const running = begin({ fds: [fd] });
  await running.said(/"serving"/, 2);
  const lines = running.log.trim().split("\n");
  const served = lines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === "serving");
  t.like(served[0], { session: "a", socketPath: at("a"), vhostUserSocketPath: at("a.vhost"), windowSize: 2 ** 30 });
  t.like(served[1], { session: "a disk", fd: 3, vhostUserSocketPath: at("b.vhost"), windowSize: 2 ** 21 });
  const access = (name: string) => [fs.statSync(at(name)).mode & 0o777, fs.statSync(at(name)).gid];
  t.deepEqual(
    [access("a"), access("b.vhost")],
    [
      [0o666, 1],
      [0o660, process.getgid?.()],
    ],
  );
  t.is(await running.stop(), 0);
});

const S = '{ "socket-path": "/a", "vhost-user-socket-path": "/b"';
const WRONG: [string, string][] = [
  ["", "line 1: it is no JSON: value expected"],
  ["\n\n{", "line 3: it is no JSON: close brace expected"],
  ['{\n  "sessions": [],\n}', "line 3: it is no JSON: property name expected"],
  ['{\n  // a comment\n "sessions": [] }', "line 2: it is no JSON: invalid comment token"],
  ["[]", "line 1: it must be an object"],
  ["{}", 'line 1: "sessions" is missing'],
  ['{\n  "sessions": [],\n  "sessions": []\n}', 'line 3: "sessions" is there twice, first in line 2'],
  [`{ "sessions": [\n${S} },\n${S}, "fd": 3 } ] }`, `line 3: sessions[1].fd: it cannot go with "socket-path"`],
  [`{ "sessions": [\n${S} },\n${S} } ] }`, "line 3: sessions[1].socket-path: /a was given twice"],
  [
    `{ "sessions": [\n${S} },\n{ "socket-path": "/c",\n "vhost-user-socket-path": "/x/../a" } ] }`,
    "line 4: sessions[1].vhost-user-socket-path: /x/../a was given twice",
  ],
  [
    '{ "sessions": [ { "fd": 3, "vhost-user-fd": 4 },\n { "fd": 5,\n "vhost-user-fd": 3 } ] }',
    "line 3: sessions[1].vhost-user-fd: file descriptor 3 was given twice",
  ],
  ['{ "sessions": [\n{ "socket-path": "/a" } ] }', 'line 2: sessions[0]: the session needs "vhost-user-socket-path"'],
  [
    `{ "sessions": [ ${S},\n "windowsize": "1G" } ] }`,
    "line 2: sessions[0].windowsize: there is no such key; did you mean window-size",
  ],
  ['{\n "sesions": [] }', "line 2: sesions: there is no such key; did you mean sessions"],
  ['{ "a\\n\\u001b[1m": 1, "sessions": [] }', "line 1: a\\n\\u001b[1m: there is no such key"],
  [`{ "${"k".repeat(100_000)}": 1, "sessions": [] }`, `line 1: ${"k".repeat(64)}: there is no such key`],
  [`{ "sessions": [ ${S},\n "__proto__": 1 } ] }`, "line 2: sessions[0].__proto__: there is no such key"],
  [`{ "sessions": [ ${S},\n "window-size": 64 } ] }`, "line 2: sessions[0].window-size: it must be a string"],
  [
    `{ "sessions": [ ${S},\n "window-size": "3G" } ] }`,
    'line 2: sessions[0].window-size: "window-size" 3G: it must be a p',
  ],
  [`{ "sessions": [ ${S},\n "window-size": "64 GB" } ] }`, "line 2: sessions[0].window-size: it must match pattern"],
  [`{ "socket-mode": "0999",\n "sessions": [] }`, "line 1: socket-mode: it must match pattern"],
  [
    `{ "socket-group": "no-such-group",\n "sessions": [] }`,
    'line 1: socket-group: "socket-group" no-such-group: there is no',
  ],
  ['{ "sessions": [ { "fd": -1, "vhost-user-fd": 4 } ] }', "line 1: sessions[0].fd: it must be >= 0"],
  ['{ "sessions": [ { "fd": 1.5, "vhost-user-fd": 4 } ] }', "line 1: sessions[0].fd: it must be an integer"],
  [`{ "sessions": [ ${S}, "name": "a\\nb" } ] }`, "line 1: sessions[0].name: it must match pattern"],
  [
    `{ "sessions": [ { "socket-path": "${"ä".repeat(60)}", "vhost-user-fd": 3 } ] }`,
    "line 1: sessions[0].socket-path: ",
  ],
  [`{ "trust-unsealed-memory": "no",\n"sessions": [] }`, "line 1: trust-unsealed-memory: it must be a boolean"],
];

test("what is wrong in it is one sentence with the line and the key", async (t) => {
  const { file, write } = setUp(t);
  for (const [text, what] of WRONG) {
    write(text);
    const failed = await fails(t, "bridge", [`--config=${file}`]);
    t.is(failed.code, 2, `${text}: ${failed.text}`);
    t.true(failed.text.startsWith(`${file}, ${what}`), `${text}: ${failed.text}`);
    t.notRegex(failed.text, /\n/);
  }
});

test("a file that cannot be one is not read", async (t) => {
  const { at, file, session, write } = setUp(t);
  const refused = async (path: string, code: number, what: RegExp) => {
    const failed = await fails(t, "bridge", [`--config=${path}`]);
    t.is(failed.code, code, failed.text);
    t.regex(failed.text, what);
    t.notRegex(failed.text, /\n/);
  };
  write({ sessions: Array.from({ length: 1025 }, (_, i) => session(`s${i}`)) });
  await refused(file, 2, /line \d+: sessions: it must NOT have more than 1024 items|bytes, and may have 262144/);
  write(" ".repeat(1 << 20));
  await refused(file, 2, /has 1048576 bytes, and may have 262144: is it the right file\?/);
  write("[".repeat(200_000));
  await refused(file, 2, /nested too deeply|it is no JSON/);
  fs.writeFileSync(file, Buffer.from([0x7b, 0xff, 0x7d]));
  await refused(file, 2, /is no text in UTF-8/);
  await refused(at("absent"), 1, /cannot read .*absent: there is no such file/);
  await refused(at("bridge.json/x"), 1, /what should be its directory is none/);
  await refused(at("."), 1, /it is no regular file/);
  execFileSync("mkfifo", [at("pipe")]);
  await refused(at("pipe"), 1, /it is no regular file/);
  fs.chmodSync(file, 0);
  const shell = 'exec setpriv --reuid 1 --regid 1 --clear-groups -- "$@"';
  fs.chmodSync(at("."), 0o755);
  const failed = await fails(t, "bridge", [`--config=${file}`], { shell });
  t.regex(failed.text, /cannot read .*: this user may not read it/);
});

test("SIGHUP adds and removes sessions, and touches no other", async (t) => {
  const { at, session, write, begin } = setUp(t);
  write({ sessions: [session("a"), session("b")] });
  const running = begin();
  await running.said(/"serving"/, 2);
  const frontEnd = new FrontEnd(at("a.vhost"));
  t.teardown(() => frontEnd.quit());
  const device = new TestDevice(frontEnd);
  await device.startAndGreet();
  const client = await Client.connect(at("a"));
  t.teardown(() => client.close());
  const isServed = (name: string) => fs.existsSync(at(name)) && fs.existsSync(at(`${name}.vhost`));
  let changes = 0;
  const change = async (config: object | string) => {
    write(config);
    changes++;
    running.child.kill("SIGHUP");
    await running.said(/"msg":"the configuration (was read again|is not used)"/, changes);
    // The one that is always there is served by the same connections as before.
    t.is((await client.getInfo()).numRegions, 9);
  };
  await change({ sessions: [session("c"), session("a")] });
  t.deepEqual(["a", "b", "c"].map(isServed), [true, false, true]);
  t.regex(running.log, /"added":1,"removed":1,"kept":1/);

  // One that is changed is another; its sockets may go to a third.
  await change({ sessions: [session("a"), session("c", { "window-size": "2M" })] });
  t.deepEqual(["a", "b", "c"].map(isServed), [true, false, true]);
  const swapped = { "socket-path": at("c"), "vhost-user-socket-path": at("d.vhost") };
  await change({ sessions: [swapped, session("a")] });
  t.true(fs.existsSync(at("c")) && fs.existsSync(at("d.vhost")) && !fs.existsSync(at("c.vhost")));

  // What is wrong changes nothing, and says so.
  const before = fs.readdirSync(at(".")).sort();
  for (const wrong of ["{", { sessions: [session("a"), session("e"), session("no/f")] }, { sessions: [{}] }]) {
    await change(wrong);
    t.deepEqual(fs.readdirSync(at(".")).sort(), before);
  }
  t.is(running.log.match(/"level":50.*"msg":"the configuration is not used"/g)?.length, 3);
  t.regex(running.log, /"reason":"cannot listen on .*no\/f.*there is no such directory"/);

  // Down to none, and up again.
  await change({ sessions: [session("a")] });
  write({ sessions: [] });
  running.child.kill("SIGHUP");
  await client.closed;
  await running.said(/"removed":1,"kept":0/);
  t.deepEqual(["a", "c", "d.vhost"].filter(isServed), []);
  write({ sessions: [session("a")] });
  running.child.kill("SIGHUP");
  await running.said(/"added":1,"removed":0,"kept":0/);
  t.true(isServed("a"));
  t.is(await running.stop(), 0);
});

test("a session that cannot be changed fails alone, and is served again when it can be", async (t) => {
  const { at, session, write, begin } = setUp(t);
  write({ sessions: [session("a"), session("b")] });
  const running = begin({ shell: `chown 1:1 ${at(".")}; exec setpriv --reuid 1 --regid 1 --clear-groups -- "$@"` });
  await running.said(/"serving"/, 2);
  write({ sessions: [session("a", { "socket-group": "0" }), session("b")] });
  running.child.kill("SIGHUP");
  await running.said(/"added":0,"removed":1,"kept":1/);
  t.regex(
    running.log,
    /"session":"a","reason":"cannot set who .*"msg":"a session cannot be changed, and is not served"/,
  );
  t.deepEqual([fs.existsSync(at("a")), fs.existsSync(at("b"))], [false, true]);
  write({ sessions: [session("a"), session("b")] });
  running.child.kill("SIGHUP");
  await running.said(/"added":1,"removed":0,"kept":1/);
  t.is(await running.stop(), 0);
});

test("SIGHUP while it starts, and many, end nothing: the last file is what is served", async (t) => {
  const { at, session, write, begin } = setUp(t);
  write({ sessions: Array.from({ length: 24 }, (_, i) => session(`s${i}`)) });
  const running = begin();
  await running.said(/"msg":"serving"/);
  write({ sessions: [session("last")] });
  for (let n = 0; n < 20; n++) running.child.kill("SIGHUP");
  await running.said(/"msg":"the configuration was read again"/);
  while (!fs.existsSync(at("last"))) await new Promise((resolve) => setTimeout(resolve, 5));
  running.child.kill("SIGHUP");
  t.is(await running.stop(), 0);
  t.deepEqual(fs.readdirSync(at(".")), ["bridge.json"]);
});

test("reloads leave nothing behind: what is served is the file's, and descriptors are as before", async (t) => {
  const { at, session, write, begin } = setUp(t);
  const fds = (pid: number) => fs.readdirSync(`/proc/${pid}/fd`).length;
  write({ sessions: [session("a"), session("b")] });
  const running = begin({}, `--log-file=${at("log")}`);
  const log = () => (fs.existsSync(at("log")) ? fs.readFileSync(at("log"), "utf8") : "");
  const logged = async (text: string) => {
    while (!log().includes(text)) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  const reload = async (names: readonly string[]) => {
    write({ sessions: names.map((name) => session(name)) });
    fs.renameSync(at("log"), at("log.1"));
    running.child.kill("SIGHUP");
    await logged("was read again");
    t.deepEqual(
      fs.readdirSync(at(".")).filter((name) => name.length === 1),
      [...names].sort(),
    );
  };
  await logged('"session":"b"');
  await reload(["a", "b"]);
  const before = fds(running.child.pid!);
  for (const names of ["", "cab", "d", "de", "abcdef", "fa", "b", "ba", "", "ab"]) await reload([...names]);
  const deadline = Date.now() + 30_000;
  while (fds(running.child.pid!) > before && Date.now() < deadline)
    await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(fds(running.child.pid!), before);
  t.is(await running.stop(), 0);
});

test("a handed-down socket of a session that was removed is served again when it is back", async (t) => {
  const { at, write, begin } = setUp(t);
  const fds = ["x", "x.vhost"].map((name) => owned(t, listen(at(name), 4)));
  const both = { sessions: [{ fd: 3, "vhost-user-fd": 4 }] };
  write(both);
  const running = begin({ fds });
  await running.said(/"msg":"serving"/);
  write({ sessions: [] });
  running.child.kill("SIGHUP");
  await running.said(/"removed":1/);
  write({ sessions: [{ fd: 5, "vhost-user-fd": 4 }] });
  running.child.kill("SIGHUP");
  await running.said(/"reason":"file descriptor 5 is no listening AF_UNIX stream socket/);
  write(both);
  running.child.kill("SIGHUP");
  await running.said(/"added":1,"removed":0,"kept":0/);
  const frontEnd = new FrontEnd(at("x.vhost"));
  t.teardown(() => frontEnd.quit());
  await new TestDevice(frontEnd).startAndGreet();
  const client = await Client.connect(at("x"));
  t.is((await client.getInfo()).numRegions, 9);
  client.close();
  t.is(await running.stop(), 0);
});
