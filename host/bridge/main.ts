#!/usr/bin/env node
/** vfio-user-bridge: reads the command line, runs the bridge until a signal, cleans up. */
import "../../shared/no-debugger.js";
import { once } from "node:events";
import { execute, HOLDER } from "../../native/supervision.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import { Notifier } from "../../shared/notify/notifier.js";
import { Program } from "../../shared/program.js";
import { versionText } from "../../shared/usage.js";
import { Bridge } from "./bridge.js";
import { HELP, parseOptions } from "./options.js";

async function main(program: Program): Promise<number> {
  const args = process.argv.slice(2);
  const options = parseOptions(args);
  if (options === "help") {
    process.stdout.write(HELP);
    return 0;
  }
  if (options === "version") {
    process.stdout.write(versionText("vfio-user-bridge"));
    return 0;
  }
  if (options.supervised) becomeSupervisor(args);
  const log = program.log(options.logLevel);
  const end = program.endSignal();
  const bridge = new Bridge(options, log);
  program.showState(log, () => bridge.inspect());
  const notifier = Notifier.ofProcess();
  await bridge.open();
  void notifier?.ready();
  if (!end.aborted) await once(end, "abort");
  void notifier?.stopping();
  log.info({ signal: end.reason }, "ending");
  await bridge.close();
  return 0;
}

/** This very process becomes the bridge's parent, so that who started it keeps the process that it knows. */
function becomeSupervisor(args: readonly string[]): never {
  const others = args.filter((one) => one !== "--supervised");
  try {
    return execute(HOLDER, [process.execPath, ...process.execArgv, process.argv[1], ...others]);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(`--supervised: ${HOLDER} cannot be started (${error.code})`);
  }
}

Program.run("vfio-user-bridge", main);
