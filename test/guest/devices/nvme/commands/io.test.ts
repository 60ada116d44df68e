/** The NVM command set: what each command does to the disk, and the status of each mistake and failure. */

import test from "ava";
import { pino } from "pino";
import type { CommandFields } from "../../../../../scripts/drivers/nvme-queue.js";
import { bringUp, scratch, settle } from "../setup.js";

const FLUSH = 0x00;
const WRITE = 0x01;
const READ = 0x02;
const COMPARE = 0x05;
const WRITE_ZEROES = 0x08;
const DATASET_MANAGEMENT = 0x09;
const VERIFY = 0x0c;
const DEALLOCATE = 1 << 25;
const FUA = 1 << 30;
const BLOCKS = 2048;

/** A data command on `blocks` blocks from `block` on. */
function data(opcode: number, prp1: number, block: number | bigint, blocks = 1, flags = 0): CommandFields {
  const start = BigInt(block);
  const dwords = [Number(start & 0xffff_ffffn), Number(start >> 32n), ((blocks - 1) | flags) >>> 0];
  return { opcode, namespaceId: 1, prp1, prp2: prp1 + 4096, dwords };
}

test("LBA out of range, up to the last 64-bit number", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  for (const opcode of [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY]) {
    t.is((await driver.io(data(opcode, address, BLOCKS - 1))).status, 0, "the last block");
    for (const [block, blocks] of [
      [BLOCKS, 1],
      [BLOCKS - 1, 2],
      [0xffff_ffff, 1],
      [2 ** 32, 1],
      [2 ** 53 - 1, 1],
      [2 ** 53, 16],
      [2n ** 64n - 1n, 1],
      [2n ** 64n - 1n, 2],
    ] as const) {
      const completion = await driver.io(data(opcode, address, block, blocks));
      t.like(completion, { status: 0x80, doNotRetry: true }, `opcode ${opcode}, ${blocks} from ${block}`);
    }
  }
  t.is(storage.calls.length, 5, "nothing else reached the storage");
});

test("a command with more data than MDTS is refused", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { size: 4 * 1024 * 1024 });
  const { address } = scratch(machine);
  for (const opcode of [READ, WRITE, COMPARE]) {
    t.like(await driver.io(data(opcode, address, 0, 2049)), { status: 0x02, doNotRetry: true });
    t.like(await driver.io(data(opcode, address, 0, 65536)), { status: 0x02, doNotRetry: true });
  }
  t.deepEqual(storage.calls, []);
});

test("namespaces that are not there", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  for (const opcode of [READ, WRITE, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT, VERIFY]) {
    for (const namespaceId of [0, 2, 0xffff_ffff]) {
      t.like(await driver.io({ ...data(opcode, address, 0), namespaceId }), { status: 0x0b, doNotRetry: true });
    }
  }
  for (const namespaceId of [0, 2, 0xffff_fffe]) {
    t.is((await driver.io({ opcode: FLUSH, namespaceId })).status, 0x0b);
  }
  t.deepEqual(storage.calls, []);
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 0xffff_ffff })).status, 0);
  t.deepEqual(storage.calls, ["sync"]);
});

test("other opcodes: Invalid Opcode; halves of pairs, reserved flags, pointers neither PRPs nor SGLs", async (t) => {
  const { driver, storage } = await bringUp(t);
  const known = [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT, VERIFY, 0x19];
  for (let opcode = 0; opcode < 256; opcode++) {
    if (known.includes(opcode)) continue;
    t.like(await driver.io({ opcode, namespaceId: 1 }), { status: 0x01, doNotRetry: true }, `opcode ${opcode}`);
  }
  for (const [flags, status] of [
    // Halves of pairs, without the other.
    [0x01, 0x0a],
    [0x02, 0x0a],
    [0x41, 0x0a],
    [0x03, 0x02],
    [0x04, 0x02],
    [0x84, 0x02],
    [0xc0, 0x02],
  ]) {
    t.like(await driver.io({ opcode: READ, namespaceId: 1, flags }), { status, doNotRetry: true }, `flags ${flags}`);
  }
  t.deepEqual(storage.calls, []);
});

test("a flush is a sync of the storage, after the writes before it", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  await driver.io(data(WRITE, address, 0));
  storage.hold();
  let flushed = false;
  const flush = driver.flush().then(() => {
    flushed = true;
  });
  await storage.whenHeld(1);
  t.deepEqual(storage.calls, ["write", "sync"]);
  t.false(flushed);
  storage.release();
  await flush;
});

test("flushes that come during a sync share the next one", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.hold();
  const flushes = [driver.flush()];
  await storage.whenHeld(1);
  for (let n = 0; n < 5; n++) flushes.push(driver.flush());
  await settle();
  t.is(storage.held, 1, "none of them is answered by the sync that began before");
  storage.release();
  await Promise.all(flushes);
  t.deepEqual(storage.calls, ["sync", "sync"]);
});

