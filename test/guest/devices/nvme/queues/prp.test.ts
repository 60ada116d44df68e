/** PRP entries and lists: the ranges that they stand for, and what is refused. */
import test, { type ExecutionContext } from "ava";
import { NOT_IN_WINDOW, PrpReader } from "../../../../../guest/devices/nvme/queues/data-pointer.js";
import { ScatterList } from "../../../../../guest/scatter-list.js";
import { FakeDma } from "../machine.js";
import { bringUp, scratch } from "../setup.js";

const PAGE = 4096;
const BASE = 0x1_0000_0000;
const SUCCESS = 0;
const DATA_TRANSFER_ERROR = 0x04;
const OFFSET_INVALID = 0x13;

/** 4 MiB at BASE, all of it in the window. */
function memory(): FakeDma {
  const dma = new FakeDma(new ArrayBuffer(4 * 1024 * 1024));
  dma.maps = [{ address: BASE, size: dma.memory.byteLength, offset: 0 }];
  return dma;
}

function list(dma: FakeDma, offset: number, entries: readonly (number | bigint)[]): void {
  for (const [n, entry] of entries.entries()) dma.data.setBigUint64(offset + n * 8, BigInt(entry), true);
}

/** Resolves both ways, which have to agree, and gives the ranges. */
async function resolve(
  t: ExecutionContext,
  dma: FakeDma,
  prp1: number,
  prp2: number,
  length: number,
  pageSize = PAGE,
): Promise<{ status: number; ranges: [number, number][] }> {
  const results: { status: number; ranges: [number, number][] }[] = [];
  for (const windowed of [true, false]) {
    dma.maps = dma.maps.map((map) => ({ ...map, windowed }));
    const found = new ScatterList();
    const prps = new PrpReader(found);
    let status = prps.resolve(dma, prp1, prp2, length, pageSize);
    if (status === NOT_IN_WINDOW) status = await prps.resolveByMessages(dma, { ended: false });
    const ranges = Array.from({ length: found.count }, (_, n): [number, number] => [
      found.addresses[n],
      found.lengths[n],
    ]);
    results.push({ status, ranges: status === SUCCESS ? ranges : [] });
  }
  t.deepEqual(results[0], results[1]);
  return results[0];
}

test("within one page, with and without an offset", async (t) => {
  const dma = memory();
  t.deepEqual(await resolve(t, dma, BASE, 0, 512), { status: SUCCESS, ranges: [[BASE, 512]] });
  t.deepEqual(await resolve(t, dma, BASE + 3584, 0, 512), { status: SUCCESS, ranges: [[BASE + 3584, 512]] });
  t.deepEqual(
    await resolve(t, dma, BASE + 4, 1, 64),
    { status: SUCCESS, ranges: [[BASE + 4, 64]] },
    "PRP2 is not used",
  );
});

test("two pages: PRP2 is data, and neighbours become one range", async (t) => {
  const dma = memory();
  const apart = BASE + 16 * PAGE;
  t.deepEqual(await resolve(t, dma, BASE, apart, 2 * PAGE), {
    status: SUCCESS,
    ranges: [
      [BASE, PAGE],
      [apart, PAGE],
    ],
  });
  t.deepEqual(await resolve(t, dma, BASE + 3072, apart, 2048), {
    status: SUCCESS,
    ranges: [
      [BASE + 3072, 1024],
      [apart, 1024],
    ],
  });
  t.deepEqual(await resolve(t, dma, BASE + 512, BASE + PAGE, PAGE), { status: SUCCESS, ranges: [[BASE + 512, PAGE]] });
});

test("an offset turns two pages of data into three, by a list", async (t) => {
  const dma = memory();
  const [a, b] = [BASE + 10 * PAGE, BASE + 12 * PAGE];
  list(dma, 5 * PAGE + 8, [a, b]);
  t.deepEqual(await resolve(t, dma, BASE + 4, BASE + 5 * PAGE + 8, 2 * PAGE), {
    status: SUCCESS,
    ranges: [
      [BASE + 4, PAGE - 4],
      [a, PAGE],
      [b, 4],
    ],
  });
});

test("a list that fills its page to the last entry is not chained", async (t) => {
  const dma = memory();
  const entries = Array.from({ length: 512 }, (_, n) => BASE + (100 + n) * PAGE);
  list(dma, PAGE, entries);
  t.deepEqual(await resolve(t, dma, BASE, BASE + PAGE, 513 * PAGE), {
    status: SUCCESS,
    ranges: [
      [BASE, PAGE],
      [BASE + 100 * PAGE, 512 * PAGE],
    ],
  });
});

