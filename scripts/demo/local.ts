/**
 * The demonstration without VMs: the NVMe device as a process on a vfio-user socket, and an NVMe driver of ours as its
 * client.
 */
import { spawn } from "node:child_process";
import { createHash, randomFillSync } from "node:crypto";
import { once } from "node:events";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { UserError } from "../../shared/errors.js";
import { NvmeDriver } from "../drivers/nvme.js";
import { VfioUserNvme } from "../drivers/nvme-over-vfio-user.js";
import { PROJECT_ROOT } from "../vm/environment.js";
import { type Cleanup, temporaryDirectory } from "./cleanup.js";
import { say, table } from "./report.js";

const MiB = 1024 * 1024;
const DISK_MIB = 256;
const DRIVER_MEMORY = 16 * MiB;
const CHUNK = 1 * MiB;

export async function runLocal(cleanup: Cleanup, dataMiB: number): Promise<void> {
  const directory = await temporaryDirectory(cleanup);
  const disk = join(directory, "disk.img");
  const socket = join(directory, "nvme.sock");
  const file = await open(disk, "w");
  await file.truncate(DISK_MIB * MiB);
  await file.close();

  say("starting vfio-user-device run nvme");
  await startDevice(cleanup, ["nvme", "--file", disk, "--socket-path", socket]);
  const transport = await VfioUserNvme.connect(socket, DRIVER_MEMORY);
  cleanup.add(() => transport.close());
  const [vendor, device] = new Uint16Array((await transport.client.regionRead(7, 0, 4)).slice().buffer);
  const driver = await NvmeDriver.open(transport);
  const bytes = driver.blockSize * driver.blockCount;
  say(`our driver found "${driver.model.trim()}", ${bytes / MiB} MiB`);

  const chunk = new Uint8Array(CHUNK);
  const blocks = CHUNK / driver.blockSize;
  const written = createHash("sha256");
  const writeMs = await timed(async () => {
    for (let n = 0; n < dataMiB; n++) {
      written.update(randomFillSync(chunk));
      await driver.write(n * blocks, chunk);
    }
    await driver.flush();
  });
  say(`wrote ${dataMiB} MiB of random data, flushed: ${writeMs.toFixed(0)} ms`);
  const read = createHash("sha256");
  const readMs = await timed(async () => {
    for (let n = 0; n < dataMiB; n++) {
      await driver.read(n * blocks, chunk);
      read.update(chunk);
    }
  });
  say(`read them back: ${readMs.toFixed(0)} ms`);
  const checksum = written.digest("hex");
  if (read.digest("hex") !== checksum) throw new Error("the disk gave back other data than was written");
  await driver.close();

  table([
    ["device", `${hex(vendor)}:${hex(device)} on ${socket}`],
    ["disk", `"${driver.model.trim()}" of ${bytes / MiB} MiB`],
    ["checksum", `${checksum} both times`],
    ["interrupts", String(transport.interrupts)],
  ]);
}

/** Starts the device's process and waits until it listens; its errors go to the terminal. */
async function startDevice(cleanup: Cleanup, args: readonly string[]): Promise<void> {
  const main = join(PROJECT_ROOT, "build/guest/main.js");
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", process.execPath, main, "run", ...args], {
    stdio: ["ignore", "inherit", "pipe"],
  });
  const exited = once(child, "exit");
  cleanup.add(async () => {
    child.kill("SIGTERM");
    await exited;
  });
  const lines = createInterface({ input: child.stderr });
  const heard: string[] = [];
  const listening = new Promise<void>((resolve) => {
    lines.on("line", (line) => {
      heard.push(line);
      if (line.startsWith('{"level":50')) console.error(line);
      if (line.includes('"msg":"the device is ready"')) resolve();
    });
  });
  const ended = exited.then(([code]) => {
    throw new UserError(`the device's process ended with status ${code}:\n${heard.join("\n")}`);
  });
  await Promise.race([listening, ended]);
  ended.catch(() => {});
}

async function timed(work: () => Promise<void>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

function hex(value: number): string {
  return value.toString(16).padStart(4, "0");
}
