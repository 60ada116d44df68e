/** Disks that are real: files, sparse ones too, memory, locks, and what a disk was formatted with. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { pino } from "pino";
import { DEVICES } from "../../../../../guest/devices/index.js";
import type { NvmeController } from "../../../../../guest/devices/nvme/controller.js";
import { createNvme, type NvmeOptions } from "../../../../../guest/devices/nvme/index.js";
import { close, createMemory } from "../../../../../native/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { UserError } from "../../../../../shared/errors.js";
import type { Log } from "../../../../../shared/log.js";
import { Machine } from "../machine.js";

const MiB = 1024 * 1024;
const FORMAT = 0x80;
const IDENTIFY = 0x06;

function sparseFile(t: ExecutionContext, size: number): string {
  const directory = fs.mkdtempSync(join(tmpdir(), "nvme-"));
  t.teardown(() => fs.rmSync(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  fs.writeFileSync(file, "");
  fs.truncateSync(file, size);
  return file;
}

/** A controller that runs until the test ends, or until `stop`. */
async function run(t: ExecutionContext, options: NvmeOptions | NvmeController, log?: Log) {
  const machine = await Machine.start("identity" in options ? options : await createNvme(options), undefined, log);
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopped ??= machine.stop();
    return stopped;
  };
  t.teardown(stop);
  return { machine, stop, driver: await NvmeDriver.open(machine) };
}

test("a file is served once: the second gets a clear error, until the first has ended", async (t) => {
  const file = sparseFile(t, MiB);
  const link = `${file}.link`;
  fs.symlinkSync(file, link);
  const { stop } = await run(t, { files: [file] });
  for (const path of [file, link]) {
    const error = await t.throwsAsync(createNvme({ files: [path] }), { instanceOf: UserError });
    t.is(error.message, `the disk's file ${path} is in use: another process has locked it`);
  }
  await stop();
  const device = await createNvme({ files: [file] });
  await device.close();
});

test("the same file twice in one controller is refused, and nothing stays locked", async (t) => {
  const file = sparseFile(t, MiB);
  const link = `${file}.link`;
  fs.symlinkSync(file, link);
  for (const [other, message] of [
    [file, `the disk's file ${file} can be one namespace only: give it once`],
    [link, `the disk's file ${file} and ${link}, which are the same, can be one namespace only: give it once`],
  ] as const) {
    await t.throwsAsync(createNvme({ files: [file, other] }), { instanceOf: UserError, message });
  }
  const device = await createNvme({ files: [file] });
  await device.close();
});

test("files and memory side by side, each with its own contents", async (t) => {
  const files = [sparseFile(t, MiB), sparseFile(t, 2 * MiB)];
  const lists = { file: files, memory: ["3M", "4096K", "0"] };
  await t.throwsAsync(DEVICES.nvme.create({}, lists), {
    instanceOf: UserError,
    message: /in memory has 0 bytes, which is less/,
  });
  lists.memory.pop();
  const device = (await DEVICES.nvme.create({ "block-size": "4096" }, lists)) as NvmeController;
  const { driver } = await run(t, device);
  t.deepEqual(
    driver.namespaces.map(({ id, blockSize, blockCount }) => [id, blockSize, blockCount]),
    [
      [1, 4096, 256],
      [2, 4096, 512],
      [3, 4096, 768],
      [4, 4096, 1024],
    ],
  );
  for (const id of [1, 2, 3, 4]) await driver.write(10, new Uint8Array(8192).fill(id), true, id);
  for (const id of [1, 2, 3, 4]) {
    const target = new Uint8Array(4096);
    await driver.read(11, target, id);
    t.true(target.every((byte) => byte === id));
  }
  t.is(fs.readFileSync(files[1])[40960], 2);
});

for (const [text, message] of [
  ["", /--memory wants a size/],
  ["64X", /--memory wants a size/],
  ["-1M", /--memory wants a size/],
  ["9999999T", /--memory wants a size/],
  ["1.5M", /--memory wants a size/],
  ["17T", /a disk of 18691697672192 bytes in memory is more than the 17592186044416 that are possible/],
  ["511", /less than a block of 512 bytes/],
] as const) {
  test(`no disk in memory of "${text}"`, (t) =>
    t.throwsAsync(
      async () => {
        await DEVICES.nvme.create({}, { memory: [text] });
      },
      { instanceOf: UserError, message },
    ));
}

