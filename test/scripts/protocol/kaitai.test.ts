/** The Kaitai descriptions: Kaitai's own compiler makes parsers of them, which say what our own views say. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { parse } from "yaml";
import { snake } from "../../../scripts/protocol/names.js";
import { prepareProtocolTools } from "../../../scripts/vm/environment.js";
import { VFIO_USER } from "../../../shared/spec/messages.js";
import { Header } from "../../../shared/spec/vfio-user.js";
import { VECTORS } from "../../shared/vectors/vfio-user.js";
import { broken, errorReplies, type Sample, samples, type Tree } from "./samples.js";

const DIRECTORY = new URL("../../../../docs/protocol/", import.meta.url);
const FILES = ["vfio_user.ksy", "virtio_vfio_user.ksy", "vfio_user_capture.ksy"];
const require = createRequire(import.meta.url);
/** It has no types of its own. */
const Compiler = require("kaitai-struct-compiler") as new () => {
  compile(language: string, description: unknown, importer: null, isDebug: boolean): Promise<Record<string, string>>;
};

const whole = [...samples(), ...errorReplies()];
const bad = broken(samples());

/** The files of a language, by name. */
async function compile(language: string): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for (const file of FILES) {
    const description = parse(readFileSync(new URL(file, DIRECTORY), "utf8"));
    const made = await new Compiler().compile(language, description, null, false);
    for (const [name, text] of Object.entries(made)) all.set(name, text);
  }
  return all;
}

/** Every field that is expected is there, with that value; a parser's own names may be more. */
function compare(t: ExecutionContext, name: string, actual: unknown, expected: Tree, rename: (name: string) => string) {
  if (Array.isArray(expected)) {
    t.is((actual as unknown[] | undefined)?.length, expected.length, name);
    for (const [n, each] of expected.entries()) compare(t, `${name}[${n}]`, (actual as unknown[])[n], each, rename);
  } else if (typeof expected === "object") {
    for (const [field, value] of Object.entries(expected)) {
      const part = (actual as Record<string, unknown> | undefined)?.[rename(field)];
      compare(t, `${name}.${field}`, part, value, rename);
    }
  } else {
    const plain = actual instanceof Uint8Array ? Buffer.from(actual).toString("hex") : actual;
    t.is(plain as Tree, expected, name);
  }
}

/** The classes that Kaitai's compiler made of a description, from its JavaScript. */
function load(files: Map<string, string>, file: string): ParserClass {
  const module = { exports: {} as Record<string, unknown> };
  new Function("module", "exports", "require", files.get(file) ?? "")(module, module.exports, require);
  const [made] = Object.values(module.exports);
  return (typeof module.exports === "function" ? module.exports : made) as ParserClass;
}

interface ParserClass {
  new (stream: unknown): Record<string, unknown>;
  /** The classes of its structures. */
  readonly [name: string]: ParserClass;
}
const Stream = require("kaitai-struct/KaitaiStream");
const streamOf = (bytes: Uint8Array) => new Stream(new Uint8Array(bytes).buffer);
/** A name as the compiler has it for JavaScript: "max_fds" is maxFds there. */
const same = (name: string) => snake(name).replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

test("JavaScript: bytes written by hand, no two alike, are read as little-endian", async (t) => {
  const parser = load(await compile("javascript"), "VfioUser.js");
  let count = 0;
  for (const [name, struct] of [...Object.entries(VFIO_USER.structs), ["Header", Header] as const]) {
    for (const vector of VECTORS.filter(({ table }) => table === struct)) {
      const Parser = parser[name];
      const parsed = new Parser(streamOf(Buffer.from(vector.bytes.replaceAll(" ", ""), "hex")));
      compare(t, vector.name, parsed, vector.fields, same);
      count++;
    }
  }
  t.true(count >= Object.keys(VFIO_USER.structs).length);
});

test("JavaScript: every message is parsed as by our views, and what is broken is refused", async (t) => {
  const files = await compile("javascript");
  const parsers = { vfio_user: load(files, "VfioUser.js"), virtio_vfio_user: load(files, "VirtioVfioUser.js") };
  const parseOne = ({ protocol, bytes }: Sample) => {
    const Parser = parsers[protocol.id as keyof typeof parsers];
    return new Parser(streamOf(bytes));
  };
  for (const each of whole) {
    const parsed = parseOne(each);
    compare(t, `${each.name} header`, parsed.header, each.header, same);
    compare(t, `${each.name} body`, parsed.body, each.body, same);
    if (each.handles.length > 0) compare(t, `${each.name} handles`, parsed.handles, each.handles, same);
  }
  for (const each of bad) t.throws(() => parseOne(each), { any: true }, each.name);
  t.true(bad.length > 40);
});

test("Python: the same", async (t) => {
  const { python } = await prepareProtocolTools();
  const directory = mkdtempSync(join(tmpdir(), "protocol-"));
  t.teardown(() => rm(directory, { recursive: true }));
  for (const [name, text] of await compile("python")) writeFileSync(join(directory, name), text);
  const lines = [...whole, ...bad].map(({ protocol, bytes }) =>
    JSON.stringify({ protocol: protocol.id, hex: Buffer.from(bytes).toString("hex") }),
  );
  const program = new URL("../../../../test/scripts/protocol/dump.py", import.meta.url).pathname;
  const { PYTHONPATH } = python.environment;
  const { stdout, stderr } = spawnSync(python.program, [...python.args, program], {
    input: lines.join("\n"),
    encoding: "utf8",
    env: { ...process.env, ...python.environment, PYTHONPATH: `${directory}:${PYTHONPATH}` },
  });
  t.is(stderr, "");
  const results = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.is(results.length, lines.length);
  for (const [n, each] of whole.entries()) {
    compare(t, `${each.name} header`, results[n].header, each.header, snake);
    compare(t, `${each.name} body`, results[n].body, each.body, snake);
    if (each.handles.length > 0) compare(t, `${each.name} handles`, results[n].handles, each.handles, snake);
  }
  for (const [n, each] of bad.entries()) t.is(results[whole.length + n], null, each.name);
});
