/**
 * `npm start`: an NVMe disk that lives in one stock QEMU VM, used by Linux in another; with --local, without VMs.
 * Whatever happens, Ctrl-C included, nothing stays behind: what was started is ended in reverse order.
 */
import "../../shared/no-debugger.js";
import { parseArgs } from "node:util";
import { UserError } from "../../shared/errors.js";
import { Cleanup } from "./cleanup.js";
import { runLocal } from "./local.js";
import { runVms } from "./vms.js";

const USAGE = `Usage: npm start [-- --local] [-- --data-mib N]

  (nothing)      a disk in one VM, used by Linux in another VM
  --local        the same disk without VMs, on a vfio-user socket
  --data-mib N   MiB of random data to write and read back (default 8)
`;

const MAX_DATA_MIB = 256;

async function main(): Promise<void> {
  let options: { local?: boolean; help?: boolean; "data-mib"?: string };
  try {
    const known = { local: { type: "boolean" }, help: { type: "boolean" }, "data-mib": { type: "string" } } as const;
    options = parseArgs({ options: known }).values;
  } catch (error) {
    throw new UserError(`${(error as Error).message}\n\n${USAGE}`, 2);
  }
  if (options.help) {
    console.log(USAGE);
    return;
  }
  const dataMiB = Number(options["data-mib"] ?? 8);
  if (!Number.isInteger(dataMiB) || dataMiB < 1 || dataMiB > MAX_DATA_MIB)
    throw new UserError(`--data-mib takes a whole number from 1 to ${MAX_DATA_MIB}`, 2);

  const cleanup = new Cleanup();
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)
    process.once(signal, () => {
      console.error(`\n${signal}: cleaning up`);
      void cleanup.run().finally(() => process.exit(code));
    });
  try {
    await (options.local ? runLocal(cleanup, dataMiB) : runVms(cleanup, dataMiB));
  } catch (error) {
    // What fails while everything is being ended by a signal is no news.
    if (!cleanup.started) throw error;
    await new Promise(() => {});
  } finally {
    await cleanup.run();
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof UserError ? error.message : error);
  process.exitCode = error instanceof UserError ? error.exitCode : 1;
}
