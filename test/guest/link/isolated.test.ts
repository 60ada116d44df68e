/** Devices that have no driver-VM memory in their window: the real bridge copies for them. */
import { fstatSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { createEdu } from "../../../guest/devices/edu/index.js";
import { ScatterList } from "../../../guest/scatter-list.js";
import { addSeals, close, createMemory, F_SEAL_SHRINK } from "../../../native/index.js";
import { GiB, KiB, LARGE_PAGE_SIZE, MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { Commands, Statuses } from "../../fakes/copy-device.js";
import { MigratableDevice } from "../../fakes/migratable-device.js";
import { driver } from "../devices/serve.js";
import { connectDevice, type Machine, memory, over, setUpWith } from "./machine.js";

const BASE = 0x1_0000_0000;
const SIZE = 8 * MiB;

function fill(bytes: Uint8Array, seed: number): void {
  for (let n = 0; n < bytes.length; n++) bytes[n] = n * 31 + (n >> 8) + seed;
}

async function mapped(t: ExecutionContext, { client, enable, bind }: Pick<Machine, "client" | "enable" | "bind">) {
  const { fd, bytes } = memory(t, SIZE);
  await client.mapMemory({ address: BASE, size: SIZE, fd });
  await enable();
  await bind();
  return bytes;
}

over(["isolated"], "DMA of any size to and from any memory, several at once", async (t, machine) => {
  const bytes = await mapped(t, machine);
  const { dma } = machine.device.context;
  fill(bytes, 1);
  // From one piece of a bounce buffer to more than one request, in a row, all at once.
  const sizes = [1, 64, 65, 64 * KiB, 64 * KiB + 1, 2 * MiB + 5, 3 * MiB];
  const own = sizes.flatMap((size) => [new Uint8Array(size), dma.allocate(size)]);
  const places = sizes.map((_, n) => BASE + 3 + sizes.slice(0, n).reduce((a, b) => a + b, 0));
  await Promise.all(own.map((target, n) => dma.read(places[n >> 1], target)));
  for (const [n, target] of own.entries()) {
    const start = places[n >> 1] - BASE;
    t.is(Buffer.compare(target, bytes.subarray(start, start + target.length)), 0, `${target.length} bytes`);
    fill(target, 7);
  }
  for (const kind of [0, 1]) {
    bytes.fill(0);
    await Promise.all(sizes.map((_, n) => dma.write(places[n], own[2 * n + kind])));
    const expected = Buffer.concat(sizes.map((_, n) => own[2 * n + kind]));
    t.is(Buffer.compare(bytes.subarray(3, 3 + expected.length), expected), 0);
    t.is(bytes[2], 0);
    t.is(bytes[3 + expected.length], 0);
  }
  const moved = sizes.reduce((a, b) => a + b, 0);
  t.like(machine.endpoint.statistics(), { movedByCopy: 4 * moved, movedByMessage: 0, readThroughWindow: 0 });
});

over(["isolated"], "scatter lists: all ranges at once, and none after one that fails", async (t, machine) => {
  const bytes = await mapped(t, machine);
  const { client, device } = machine;
  const { dma } = device.context;
  const other = new Uint8Array(PAGE_SIZE);
  await client.mapMemory({ address: 2 * BASE, size: PAGE_SIZE });
  client.registerMemory(2 * BASE, other);
  fill(bytes, 4);
  const list = new ScatterList();
  for (let n = 99; n >= 0; n--) list.add(BASE + n * 5000, 3000);
  list.add(2 * BASE + 1, 100);
  const target = dma.allocate(list.length);
  await dma.readList(list, target);
  const expected = Array.from({ length: 100 }, (_, n) => bytes.slice((99 - n) * 5000, (99 - n) * 5000 + 3000));
  t.is(Buffer.compare(target, Buffer.concat([...expected, new Uint8Array(100)])), 0);
  bytes.fill(0);
  target.fill(9, 300_000);
  await dma.writeList(list, target);
  t.is(Buffer.compare(bytes.subarray(495_000, 498_000), expected[0]), 0);
  t.is(bytes[498_000], 0);
  t.is(other[100], 9);
  list.add(3 * BASE, 1);
  await t.throwsAsync(dma.readList(list, dma.allocate(list.length)), { name: "DmaError" });
  t.throws(() => dma.readListSync(list, new Uint8Array(list.length)), { name: "DmaError" });
});

over(["isolated"], "what wants the memory itself does not get it; no map, no copy", async (t, machine) => {
  const bytes = await mapped(t, machine);
  const { device, client, copy } = machine;
  const { dma } = device.context;
  const segment = { bytes: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), offset: 0, length: 0 };
  t.is(dma.locate(BASE, 16, "read", segment), 0);
  t.is(dma.view(BASE, 16, "write"), undefined);
  t.is(await copy(BASE, BASE, 4, Commands.COPY_SYNC), Statuses.DMA_ERROR);
  t.is(await copy(BASE - 8, BASE, 16), Statuses.DMA_ERROR);
  t.is(await copy(BASE + SIZE - 8, BASE, 16), Statuses.DMA_ERROR);
  const { fd } = memory(t, PAGE_SIZE);
  await client.mapMemory({ address: 2 * BASE, size: PAGE_SIZE, fd, writable: false });
  t.is(await copy(BASE, 2 * BASE, 16), Statuses.DMA_ERROR);
  t.is(await copy(2 * BASE, BASE, 16), Statuses.DONE, "reading it is permitted");
  t.is(machine.endpoint.dma.bytesByMessage, 0);
  await client.unmapMemory(BASE, SIZE);
  t.is(await copy(2 * BASE, BASE, 16), Statuses.DMA_ERROR);
  t.true(bytes.every((byte) => byte === 0));
});

over(["isolated"], "unmapping waits for copies that are under way", async (t, machine) => {
  const bytes = await mapped(t, machine);
  const { device, client } = machine;
  const { dma, run } = device.context;
  const source = dma.allocate(MiB).fill(1);
  let done = false;
  run(async () => {
    await Promise.all(Array.from({ length: 64 }, (_, n) => dma.write(BASE + (n % 8) * MiB, source)));
    done = true;
  });
  await client.unmapMemory(BASE, SIZE);
  t.true(done);
  t.true(bytes.every((byte) => byte === 1));
});

over(["local", "virtio", "isolated"], "a part of a huge page is copied", async (t, machine) => {
  const { client, enable, bind, copy } = machine;
  const fd = createMemory("huge", 2 * LARGE_PAGE_SIZE, true);
  addSeals(fd, F_SEAL_SHRINK);
  t.teardown(() => close(fd));
  await client.mapMemory({ address: BASE, size: MiB, fd, fdOffset: MiB });
  await client.mapMemory({ address: BASE + MiB, size: MiB, fd, fdOffset: LARGE_PAGE_SIZE });
  await enable();
  await bind();
  // Where the machine has no huge page free it fails, and nobody dies of it.
  const status = await copy(BASE + MiB - 8, BASE + MiB, 16);
  t.true(status === Statuses.DONE || status === Statuses.DMA_ERROR);
  t.is(machine.endpoint.dma.bytesByMessage, 0);
  t.is(machine.endpoint.dma.bytesByCopy > 16, status === Statuses.DONE);
});

over(["local", "virtio", "isolated"], "a map that is larger than its file of huge pages", async (t, machine) => {
  const { client, enable, bind, copy } = machine;
  const fd = createMemory("huge", LARGE_PAGE_SIZE, true);
  t.teardown(() => close(fd));
  await client.mapMemory({ address: BASE, size: 2 * LARGE_PAGE_SIZE, fd });
  const small = memory(t, MiB);
  const tooLarge = client.mapMemory({ address: BASE + GiB, size: 2 * MiB, fd: small.fd });
  await t.throwsAsync(tooLarge, undefined, "other memory: refused");
  await client.mapMemory({ address: BASE + GiB, size: MiB, fd: small.fd });
  await enable();
  await bind();
  // Without a free huge page, and beyond the file, where the client refuses it, it fails, and nobody dies of it.
  const END = BASE + LARGE_PAGE_SIZE;
  for (const [from, to] of [
    [BASE, BASE + GiB],
    [END - 8, BASE + GiB],
    [END, BASE + GiB],
    [BASE + GiB, END + PAGE_SIZE],
  ]) {
    t.not(await copy(from, to, 16), Statuses.IDLE);
  }
  t.is(await copy(BASE + GiB, BASE + GiB + PAGE_SIZE, 16), Statuses.DONE);
  t.is(fstatSync(fd).size, LARGE_PAGE_SIZE, "the client's file is as it was");
  await client.unmapMemory(BASE, 2 * LARGE_PAGE_SIZE);
});

test.serial("isolated: what copies wrote is in the log of written pages", async (t) => {
  const machine = await setUpWith(t, "isolated", new MigratableDevice());
  try {
    await mapped(t, machine);
    const { migration } = machine.client;
    await migration.startLogging(PAGE_SIZE);
    t.is(await machine.copy(BASE, BASE + 3 * PAGE_SIZE - 1, 2), Statuses.DONE);
    const bitmap = await migration.report(BASE, SIZE, PAGE_SIZE);
    t.deepEqual([...bitmap.subarray(0, 2)], [0b1100, 0]);
  } finally {
    t.deepEqual(await machine.end(), []);
  }
});

test.serial("isolated: edu's DMA to its buffer and back", async (t) => {
  const machine = await connectDevice("isolated", createEdu(64));
  const { client, end, endpoint } = machine;
  try {
    const { fd, bytes } = memory(t, MiB);
    await client.mapMemory({ address: BASE, size: MiB, fd });
    const { read, write, enable } = driver(client);
    await enable();
    const [source, target, count, command, buffer] = [0x80, 0x88, 0x90, 0x98, 0x40000];
    const transfer = async (from: number, to: number, toMemory: number) => {
      for (const [register, value] of [
        [source, from],
        [target, to],
      ]) {
        await write(register, value % 2 ** 32);
        await write(register + 4, Math.floor(value / 2 ** 32));
      }
      await write(count, 4096);
      await write(command, toMemory | 1);
      while ((await read(command)) & 1);
    };
    fill(bytes, 2);
    await transfer(BASE, buffer, 0);
    await transfer(buffer, BASE + 8192, 2);
    t.is(Buffer.compare(bytes.subarray(8192, 12288), bytes.subarray(0, 4096)), 0);
    t.is(endpoint.dma.bytesByCopy, 8192);
  } finally {
    t.deepEqual(await end(), []);
  }
});
