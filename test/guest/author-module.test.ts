/** A user's own module as `vfio-user-device run` takes it, and what it says of one that makes no device. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { pino } from "pino";
import { notSilently } from "../../guest/run.js";

const built = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "author-"));
test.after.always(() => rmSync(directory, { recursive: true }));

function module(name: string, source: string): string {
  const path = join(directory, name);
  writeFileSync(path, source);
  return path;
}

function run(path: string) {
  const args = [built("guest/main.js"), "run", path, "--socket-path", `${path}.sock`, "--log-level", "silent"];
  return spawnSync(process.execPath, args, { encoding: "utf8", timeout: 60_000 });
}

const DEVICE = "{ identity: { vendorId: 0xfff4, deviceId: 1, classCode: 0xff0000, bars: { 0: { size: 4096 } } } }";

/** By name: the module, and its one sentence behind "vfio-user-device: ". PATH stands for the module's. */
const RULE = `it must be a function that returns the device; see the README's "Write a device"`;
const NO_REQUIRE = "require is not defined in ES module scope, you can use import instead";

const MISTAKES: Record<string, [string, string]> = {
  "nothing.mjs": ["export default () => {};", "PATH makes no device: its default export returned undefined"],
  "null.mjs": ["export default () => null;", "PATH makes no device: its default export returned null"],
  "object.mjs": [`export default ${DEVICE};`, `PATH has a default export that is no function (object): ${RULE}`],
  "named.mjs": [
    `export const create = () => (${DEVICE});`,
    `PATH has no default export: it must be a function that returns the device; see the README's "Write a device"`,
  ],
  "compiled.cjs": [
    `Object.defineProperty(exports, "__esModule", { value: true });\nexports.create = () => (${DEVICE});`,
    `PATH has no default export: it must be a function that returns the device; see the README's "Write a device"`,
  ],
  "throws.mjs": [
    "export default () => {\n  return nothing.at.all;\n};",
    "PATH does not make its device: ReferenceError: nothing is not defined (at PATH:2:3)",
  ],
  "rejects.mjs": [
    'export default async () => {\n  throw new Error("no card is there");\n};',
    "PATH does not make its device: no card is there (at PATH:2:9)",
  ],
  "class.mjs": [
    "export default class {}",
    "PATH has a class as its default export: export a function that returns one (new ...)",
  ],
  "top.mjs": [
    "null.x;",
    "cannot load the device PATH: TypeError: Cannot read properties of null (reading 'x') (at PATH:1:6)",
  ],
  "requires.mjs": [
    'const fs = require("fs");',
    `cannot load the device PATH: ReferenceError: ${NO_REQUIRE} (at PATH:1:12)`,
  ],
  "import.mjs": [
    'import "./absent.mjs";',
    `cannot load the device PATH: Cannot find module '${directory}/absent.mjs' imported from PATH`,
  ],
  "start.mjs": [
    `export default () => ({ ...${DEVICE}, start() { this.nothing(); } });`,
    "the device's start() failed: TypeError: this.nothing is not a function (at PATH:1:142)",
  ],
  "declares.mjs": [
    `export default () => ({ identity: { ...${DEVICE}.identity, vendorId: -1 } });`,
    "the device cannot be: identity.vendorId is -1: it must be a number of 16 bits, not negative",
  ],
};

for (const [name, [source, sentence]] of Object.entries(MISTAKES)) {
  test(`${name}: one sentence, and the end`, (t) => {
    const path = module(name, source);
    const { status, stderr } = run(path);
    t.is(stderr, `vfio-user-device: ${sentence.replaceAll("PATH", path)}\n`);
    t.is(status, 1);
  });
}

test("a module that is not there, or no module", (t) => {
  const absent = join(directory, "absent.js");
  t.is(run(absent).stderr, `vfio-user-device: cannot load the device ${absent}: there is no such file\n`);
  const { stderr } = run(directory);
  t.is(stderr, `vfio-user-device: cannot load the device ${directory}: it is a directory, not a module\n`);
});

for (const [name, source] of Object.entries({
  "syntax.mjs": "export default () => {\n  const x = ;\n};",
  "syntax.cjs": "module.exports = () => {\n  const x = ;\n};",
})) {
  test(`${name}: the file and the line`, (t) => {
    const path = module(name, source);
    for (const main of [path, module(`imports-${name}.mjs`, `import "./${name}";`)]) {
      const { status, stderr } = run(main);
      const [sentence, place, line] = stderr.split("\n");
      t.is(sentence, `vfio-user-device: cannot load the device ${main}: SyntaxError: Unexpected token ';'`);
      t.true(place.endsWith(`${path}:2`), stderr);
      t.is(line, "  const x = ;");
      t.is(status, 1);
    }
  });
}

for (const [name, source] of Object.entries({
  "works.cjs": `Object.defineProperty(exports, "__esModule", { value: true });\nexports.default = () => (${DEVICE});`,
  "exports.cjs": `exports.default = () => (${DEVICE});`,
  "plain.cjs": `module.exports = async () => (${DEVICE});`,
})) {
  test(`${name} is a device, too`, async (t) => {
    const path = module(name, source);
    const child = spawn(process.execPath, [built("guest/main.js"), "run", path, "--socket-path", `${path}.sock`], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    t.teardown(() => child.kill("SIGKILL"));
    const [line] = await once(child.stderr.setEncoding("utf8"), "data");
    t.regex(line, /the device is ready/);
  });
}

for (const [name, source] of Object.entries({
  "factory.mjs": "export default () => new Promise(() => setInterval(() => {}, 1000));",
  "start-hangs.mjs": `export default () => ({ ...${DEVICE}, start: () => new Promise(() => {}) });`,
})) {
  test(`${name}: SIGTERM ends what has not finished to start`, async (t) => {
    const path = module(name, `${source}\nprocess.stdout.write("loaded");`);
    const child = spawn(process.execPath, [built("guest/main.js"), "run", path, "--socket-path", `${path}.sock`], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    t.teardown(() => child.kill("SIGKILL"));
    await once(child.stdout, "data");
    child.kill("SIGTERM");
    t.deepEqual(await once(child, "exit"), [0, null]);
  });
}

test("what does not finish is said", async (t) => {
  const lines: string[] = [];
  let said: (count: number) => void = () => {};
  const first = new Promise<number>((resolve) => {
    said = resolve;
  });
  const log = pino({}, { write: (line: string) => said(lines.push(JSON.parse(line).msg)) });
  let finish: (value: number) => void = () => {};
  const work = new Promise<number>((resolve) => {
    finish = resolve;
  });
  const waiting = notSilently("the device's start()", log, work, 8);
  t.is(await first, 1);
  t.deepEqual(lines, [
    "the device's start() has not finished after 0.008 seconds: until it has, no driver VM is served",
  ]);
  finish(7);
  t.is(await waiting, 7);
  t.is(await notSilently("the device's start()", log, Promise.resolve(1), 8), 1);
  t.is(lines.length, 1);
});
