/** Disks that are block devices: the sizes of their sectors, what they cannot do, and sizes that change under load. */
import { execFileSync } from "node:child_process";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme, type NvmeOptions } from "../../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { UserError } from "../../../../../shared/errors.js";
import { directory, type LoopDevice, loopDevice } from "../loop.js";
import { Machine } from "../machine.js";
import { Random } from "../random.js";
import { bringUp, scratch } from "../setup.js";

const MiB = 1024 * 1024;
const IDENTIFY = 0x06;
const FORMAT = 0x80;
const READ = 0x02;
const WRITE = 0x01;
const WRITE_ZEROES = 0x08;
const DEALLOCATE = 1 << 25;

async function run(t: ExecutionContext, options: NvmeOptions) {
  const machine = await Machine.start(await createNvme(options));
  t.teardown(() => machine.stop());
  return { machine, driver: await NvmeDriver.open(machine, { entries: 32 }) };
}

test("a device with sectors of 4096 bytes has blocks of 4096 bytes, and no others", async (t) => {
  const { path } = loopDevice(t, 8 * MiB, { sector: 4096 });
  await t.throwsAsync(createNvme({ files: [path], blockSize: 512 }), {
    instanceOf: UserError,
    message: `the disk's file ${path} has sectors of 4096 bytes, which are more than a block of 512 bytes`,
  });
  const { driver } = await run(t, { files: [path] });
  t.deepEqual(driver.namespaces, [{ id: 1, blockSize: 4096, blockCount: 2048 }]);
  const identify = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 4096);
  t.deepEqual([identify[25], identify[26]], [1, 1], "NLBAF, FLBAS");
  t.deepEqual([...identify.subarray(128, 136)], [0, 0, 0, 0, 0, 0, 12, 0], "format 0 is not there");
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [0] })).status, 0x10a);
});

for (const sector of [512, 4096]) {
  test(`one block at a time, with sectors of ${sector} bytes`, async (t) => {
    const { path } = loopDevice(t, 8 * MiB, { sector });
    const { driver } = await run(t, { files: [path] });
    const { blockSize } = driver;
    t.is(blockSize, sector);
    for (const flags of [0, DEALLOCATE]) {
      await driver.write(0, new Uint8Array(16 * blockSize).fill(7));
      await driver.flush();
      await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [1, 0, flags] });
      t.is((await driver.deallocate([[5, 1]])).status, 0);
      const target = new Uint8Array(16 * blockSize);
      await driver.read(0, target);
      for (let block = 0; block < 16; block++) {
        if (block === 5) continue;
        const bytes = target.subarray(block * blockSize, (block + 1) * blockSize);
        t.true(
          bytes.every((byte) => byte === (block === 1 ? 0 : 7)),
          `block ${block}`,
        );
      }
    }
    await driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [sector === 512 ? 0 : 1] });
    t.true(readFileSync(path).every((byte) => byte === 0));
  });
}

for (const code of ["EINVAL", "EOPNOTSUPP", "ENOSPC", "EPERM"]) {
  test(`zeros are written where the storage says ${code}, and Deallocate is a hint`, async (t) => {
    const { storage, driver } = await bringUp(t);
    storage.bytes.fill(7);
    storage.errors.zero = storage.errors.deallocate = code;
    await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [1, 0, 0] });
    await driver.check({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [3, 0, DEALLOCATE] });
    t.is((await driver.deallocate([[5, 1]])).status, 0);
    const zeros = (block: number) => storage.bytes.subarray(block * 512, (block + 1) * 512).every((byte) => byte === 0);
    t.deepEqual([0, 1, 2, 3, 4, 5].map(zeros), [false, true, false, true, false, false]);
    storage.errors.write = "EIO";
    t.is((await driver.io({ opcode: WRITE_ZEROES, namespaceId: 1, dwords: [1, 0, 0] })).status, 0x280);
  });
}

test("a device whose physical sectors are large says so", async (t) => {
  const { driver, storage } = await bringUp(t);
  storage.preferredSize = 65536;
  const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 4096);
  t.deepEqual([...new Uint16Array(bytes.buffer, bytes.byteOffset + 64, 5)], Array(5).fill(127));
});

/** Disks that somebody makes smaller and larger: their paths, and how. */
const RESIZABLE: Readonly<Record<string, (t: ExecutionContext) => LoopDevice>> = {
  "a device": (t) => loopDevice(t, 8 * MiB),
  "a file": (t) => fileIn(directory(t)),
  "a file in memory": (t) => {
    const place = directory(t);
    execFileSync("mount", ["-t", "tmpfs", "none", place]);
    t.teardown(() => execFileSync("umount", [place]));
    return fileIn(place);
  },
};

function fileIn(place: string): LoopDevice {
  const path = join(place, "disk.img");
  writeFileSync(path, "");
  truncateSync(path, 8 * MiB);
  return { path, resize: (size) => truncateSync(path, size) };
}

for (const [kind, make] of Object.entries(RESIZABLE))
  test(`${kind} that shrinks to nothing and grows again under load`, async (t) => {
    const random = new Random();
    t.log(`seed ${random.seed}`);
    const device = make(t);
    const { machine, driver } = await run(t, { files: [device.path] });
    const { address } = scratch(machine);
    let stopped = false;
    const statuses = new Set<number>();
    const loads = Array.from({ length: 16 }, async (_, n) => {
      while (!stopped) {
        // What is done at once would leave no turn of the event loop to others.
        await new Promise((resolve) => setImmediate(resolve));
        const opcode = random.below(2) === 0 ? READ : WRITE;
        const dwords = [random.below(16384 - 8), 0, 7];
        statuses.add((await driver.io({ opcode, namespaceId: 1, prp1: address + n * 4096, dwords })).status);
      }
    });
    for (const size of [4 * MiB, 0, 2 * MiB + 512, 0, 16 * MiB, 8 * MiB]) {
      device.resize(size);
      const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 8);
      t.is(Number(new DataView(bytes.buffer).getBigUint64(0, true)), size / 512);
    }
    stopped = true;
    await Promise.all(loads);
    // What was in flight when the end came nearer may find it: out of range, no space, or an error of the medium.
    for (const status of statuses)
      t.true([0, 0x80, 0x81, 0x280, 0x281].includes(status), `status ${status.toString(16)}`);
    await driver.rescan();
    const source = random.filled(4096);
    await driver.write(16384 - 8, source);
    const target = new Uint8Array(4096);
    await driver.read(16384 - 8, target);
    t.is(Buffer.compare(target, source), 0);
  });
