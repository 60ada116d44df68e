import test from "ava";
import { parseOptions, TABLE } from "../../../host/bridge/options.js";
import { helpText } from "../../../shared/command-line/help.js";
import { optionsOf } from "../../../shared/command-line/table.js";
import { UserError } from "../../../shared/errors.js";

const pair = ["--socket-path", "/tmp/a", "--vhost-user-socket-path", "/tmp/b"];

test("one pair of sockets and the defaults", (t) => {
  const access = { mode: undefined, group: undefined };
  const defaults = { windowSize: 64 * 2 ** 30, trustUnsealedMemory: false, access };
  t.deepEqual(parseOptions(pair), {
    sessions: [{ name: "a", vfioUser: { path: "/tmp/a" }, vhostUser: { path: "/tmp/b" }, ...defaults }],
    defaults,
    supervised: false,
    service: {
      pidFile: undefined,
      log: { level: "info", format: undefined, file: undefined },
      once: false,
      access,
    },
    control: { path: undefined, access, adminPath: undefined, metrics: undefined },
  });
});

test("several pairs, in order, with = too, paths and descriptors", (t) => {
  const options = parseOptions([
    ...pair,
    "--socket-path=c",
    "--vhost-user-fd=7",
    "--vhost-user-socket-path=d",
    "--fd=6",
    "--window-size=512M",
    "--log-level=trace",
    "--trust-unsealed-memory",
    "--socket-mode=0660",
    "--socket-group=0",
    "--pid-file=p",
    "--log-file=l",
    "--log-format=pretty",
    "--once",
  ]);
  if (typeof options === "string") return t.fail();
  const access = { mode: 0o660, group: 0 };
  const defaults = { windowSize: 2 ** 29, trustUnsealedMemory: true, access };
  t.deepEqual(options.sessions, [
    { name: "a", vfioUser: { path: "/tmp/a" }, vhostUser: { path: "/tmp/b" }, ...defaults },
    { name: "c", vfioUser: { path: "c" }, vhostUser: { fd: 7 }, ...defaults },
    { name: "fd-6", vfioUser: { fd: 6 }, vhostUser: { path: "d" }, ...defaults },
  ]);
  t.like(parseOptions([...pair, "--supervised"]), { supervised: true });
  t.deepEqual(options.service, {
    pidFile: "p",
    log: { level: "trace", format: "pretty", file: "l" },
    once: true,
    access,
  });
});

test("a file, or a service manager, in place of sockets", (t) => {
  t.like(parseOptions(["--config", "x"]), { sessions: { config: "x" } });
  t.like(parseOptions([]), { sessions: "activation" });
});

test("--print-capabilities, whatever else is given", (t) => {
  t.is(parseOptions(["--frobnicate", "--print-capabilities"]), "capabilities");
});

test("--help and --version need nothing else", (t) => {
  t.is(parseOptions(["--help"]), "help");
  t.is(parseOptions(["--version"]), "version");
});

test("the help text names every option and fits a terminal", (t) => {
  const help = helpText(TABLE);
  const names = optionsOf(TABLE).map(({ name }) => name);
  t.true(names.length > 15);
  for (const name of names) t.true(help.includes(`--${name}`), name);
  for (const line of help.split("\n")) t.true(line.length <= 120, line);
});

const wrong: [string[], RegExp][] = [
  [["--supervised"], /--supervised makes its sockets itself/],
  [["--supervised", "--fd=3", "--vhost-user-socket-path=x"], /--supervised makes its sockets itself/],
  [[...pair, "--config", "x"], /--config has the sessions/],
  [["--config", ""], /not the path of a file/],
  [[...pair, "--fd", "3"], /--socket-path or --fd was given 2 times/],
  [["--fd", "3", "--vhost-user-fd", "3"], /file descriptor 3 was given twice/],
  [["--fd", "x", "--vhost-user-fd", "3"], /^--fd is the number of a file descriptor, not "x"/],
  [[...pair, "--socket-mode", "0999"], /three octal digits/],
  [[...pair, "--socket-mode", "4755"], /three octal digits/],
  [[...pair, "--socket-mode", "7"], /three octal digits/],
  [[...pair, "--pid-file", ""], /--pid-file is not the path/],
  [[...pair, "--log-file="], /--log-file is not the path/],
  [[...pair, "--log-format", "xml"], /--log-format xml: it must be one of json, pretty/],
  [[...pair, "--log-level", "wran"], /did you mean warn\?/],
  [[...pair, "--vhost-user-path", "x"], /no option --vhost-user-path; did you mean --vhost-user-/],
  [[...pair, "--windowsize=1G"], /did you mean --window-size; see/],
  [[...pair, "-h9"], /see vfio-user-bridge --help/],
  [["--socket-path", "/tmp/a"], /once and --vhost-user-socket-path 0 times/],
  [[...pair, "--socket-path", "/tmp/c"], /go in pairs/],
  [["--socket-path", "/tmp/a", "--vhost-user-socket-path", "/tmp/a"], /given twice/],
  [["--socket-path", "a", "--vhost-user-socket-path", "./a"], /\.\/a was given twice/],
  [["--socket-path", "", "--vhost-user-socket-path", "/tmp/a"], /empty/],
  [["--socket-path", "x".repeat(108), "--vhost-user-socket-path", "/tmp/a"], /longer than the 107 bytes/],
  [[...pair, "--window-size", "3G"], /power of two/],
  [[...pair, "--window-size", "0"], /power of two/],
  [[...pair, "--window-size", "4K"], /power of two/],
  [[...pair, "--window-size", "1T"], /power of two/],
  [[...pair, "--window-size", "-1"], /window-size/],
  [[...pair, "--window-size", "1e9"], /power of two/],
  [[...pair, "--window-size", "64GB"], /power of two/],
  [[...pair, "--log-level", "loud"], /one of silent, error/],
  [[...pair, "--frobnicate"], /frobnicate.*see vfio-user-bridge --help/],
  [[...pair, "--window-size", "1G", "--window-size=2G"], /^--window-size was given twice; see/],
  [[...pair, "--log-level", "-x"], /^--log-level needs a value; one that begins with "-" is written --log-level=-/],
  [[...pair, "stray"], /stray.*see vfio-user-bridge --help/],
  [["--socket-path"], /argument missing.*see vfio-user-bridge --help/],
];
for (const [args, message] of wrong) {
  test(`wrong usage: ${args.join(" ").slice(0, 90) || "(nothing)"}`, (t) => {
    const error = t.throws(() => parseOptions(args), { instanceOf: UserError, message });
    t.is(error?.exitCode, 2);
    t.notRegex(error?.message ?? "", /\n/);
  });
}
