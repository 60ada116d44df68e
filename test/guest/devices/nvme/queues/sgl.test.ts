/** Scatter gather lists: the ranges that they stand for, and what is refused. */
import test, { type ExecutionContext } from "ava";
import { NOT_IN_WINDOW, SglReader } from "../../../../../guest/devices/nvme/queues/data-pointer.js";
import { ScatterList } from "../../../../../guest/scatter-list.js";
import { FakeDma } from "../machine.js";
import { bringUp, memoryDisk, scratch } from "../setup.js";

const BASE = 0x1_0000_0000;
const [DATA, BIT_BUCKET, SEGMENT, LAST] = [0x00, 0x10, 0x20, 0x30];
const SUCCESS = 0;
const DATA_TRANSFER_ERROR = 0x04;
const [BAD_SEGMENT, TOO_MANY, BAD_LENGTH, BAD_TYPE, BAD_OFFSET] = [0x0d, 0x0e, 0x0f, 0x11, 0x16];
const [WRITE, READ, COMPARE] = [0x01, 0x02, 0x05];
const SGL = 0x40;

interface Descriptor {
  readonly address: number | bigint;
  readonly length: number;
  readonly id: number;
}

const data = (address: number | bigint, length: number): Descriptor => ({ address, length, id: DATA });
const segment = (address: number | bigint, length: number): Descriptor => ({ address, length, id: SEGMENT });
const last = (address: number | bigint, length: number): Descriptor => ({ address, length, id: LAST });

function write(view: DataView, at: number, descriptors: readonly Descriptor[]): void {
  for (const [n, { address, length, id }] of descriptors.entries()) {
    view.setBigUint64(at + n * 16, BigInt(address), true);
    view.setUint32(at + n * 16 + 8, length, true);
    view.setUint32(at + n * 16 + 12, (id << 24) >>> 0, true);
  }
}

/** 4 MiB at BASE, all of it in the window. */
function memory(): FakeDma {
  const dma = new FakeDma(new ArrayBuffer(4 * 1024 * 1024));
  dma.maps = [{ address: BASE, size: dma.memory.byteLength, offset: 0 }];
  return dma;
}

/** Resolves both ways, which have to agree, and gives the ranges. */
async function resolve(t: ExecutionContext, dma: FakeDma, first: Descriptor, length: number) {
  const pointer = new DataView(new ArrayBuffer(16));
  write(pointer, 0, [first]);
  const results: { status: number; ranges: [number, number][] }[] = [];
  for (const windowed of [true, false]) {
    dma.maps = dma.maps.map((map) => ({ ...map, windowed }));
    const found = new ScatterList();
    const reader = new SglReader(found);
    let status = reader.resolve(dma, pointer, 0, length);
    if (status === NOT_IN_WINDOW) status = await reader.resolveByMessages(dma, { ended: false });
    const ranges = Array.from({ length: found.count }, (_, n): [number, number] => [
      found.addresses[n],
      found.lengths[n],
    ]);
    results.push({ status, ranges: status === SUCCESS ? ranges : [] });
  }
  t.deepEqual(results[0], results[1]);
  return results[0];
}

test("one data block, at any dword", async (t) => {
  const dma = memory();
  t.deepEqual(await resolve(t, dma, data(BASE + 1028, 65536), 65536), {
    status: SUCCESS,
    ranges: [[BASE + 1028, 65536]],
  });
});

test("a last segment, and segments in a chain", async (t) => {
  const dma = memory();
  write(dma.data, 0x1000, [data(BASE + 0x10_000, 512), data(BASE + 0x20_000, 0), data(BASE + 0x20_004, 1536)]);
  t.deepEqual(await resolve(t, dma, last(BASE + 0x1000, 48), 2048), {
    status: SUCCESS,
    ranges: [
      [BASE + 0x10_000, 512],
      [BASE + 0x20_004, 1536],
    ],
  });
  write(dma.data, 0x1000, [data(BASE + 0x10_000, 512), segment(BASE + 0x2010, 32)]);
  write(dma.data, 0x2010, [data(BASE + 0x10_200, 512), last(BASE + 0x3000, 16)]);
  write(dma.data, 0x3000, [data(BASE + 0x40_000, 1024)]);
  t.deepEqual(await resolve(t, dma, segment(BASE + 0x1000, 32), 2048), {
    status: SUCCESS,
    ranges: [
      [BASE + 0x10_000, 1024],
      [BASE + 0x40_000, 1024],
    ],
  });
});

test("a segment of more than a page, read piece by piece", async (t) => {
  const dma = memory();
  const blocks = Array.from({ length: 700 }, (_, n) => data(BASE + 0x10_0000 + n * 8, 4));
  write(dma.data, 0x1230, blocks);
  const { status, ranges } = await resolve(t, dma, last(BASE + 0x1230, 700 * 16), 2800);
  t.is(status, SUCCESS);
  t.deepEqual(
    ranges,
    blocks.map(({ address }) => [Number(address), 4]),
  );
});

