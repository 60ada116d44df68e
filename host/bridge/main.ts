#!/usr/bin/env node
/** vfio-user-bridge: reads the command line, runs the bridge until a signal, cleans up. */
import "../../shared/no-debugger.js";
import { once } from "node:events";
import { Program } from "../../shared/program.js";
import { versionText } from "../../shared/usage.js";
import { Bridge } from "./bridge.js";
import { HELP, parseOptions } from "./options.js";

async function main(program: Program): Promise<number> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") {
    process.stdout.write(HELP);
    return 0;
  }
  if (options === "version") {
    process.stdout.write(versionText("vfio-user-bridge"));
    return 0;
  }
  const log = program.log(options.logLevel);
  const end = program.endSignal();
  const bridge = new Bridge(options, log);
  program.showState(log, () => bridge.inspect());
  await bridge.open();
  if (!end.aborted) await once(end, "abort");
  log.info({ signal: end.reason }, "ending");
  await bridge.close();
  return 0;
}

Program.run("vfio-user-bridge", main);
