/** Copy: blocks of a namespace to others of it, overlaps included, and what is refused. */
import test, { type ExecutionContext } from "ava";
import type { CommandFields } from "../../../../../scripts/drivers/nvme-queue.js";
import { bringUp, scratch } from "../setup.js";

const COPY = 0x19;
const FUA = 1 << 30;
const LBA_OUT_OF_RANGE = 0x80;
const TOO_LARGE = 0x183;

async function copyMachine(t: ExecutionContext) {
  const setup = await bringUp(t);
  const { address, offset } = scratch(setup.machine);
  const view = setup.machine.memory.data;
  /** [block, blocks] of each range. */
  const command = (ranges: readonly (readonly [number | bigint, number])[], to: number, dword = 0): CommandFields => {
    for (const [n, [block, blocks]] of ranges.entries()) {
      for (let at = 0; at < 32; at += 4) view.setUint32(offset + n * 32 + at, 0, true);
      view.setBigUint64(offset + n * 32 + 8, BigInt(block), true);
      view.setUint16(offset + n * 32 + 16, blocks - 1, true);
    }
    const dwords = [to >>> 0, Math.floor(to / 2 ** 32), ((ranges.length - 1) | dword) >>> 0];
    return { opcode: COPY, namespaceId: 1, prp1: address, prp2: address + 4096, dwords };
  };
  for (let n = 0; n < setup.storage.bytes.length; n++) setup.storage.bytes[n] = (n >> 9) * 3 + n;
  return { ...setup, command };
}

test("ranges become neighbours at the destination", async (t) => {
  const { storage, driver, command } = await copyMachine(t);
  const block = (n: number, count = 1) => storage.bytes.slice(n * 512, (n + count) * 512);
  const expected = Buffer.concat([block(10, 3), block(100), block(5, 2)]);
  const ranges = [
    [10, 3],
    [100, 1],
    [5, 2],
  ] as const;
  await driver.check(command(ranges, 200));
  t.deepEqual(Buffer.from(block(200, 6)), expected);
  t.notDeepEqual(Buffer.from(block(206)), Buffer.from(block(200)));
});

test("sources that overlap the destination are read before it is written", async (t) => {
  const { storage, driver, command } = await copyMachine(t);
  const before = storage.bytes.slice();
  await driver.check(command([[8, 64]], 10));
  t.deepEqual(storage.bytes.slice(10 * 512, 74 * 512), before.slice(8 * 512, 72 * 512));
  t.deepEqual(storage.bytes.slice(74 * 512), before.slice(74 * 512));
});

test("as much as Identify says, and no more", async (t) => {
  const { driver, command } = await copyMachine(t);
  const bytes = Buffer.from(await driver.adminRead({ opcode: 6, namespaceId: 1, dwords: [0] }, 4096));
  t.is(bytes.readUInt16LE(74), 512, "MSSRL");
  t.is(bytes.readUInt32LE(76), 512, "MCL");
  t.is(bytes[80], 127, "MSRC");
  await driver.check(command([[0, 512]], 512));
  await driver.check(
    command(
      Array.from({ length: 128 }, (_, n) => [n, 4] as const),
      1024,
    ),
  );
  const many = Array.from({ length: 129 }, () => [0, 1] as const);
  for (const [name, ranges] of [
    [
      "more blocks than MCL",
      [
        [0, 512],
        [0, 1],
      ],
    ],
    ["more blocks than MSSRL", [[0, 513]]],
    ["more ranges than MSRC", many],
  ] as [string, [number, number][]][]) {
    t.is((await driver.io(command(ranges, 1024))).status, TOO_LARGE, name);
  }
});

test("what is refused, and changes nothing", async (t) => {
  const { machine, storage, driver, command } = await copyMachine(t);
  const before = storage.bytes.slice();
  const refused = async (name: string, fields: CommandFields, status: number) =>
    t.is((await driver.io(fields)).status, status, name);
  await refused(
    "a source behind the end",
    command(
      [
        [0, 1],
        [2047, 2],
      ],
      5,
    ),
    LBA_OUT_OF_RANGE,
  );
  await refused("a source at 2^63", command([[2n ** 63n, 1]], 5), LBA_OUT_OF_RANGE);
  await refused("a destination that ends behind the end", command([[0, 2]], 2047), LBA_OUT_OF_RANGE);
  await refused("a destination above 2^53", command([[0, 2]], 2 ** 60), LBA_OUT_OF_RANGE);
  await refused("ranges in format 1", command([[0, 2]], 5, 1 << 8), 0x02);
  await refused("ranges that are not mapped", { ...command([[0, 2]], 5), prp1: 0x7000_0000 }, 0x04);
  await refused("a namespace that is not there", { ...command([[0, 2]], 5), namespaceId: 2 }, 0x0b);
  t.deepEqual(storage.bytes, before);
  machine.leaveWindow();
  await driver.check(command([[0, 2]], 5));
  t.deepEqual(storage.bytes.slice(5 * 512, 7 * 512), before.slice(0, 1024), "by messages");
});

test("with Force Unit Access it is stable before it completes; a source that cannot be read is an error", async (t) => {
  const { storage, driver, command } = await copyMachine(t);
  await driver.check(command([[0, 2]], 5));
  t.not(storage.calls.at(-1), "sync");
  await driver.check(command([[0, 2]], 5, FUA));
  t.is(storage.calls.at(-1), "sync");
  storage.errors.read = "EIO";
  t.is((await driver.io(command([[0, 2]], 5))).status, 0x281);
});