test("lists are chained by their page's last entry", async (t) => {
  const dma = memory();
  const page = (n: number): number => BASE + (100 + 2 * n) * PAGE;
  const data = Array.from({ length: 520 }, (_, n) => page(n));
  list(dma, PAGE, [...data.slice(0, 511), BASE + 3 * PAGE]);
  list(dma, 3 * PAGE, data.slice(511));
  const { status, ranges } = await resolve(t, dma, BASE, BASE + PAGE, 521 * PAGE);
  t.is(status, SUCCESS);
  t.deepEqual(ranges, [[BASE, PAGE], ...data.map((address): [number, number] => [address, PAGE])]);
});

test("a list that begins at its page's last entry is nothing but a pointer", async (t) => {
  const dma = memory();
  list(dma, PAGE + 4088, [BASE + 7 * PAGE]);
  list(dma, 7 * PAGE, [BASE + 20 * PAGE, BASE + 30 * PAGE]);
  t.deepEqual(await resolve(t, dma, BASE, BASE + PAGE + 4088, 3 * PAGE), {
    status: SUCCESS,
    ranges: [
      [BASE, PAGE],
      [BASE + 20 * PAGE, PAGE],
      [BASE + 30 * PAGE, PAGE],
    ],
  });
});

test("larger memory pages", async (t) => {
  const dma = memory();
  const page = 65536;
  list(dma, 3 * page, [BASE + 5 * page, BASE + 9 * page]);
  t.deepEqual(await resolve(t, dma, BASE + page - 512, BASE + 3 * page, page + 1024, page), {
    status: SUCCESS,
    ranges: [
      [BASE + page - 512, 512],
      [BASE + 5 * page, page],
      [BASE + 9 * page, 512],
    ],
  });
  t.is((await resolve(t, dma, BASE + page - 512, BASE + PAGE, 1024, page)).status, OFFSET_INVALID);
});

test("misaligned entries are refused", async (t) => {
  const dma = memory();
  const status = async (prp1: number, prp2: number, length: number): Promise<number> =>
    (await resolve(t, dma, prp1, prp2, length)).status;
  t.is(await status(BASE + 2, 0, 512), OFFSET_INVALID, "PRP1 is no dword");
  t.is(await status(BASE, BASE + PAGE + 8, 2 * PAGE), OFFSET_INVALID, "PRP2 is data and has an offset");
  t.is(await status(BASE, BASE + PAGE + 4, 3 * PAGE), OFFSET_INVALID, "PRP2 is a list and no qword");
  list(dma, PAGE, [BASE + 2 * PAGE, BASE + 3 * PAGE + 512]);
  t.is(await status(BASE, BASE + PAGE, 3 * PAGE), OFFSET_INVALID, "a list entry has an offset");
  list(dma, PAGE + 4088, [BASE + 2 * PAGE + 8]);
  t.is(await status(BASE, BASE + PAGE + 4088, 3 * PAGE), OFFSET_INVALID, "a chain pointer has an offset");
});

