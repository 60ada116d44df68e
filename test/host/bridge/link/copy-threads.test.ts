/**
 * Copies that are left to threads, as somebody else wants something of the bridge: the same bytes, and no touch too
 * late.
 */
import { ftruncateSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { Copies } from "../../../../host/bridge/link/copies.js";
import { copyThreads } from "../../../../host/bridge/link/copy-threads.js";
import { DeviceState } from "../../../../host/bridge/link/device-state.js";
import type { BackEnd } from "../../../../host/bridge/vhost-user/back-end.js";
import { DeviceVmMemory } from "../../../../host/bridge/vhost-user/memory.js";
import * as native from "../../../../native/index.js";
import { Errno } from "../../../../shared/errors.js";
import { KiB, MAX_COPY_SIZE, MiB } from "../../../../shared/limits.js";
import { quietLog } from "../../../../shared/log.js";
import { CopyFlags, CopyRequest, Queue } from "../../../../shared/spec/link.js";
import { Share } from "../../../../shared/turn.js";
import { type CopiedMap, CopiedMemory } from "../../../../shared/vfio-user/dma/copied-memory.js";
import { DeviceQueue } from "../../../../shared/virtqueue/device.js";
import { TestRing } from "../../../fakes/front-end-ring.js";

const GUEST = 0x10_0000;
const DRIVER = 0x1_0000_0000;
const RING = 64;
const DATA = 64 * KiB;
const MEMORY = DATA + 16 * MiB;
const DRIVER_SIZE = 16 * MiB;

/** Memory by its fd, and as bytes. */
function memory(t: ExecutionContext, name: string, size: number) {
  const fd = native.createMemory(name, size, false);
  t.teardown(() => native.close(fd));
  const buffer = native.mapFile(fd, 0, size, native.PROT_READ | native.PROT_WRITE);
  return { fd, buffer, bytes: new Uint8Array(buffer) };
}

/** A copy queue, its driver, and memory of both VMs. While `disturb` is on, an event always waits for the loop. */
function session(t: ExecutionContext, ringSize = RING) {
  const guest = memory(t, "device-vm", MEMORY);
  const driver = memory(t, "driver-vm", DRIVER_SIZE);
  const table = { guestAddress: GUEST, size: MEMORY, userAddress: GUEST, mmapOffset: 0, fd: guest.fd };
  const guestMemory = new DeviceVmMemory();
  guestMemory.set([table]);
  const copied = new CopiedMemory(quietLog);
  const map: CopiedMap = {
    address: DRIVER,
    backed: DRIVER_SIZE,
    readable: true,
    writable: true,
    fd: driver.fd,
    fdOffset: 0,
    device: 0,
    inode: 0,
  };
  copied.put(map);
  const ring = new TestRing(guest.buffer, GUEST, 0, ringSize);
  const queue = new DeviceQueue(guestMemory);
  const { size, descriptors, available, used } = ring;
  queue.start({ size, descriptors, available, used, base: 0 });
  const kick = native.eventfd(0);
  const broken: string[] = [];
  const state = new DeviceState();
  state.observe(({ reason }) => broken.push(reason));
  const copies = new Copies(copied, new Share(), state);
  let called: (() => void) | undefined;
  const backEnd = {
    kickFd: () => kick,
    queue: (index: number) => (index === Queue.COPY ? queue : undefined),
    call: () => called?.(),
    reportBroken: () => broken.push("reported"),
  };
  const start = () => copies.start(backEnd as unknown as BackEnd);
  start();
  t.teardown(() => {
    copies.stop();
    copied.close();
    guestMemory.clear();
    native.close(kick);
  });
  /** A request whose data is at `at` of the data area, in parts of at most `part` bytes. */
  const add = (slot: number, address: number, length: number, at: number, isWrite = false, part = length) => {
    const fixed = 4096 + slot * 32;
    const flags = isWrite ? CopyFlags.WRITE : 0;
    Object.assign(CopyRequest.view(ring.view, fixed), { address, length, flags });
    ring.view.setUint32(fixed + 16, 0xdead, true);
    const parts = Array.from({ length: Math.ceil(length / part) }, (_, n) => ({
      address: GUEST + DATA + at + n * part,
      length: Math.min(part, length - n * part),
      writable: !isWrite,
    }));
    const request = { address: GUEST + fixed, length: CopyRequest.size };
    const status = { address: GUEST + fixed + 16, length: 4, writable: true };
    if (isWrite) ring.add(slot, request, ...parts, status);
    else ring.add(slot, request, status, ...parts);
  };
  /** Statuses by slot, when `count` requests have ended. */
  const ended = async (count: number) => {
    const result = new Map<number, number>();
    while (result.size < count) {
      const next = ring.take();
      if (next !== undefined) {
        result.set(next.id, ring.view.getUint32(4096 + next.id * 32 + 16, true));
        continue;
      }
      await new Promise<void>((resolve) => {
        called = resolve;
      });
    }
    return result;
  };
  const data = guest.bytes.subarray(DATA);
  return {
    ...{ guest, driver, data, guestMemory, copied, map, copies, queue, ring, broken, start },
    ...{ add, ended, kick: () => native.eventfdWrite(kick) },
  };
}

/** From now on some event waits for the event loop whenever it is asked. */
function disturb(t: ExecutionContext): void {
  const fd = native.eventfd(1);
  const poll = new native.Poll(fd, () => {});
  poll.start(native.POLL_READABLE);
  t.teardown(() => {
    poll.close();
    native.close(fd);
  });
}

/** Counts batches that are handed to a thread, and calls `then` right after each. */
function watch(t: ExecutionContext, then: () => void = () => {}) {
  const threads = copyThreads();
  const { start } = threads;
  const seen = { batches: 0 };
  threads.start = (ended) => {
    seen.batches++;
    start.call(threads, ended);
    then();
  };
  t.teardown(() => {
    Reflect.deleteProperty(threads, "start");
  });
  return seen;
}

function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let n = 0; n < length; n++) bytes[n] = (n * 7 + (n >> 8) + seed) & 0xff;
  return bytes;
}

