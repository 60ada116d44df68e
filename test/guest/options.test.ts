import test from "ava";
import type { DeviceKind } from "../../guest/devices/index.js";
import { parseOptions, tableOf } from "../../guest/options.js";
import { helpText } from "../../shared/command-line/help.js";

const unused = () => Promise.reject(new Error("not made here"));
const kinds: Record<string, DeviceKind> = {
  disk: {
    summary: "a disk",
    options: {
      file: { value: "PATH", summary: "its contents", required: true },
      size: { value: "BYTES", summary: "how much" },
      quiet: { summary: "no noise" },
    },
    create: unused,
  },
};
const parse = (line: string) => parseOptions(line.split(" ").filter(Boolean), kinds);

test("a device by name, in a device VM", (t) => {
  t.deepEqual(parse("run disk --pci 0000:01:00.0 --file disk.img --log-level debug"), {
    action: "run",
    device: "disk",
    transport: { pci: "0000:01:00.0" },
    service: {
      pidFile: undefined,
      log: { level: "debug", format: undefined, file: undefined },
      once: false,
      access: { mode: undefined, group: undefined },
    },
    control: {
      path: undefined,
      access: { mode: undefined, group: undefined },
      adminPath: undefined,
      metrics: undefined,
    },
    trustUnsealedMemory: false,
    isolated: false,
    linkPolling: "adaptive",
    deviceOptions: { file: "disk.img" },
    deviceLists: {},
  });
});

test("an option of a device's that has no value is there or not", (t) => {
  t.like(parse("run disk --socket-path s --file f --quiet"), { deviceOptions: { file: "f", quiet: "" } });
  t.throws(() => parse("run disk --socket-path s --file f --quiet=yes"), { message: /--quiet.*does not take/ });
  t.throws(() => parse("run disk --socket-path s --file f --quiet yes"), { message: /Unexpected argument 'yes'/ });
  t.regex(helpText(tableOf(kinds)), /^ {2}--quiet +no noise$/m);
});

test("without a place, it is a service manager's; --print-capabilities and --version, whatever else is given", (t) => {
  t.like(parse("run disk --file f"), { transport: "activation" });
  t.deepEqual(parse("run nothing --print-capabilities"), { action: "capabilities" });
  t.deepEqual(parse("run disk --print-capabilities"), { action: "capabilities", device: "disk" });
  t.deepEqual(parse("run disk --version"), { action: "version" });
});

test("transports: an address without a domain, a path, a handed-down socket", (t) => {
  const place = (line: string) => {
    const options = parse(`run disk --file f ${line}`);
    return options.action === "run" ? options.transport : undefined;
  };
  t.deepEqual(place("--pci 01:1F.7"), { pci: "0000:01:1f.7" });
  t.deepEqual(place("--socket-path=/run/a.sock"), { socketPath: "/run/a.sock" });
  t.deepEqual(place("--fd 0"), { fd: 0 });
});

test("a user's own module gets every --name=value that is not the program's", (t) => {
  t.like(parse("run ./own.js --socket-path s --rate=9 --name=a=b --trust-unsealed-memory"), {
    device: "./own.js",
    trustUnsealedMemory: true,
    isolated: false,
    linkPolling: "adaptive",
    deviceOptions: { rate: "9", name: "a=b" },
  });
});

for (const [line, message] of [
  ["", /nothing to do/],
  ["walk disk", /no such command: walk/],
  ["run", /needs a device/],
  ["run --pci 01:00.0", /needs a device/],
  ["run floppy --pci 01:00.0", /no such device: floppy .*disk/],
  ["run constructor --pci 01:00.0", /no such device/],
  ["run disk --pci 01:00.0", /disk needs --file PATH/],
  ["run disk --file f --pci 01:00.0 --socket-path s", /exactly one of/],
  ["run disk --file f --pci 01:00", /not a PCI address/],
  ["run disk --file f --pci 01:20.0", /not a PCI address/],
  ["run disk --file f --fd -1", /^--fd needs a value; one that begins with "-" is written --fd=/],
  ["run disk --file f --fd 3 --file g", /--file was given twice/],
  ["run disk --socket-path a --socket-path b --file f", /--socket-path was given twice/],
  ["run disk --file f --fd x", /--fd is the number of a file descriptor, not "x"/],
  ["run disk --file f --socket-path=", /a socket path is empty/],
  [`run disk --file f --socket-path ${"x".repeat(108)}`, /longer than the 107 bytes/],
  ["run disk --file f --fd 3 --log-level loud", /--log-level loud: it must be one of silent/],
  ["run disk --file f --fd 3 --colour", /colour/],
  ["run disk --file f --fd 3 --fil g", /no option --fil; did you mean --file/],
  ["rnu disk", /no such command: rnu; did you mean run/],
  ["run disk --file f --socket-path s --socket-mode 0999", /three octal digits/],
  ["run ./own.js --fd 3 --once=1", /once.*does not take/],
  ["run disk --file f --fd 3 extra", /extra/],
  ["run ./own.js --fd 3 --rate 9", /rate/],
] as const) {
  test(`wrong usage: ${line || "(nothing)"}`, (t) => {
    const error = t.throws(() => parse(line), { name: "UserError", message });
    t.is((error as unknown as { exitCode: number }).exitCode, 2);
    t.false(error.message.includes("\n"));
  });
}

test("help names the devices and their options", (t) => {
  t.deepEqual(parse("--help"), { action: "help" });
  t.deepEqual(parse("run disk -h"), { action: "help" });
  t.regex(
    helpText(tableOf(kinds)),
    /The device disk: a disk:\n +--file PATH +its contents \(required\)\n +--size BYTES/,
  );
});

test("how driver-VM memory is reached", (t) => {
  const at = (...rest: string[]) => parseOptions(["run", "disk", "--file", "x", ...rest], kinds);
  const isolated = (...rest: string[]) => {
    const options = at("--pci", "01:00.0", ...rest);
    return options.action === "run" && options.isolated;
  };
  t.false(isolated());
  t.false(isolated("--dma", "window"));
  t.true(isolated("--dma", "copy"));
  t.throws(() => isolated("--dma", "both"), { name: "UserError", message: /window or copy, not both/ });
  t.throws(() => at("--socket-path", "x", "--dma", "copy"), { name: "UserError", message: /in a device VM/ });
});

test("whether it looks for messages before it sleeps", (t) => {
  for (const when of ["adaptive", "always", "never"] as const) {
    const options = parse(`run disk --file x --pci 01:00.0 --link-poll ${when}`);
    t.like(options, { linkPolling: when });
  }
  t.throws(() => parse("run disk --file x --pci 01:00.0 --link-poll often"), {
    name: "UserError",
    message: /adaptive, always or never, not often/,
  });
});