test("addresses that no memory can have are refused", async (t) => {
  const dma = memory();
  const top = 2 ** 62;
  t.is((await resolve(t, dma, top, 0, 512)).status, DATA_TRANSFER_ERROR);
  t.is((await resolve(t, dma, BASE, top, 2 * PAGE)).status, DATA_TRANSFER_ERROR);
  t.is((await resolve(t, dma, BASE, top, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
  list(dma, PAGE, [BASE, 0x7fff_ffff_ffff_f000n]);
  t.is((await resolve(t, dma, BASE, BASE + PAGE, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
  list(dma, PAGE, [BASE, 2n ** 53n - 4096n]);
  t.is((await resolve(t, dma, BASE, BASE + PAGE, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
});

test("addresses right below 2^64, where an IOMMU's allocator begins", async (t) => {
  const dma = memory();
  const base = -dma.memory.byteLength;
  dma.maps = [{ address: base, size: dma.memory.byteLength, offset: 0 }];
  t.deepEqual(await resolve(t, dma, -PAGE + 12, 0, 512), { status: SUCCESS, ranges: [[-PAGE + 12, 512]] });
  t.deepEqual(await resolve(t, dma, -PAGE + 12, base, PAGE), {
    status: SUCCESS,
    ranges: [
      [-PAGE + 12, PAGE - 12],
      [base, 12],
    ],
  });
  t.is((await resolve(t, dma, base + 2, 0, 512)).status, OFFSET_INVALID);
  t.is((await resolve(t, dma, base, -PAGE + 8, 2 * PAGE)).status, OFFSET_INVALID);
  const entries = [-2 * PAGE, -PAGE, base + PAGE].map((address) => BigInt.asUintN(64, BigInt(address)));
  list(dma, PAGE, entries);
  t.deepEqual(await resolve(t, dma, base, base + PAGE, 4 * PAGE), {
    status: SUCCESS,
    ranges: [
      [base, PAGE],
      [-2 * PAGE, 2 * PAGE],
      [base + PAGE, PAGE],
    ],
  });
});

test("a list that is not mapped, or not readable, or ends within", async (t) => {
  const dma = memory();
  const { size } = dma.maps[0];
  t.is((await resolve(t, dma, BASE, BASE + size, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
  dma.maps = [{ address: BASE, size: PAGE + 8, offset: 0 }];
  t.is((await resolve(t, dma, BASE, BASE + PAGE, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
  dma.maps = [{ address: BASE, size, offset: 0, readable: false }];
  t.is((await resolve(t, dma, BASE, BASE + PAGE, 3 * PAGE)).status, DATA_TRANSFER_ERROR);
});

test("each entry of a list is read once", async (t) => {
  const dma = memory();
  list(dma, PAGE, [BASE + 2 * PAGE, BASE + 4 * PAGE]);
  const reads = new Map<number, number>();
  const data = new Proxy(dma.data, {
    get: (target, name) => {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return (at: number, ...rest: unknown[]): unknown => {
        reads.set(at, (reads.get(at) ?? 0) + 1);
        return value.call(target, at, ...rest);
      };
    },
  });
  const prps = new PrpReader(new ScatterList());
  const spied = Object.create(dma, { data: { value: data } }) as FakeDma;
  spied.locate = (address, length, access, into) => {
    const found = dma.locate(address, length, access, into);
    into.data = data;
    return found;
  };
  t.is(prps.resolve(spied, BASE, BASE + PAGE, 3 * PAGE, PAGE), SUCCESS);
  t.deepEqual([...reads.keys()].sort(), [PAGE, PAGE + 4, PAGE + 8, PAGE + 12]);
  t.true([...reads.values()].every((count) => count === 1));
});

for (const windowed of [true, false]) {
  const where = windowed ? "in the window" : "by messages";
  test(`commands with bad data pointers leave memory and disk alone, ${where}`, async (t) => {
    const { machine, storage, driver } = await bringUp(t);
    if (!windowed) machine.leaveWindow();
    const { address, offset } = scratch(machine);
    const { maps } = machine.dma;
    const end = maps[0].address + maps[0].size;
    storage.bytes.fill(1);
    const before = machine.memory.bytes.slice(offset);
    const status = async (opcode: number, prp1: number, prp2: number, blocks: number): Promise<number> =>
      (await driver.io({ opcode, namespaceId: 1, prp1, prp2, dwords: [0, 0, blocks - 1] })).status;
    for (const opcode of [1, 2]) {
      t.is(await status(opcode, end, 0, 1), DATA_TRANSFER_ERROR);
      t.is(await status(opcode, 0, 0, 1), DATA_TRANSFER_ERROR);
      t.is(await status(opcode, address + 1, 0, 1), OFFSET_INVALID);
      t.is(await status(opcode, address, end, 24), DATA_TRANSFER_ERROR);
    }
    // The second half is not mapped: a read may have filled the first, nothing else.
    machine.dma.maps = [...maps, { address: end, size: PAGE, offset: 0, readable: false, writable: false }];
    t.is(await status(1, address, end, 16), DATA_TRANSFER_ERROR);
    t.is(Buffer.compare(machine.memory.bytes.subarray(offset), before), 0);
    t.true(storage.bytes.every((byte) => byte === 1));
    // A map without the permission.
    machine.dma.maps = [...maps, { address: end, size: PAGE, offset, writable: false, windowed }];
    t.is(await status(2, end, 0, 1), DATA_TRANSFER_ERROR);
    t.is(await status(1, end, 0, 1), SUCCESS);
    machine.dma.maps = [...maps, { address: end, size: PAGE, offset, readable: false, windowed }];
    t.is(await status(1, end, 0, 1), DATA_TRANSFER_ERROR);
    t.is(await status(2, end, 0, 1), SUCCESS);
  });
}
