import test from "ava";
import { HELP, parseOptions } from "../../../host/bridge/options.js";
import { UserError } from "../../../shared/errors.js";

const pair = ["--socket-path", "/tmp/a", "--vhost-user-socket-path", "/tmp/b"];

test("one pair of sockets and the defaults", (t) => {
  t.deepEqual(parseOptions(pair), {
    pairs: [{ socketPath: "/tmp/a", vhostUserSocketPath: "/tmp/b" }],
    windowSize: 64 * 2 ** 30,
    trustUnsealedMemory: false,
    supervised: false,
    logLevel: "info",
  });
});

test("several pairs, in order, with = too", (t) => {
  const options = parseOptions([
    ...pair,
    "--socket-path=c",
    "--vhost-user-socket-path=d",
    "--window-size=512M",
    "--log-level=trace",
    "--trust-unsealed-memory",
  ]);
  t.deepEqual(options, {
    pairs: [
      { socketPath: "/tmp/a", vhostUserSocketPath: "/tmp/b" },
      { socketPath: "c", vhostUserSocketPath: "d" },
    ],
    windowSize: 2 ** 29,
    trustUnsealedMemory: true,
    supervised: false,
    logLevel: "trace",
  });
});

test("--help and --version need nothing else", (t) => {
  t.is(parseOptions(["--help"]), "help");
  t.is(parseOptions(["--version"]), "version");
});

test("the help text names every option and fits a terminal", (t) => {
  for (const name of ["socket-path", "vhost-user-socket-path", "window-size", "log-level", "help", "version"]) {
    t.true(HELP.includes(`--${name}`), name);
  }
  for (const line of HELP.split("\n")) t.true(line.length <= 120, line);
});

const wrong: [string[], RegExp][] = [
  [[], /are needed/],
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