test("addresses right below 2^64, where an IOMMU's allocator begins; none far from both ends", async (t) => {
  const dma = memory();
  const base = -dma.memory.byteLength;
  dma.maps = [{ address: base, size: dma.memory.byteLength, offset: 0 }];
  write(dma.data, 0x1000, [data(-512, 512), data(base + 4, 1536)]);
  t.deepEqual(await resolve(t, dma, last(base + 0x1000, 32), 2048), {
    status: SUCCESS,
    ranges: [
      [-512, 512],
      [base + 4, 1536],
    ],
  });
  t.is((await resolve(t, dma, data(2n ** 62n, 512), 512)).status, DATA_TRANSFER_ERROR);
  t.is((await resolve(t, dma, last(2n ** 63n, 16), 512)).status, DATA_TRANSFER_ERROR);
});

test("what is refused", async (t) => {
  const dma = memory();
  write(dma.data, 0x1000, [data(BASE + 0x10_000, 512), segment(BASE + 0x1000, 32)]);
  write(dma.data, 0x2000, [last(BASE + 0x3000, 16), data(BASE + 0x10_000, 512)]);
  write(dma.data, 0x3000, [data(BASE + 0x10_000, 256), last(BASE + 0x3000, 16)]);
  write(dma.data, 0x4000, [data(BASE + 0x10_000, 256), data(BASE + 0x10_100, 256)]);
  write(dma.data, 0x5000, [data(BASE + 0x10_000, 0), segment(BASE + 0x5000, 32)]);
  for (const [name, first, status] of [
    ["an address in a dword", data(BASE + 2, 512), BAD_OFFSET],
    ["a length in a dword", data(BASE, 510), BAD_LENGTH],
    ["less than the data", data(BASE, 508), BAD_LENGTH],
    ["more than the data", data(BASE, 516), BAD_LENGTH],
    ["no data", data(BASE, 0), BAD_LENGTH],
    ["a bit bucket", { address: BASE, length: 512, id: BIT_BUCKET }, BAD_TYPE],
    ["a sub type that is no address", { address: BASE, length: 512, id: 0x01 }, BAD_TYPE],
    ["a segment of no bytes", last(BASE + 0x1000, 0), BAD_SEGMENT],
    ["a segment of half a descriptor", last(BASE + 0x1000, 24), BAD_SEGMENT],
    ["segments without an end", segment(BASE + 0x5000, 32), TOO_MANY],
    ["segments that bring more and more data", segment(BASE + 0x1000, 32), BAD_LENGTH],
    ["a segment in front of data", segment(BASE + 0x2000, 32), BAD_SEGMENT],
    ["a last segment that goes on", last(BASE + 0x3000, 32), BAD_SEGMENT],
    ["a segment that does not go on", segment(BASE + 0x4000, 32), BAD_SEGMENT],
    ["a segment that is not mapped", last(BASE + 0x40_0000, 16), DATA_TRANSFER_ERROR],
    ["a segment that ends outside", last(BASE + 0x3f_fff0, 32), DATA_TRANSFER_ERROR],
  ] as const) {
    t.deepEqual(await resolve(t, dma, first, 512), { status, ranges: [] }, name);
  }
});

for (const kind of ["a disk in memory", "a disk by file I/O"] as const) {
  test(`Write, Read and Compare by SGLs, ${kind}`, async (t) => {
    const { machine, driver } = await (kind === "a disk in memory" ? memoryDisk(t) : bringUp(t));
    const { address, offset } = scratch(machine);
    const { bytes, data: view } = machine.memory;
    for (let n = 0; n < 4096; n++) bytes[offset + 0x1000 + n] = n * 7;
    write(view, offset, [data(address + 0x1000, 1000), data(address + 0x13e8, 3096)]);
    write(view, offset + 0x100, [data(address + 0x5004, 4096)]);
    const lists = { namespaceId: 1, flags: SGL, dwords: [8, 0, 7] };
    const by = (list: number, length: number) => ({ prp1: list, prp2: (BigInt(LAST) << 56n) | BigInt(length) });
    await driver.check({ ...lists, opcode: WRITE, ...by(address, 32) });
    await driver.check({ ...lists, opcode: READ, flags: 0x80, ...by(address + 0x100, 16) });
    t.deepEqual(bytes.slice(offset + 0x5004, offset + 0x6004), bytes.slice(offset + 0x1000, offset + 0x2000));
    await driver.check({ ...lists, opcode: COMPARE, prp1: address + 0x5004, prp2: 4096 });
    machine.leaveWindow();
    bytes.fill(0, offset + 0x5000, offset + 0x6004);
    await driver.check({ ...lists, opcode: READ, ...by(address + 0x100, 16) });
    t.deepEqual(bytes.slice(offset + 0x5004, offset + 0x6004), bytes.slice(offset + 0x1000, offset + 0x2000));
    t.is((await driver.io({ ...lists, opcode: READ, prp1: address, prp2: 4092 })).status, BAD_LENGTH);
    t.is((await driver.admin({ opcode: 0x06, flags: SGL, prp1: address, prp2: 4096, dwords: [1] })).status, 0x02);
  });
}
