/** vfio-user-ctl: its command line, what it prints for people, and the table that goes on. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { COMMANDS } from "../../../host/ctl/commands.js";
import { formatAnswer } from "../../../host/ctl/format.js";
import { paramsOf, parseOptions } from "../../../host/ctl/options.js";
import { changes } from "../../../host/ctl/screen.js";
import { page, short } from "../../../host/ctl/top.js";
import { METHODS } from "../../../shared/control/methods.js";
import { ServiceProcess, socketArgs } from "../../fakes/service-process.js";
import { folder } from "../../native/helpers.js";

const MAIN = fileURLToPath(new URL("../../../host/ctl/main.js", import.meta.url));
const DEVICE = fileURLToPath(new URL("../../../guest/main.js", import.meta.url));
const run = (...args: string[]) => spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8", timeout: 60_000 });

test("a command is found wherever it stands; its parameters are read by the method's table", (t) => {
  const parse = (...args: string[]) => {
    const options = parseOptions(args);
    if (typeof options === "string" || "summary" in options) throw new Error("help");
    return { ...options, params: paramsOf(options) };
  };
  t.like(parse("--control", "/s", "maps", "--session=a"), { socket: "/s", json: false, params: { session: "a" } });
  t.like(parse("drain", "--off", "--control=/s", "--json"), { json: true, params: { off: true } });
  const mistakes: [string[], RegExp][] = [
    [["--control=/s"], /nothing to do/],
    [["--control=/s", "mpas"], /no command mpas; did you mean maps/],
    [["maps"], /--control PATH is needed/],
    [["--control=/s", "disconnect"], /disconnect needs --session/],
    [["--control=/s", "maps", "--off"], /there is no option --off/],
    [["--control=/s", "maps", "doorbells"], /doorbells/],
  ];
  for (const [args, message] of mistakes) t.throws(() => parse(...args), { message }, args.join(" "));
  for (const { name } of METHODS) t.true(COMMANDS.some((each) => each.name === name));
});

test("help names every command, and each has its own", (t) => {
  const { stdout, status } = run("--help");
  t.is(status, 0);
  for (const { name } of COMMANDS) t.regex(stdout, new RegExp(`^  ${name}\\b`, "m"));
  t.regex(run("drain", "--help").stdout, /^Usage: vfio-user-ctl .* drain(?:.|\n)*--off/);
});

test("it asks a program; what is refused is one sentence and exit code 1", async (t) => {
  const directory = folder(t);
  const [control, admin] = ["c", "d"].map((name) => join(directory, name));
  const args = [DEVICE, "run", "gpio", ...socketArgs("device", directory)];
  const device = new ServiceProcess(t, [...args, `--control=${control}`, `--control-admin=${admin}`]);
  await device.said(/the device is ready/);
  t.regex(run("--control", control, "sessions").stdout, /^NAME +CLIENT +DEVICE(?:.|\n)*\ngpio +no +local/);
  t.is(JSON.parse(run("--control", control, "--json", "version").stdout).program, "vfio-user-device");
  const refused = run("--control", control, "drain");
  t.is(refused.status, 1);
  t.is(refused.stderr, "vfio-user-ctl: drain: drain changes something: ask the admin socket\n");
  t.is(run("--control", control, "doorbells").stderr, "vfio-user-ctl: doorbells: this program has no such method\n");
  t.regex(run("--control", admin, "drain").stdout, /gpio +yes +no/);
  const lines = run("--control", control, "top", "--count=2", "--interval=0.2").stdout.trimEnd().split("\n");
  t.is(lines.length, 3);
  t.regex(lines[2], /^\d\d:\d\d:\d\d {2}gpio .* local\/d +no/);
  // Nothing but a terminal is drawn on.
  t.false(lines.join("").includes("\u001b"));
});

test("answers are tables where they are lists, trees otherwise, and obey nobody", (t) => {
  t.is(formatAnswer([]), "(none)\n");
  t.is(
    formatAnswer([
      { a: 1, name: "x" },
      { a: 22, name: "yy" },
    ]),
    " A  NAME\n 1  x\n22  yy\n",
  );
  t.is(
    formatAnswer([{ session: "s", maps: 2, first: [{ at: "0x1" }, { at: "0x2" }] }]),
    "SESSION  MAPS  AT\ns           2  0x1\ns           2  0x2\n",
  );
  t.is(formatAnswer({ a: { b: [1, { c: true }] }, d: {} }), "a:\n  b:\n    - 1\n    -\n      c: yes\nd: (none)\n");
  t.is(formatAnswer({ evil: "\u001b]0;x\u0007\u202e" }), "evil: \\u001b]0;x\\u0007\\u202e\n");
});

/** A terminal that knows what is needed of it. */
function show(screen: string[], text: string): string[] {
  const lines = [...screen];
  // biome-ignore lint/suspicious/noControlCharactersInRegex: what a terminal is sent
  for (const [, row, column, words, erase] of text.matchAll(/\u001b\[(\d+);(\d+)H([^\u001b]*)(\u001b\[K)?/g)) {
    const old = (lines[Number(row) - 1] ?? "").padEnd(Number(column) - 1);
    const end = Number(column) - 1 + words.length;
    lines[Number(row) - 1] = old.slice(0, Number(column) - 1) + words + (erase === undefined ? old.slice(end) : "");
  }
  return lines;
}

test("a terminal is sent what changed, and shows what it should", (t) => {
  const pages = [["abc def", "x"], ["abc dXf", "x"], ["abc", "longer", "third"], [], ["", "y"], ["0 1 2 3 4 5 6"]];
  let [screen, shown]: string[][] = [[], []];
  for (const next of pages) {
    screen = show(screen, changes(shown, next));
    shown = next;
    t.deepEqual(
      screen.filter((line) => line !== ""),
      next.filter((line) => line !== ""),
    );
  }
  t.is(changes(["reads  123/s"], ["reads  124/s"]), "\u001b[1;10H4");
  t.is(changes(["same"], ["same"]), "");
});

test("the table fits into 80 columns and as many lines as there are, whatever the numbers", (t) => {
  const session = (n: number) => ({
    name: `a session with a name that is long ${n}\u001b[2J`,
    client: true,
    device: "connected",
    draining: n === 0,
    mappedBytes: 1023 * 2 ** 30,
    counts: { reads: n * 1e12, copiedBytes: n * 1e15, doorbells: 5e9 * n },
    p50: 999.9,
    p99: 4.2e6,
  });
  const look = (n: number, at: number) => ({
    ...{ at, program: "vfio-user-bridge 0.1.0", warning: "12:00:00 something that is longer than a line ".repeat(4) },
    sessions: Array.from({ length: 40 }, () => session(n)),
  });
  const lines = page(look(2, 1000), look(1, 0), 80, 24);
  t.true(lines.length <= 24);
  for (const line of lines) t.true(line.length <= 80 && !line.includes("\u001b"), line);
  t.true(lines.some((line) => line.includes("more")));
  t.deepEqual(
    [0, 7.4, 999, 1000, 12_345, 1e9, 2e15].map((value) => short(value)),
    [...["0", "7", "999", "1.00k", "12.3k", "1.00G", "2.00P"]],
  );
  t.is(short(1023 * 2 ** 30, 1024), "1023G");
});