test("no disks, and too many", async (t) => {
  await t.throwsAsync(DEVICES.nvme.create({}, {}), { instanceOf: UserError, message: /--file PATH or --memory SIZE/ });
  await t.throwsAsync(createNvme({ memory: new Array(65).fill(4096) }), {
    instanceOf: UserError,
    message: /1 to 64 disks/,
  });
  const device = await createNvme({ memory: new Array(64).fill(4096) });
  await device.close();
});

test("a disk in memory alone has a serial number of its own each time", async (t) => {
  const [one, two] = [await run(t, { memory: [MiB] }), await run(t, { memory: [MiB] })];
  t.regex(one.driver.serial, /^[0-9A-F]{16}$/);
  t.not(one.driver.serial, two.driver.serial);
});

test("a sparse file: space is taken by writing, seen in NUSE, given back by Deallocate and Write Zeroes", async (t) => {
  const file = sparseFile(t, 64 * MiB);
  const { driver } = await run(t, { files: [file] });
  const inUse = async (): Promise<number> => {
    const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 24);
    return Number(new DataView(bytes.buffer).getBigUint64(16, true));
  };
  const empty = await inUse();
  t.true(empty < 128);
  await driver.write(0, new Uint8Array(2 * MiB).fill(7));
  await driver.flush();
  t.true((await inUse()) >= 4096);
  t.true(fs.statSync(file).blocks >= 4096);
  t.is((await driver.deallocate([[0, 2048]])).status, 0);
  t.true((await inUse()) < 4096);
  t.true(fs.statSync(file).blocks < 4096);
  const target = new Uint8Array(2 * MiB);
  await driver.read(0, target);
  t.true(target.subarray(0, MiB).every((byte) => byte === 0));
  t.true(target.subarray(MiB).every((byte) => byte === 7));
  const DEALLOCATE = 1 << 25;
  await driver.check({ opcode: 0x08, namespaceId: 1, dwords: [2048, 0, 2047 | DEALLOCATE] });
  t.true((await inUse()) <= empty + 64);
  t.is(fs.statSync(file).size, 64 * MiB);
});

test("Write Zeroes takes effect on what was there, whatever the file system can do", async (t) => {
  const { driver } = await run(t, { files: [sparseFile(t, MiB)], memory: [MiB] });
  for (const id of [1, 2]) {
    await driver.write(0, new Uint8Array(64 * 512).fill(7), false, id);
    await driver.check({ opcode: 0x08, namespaceId: id, dwords: [3, 0, 20] });
    const target = new Uint8Array(64 * 512);
    await driver.read(0, target, id);
    t.true(target.every((byte, n) => (byte === 0) === (n >= 3 * 512 && n < 24 * 512)));
  }
});

test("a file that is cut short or made longer by somebody else", async (t) => {
  const file = sparseFile(t, MiB);
  const { driver } = await run(t, { files: [file] });
  fs.truncateSync(file, 2 * MiB);
  await driver.rescan();
  t.is(driver.blockCount, 4096);
  await driver.write(4095, new Uint8Array(512).fill(1));
  fs.truncateSync(file, MiB);
  await driver.rescan();
  t.is(driver.blockCount, 2048);
});

test("a disk keeps the block size it was formatted with", async (t) => {
  const file = sparseFile(t, MiB);
  const first = await run(t, { files: [file] });
  await first.driver.write(0, new Uint8Array(4096).fill(7));
  await first.driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [1] });
  await first.stop();
  t.true(fs.readFileSync(file).every((byte) => byte === 0));
  await t.throwsAsync(createNvme({ files: [file], blockSize: 512 }), {
    instanceOf: UserError,
    message: /was formatted with blocks of 4096 bytes: leave out --block-size$/,
  });
  const second = await run(t, { files: [file] });
  t.deepEqual(second.driver.namespaces, [{ id: 1, blockSize: 4096, blockCount: 256 }]);
  await second.driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [0] });
  await second.stop();
  const third = await run(t, { files: [file], blockSize: 512 });
  t.is(third.driver.blockSize, 512);
});

