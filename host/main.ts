#!/usr/bin/env node
/** vfio-user-bridge: reads the command line, runs the bridge until a signal, cleans up. */
import { readFileSync } from "node:fs";
import { UserError } from "../shared/errors.js";
import { createLog } from "../shared/log.js";
import { Bridge } from "./bridge.js";
import { HELP, parseOptions } from "./options.js";

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") {
    process.stdout.write(HELP);
    return;
  }
  if (options === "version") {
    const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
    process.stdout.write(`vfio-user-bridge ${version}\n`);
    return;
  }
  const log = createLog("vfio-user-bridge", options.logLevel);
  const bridge = new Bridge(options, log);
  const signal = new Promise<NodeJS.Signals>((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
  });
  await bridge.open();
  log.info({ signal: await signal }, "ending");
  await bridge.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    if (!(error instanceof UserError)) throw error;
    process.stderr.write(`vfio-user-bridge: ${error.message}\n`);
    process.exit(error.exitCode);
  },
);
