/** Disks that are read and written past the page cache: any memory of the driver's, and what the disks below can do. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { DEVICES } from "../../../../../guest/devices/index.js";
import { createNvme, type NvmeOptions } from "../../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { UserError } from "../../../../../shared/errors.js";
import { directory, loopDevice } from "../loop.js";
import { Machine } from "../machine.js";
import { Random } from "../random.js";
import { scratch } from "../setup.js";

const MiB = 1024 * 1024;
const DISK = 4 * MiB;
const READ = { opcode: 2 };
const WRITE = { opcode: 1 };

function image(place: string, size = DISK): string {
  const file = join(place, "disk.img");
  fs.writeFileSync(file, "");
  fs.truncateSync(file, size);
  return file;
}

/** A file system on a loop device, until the test ends; its path. */
function mounted(t: ExecutionContext, sector: number): string {
  const { path } = loopDevice(t, 32 * MiB, { sector });
  execFileSync("mkfs.ext4", ["-q", path]);
  const place = directory(t);
  execFileSync("mount", [path, place]);
  t.teardown(() => execFileSync("umount", [place]));
  return place;
}

async function run(t: ExecutionContext, options: NvmeOptions) {
  const machine = await Machine.start(await createNvme({ ...options, cache: "none" }));
  t.teardown(() => machine.stop());
  return { machine, driver: await NvmeDriver.open(machine, { entries: 64 }) };
}

/** Whether this process has the file open with O_DIRECT, and not otherwise. */
function isOpenedDirect(file: string): boolean {
  const flags: number[] = [];
  for (const fd of fs.readdirSync("/proc/self/fd")) {
    try {
      if (fs.readlinkSync(`/proc/self/fd/${fd}`) !== file) continue;
    } catch {
      // The directory's own.
      continue;
    }
    const text = fs.readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
    flags.push(Number.parseInt(/^flags:\s+(\d+)/m.exec(text)?.[1] ?? "", 8));
  }
  return flags.length === 1 && (flags[0] & fs.constants.O_DIRECT) !== 0;
}

const KINDS: Readonly<Record<string, (t: ExecutionContext) => string>> = {
  "a file": (t) => image(directory(t), DISK + 700),
  "a device with sectors of 512 bytes": (t) => loopDevice(t, DISK).path,
  "a device with sectors of 4096 bytes": (t) => loopDevice(t, DISK, { sector: 4096 }).path,
  "a file on sectors of 4096 bytes": (t) => image(mounted(t, 4096)),
};

for (const [kind, make] of Object.entries(KINDS)) {
  test(`random reads and writes of ${kind}, wherever the driver's memory lies, agree with a model`, async (t) => {
    const random = new Random();
    t.log(`seed ${random.seed}`);
    const file = make(t);
    const { machine, driver } = await run(t, { files: [file] });
    t.true(isOpenedDirect(file));
    const { blockSize } = driver;
    t.is(blockSize, kind.includes("4096") ? 4096 : 512);
    const model = new Uint8Array(DISK);
    const { bytes } = machine.memory;
    for (let round = 0; round < 200; round++) {
      // Two pages at most: an offset in the first is of dwords.
      const offset = random.below(1024) * 4 * random.below(2);
      const blocks = 1 + random.below(Math.floor((8192 - offset) / blockSize));
      const block = random.below(DISK / blockSize - blocks);
      const memory = scratch(machine, random.below(64) * 3);
      const view = bytes.subarray(memory.offset + offset, memory.offset + offset + blocks * blockSize);
      const place = model.subarray(block * blockSize, (block + blocks) * blockSize);
      const fields = { namespaceId: 1, prp1: memory.address + offset, prp2: memory.address + 4096 };
      const flags = random.below(16) === 0 ? 1 << 30 : 0;
      const isWrite = random.below(2) === 0;
      random.fill(view);
      if (isWrite) place.set(view);
      await driver.check({ ...(isWrite ? WRITE : READ), ...fields, dwords: [block, 0, (blocks - 1) | flags] });
      if (!isWrite) t.is(Buffer.compare(view, place), 0, `round ${round}, seed ${random.seed}`);
    }
    await driver.check({ opcode: 0x08, namespaceId: 1, dwords: [1, 0, 0] });
    model.fill(0, blockSize, 2 * blockSize);
    await driver.write(7, new Uint8Array(MiB).fill(3));
    model.fill(3, 7 * blockSize, 7 * blockSize + MiB);
    await driver.flush();
    const onDisk = fs.readFileSync(file).subarray(0, DISK);
    t.is(Buffer.compare(onDisk, model), 0, `seed ${random.seed}`);
    await driver.checkAdmin({ opcode: 0x80, namespaceId: 1, dwords: [blockSize === 512 ? 0 : 1] });
    t.true(fs.readFileSync(file).every((byte) => byte === 0));
  });
}

test("what the disk below cannot do is said at the start", async (t) => {
  const file = image(mounted(t, 4096));
  const small = createNvme({ files: [file], blockSize: 512, cache: "none" });
  await t.throwsAsync(small, { instanceOf: UserError, message: /sectors of 4096 bytes/ });
  const buffered = await createNvme({ files: [file], blockSize: 512 });
  await buffered.close();

  const place = directory(t);
  execFileSync("mount", ["-t", "ramfs", "none", place]);
  t.teardown(() => execFileSync("umount", [place]));
  const inMemory = image(place);
  await t.throwsAsync(createNvme({ files: [inMemory], cache: "none" }), {
    instanceOf: UserError,
    message: `cannot open the disk's file ${inMemory}: its file system has no direct I/O, which --cache none needs`,
  });
  await t.throwsAsync(DEVICES.nvme.create({ cache: "unsafe" }, { file: [file] }), {
    instanceOf: UserError,
    message: '--cache is writeback or none, not "unsafe"',
  });
});

test("a read-only disk can be had past the cache, too", async (t) => {
  const { path } = loopDevice(t, DISK, { readOnly: true });
  const { driver } = await run(t, { files: [path] });
  await driver.read(0, new Uint8Array(4096));
  t.true(isOpenedDirect(path));
});