test("what is left at the end of a disk belongs to no block: at the start, grown, and after Format", async (t) => {
  const file = sparseFile(t, MiB + 700);
  const first = await run(t, { files: [file] });
  t.is(first.driver.blockCount, 2049);
  t.like(first.machine.device.inspect(), { namespaces: [{ blockCount: 2049, unusedBytes: 188 }] });
  await first.driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [1] });
  await first.driver.rescan();
  t.is(first.driver.blockCount, 256);
  fs.truncateSync(file, MiB + 5000);
  await first.driver.rescan();
  t.is(first.driver.blockCount, 257);
  await first.stop();
  const second = await run(t, { files: [file] });
  t.deepEqual(second.driver.namespaces, [{ id: 1, blockSize: 4096, blockCount: 257 }]);
  await second.driver.write(256, new Uint8Array(4096).fill(7));
  await second.stop();
  t.is(fs.statSync(file).size, MiB + 5000);
  fs.truncateSync(file, 4095);
  await t.throwsAsync(createNvme({ files: [file] }), {
    instanceOf: UserError,
    message: `the disk's file ${file} has 4095 bytes, which is less than a block of 4096 bytes`,
  });
});

test("a file that is removed under its disk is served on, and said", async (t) => {
  const file = sparseFile(t, MiB);
  const other = sparseFile(t, MiB);
  const errors: string[] = [];
  const log = pino({ level: "error" }, { write: (line: string) => void errors.push(JSON.parse(line).msg) });
  const { driver, machine } = await run(t, { files: [file, other] }, log);
  fs.linkSync(other, `${other}.link`);
  fs.unlinkSync(other);
  fs.unlinkSync(file);
  await driver.rescan();
  await driver.write(7, new Uint8Array(512).fill(7));
  t.like(machine.device.inspect(), {
    namespaces: [
      { id: 1, isRemoved: true },
      { id: 2, isRemoved: undefined },
    ],
  });
  t.deepEqual(errors, [
    "the disk's file was removed or replaced: what it holds is gone when this process ends, so save it now",
  ]);
  fs.renameSync(`${other}.link`, other);
});

test("disks of more bytes than a number is exact for end before that", async (t) => {
  const memory = createMemory("huge", 2 ** 40, false);
  t.teardown(() => close(memory));
  const file = `/proc/${process.pid}/fd/${memory}`;
  const resize = (size: string) => execFileSync("truncate", ["-s", size, file]);
  const { driver } = await run(t, { files: [file], memory: [MiB] });
  const most = 2 ** 44 - 1;
  for (const [size, blocks] of [
    ["9P", most],
    ["8P", most],
    [`${2 ** 53 - 512}`, most],
    [`${2 ** 53 - 1024}`, most - 1],
    ["7E", most],
  ] as const) {
    resize(size);
    await driver.rescan();
    t.is(driver.blockCount, blocks, size);
    const { driver: started } = await run(t, { files: [await anotherName(t, size)] });
    t.is(started.blockCount, blocks, size);
  }
  await driver.write(most - 8, new Uint8Array(4096).fill(3));
  const target = new Uint8Array(4096);
  await driver.read(most - 8, target);
  t.true(target.every((byte) => byte === 3));
  t.is(
    (await driver.io({ opcode: 2, namespaceId: 1, dwords: [most % 2 ** 32, Math.floor(most / 2 ** 32), 0] })).status,
    0x80,
  );
  const controller = new DataView((await driver.adminRead({ opcode: IDENTIFY, dwords: [1] }, 4096)).buffer);
  t.is(controller.getBigUint64(280, true), 2n ** 53n - 512n + BigInt(MiB), "TNVMCAP");
});

/** A file of its own of that size. */
async function anotherName(t: ExecutionContext, size: string): Promise<string> {
  const memory = createMemory("huge too", 0, false);
  t.teardown(() => close(memory));
  const file = `/proc/${process.pid}/fd/${memory}`;
  execFileSync("truncate", ["-s", size, file]);
  return file;
}

test("a disk in memory can be formatted too", async (t) => {
  const { driver } = await run(t, { memory: [MiB] });
  await driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [1] });
  await driver.rescan();
  t.is(driver.blockSize, 4096);
});