test.serial("nobody is there: no thread is asked", async (t) => {
  const seen = watch(t);
  const { driver, data, add, ended, kick } = session(t);
  driver.bytes.set(pattern(4 * MiB, 1));
  // The test runner may want something of this process just then: that counts as somebody, for a while.
  for (let attempt = 0; attempt < 20; attempt++) {
    const before = seen.batches;
    for (let n = 0; n < 4; n++) add(n * 3, DRIVER + n * MiB, MiB, n * MiB);
    kick();
    t.deepEqual(new Set((await ended(4)).values()), new Set([0]));
    t.is(Buffer.compare(data.subarray(0, 4 * MiB), pattern(4 * MiB, 1)), 0);
    if (seen.batches === before) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.fail("a thread is asked each time");
});

test.serial("reads and writes, large and small, in one part and in many", async (t) => {
  const seen = watch(t);
  disturb(t);
  const { driver, data, add, ended, kick, copies } = session(t);
  for (let round = 0; round < 6; round++) {
    driver.bytes.set(pattern(8 * MiB, round));
    data.set(pattern(6 * MiB, 100 + round), 8 * MiB);
    add(0, DRIVER, MAX_COPY_SIZE, 0);
    add(3, DRIVER + 3 * MiB + 5, 700_001, 3 * MiB + 1, false, 50_000);
    add(20, DRIVER + 4 * MiB, 4096, 5 * MiB);
    add(23, DRIVER + 8 * MiB, MAX_COPY_SIZE, 8 * MiB, true);
    add(26, DRIVER + 11 * MiB + 1, 300_003, 12 * MiB + 7, true, 100_000);
    add(34, 0x5000, MiB, 0);
    kick();
    const statuses = await ended(6);
    t.deepEqual([...statuses.keys()], [0, 3, 20, 23, 26, 34], "in their order");
    t.deepEqual(
      [...statuses.entries()].filter(([, status]) => status !== 0),
      [[34, 14]],
    );
    const source = pattern(8 * MiB, round);
    const other = pattern(6 * MiB, 100 + round);
    t.is(Buffer.compare(data.subarray(0, MAX_COPY_SIZE), source.subarray(0, MAX_COPY_SIZE)), 0);
    const middle = data.subarray(3 * MiB + 1, 3 * MiB + 1 + 700_001);
    t.is(Buffer.compare(middle, source.subarray(3 * MiB + 5, 3 * MiB + 5 + 700_001)), 0);
    t.is(Buffer.compare(data.subarray(5 * MiB, 5 * MiB + 4096), source.subarray(4 * MiB, 4 * MiB + 4096)), 0);
    const written = driver.bytes.subarray(8 * MiB, 8 * MiB + MAX_COPY_SIZE);
    t.is(Buffer.compare(written, other.subarray(0, MAX_COPY_SIZE)), 0);
    const parts = driver.bytes.subarray(11 * MiB + 1, 11 * MiB + 1 + 300_003);
    t.is(Buffer.compare(parts, other.subarray(4 * MiB + 7, 4 * MiB + 7 + 300_003)), 0);
  }
  t.true(seen.batches >= 6);
  t.is(copies.copies, 30);
});

/**
 * Many writes to the driver VM's memory, under way when `then` is called, which takes memory away; returns their
 * statuses.
 */
async function takenAway(t: ExecutionContext, made: ReturnType<typeof session>, then: () => void) {
  let isTaken = false;
  const seen = watch(t, () => {
    if (isTaken) return;
    isTaken = true;
    then();
  });
  disturb(t);
  made.data.fill(1, 0, MAX_COPY_SIZE);
  for (let n = 0; n < 8; n++) made.add(n * 3, DRIVER + n * MAX_COPY_SIZE, MAX_COPY_SIZE, 0, true);
  made.kick();
  while (!isTaken) await new Promise((resolve) => setImmediate(resolve));
  t.true(seen.batches > 0);
}

test.serial("an unmap waits for the batch under way; what was queued behind it is refused", async (t) => {
  const made = session(t);
  const next = memory(t, "driver-vm", DRIVER_SIZE);
  await takenAway(t, made, () => {
    t.is(made.ring.usedIndex, 1, "the first one was copied at once");
    made.copied.remove(made.map);
    t.true(made.ring.usedIndex > 1, "the batch has ended");
    // It gets the place that came free.
    made.copied.put({ ...made.map, address: 2 * DRIVER, fd: next.fd });
    made.driver.bytes.fill(9);
  });
  const statuses = await made.ended(8);
  t.deepEqual(new Set(statuses.values()), new Set([0, 14]));
  t.true(
    made.driver.bytes.every((byte) => byte === 9),
    "nothing was written afterwards",
  );
});

test.serial("memory of the device VM that goes waits, too", async (t) => {
  const made = session(t);
  await takenAway(t, made, () => {
    made.guestMemory.set([]);
    t.true(made.ring.usedIndex > 1, "the batch has ended");
    made.driver.bytes.fill(9);
  });
  made.copies.stop();
  t.true(
    made.driver.bytes.every((byte) => byte === 9),
    "nothing was written afterwards",
  );
});

test.serial("a device that stops gets back what was under way, and a new one starts", async (t) => {
  const made = session(t);
  await takenAway(t, made, () => {
    made.copies.stop();
    t.true(made.ring.usedIndex > 1, "the batch has ended");
    t.is(made.queue.stop(), made.ring.usedIndex, "the rest is not taken");
    made.driver.bytes.fill(9);
  });
  await new Promise((resolve) => setImmediate(resolve));
  t.true(made.driver.bytes.every((byte) => byte === 9));
  t.deepEqual(made.broken, []);
});

test.serial(
  "memory that its owner truncates meanwhile: EFAULT for who asked for it, and for nobody else",
  async (t) => {
    const seen = watch(t);
    disturb(t);
    const { driver, data, add, ended, kick, copied, map } = session(t);
    driver.bytes.fill(5);
    for (let round = 0; round < 3; round++) {
      data.fill(1, 0, 8 * MiB);
      for (let n = 0; n < 4; n++) add(n * 3, DRIVER + n * MAX_COPY_SIZE, MAX_COPY_SIZE, n * MAX_COPY_SIZE);
      add(20, DRIVER + 8 * MiB, MAX_COPY_SIZE, 8 * MiB, true);
      add(30, DRIVER, MiB, 12 * MiB);
      kick();
      if (round === 0) ftruncateSync(driver.fd, MiB);
      const statuses = await ended(6);
      t.is(statuses.get(30), 0);
      statuses.delete(30);
      t.deepEqual(new Set(statuses.values()), new Set([Errno.EFAULT]));
    }
    t.true(seen.batches > 0);
    copied.remove(map);
  },
);

test.serial("two sessions at once", async (t) => {
  const seen = watch(t);
  disturb(t);
  const both = [session(t), session(t)];
  for (const [n, { driver }] of both.entries()) driver.bytes.set(pattern(8 * MiB, n));
  for (let round = 0; round < 5; round++) {
    for (const { add, kick, data } of both) {
      data.fill(0, 0, 8 * MiB);
      for (let slot = 0; slot < 8; slot++) add(slot * 3, DRIVER + slot * MiB, MiB, slot * MiB);
      kick();
    }
    for (const [n, { ended, data }] of both.entries()) {
      await ended(8);
      t.is(Buffer.compare(data.subarray(0, 8 * MiB), pattern(8 * MiB, n)), 0);
    }
  }
  t.true(seen.batches > 2);
});

test.serial("a chain that is no request, behind good ones: the queue breaks, and the next one works", async (t) => {
  disturb(t);
  const { guest, driver, data, add, ring, queue, broken, kick, start } = session(t);
  driver.bytes.fill(4);
  // The first one is copied at once, and after it there is somebody who waits.
  add(0, DRIVER, MAX_COPY_SIZE, 0);
  add(3, DRIVER, MAX_COPY_SIZE, 2 * MiB);
  ring.add(6, { address: GUEST, length: 4 });
  kick();
  while (broken.length === 0) await new Promise((resolve) => setImmediate(resolve));
  t.is(broken[0], "reported");
  t.is(ring.usedIndex, 1);
  t.true(
    data.subarray(2 * MiB, 4 * MiB).every((byte) => byte === 0),
    "it was not handed over",
  );
  t.is(ring.take()?.id, 0);
  // The driver resets the device, and begins again.
  ring.setAvailableIndex(0);
  const again = new TestRing(guest.buffer, GUEST, 0, RING);
  const { descriptors, available, used, size } = again;
  again.view.setUint16(used + 2, 0, true);
  queue.start({ size, descriptors, available, used, base: 0 });
  start();
  again.descriptor(0, GUEST + 4096, CopyRequest.size, 1, 1);
  again.descriptor(1, GUEST + 4096 + 16, 4, 3, 2);
  again.descriptor(2, GUEST + DATA + 2 * MiB, MAX_COPY_SIZE, 2);
  again.offer(0);
  kick();
  while (again.usedIndex === 0) await new Promise((resolve) => setImmediate(resolve));
  t.true(data.subarray(2 * MiB, 4 * MiB).every((byte) => byte === 4));
});

test.serial("a turn has an end where requests are of many descriptors", async (t) => {
  const length = 512;
  const { ring, kick, copies } = session(t, length);
  // A request of a few bytes whose chain is as long as the ring, again and again.
  const at = DATA / 2;
  Object.assign(CopyRequest.view(ring.view, at), { address: DRIVER, length: 4 * (length - 2), flags: 0 });
  ring.descriptor(0, GUEST + at, CopyRequest.size, 1, 1);
  ring.descriptor(1, GUEST + at + 16, 4, 3, 2);
  for (let n = 2; n < length; n++) ring.descriptor(n, GUEST + DATA + n * 4, 4, n === length - 1 ? 2 : 3, n + 1);
  for (let n = 0; n < length; n++) ring.offer(0);
  kick();
  while (ring.usedIndex === 0) await new Promise((resolve) => setImmediate(resolve));
  t.true(ring.usedIndex <= 32, `${ring.usedIndex} at once`);
  while (ring.usedIndex < length) await new Promise((resolve) => setImmediate(resolve));
  t.is(copies.copies, length);
});
