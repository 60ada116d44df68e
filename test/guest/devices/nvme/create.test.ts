/** Making an NVMe device from a file: options and files that will not do, and those that will. */
import { mkdtemp, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { DEVICES, type DeviceKind } from "../../../../guest/devices/index.js";
import type { NvmeController } from "../../../../guest/devices/nvme/controller.js";
import { createNvme, type NvmeOptions } from "../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../scripts/drivers/nvme.js";
import { UserError } from "../../../../shared/errors.js";
import { Machine } from "./machine.js";

async function withFile<T>(size: number, run: (file: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, size);
  try {
    return await run(file);
  } finally {
    await rm(directory, { recursive: true });
  }
}

test("files that will not do", async (t) => {
  const refuse = (file: string) => t.throwsAsync(createNvme({ files: [file] }), { instanceOf: UserError });
  t.regex((await refuse("/nowhere/disk.img"))?.message ?? "", /\/nowhere\/disk\.img: there is no such file$/);
  t.regex((await refuse(tmpdir()))?.message ?? "", /it is a directory$/);
  t.regex((await refuse("/dev/null"))?.message ?? "", /neither a file nor a block device$/);
  await withFile(0, async (file) => t.regex((await refuse(file))?.message ?? "", /has 0 bytes/));
  await withFile(511, async (file) => t.regex((await refuse(file))?.message ?? "", /has 511 bytes.*less than.*512/));
});

test("options that will not do", (t) =>
  withFile(1024 * 1024, async (file) => {
    for (const options of [
      { blockSize: 1024 },
      { blockSize: 0 },
      { queues: 0 },
      { queues: 65 },
      { queues: 1.5 },
      { serial: "" },
      { serial: "x".repeat(21) },
      { serial: "größer" },
      { model: "y".repeat(41) },
      { vendorId: 0x1_0000 },
      { vendorId: 0xffff },
      { deviceId: -1 },
      { deviceId: Number.NaN },
    ] satisfies Partial<NvmeOptions>[]) {
      await t.throwsAsync(
        createNvme({ files: [file], ...options }),
        { instanceOf: UserError },
        JSON.stringify(options),
      );
    }
  }));

/** As the command line does. The machine wants the controller itself. */
async function createFrom(...given: Parameters<DeviceKind["create"]>): Promise<NvmeController> {
  return (await DEVICES.nvme.create(...given)) as NvmeController;
}

test("the command line's options make a device", (t) =>
  withFile(1024 * 1024, async (file) => {
    const lists = { file: [file] };
    const values = {
      serial: "CLI",
      model: "Disk",
      "block-size": "4096",
      queues: "3",
      "vendor-id": "0x1234",
      "device-id": "7",
    };
    const device = await createFrom(values, lists);
    const machine = await Machine.start(device);
    const driver = await NvmeDriver.open(machine, { queues: 8 });
    t.is(driver.serial, "CLI");
    t.is(driver.model, "Disk");
    t.is(driver.blockSize, 4096);
    t.is(driver.queues.length, 3);
    t.is(device.identity.vendorId, 0x1234);
    t.is(device.identity.deviceId, 7);
    await driver.close();
    await machine.stop();
    for (const [wrong, message] of [
      [{ queues: "many" }, /--queues wants a number/],
      [{ "block-size": "" }, /--block-size wants a number/],
    ] as const) {
      await t.throwsAsync(createFrom(wrong, lists), { instanceOf: UserError, message });
    }
  }));

test("the serial number follows from the file's path", (t) =>
  withFile(1024 * 1024, (one) =>
    withFile(1024 * 1024, async (two) => {
      const serialOf = async (file: string): Promise<string> => {
        const machine = await Machine.start(await createNvme({ files: [file] }));
        const driver = await NvmeDriver.open(machine);
        await machine.stop();
        return driver.serial;
      };
      const serial = await serialOf(one);
      t.regex(serial, /^[0-9A-F]{16}$/);
      t.is(await serialOf(one), serial);
      t.not(await serialOf(two), serial);
    }),
  ));

test("the file keeps its size and what was written", (t) =>
  withFile(64 * 1024, async (file) => {
    const source = Uint8Array.from({ length: 4096 }, (_, n) => n);
    for (const expected of [new Uint8Array(4096), source]) {
      const machine = await Machine.start(await createNvme({ files: [file] }));
      const driver = await NvmeDriver.open(machine);
      const target = new Uint8Array(4096);
      await driver.read(120, target);
      t.deepEqual(target, expected);
      await driver.write(120, source);
      await driver.close();
      await machine.stop();
    }
    t.is((await stat(file)).size, 64 * 1024);
  }));
