/** Devices for which the bridge copies: through the real bridge, and against one that breaks the copy queue. */
import test, { type ExecutionContext } from "ava";
import { Copies } from "../../../guest/link/copies.js";
import { DmaBuffers } from "../../../guest/link/dma-buffers.js";
import { ScatterList } from "../../../guest/scatter-list.js";
import { VirtioPci } from "../../../guest/virtio-pci/transport.js";
import { addSeals, close, createMemory, F_SEAL_SHRINK } from "../../../native/index.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { KiB, LARGE_PAGE_SIZE, MAX_COPY_SIZE, MiB, PAGE_SIZE, REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { CopyFlags, CopyRequest, Queue } from "../../../shared/spec/link.js";
import { DmaMapFlags } from "../../../shared/spec/vfio-user.js";
import { Commands, Statuses } from "../../fakes/copy-device.js";
import { MigratableDevice } from "../../fakes/migratable-device.js";
import { PciBridge } from "../../fakes/pci-bridge.js";
import { setUp as setUpInProcess } from "./in-process.js";
import { type Machine, memory, over, setUpWith } from "./machine.js";

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

over(["local", "isolated"], "a part of a huge page cannot be mapped, and goes by messages", async (t, machine) => {
  const { client, enable, bind, copy } = machine;
  const fd = createMemory("huge", LARGE_PAGE_SIZE, true);
  addSeals(fd, F_SEAL_SHRINK);
  t.teardown(() => close(fd));
  const bytes = new Uint8Array(MiB).fill(4);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  client.registerMemory(BASE, bytes);
  await enable();
  await bind();
  bytes[0] = 3;
  t.is(await copy(BASE, BASE + 1, 1), Statuses.DONE);
  t.is(bytes[1], 3);
  t.is(machine.endpoint.dma.bytesByMessage, 2);
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

/** The copies alone, with the test as the bridge. */
function setUp() {
  const bridge = new PciBridge();
  const transport = new VirtioPci(bridge);
  const buffers = new DmaBuffers(bridge, quietLog);
  const copies = new Copies(bridge, transport, buffers);
  transport.enableQueue(Queue.COPY, copies.queue, true);
  const queue = bridge.queue(Queue.COPY);
  const header = new Uint8Array(CopyRequest.size);
  const request = CopyRequest.view(new DataView(header.buffer));
  /** Takes the next request, and what it is. */
  const take = () => {
    if (!queue.next()) return undefined;
    queue.read(0, header, 0, header.length);
    const { address, length, flags } = request;
    return { address, length, flags };
  };
  const complete = (errno: number, data?: Uint8Array, used?: number) => {
    queue.write(0, new Uint8Array(Uint32Array.of(errno).buffer), 0, 4);
    if (data) queue.write(4, data, 0, data.length);
    queue.complete(used ?? 4 + (data?.length ?? 0));
  };
  return { bridge, buffers, copies, queue, take, complete };
}
const turn = () => new Promise((resolve) => setImmediate(resolve));

test("a request and its parts, as the specification has them", async (t) => {
  const { bridge, copies, buffers, queue, take, complete } = setUp();
  const source = buffers.allocate(300).fill(9);
  const written = copies.write(BASE, source.subarray(100));
  await turn();
  t.deepEqual(bridge.notified, [Queue.COPY]);
  t.deepEqual(take(), { address: BASE, length: 200, flags: CopyFlags.WRITE });
  t.is(queue.readable, CopyRequest.size + 200);
  t.is(queue.writable, 4);
  complete(0);
  copies.poll();
  await written;
  // Larger than a request may be, and than all bounce buffers together.
  const target = new Uint8Array(MAX_COPY_SIZE);
  const read = copies.read(BASE, target);
  await turn();
  let asked = 0;
  for (let n = 0; asked < target.length; ) {
    const next = take();
    if (next === undefined) {
      copies.poll();
      continue;
    }
    t.is(next.address, BASE + asked);
    complete(0, new Uint8Array(next.length).fill(++n));
    asked += next.length;
  }
  copies.poll();
  await read;
  t.deepEqual([target[0], target[64 * KiB], target[target.length - 1]], [1, 2, 32]);
});

test("one part that fails fails the whole, when nothing of it is under way any more", async (t) => {
  const { copies, take, complete } = setUp();
  const failed = copies.read(BASE, new Uint8Array(128 * KiB));
  const other = copies.read(2 * BASE, new Uint8Array(1));
  await turn();
  take();
  complete(Errno.EFAULT);
  copies.poll();
  let settled = false;
  failed.catch(() => {
    settled = true;
  });
  await turn();
  t.false(settled);
  const { length } = take() ?? { length: 0 };
  complete(0, new Uint8Array(length));
  t.is(take()?.address, 2 * BASE);
  complete(0, Uint8Array.of(1));
  copies.poll();
  const error = await t.throwsAsync(failed, { instanceOf: ProtocolError });
  t.is(error?.errno, Errno.EFAULT);
  await other;
});

test("a transfer that failed asks for nothing more", async (t) => {
  const { copies, take, complete } = setUp();
  const failed = copies.read(BASE, new Uint8Array(4 * MiB));
  await turn();
  let asked = 0;
  for (let next = take(); next !== undefined; next = take()) {
    asked++;
    complete(5000);
    copies.poll();
  }
  const error = await t.throwsAsync(failed, { instanceOf: ProtocolError });
  t.is(error?.errno, Errno.EIO, "no errno");
  t.true(asked < 30);
});

const BREAKS: readonly [string, (machine: ReturnType<typeof setUp>) => void][] = [
  ["fewer bytes than were asked for", ({ complete }) => complete(0, new Uint8Array(3))],
  ["more bytes than there is room for", ({ complete }) => complete(0, undefined, 4096)],
  ["bytes, and an error", ({ complete }) => complete(Errno.EFAULT, new Uint8Array(8))],
  ["no status", ({ complete }) => complete(0, undefined, 0)],
  [
    "a used ring that jumps",
    ({ bridge }) => {
      const { buffer, offset } = bridge.find(bridge.addresses(Queue.COPY)[2]);
      new DataView(buffer).setUint16(offset + 2, 500, true);
    },
  ],
  [
    "a descriptor that begins no request",
    ({ bridge, complete }) => {
      complete(0, new Uint8Array(8));
      const { buffer, offset } = bridge.find(bridge.addresses(Queue.COPY)[2]);
      new DataView(buffer).setUint32(offset + 4, 1, true);
    },
  ],
];
for (const [what, breakIt] of BREAKS) {
  test(`a bridge that breaks the copy queue is found out: ${what}`, async (t) => {
    const machine = setUp();
    const { copies, take } = machine;
    const read = copies.read(BASE, new Uint8Array(8));
    await turn();
    // More than can be asked for at once, and one behind that.
    const [large, last] = [copies.read(BASE, new Uint8Array(4 * MiB)), copies.read(BASE, new Uint8Array(1))];
    take();
    breakIt(machine);
    const error = t.throws(() => copies.poll(), { instanceOf: PeerGone });
    copies.stop(error as Error);
    for (const transfer of [read, large, last]) await t.throwsAsync(transfer, { instanceOf: PeerGone });
    await t.throwsAsync(copies.write(BASE, new Uint8Array(1)), { instanceOf: PeerGone });
    copies.poll();
    copies.check();
  });
}

test.serial("a bridge that finishes nothing is found out in time", async (t) => {
  const { copies } = setUp();
  copies.check();
  const read = copies.read(BASE, new Uint8Array(8));
  await turn();
  copies.check();
  const now = performance.now.bind(performance);
  performance.now = () => now() + REPLY_DEADLINE_MS + 1;
  try {
    t.throws(() => copies.check(), { instanceOf: PeerGone });
  } finally {
    performance.now = now;
  }
  copies.stop(new PeerGone("the test ends"));
  await t.throwsAsync(read);
});

test("the whole link is lost with the copy queue, and the process lives", async (t) => {
  const { bridge, link, device, connect, map, enable } = await setUpInProcess(t);
  await connect();
  await map({ flags: DmaMapFlags.READ | DmaMapFlags.FILE_IO });
  await enable();
  const dma = device.context.dma.read(0x10_0000, new Uint8Array(4));
  await turn();
  const queue = bridge.queue(Queue.COPY);
  t.true(queue.next());
  queue.complete(3);
  bridge.raiseInterrupt();
  await t.throwsAsync(dma, { instanceOf: PeerGone });
  await link.closed;
  t.deepEqual(device.events, ["start", "reset"]);
});

test("a copy queue of fewer descriptors than a request has", (t) => {
  const bridge = new PciBridge();
  bridge.queues[Queue.COPY].size = 2;
  const transport = new VirtioPci(bridge);
  t.throws(() => new Copies(bridge, transport, new DmaBuffers(bridge, quietLog)), { instanceOf: UserError });
});

test("memory for copies: parts of huge pages, ordinary memory where there is none", (t) => {
  const bridge = new PciBridge();
  const buffers = new DmaBuffers(bridge, quietLog);
  const first = buffers.allocate(1);
  const second = buffers.allocate(PAGE_SIZE);
  t.is(first.buffer, second.buffer);
  t.is(second.byteOffset, PAGE_SIZE);
  t.is(buffers.addressOf(second), buffers.addressOf(first) + PAGE_SIZE);
  t.is(buffers.addressOf(second.subarray(5)), buffers.addressOf(second) + 5);
  t.is(buffers.addressOf(new Uint8Array(4)), -1);
  t.is(buffers.addressOf(buffers.allocate(LARGE_PAGE_SIZE + 1)), -1, "more than a huge page");
  const third = buffers.allocate(LARGE_PAGE_SIZE);
  t.not(third.buffer, first.buffer);
  t.true(buffers.addressOf(third) > 0);
  bridge.allocate = () => {
    throw new UserError("no huge page of 2 MiB is free");
  };
  t.is(buffers.addressOf(buffers.allocate(1)), -1);
  t.is(buffers.allocate(5).length, 5);
});
