/** Scatter lists over both links: memory in the window, memory reached by messages, and memory that is not there. */
import test, { type ExecutionContext } from "ava";
import { ScatterList } from "../../../guest/scatter-list.js";
import { addressOf } from "../../../native/index.js";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { both, each, type Machine, memory } from "./machine.js";

const BASE = 0x1_0000_0000;
const SIZE = MiB;
const SECOND = BASE + 4 * SIZE;
const MESSAGES = BASE + 8 * SIZE;

/** Two maps in the window and one by messages, filled with bytes that tell where they are. */
async function mapped(t: ExecutionContext, { client, enable }: Machine) {
  const first = memory(t, SIZE);
  const second = memory(t, SIZE);
  const apart = new Uint8Array(SIZE);
  for (const [n, bytes] of [first.bytes, second.bytes, apart].entries()) {
    for (let i = 0; i < SIZE; i++) bytes[i] = (i >> 8) ^ (i * 3) ^ (n << 6);
  }
  await client.mapMemory({ address: BASE, size: SIZE, fd: first.fd });
  await client.mapMemory({ address: SECOND, size: SIZE, fd: second.fd });
  await client.mapMemory({ address: MESSAGES, size: SIZE });
  client.registerMemory(MESSAGES, apart);
  await enable();
  return { first: first.bytes, second: second.bytes, apart };
}

function listOf(...ranges: readonly (readonly [number, number])[]): ScatterList {
  const list = new ScatterList();
  for (const [address, length] of ranges) list.add(address, length);
  return list;
}

test("neighbours become one range; a cleared list is empty", (t) => {
  const list = listOf([BASE, 10], [BASE + 10, 5], [BASE + 20, 1]);
  t.deepEqual([list.count, list.length], [2, 16]);
  t.deepEqual([list.addresses[0], list.lengths[0]], [BASE, 15]);
  list.clear();
  list.add(1, 2);
  t.deepEqual([list.count, list.length, list.lengths[0]], [1, 2, 2]);
});

both("ranges of several maps, read and written in their order", async (t, machine) => {
  const { first, second } = await mapped(t, machine);
  const { dma } = machine.device.context;
  const list = listOf([SECOND + 100, 4096], [BASE + 7, 1], [BASE + SIZE - 3000, 3000], [SECOND, 64]);
  const expected = Buffer.concat([
    second.subarray(100, 4196),
    first.subarray(7, 8),
    first.subarray(SIZE - 3000),
    second.subarray(0, 64),
  ]);
  const into = new Uint8Array(list.length + 10).fill(0xee).subarray(3);
  dma.readListSync(list, into);
  t.deepEqual(Buffer.from(into.subarray(0, list.length)), expected);
  t.deepEqual([...into.subarray(list.length)], new Array(7).fill(0xee));
  await dma.readList(list, into.fill(0));
  t.deepEqual(Buffer.from(into.subarray(0, list.length)), expected);

  const data = Uint8Array.from({ length: list.length }, (_, i) => i * 7);
  dma.writeListSync(list, data);
  t.deepEqual(Buffer.from(second.subarray(100, 4196)), Buffer.from(data.subarray(0, 4096)));
  t.is(first[7], data[4096]);
  t.deepEqual(Buffer.from(first.subarray(SIZE - 3000)), Buffer.from(data.subarray(4097, 7097)));
  t.deepEqual(Buffer.from(second.subarray(0, 64)), Buffer.from(data.subarray(7097)));
});

both("a list of more ranges than go into one call", async (t, machine) => {
  const { first } = await mapped(t, machine);
  const list = new ScatterList();
  for (let n = 0; n < 1000; n++) list.add(BASE + ((n * 37) % 1000) * 1000, 100 + (n % 50));
  const into = new Uint8Array(list.length);
  machine.device.context.dma.readListSync(list, into);
  let at = 0;
  for (let n = 0; n < list.count; n++) {
    const start = list.addresses[n] - BASE;
    const length = list.lengths[n];
    if (Buffer.compare(into.subarray(at, at + length), first.subarray(start, start + length)) !== 0)
      t.fail(`range ${n}`);
    at += length;
  }
  t.is(at, list.length);
});

both("ranges that are reached by messages between others", async (t, machine) => {
  const { first, second, apart } = await mapped(t, machine);
  const { dma } = machine.device.context;
  const list = listOf([BASE, 500], [MESSAGES + 9, 2000], [SECOND, 300], [MESSAGES, 5]);
  const into = new Uint8Array(list.length);
  await dma.readList(list, into);
  const parts = [first.subarray(0, 500), apart.subarray(9, 2009), second.subarray(0, 300), apart.subarray(0, 5)];
  t.deepEqual(Buffer.from(into), Buffer.concat(parts));
  await dma.writeList(
    list,
    into.map((byte) => byte ^ 0xff),
  );
  t.deepEqual(
    [first[0], apart[10], second[299], apart[2]],
    [into[0], into[501], into[2799], into[2802]].map((b) => b ^ 0xff),
  );
  t.throws(() => dma.readListSync(list, into), {
    name: "DmaError",
    message: new RegExp(`${(MESSAGES + 9).toString(16)}`),
  });
});

both("a range that is not mapped, not whole, or no address at all", async (t, machine) => {
  await mapped(t, machine);
  const { dma } = machine.device.context;
  const into = new Uint8Array(8192);
  for (const bad of [BASE - 4096, BASE + SIZE - 10, 2 ** 60, -1, Number.NaN]) {
    const list = listOf([BASE, 10], [bad, 100]);
    t.throws(() => dma.readListSync(list, into), { name: "DmaError" }, String(bad));
    await t.throwsAsync(dma.writeList(list, into), { name: "DmaError" }, String(bad));
  }
  const list = listOf([BASE, 100]);
  t.throws(() => dma.readListSync(list, new Uint8Array(99)), { instanceOf: RangeError });
  await t.throwsAsync(dma.writeList(list, new Uint8Array(99)), { instanceOf: RangeError });
  dma.readListSync(new ScatterList(), new Uint8Array(0));
});

each("memory for DMA begins at a page from a page's size on, and is zeros", async (t, { device }) => {
  const { dma } = device.context;
  for (const length of [PAGE_SIZE, PAGE_SIZE + 1, 300_000, 3 * MiB]) {
    const bytes = dma.allocate(length);
    t.is(bytes.length, length);
    t.is((addressOf(bytes.buffer) + bytes.byteOffset) % PAGE_SIZE, 0);
    t.true(bytes.every((byte) => byte === 0));
  }
  t.is(dma.allocate(1).length, 1);
  t.is(dma.allocate(0).length, 0);
});
