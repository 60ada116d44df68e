/** The driver of the copy queue and the memory for it, against a bridge that is the test's, and that breaks it. */
import test from "ava";
import { DmaBuffers } from "../../../guest/link/virtio/buffers.js";
import { Copies } from "../../../guest/link/virtio/copies.js";
import { VirtioPci } from "../../../guest/virtio-pci/transport.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { KiB, LARGE_PAGE_SIZE, MAX_COPY_SIZE, MiB, PAGE_SIZE, REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { CopyFlags, CopyRequest, Queue } from "../../../shared/spec/link.js";
import { DmaMapFlags } from "../../../shared/spec/vfio-user.js";
import { PciBridge } from "../../fakes/pci-bridge.js";
import { setUp as setUpInProcess } from "./in-process.js";

const BASE = 0x1_0000_0000;

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
  });
}

test.serial(
  "a bridge that finishes nothing is found out in time, one that does is not, however long we stood still",
  async (t) => {
    const { copies, take, complete } = setUp();
    const real = globalThis.setInterval;
    const late = new Promise<string>((resolve) => {
      copies.onLate = ({ message }) => resolve(message);
    });
    // The deadline is 40 ms.
    globalThis.setInterval = ((run: () => void, ms: number) => real(run, ms / (REPLY_DEADLINE_MS / 40))) as typeof real;
    try {
      const bytes = new Uint8Array(8);
      const read = copies.read(BASE, bytes);
      await turn();
      take();
      complete(0, new Uint8Array(8).fill(7));
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
      await turn();
      copies.poll();
      await read;
      t.deepEqual(bytes, new Uint8Array(8).fill(7));
      const unanswered = copies.read(BASE, bytes);
      t.is(await late, "the bridge finishes no copies");
      copies.stop(new PeerGone("the test ends"));
      await t.throwsAsync(unanswered);
    } finally {
      globalThis.setInterval = real;
    }
  },
);

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
