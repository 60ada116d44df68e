/**
 * `npm start`: an NVMe disk that lives in one stock QEMU VM, used by Linux in another; with --local, without VMs.
 * Whatever happens, Ctrl-C included, nothing stays behind: what was started is ended in reverse order.
 *
 * vms and local are the two demonstrations; report has the lines that they print, cleanup what ends with them. guests
 * is `npm run guests`: what the VMs start from, for a person.
 */
import "../../shared/no-debugger.js";
import { parseArguments } from "../../shared/command-line/parse.js";
import { UserError } from "../../shared/errors.js";
import { Cleanup } from "./cleanup.js";
import { runLocal } from "./local.js";
import { failed } from "./report.js";
import { runVms } from "./vms.js";

const USAGE = `Usage: npm start [-- --local] [-- --data-mib N]

  (nothing)      a disk in one VM, used by Linux in another VM
  --local        the same disk without VMs, on a vfio-user socket
  --data-mib N   MiB of random data to write and read back (default 8)
`;

const MAX_DATA_MIB = 256;

const OPTIONS = { local: { type: "boolean" }, help: { type: "boolean" }, "data-mib": { type: "string" } } as const;

async function main(): Promise<void> {
  const options = parseArguments("npm start --", process.argv.slice(2), OPTIONS);
  if (options.help) {
    console.log(USAGE);
    return;
  }
  const dataMiB = Number(options["data-mib"] ?? 8);
  if (!Number.isInteger(dataMiB) || dataMiB < 1 || dataMiB > MAX_DATA_MIB)
    throw new UserError(`--data-mib takes a whole number from 1 to ${MAX_DATA_MIB}`, 2);

  const cleanup = new Cleanup();
  const end = (why: string, code: number) => {
    console.error(`\n${why}: cleaning up`);
    void cleanup.run().finally(() => process.exit(code));
  };
  for (const [signal, code] of [
    ["SIGHUP", 129],
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)
    process.once(signal, () => end(signal, code));
  // A terminal that is gone, or a full disk.
  process.stderr.on("error", () => {});
  process.stdout.once("error", ({ code }: NodeJS.ErrnoException) => {
    process.stdout.on("error", () => {});
    end(`standard output takes no more (${code})`, 1);
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
  failed(error);
}