test("Force Unit Access and a disabled write cache sync each write", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  await driver.check(data(WRITE, address, 0));
  t.deepEqual(storage.calls.splice(0), ["write"]);
  await driver.check(data(WRITE, address, 0, 1, FUA));
  t.deepEqual(storage.calls.splice(0), ["write", "sync"]);
  await driver.check(data(WRITE_ZEROES, 0, 0, 1, FUA));
  t.deepEqual(storage.calls.splice(0), ["zero", "sync"]);
  await driver.check(data(WRITE_ZEROES, 0, 0, 1, FUA | DEALLOCATE));
  t.deepEqual(storage.calls.splice(0), ["deallocate", "sync"]);
  await driver.checkAdmin({ opcode: 0x09, dwords: [0x06, 0] });
  t.deepEqual(storage.calls.splice(0), ["sync"], "what is in the cache is written out as it is switched off");
  await driver.check(data(WRITE, address, 0));
  t.deepEqual(storage.calls.splice(0), ["write", "sync"]);
  t.is((await driver.deallocate([[0, 8]])).status, 0);
  t.deepEqual(storage.calls.splice(0), ["deallocate", "sync"]);
  await driver.check(data(READ, address, 0));
  t.deepEqual(storage.calls.splice(0), ["read"]);
});

for (const windowed of [true, false]) {
  test(`failures of the storage are statuses, ${windowed ? "in the window" : "by messages"}`, async (t) => {
    const { machine, storage, driver } = await bringUp(t);
    if (!windowed) machine.leaveWindow();
    const { address } = scratch(machine);
    for (const [operation, code, opcode, status, doNotRetry] of [
      ["read", "EIO", READ, 0x281, false],
      ["read", "ENOMEM", READ, 0x06, false],
      ["read", "EIO", COMPARE, 0x281, false],
      ["write", "EIO", WRITE, 0x280, false],
      ["write", "ENOSPC", WRITE, 0x81, true],
      ["write", "EDQUOT", WRITE, 0x81, true],
      ["write", "EFBIG", WRITE, 0x81, true],
      ["write", "EBADF", WRITE, 0x06, false],
      ["zero", "EIO", WRITE_ZEROES, 0x280, false],
      ["read", "EIO", VERIFY, 0x281, false],
    ] as const) {
      storage.errors[operation] = code;
      const completion = await driver.io(data(opcode, address, 0));
      t.like(completion, { status, doNotRetry }, `${code} of ${operation}`);
      delete storage.errors[operation];
      t.is((await driver.io(data(opcode, address, 0))).status, 0, "and the next command works");
    }
  });

  test(`zeros are written where there is no other way, ${windowed ? "in the window" : "by messages"}`, async (t) => {
    const { machine, storage, driver } = await bringUp(t, { size: 4 * 1024 * 1024 });
    if (!windowed) machine.leaveWindow();
    storage.errors.zero = "ENOTSUP";
    storage.bytes.fill(7);
    await driver.check(data(WRITE_ZEROES, 0, 4, 4000));
    t.true(storage.bytes.subarray(4 * 512, 4004 * 512).every((byte) => byte === 0));
    t.is(storage.bytes[4 * 512 - 1], 7);
    t.is(storage.bytes[4004 * 512], 7);
    storage.errors.write = "EIO";
    t.is((await driver.io(data(WRITE_ZEROES, 0, 0))).status, 0x280);
  });

  test(`Compare, ${windowed ? "in the window" : "by messages"}`, async (t) => {
    const { machine, storage, driver } = await bringUp(t);
    if (!windowed) machine.leaveWindow();
    const { address, offset } = scratch(machine);
    storage.bytes.fill(5);
    machine.memory.bytes.fill(5, offset, offset + 8192);
    t.is((await driver.io(data(COMPARE, address, 0, 16))).status, 0);
    machine.memory.bytes[offset + 8191] = 6;
    t.like(await driver.io(data(COMPARE, address, 0, 16)), { status: 0x285, doNotRetry: true });
    t.is((await driver.io(data(COMPARE, address, 0, 15))).status, 0);
    t.true(storage.bytes.every((byte) => byte === 5));
  });
}

test("after a failed sync the disk is not trusted again", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  // The driver wants to know of it.
  await driver.checkAdmin({ opcode: 0x09, dwords: [0x0b, 0x04] });
  const event = driver.admin({ opcode: 0x0c });
  storage.errors.sync = "EIO";
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x280);
  t.like(await event, { status: 0, result: 0x0002_0001 });
  delete storage.errors.sync;
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x280, "Linux reports it once, we do always");
  t.is((await driver.io(data(WRITE, address, 0, 1, FUA))).status, 0x280);
  const smart = await driver.adminRead({ opcode: 0x02, dwords: [0x02 | (127 << 16)] }, 512);
  t.is(smart[0], 4);
});

