/**
 * docs/getting-started.md, line by line as it stands there, from the build to a file in the driver VM.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";
import { pageBlocks } from "./page-blocks.js";
import { Terminal } from "./terminal.js";

const STEP_MS = 2 * 60_000;
/** Building, and unpacking QEMU and a kernel where they are not yet. */
const SET_UP_MS = 15 * 60_000;
const TERMINALS = { bridge: 1, deviceVm: 2, driverVm: 3 } as const;
const PROMPTS: Readonly<Record<string, string>> = {
  "in the device VM": "device-vm# ",
  "in the driver VM": "driver-vm# ",
};

/** A person's, but with a home of its own; npm, which runs this, leaves settings of its own there. */
function environmentIn(home: string): NodeJS.ProcessEnv {
  const own = Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name));
  const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");
  return {
    ...Object.fromEntries(own),
    HOME: home,
    NPM_CONFIG_PREFIX: join(home, "npm"),
    PATH: `${join(home, "npm/bin")}:${process.env.PATH}`,
    VVU_PREFIX: process.env.VVU_PREFIX ?? join(cache, "virtio-vfio-user"),
  };
}

test("its lines lead from a clone to a disk in the driver VM", async (t) => {
  t.timeout(30 * 60_000);
  const home = await mkdtemp(join(tmpdir(), "vfio-user-readme-"));
  t.teardown(() => rm(home, { recursive: true }));
  const options = { cwd: PROJECT_ROOT, env: environmentIn(home) };
  const terminals = new Map<number, Terminal>();
  t.teardown(() => Promise.all([...terminals.values()].reverse().map((terminal) => terminal.stop())));
  const open = (number: number): Terminal => {
    const terminal = terminals.get(number);
    if (terminal === undefined) throw new Error(`nothing was started in terminal ${number}`);
    return terminal;
  };

  for (const { where, terminal: number, commands, expected } of await pageBlocks("getting-started.md")) {
    t.log(where, commands[0]);
    let terminal: Terminal;
    let from = 0;
    if (where === "on the host") {
      terminal = new Terminal(commands, options);
      terminals.set(number ?? 0, terminal);
      if (number === undefined) t.is(await terminal.end(SET_UP_MS), 0, terminal.output);
    } else {
      if (number === undefined) throw new Error(`"${where}" without a terminal`);
      terminal = open(number);
      from = await terminal.waitFor(PROMPTS[where], 0, STEP_MS);
      let at = from;
      for (const [n, command] of commands.entries()) {
        terminal.type(`${command}\n`);
        if (n < commands.length - 1) at = await terminal.waitFor(PROMPTS[where], at, STEP_MS);
      }
    }
    for (const line of expected) from = await terminal.waitFor(line, from, STEP_MS);
  }

  const driverVm = open(TERMINALS.driverVm);
  driverVm.type("poweroff -f\n");
  t.is(await driverVm.end(STEP_MS), 0, driverVm.output);
  const deviceVm = open(TERMINALS.deviceVm);
  await deviceVm.waitFor("served so far", 0, STEP_MS);
  deviceVm.type("\x03");
  const prompt = await deviceVm.waitFor(PROMPTS["in the device VM"], deviceVm.output.length, STEP_MS);
  t.notRegex(deviceVm.output, /\b(WARN|ERROR|FATAL)\b|"level":[4-6]0/);
  deviceVm.type("poweroff -f\n");
  t.is(await deviceVm.end(STEP_MS), 0, deviceVm.output.slice(prompt));
  const bridge = open(TERMINALS.bridge);
  bridge.interrupt();
  t.is(await bridge.end(STEP_MS), 0, bridge.output);
  t.notRegex(bridge.output, /"level":[4-6]0/);
});
