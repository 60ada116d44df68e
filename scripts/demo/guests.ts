/**
 * `npm run guests -- DIRECTORY`: what docs/getting-started.md starts by hand: QEMU, a kernel, and for
 * each of the two VMs an initramfs with a shell on the console. All that is in it is what the tests run, too.
 */
import "../../shared/no-debugger.js";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { UserError } from "../../shared/errors.js";
import { type Command, prepareVmEnvironment } from "../vm/environment.js";
import { initScript } from "../vm/init.js";
import { deviceVmBase, driverVmBase, projectEntries, userEntries, writeInitrd } from "../vm/initramfs.js";
import { quote } from "../vm/quote.js";
import { failed, table } from "./report.js";

const USAGE = `Usage: npm run guests -- DIRECTORY

Makes DIRECTORY with qemu, vmlinuz, device.cpio and driver.cpio: see docs/getting-started.md.
`;

async function main(args: readonly string[]): Promise<void> {
  if (args.length !== 1 || args[0] === "" || args[0].startsWith("-")) throw new UserError(USAGE, 2);
  const directory = resolve(args[0]);
  await mkdir(directory, { recursive: true });
  const environment = await prepareVmEnvironment();
  const path = (name: string) => join(directory, name);
  await writeFile(path("qemu"), launcher(environment.qemu), { mode: 0o755 });
  await copyFile(environment.kernel, path("vmlinuz"));
  const shell = initScript({ afterwards: "shell", hostname: "device-vm" });
  const device = [...(await projectEntries()), ...userEntries(), ...shell];
  await writeInitrd(await deviceVmBase(environment), device, path("device.cpio"));
  const driver = initScript({ afterwards: "shell", hostname: "driver-vm" });
  await writeInitrd(await driverVmBase(environment), driver, path("driver.cpio"));
  table([
    ["qemu", `starts QEMU ${environment.qemuVersion}`],
    ["vmlinuz", `Linux ${environment.kernelVersion}`],
    ["device.cpio", `Node.js ${process.version}, this package, modules for VFIO and virtio disks`],
    ["driver.cpio", "nvme-cli, e2fsprogs, pciutils"],
  ]);
}

/** A script that starts QEMU as the tests do. */
function launcher({ program, args, environment }: Command): string {
  const variables = Object.entries(environment).map(([name, value]) => `export ${name}=${quote(value)}\n`);
  return `#!/bin/sh\n${variables.join("")}exec ${[program, ...args].map(quote).join(" ")} "$@"\n`;
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  failed(error);
}