test("what a disk fails in is the operator's to know; what the driver VM takes away is not", async (t) => {
  const lines: { level: number; namespace: number; msg: string; err: { code: string } }[] = [];
  const log = pino({ level: "warn" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const { machine, storage, driver } = await bringUp(t, { log });
  const { address } = scratch(machine);
  for (const [operation, code, opcode, message] of [
    ["write", "ENOSPC", WRITE, /file system is full.*make room/],
    ["write", "EIO", WRITE, /could not be written/],
    ["read", "EIO", READ, /could not be read/],
    ["zero", "EIO", WRITE_ZEROES, /could not be written/],
    ["read", "EFAULT", READ, undefined],
  ] as const) {
    storage.errors[operation] = code;
    t.not((await driver.io(data(opcode, address, 0))).status, 0);
    delete storage.errors[operation];
    const written = lines.splice(0);
    t.is(written.length, message === undefined ? 0 : 1);
    for (const line of written) {
      t.like(line, { level: 50, namespace: 1, err: { code } });
      t.regex(line.msg, message ?? /^$/);
    }
  }
});

test("a file system that is full at the time of a flush, until there is space again", async (t) => {
  const { storage, driver } = await bringUp(t);
  const warning = async () => (await driver.adminRead({ opcode: 0x02, dwords: [0x02 | (127 << 16)] }, 512))[0];
  for (const code of ["ENOSPC", "EDQUOT"]) {
    storage.errors.sync = code;
    for (let n = 0; n < 2; n++) {
      t.like(await driver.io({ opcode: FLUSH, namespaceId: 1 }), { status: 0x81, doNotRetry: true });
      t.is(await warning(), 4);
    }
    delete storage.errors.sync;
    t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0);
    t.is(await warning(), 0);
  }
  storage.errors.sync = "ENOSPC";
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x81);
  storage.errors.sync = "EIO";
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x280);
  delete storage.errors.sync;
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x280, "which stays");
});

test("what is read with FUA is on stable storage before: Read, Compare and Verify", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  for (const [opcode, operation] of [
    [READ, "read"],
    [COMPARE, "read"],
    [VERIFY, "read"],
  ] as const) {
    storage.calls.length = 0;
    await driver.check(data(opcode, address, 0, 1, FUA));
    t.deepEqual(storage.calls, ["sync", operation]);
  }
  storage.errors.sync = "EIO";
  storage.calls.length = 0;
  t.is((await driver.io(data(READ, address, 0, 1, FUA))).status, 0x280);
  t.deepEqual(storage.calls, ["sync"]);
  t.is((await driver.io(data(READ, address, 0, 1))).status, 0, "without it the cache may answer");
});

for (const [way, flags, error] of [
  ["zeroed by the storage", 0, undefined],
  ["deallocated by the storage", DEALLOCATE, undefined],
  ["written", 0, "ENOTSUP"],
  ["written where nothing can be deallocated", DEALLOCATE, "ENOTSUP"],
] as const) {
  test(`Write Zeroes of the largest length, ${way}`, async (t) => {
    const size = 40 * 1024 * 1024;
    const { storage, driver } = await bringUp(t, { size });
    if (error !== undefined) storage.errors.zero = storage.errors.deallocate = error;
    storage.bytes.fill(9);
    await driver.check(data(WRITE_ZEROES, 0, 1, 65536, flags));
    const end = 65537 * 512;
    t.is(storage.bytes[511], 9);
    t.true(storage.bytes.subarray(512, end).every((byte) => byte === 0));
    t.is(storage.bytes[end], 9);
    t.is(storage.calls[0], flags === 0 ? "zero" : "deallocate");
    t.is(storage.calls.includes("write"), error !== undefined);
  });
}

test("Verify reads all of it, and moves nothing", async (t) => {
  const { machine, storage, driver } = await bringUp(t, { size: 40 * 1024 * 1024 });
  const written = machine.dma.bytesWritten;
  await driver.check(data(VERIFY, 0, 0, 65536));
  t.is(storage.calls.length, 128, "256 KiB each");
  t.true(storage.calls.every((call) => call === "read"));
  t.is(machine.dma.bytesWritten - written, 16, "a completion");
  const smart = await driver.adminRead({ opcode: 0x02, dwords: [0x02 | (127 << 16)] }, 512);
  t.is(new DataView(smart.buffer).getBigUint64(64, true), 1n, "a read command");
});

test("data counts as DMA", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address } = scratch(machine);
  const { dma } = machine;
  const [read, written] = [dma.bytesRead, dma.bytesWritten];
  await driver.check(data(WRITE, address, 0, 8));
  t.is(dma.bytesRead - read, 64 + 4096);
  t.is(dma.bytesWritten - written, 16);
});
