/** Disks that may not be written: asked for, or found out. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { DEVICES } from "../../../../../guest/devices/index.js";
import type { NvmeController } from "../../../../../guest/devices/nvme/controller.js";
import { createNvme } from "../../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { UserError } from "../../../../../shared/errors.js";
import { directory, loopDevice } from "../loop.js";
import { Machine } from "../machine.js";
import { bringUp, scratch } from "../setup.js";

const MiB = 1024 * 1024;
const IDENTIFY = 0x06;
const NSATTR = 99;

function image(t: ExecutionContext, mode = 0o644): string {
  const file = join(directory(t), "disk.img");
  fs.writeFileSync(file, new Uint8Array(MiB).fill(7));
  fs.chmodSync(file, mode);
  return file;
}

async function run(t: ExecutionContext, device: Promise<NvmeController>) {
  const machine = await Machine.start(await device);
  t.teardown(() => machine.stop());
  return { machine, driver: await NvmeDriver.open(machine) };
}

async function isWriteProtected(driver: NvmeDriver): Promise<boolean> {
  return (await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 4096))[NSATTR] === 1;
}

/** How a disk becomes read-only, and its path. */
const WAYS: Readonly<Record<string, (t: ExecutionContext) => { readonly file: string; readonly readOnly?: boolean }>> =
  {
    "it was asked for": (t) => ({ file: image(t), readOnly: true }),
    "nobody may write the file": (t) => ({ file: image(t, 0o444) }),
    "its file system is mounted so": (t) => {
      const file = image(t);
      const place = directory(t);
      execFileSync("mount", ["--bind", join(file, ".."), place]);
      t.teardown(() => execFileSync("umount", [place]));
      execFileSync("mount", ["-o", "remount,bind,ro", place]);
      return { file: join(place, "disk.img") };
    },
    "the file is immutable": (t) => {
      const file = image(t);
      execFileSync("chattr", ["+i", file]);
      t.teardown(() => execFileSync("chattr", ["-i", file]));
      return { file };
    },
    "the block device is": (t) => ({ file: loopDevice(t, MiB, { readOnly: true }).path }),
  };

for (const [why, prepare] of Object.entries(WAYS)) {
  test(`read-only, as ${why}: what writes is refused, what reads works`, async (t) => {
    const { file, readOnly } = prepare(t);
    const before = fs.readFileSync(file);
    const { machine, driver } = await run(t, createNvme({ files: [file], ...(readOnly ? { readOnly } : {}) }));
    t.true(await isWriteProtected(driver));
    t.like(machine.device.inspect(), { namespaces: [{ id: 1, readOnly: true }] });
    const { address } = scratch(machine);
    const io = (opcode: number, dwords: number[]) => driver.io({ opcode, namespaceId: 1, prp1: address, dwords });
    const refused = { status: 0x20, doNotRetry: true };
    for (const flags of [0, 1 << 30]) t.like(await io(0x01, [0, 0, flags]), refused, "Write");
    for (const flags of [0, 1 << 25]) t.like(await io(0x08, [0, 0, flags]), refused, "Write Zeroes");
    t.like(await io(0x19, [0, 0, 0]), refused, "Copy");
    t.like(await driver.deallocate([[0, 8]]), refused);
    for (const format of [0, 1]) {
      t.like(await driver.admin({ opcode: 0x80, namespaceId: 1, dwords: [format] }), refused, "Format NVM");
    }
    const target = new Uint8Array(MiB);
    await driver.read(0, target);
    t.is(Buffer.compare(target, before), 0);
    for (const opcode of [0x02, 0x0c])
      for (const flags of [0, 1 << 30]) t.is((await io(opcode, [0, 0, flags])).status, 0);
    t.is((await io(0x00, [])).status, 0, "Flush");
    await driver.close();
    t.is(Buffer.compare(fs.readFileSync(file), before), 0);
  });
}

test("many may read a disk, and then nobody writes it", async (t) => {
  const file = image(t);
  const [one, two] = [
    await createNvme({ files: [file], readOnly: true }),
    await createNvme({ files: [file], readOnly: true }),
  ];
  await t.throwsAsync(createNvme({ files: [file] }), { instanceOf: UserError, message: /is in use/ });
  await one.close();
  await t.throwsAsync(createNvme({ files: [file] }), { instanceOf: UserError, message: /is in use/ });
  await two.close();
  const writer = await createNvme({ files: [file] });
  await t.throwsAsync(createNvme({ files: [file], readOnly: true }), { instanceOf: UserError, message: /is in use/ });
  await writer.close();
});

test("the option is a word of its own, and a disk in memory is written all the same", async (t) => {
  const file = image(t);
  const device = DEVICES.nvme.create({ "read-only": "" }, { file: [file], memory: ["1M"] });
  const { driver } = await run(t, device as Promise<NvmeController>);
  t.true(await isWriteProtected(driver));
  await driver.write(0, new Uint8Array(512).fill(3), false, 2);
});

test("a disk that became read-only below is reported as such", async (t) => {
  const { storage, machine, driver } = await bringUp(t);
  storage.errors.write = "EROFS";
  const { address } = scratch(machine);
  t.like(await driver.io({ opcode: 1, namespaceId: 1, prp1: address }), { status: 0x20, doNotRetry: true });
});
