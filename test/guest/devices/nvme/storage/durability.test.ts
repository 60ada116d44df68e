/**
 * The device as a process that is killed at any moment: what it said is stable is in the file, and the file can be
 * served again.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { VfioUserNvme } from "../../../../../scripts/drivers/nvme-over-vfio-user.js";
import { Random } from "../random.js";

const MAIN = fileURLToPath(new URL("../../../../../guest/main.js", import.meta.url));
const MiB = 1024 * 1024;
const DISK = 4 * MiB;
const BLOCK = 512;

interface Process {
  readonly kill: () => Promise<void>;
  readonly connect: () => Promise<NvmeDriver>;
}

async function serve(t: ExecutionContext, directory: string, shadowDoorbells: boolean): Promise<Process> {
  const socket = join(directory, "nvme.sock");
  const args = ["run", "nvme", "--socket-path", socket, "--file", join(directory, "disk.img")];
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(child, "close");
  t.teardown(() => child.kill("SIGKILL"));
  let errors = "";
  await new Promise<void>((resolve, reject) => {
    child.stderr.setEncoding("utf8").on("data", (text) => {
      errors += text;
      if (errors.includes("the device is ready")) resolve();
    });
    void exited.then(() => reject(new Error(errors)));
  });
  return {
    kill: async () => {
      child.kill("SIGKILL");
      await exited;
    },
    connect: async () => {
      const transport = await VfioUserNvme.connect(socket, 8 * MiB);
      t.teardown(() => transport.close());
      return NvmeDriver.open(transport, { queues: 2, shadowDoorbells });
    },
  };
}

for (const shadowDoorbells of [false, true]) {
  const where = shadowDoorbells ? "memory" : "registers";
  test(`killed while writing, doorbells in ${where}: what was flushed or written with FUA is there`, async (t) => {
    const random = new Random();
    t.log(`seed ${random.seed}`);
    const directory = fs.mkdtempSync(join(tmpdir(), "nvme-"));
    t.teardown(() => fs.rmSync(directory, { recursive: true }));
    const file = join(directory, "disk.img");
    fs.writeFileSync(file, "");
    fs.truncateSync(file, DISK);
    /** What each block must hold, where that is certain. */
    const stable = new Map<number, Uint8Array>();
    for (let life = 0; life < 3; life++) {
      const device = await serve(t, directory, shadowDoorbells);
      const driver = await device.connect();
      for (const [block, bytes] of stable) {
        const target = new Uint8Array(BLOCK);
        await driver.read(block, target);
        t.is(Buffer.compare(target, bytes), 0, `block ${block} in life ${life}`);
      }
      const write = async (block: number, forceUnitAccess: boolean): Promise<void> => {
        const bytes = new Uint8Array(BLOCK);
        random.fill(bytes);
        stable.delete(block);
        await driver.write(block, bytes, forceUnitAccess);
        if (forceUnitAccess) stable.set(block, bytes);
        else written.set(block, bytes);
      };
      const written = new Map<number, Uint8Array>();
      for (let n = 0; n < 50; n++) await write(random.below(4000), n % 2 === 0);
      await driver.flush();
      for (const [block, bytes] of written) if (!stable.has(block)) stable.set(block, bytes);
      // Others are in flight when the end comes: nothing is known of theirs.
      const lost: Promise<unknown>[] = [];
      for (let n = 0; n < 100; n++) {
        lost.push(driver.write(4096 + random.below(4000), new Uint8Array(BLOCK).fill(n)).catch(() => {}));
      }
      await Promise.race(lost);
      await device.kill();
      await Promise.all(lost);
      const contents = fs.readFileSync(file);
      t.is(contents.length, DISK);
      for (const [block, bytes] of stable) {
        t.is(Buffer.compare(contents.subarray(block * BLOCK, (block + 1) * BLOCK), bytes), 0, `block ${block}`);
      }
    }
    t.true(stable.size > 50);
  });
}

test("a second process on the same file ends with one clear line", async (t) => {
  const directory = fs.mkdtempSync(join(tmpdir(), "nvme-"));
  t.teardown(() => fs.rmSync(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  fs.writeFileSync(file, new Uint8Array(MiB));
  const first = await serve(t, directory, false);
  const args = ["run", "nvme", "--socket-path", join(directory, "other.sock"), "--file", file];
  const second = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  t.teardown(() => second.kill("SIGKILL"));
  let errors = "";
  second.stderr.setEncoding("utf8").on("data", (text) => {
    errors += text;
  });
  t.deepEqual(await once(second, "close"), [1, null]);
  t.is(errors, `vfio-user-device: the disk's file ${file} is in use: another process has locked it\n`);
  await first.kill();
  await (await serve(t, directory, false)).kill();
});
