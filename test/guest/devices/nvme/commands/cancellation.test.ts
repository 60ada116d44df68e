/**
 * Commands that end before their time: long ones stop at their next piece, and nothing that is slow keeps the rest
 * waiting.
 */
import test, { type ExecutionContext } from "ava";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import type { CommandFields } from "../../../../../scripts/drivers/nvme-queue.js";
import { MiB } from "../../../../../shared/limits.js";
import type { Operation } from "../fake-storage.js";
import { bringUp, disable, scratch, settle } from "../setup.js";

const [DELETE_SQ, GET_LOG_PAGE, ABORT, KEEP_ALIVE, FORMAT] = [0x00, 0x02, 0x08, 0x18, 0x80];
const [WRITE, READ, COMPARE, WRITE_ZEROES, VERIFY, COPY] = [0x01, 0x02, 0x05, 0x08, 0x0c, 0x19];
const DISK = 16 * MiB;
/** All of the disk, in blocks of 4096 bytes. */
const ALL = [0, 0, DISK / 4096 - 1];

interface Long {
  readonly name: string;
  readonly command: Partial<CommandFields> & { readonly opcode: number };
  /** What it asks of the disk first, and what would follow. */
  readonly operation: Operation;
  readonly fails?: Operation;
}

const LONG: readonly Long[] = [
  { name: "Verify", command: { opcode: VERIFY, dwords: ALL }, operation: "read" },
  { name: "Write Zeroes", command: { opcode: WRITE_ZEROES, dwords: ALL }, operation: "zero" },
  {
    name: "Write Zeroes by writing",
    command: { opcode: WRITE_ZEROES, dwords: ALL },
    operation: "write",
    fails: "zero",
  },
  { name: "Compare", command: { opcode: COMPARE, dwords: [0, 0, 0] }, operation: "read" },
  { name: "Copy", command: { opcode: COPY, dwords: [64, 0, 1] }, operation: "read" },
];

const WAYS = ["Abort", "Delete I/O Submission Queue", "CC.EN", "the function's reset"] as const;

async function setUp(t: ExecutionContext) {
  const up = await bringUp(t, { size: DISK, blockSize: 4096 });
  // What Copy reads its two ranges from: blocks 0 and 8.
  const { address, offset } = scratch(up.machine);
  up.machine.memory.data.setBigUint64(offset + 32 + 8, 8n, true);
  return { ...up, prp1: address };
}

for (const { name, command, operation, fails } of LONG) {
  for (const way of WAYS) {
    test(`${name}: ${way} ends it in the middle`, async (t) => {
      const { machine, storage, driver, prp1 } = await setUp(t);
      if (fails !== undefined) storage.errors[fails] = "ENOTSUP";
      const ended = driver.io({ namespaceId: 1, prp1, ...command });
      while (!storage.calls.includes(operation)) await new Promise((resolve) => setImmediate(resolve));
      if (way === "Abort") {
        t.like(await driver.admin({ opcode: ABORT, dwords: [1] }), { result: 0 });
        t.is((await ended).status, 0x07);
      } else if (way === "Delete I/O Submission Queue") {
        t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0);
        t.is((await ended).status, 0x08);
      } else if (way === "CC.EN") {
        await disable(machine);
      } else {
        await machine.reset();
      }
      const { length } = storage.calls;
      await settle();
      t.is(storage.calls.length, length);
    });
  }
}

test("Deallocate and Format end in the middle, too; a Format leaves the block size for the next driver", async (t) => {
  const { machine, storage, driver } = await setUp(t);
  void driver.deallocate([
    [0, 2048],
    [2048, 2048],
  ]);
  while (storage.calls.length === 0) await new Promise((resolve) => setImmediate(resolve));
  await machine.reset();
  const { length } = storage.calls;
  await settle();
  t.is(storage.calls.length, length);
  t.true(length < 4);

  const second = await NvmeDriver.open(machine);
  storage.hold();
  void second.admin({ opcode: FORMAT, namespaceId: 1, dwords: [0] });
  await storage.whenHeld(1);
  const format = storage.calls.length;
  await machine.reset();
  storage.release();
  await settle();
  t.is(storage.blockSize, 4096, "it is as before, over a restart, too");
  t.false(storage.calls.slice(format).includes("deallocate"));
  const third = await NvmeDriver.open(machine);
  t.is(third.blockSize, 4096);
  await third.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [0] });
  await third.rescan();
  t.is(third.blockSize, 512);
});

test("a Format that waits for other commands does not begin when a reset ends them all", async (t) => {
  const { machine, storage, driver, prp1 } = await setUp(t);
  storage.hold();
  void driver.io({ opcode: READ, namespaceId: 1, prp1 });
  await storage.whenHeld(1);
  void driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] });
  await settle();
  await machine.reset();
  storage.release();
  await settle();
  t.deepEqual(storage.calls, ["read"]);
  await (await NvmeDriver.open(machine)).write(0, new Uint8Array(4096));
});

test("a write that waits for another, or for a buffer, is not done when it has ended", async (t) => {
  const { machine, storage, driver, prp1 } = await setUp(t);
  storage.hold();
  const writes = [0, 0].map((block) => driver.io({ opcode: WRITE, namespaceId: 1, prp1, dwords: [block] }));
  const list = scratch(machine, 1).address;
  // More than there are buffers of 2 MiB.
  const compares = Array.from({ length: 8 }, () =>
    driver.io({ opcode: COMPARE, namespaceId: 1, prp1, prp2: list, dwords: [256, 0, 255] }),
  );
  await settle();
  t.is(storage.held, 1 + 4);
  t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0);
  for (const { status } of await Promise.all([...writes, ...compares])) t.is(status, 0x08);
  storage.release();
  await settle();
  t.is(storage.calls.length, 1 + 4);
  await machine.reset();
  await (await NvmeDriver.open(machine)).write(0, new Uint8Array(4096));
});

test("slow I/O of every queue leaves room for admin commands", async (t) => {
  const { storage, driver, prp1 } = await withTwoDisks(t);
  storage.hold();
  for (let n = 0; n < 1200; n++) void driver.io({ opcode: READ, namespaceId: 1, prp1 });
  await storage.whenHeld(1024);
  t.is((await driver.admin({ opcode: KEEP_ALIVE })).status, 0);
  storage.release();
});

test("a slow disk keeps none of another's I/O, however much the driver wants of it", async (t) => {
  const { storages, driver, prp1 } = await withTwoDisks(t);
  storages[0].hold();
  for (let n = 0; n < 900; n++) void driver.io({ opcode: READ, namespaceId: 1, prp1, dwords: [0, 0, n % 16] });
  await storages[0].whenHeld(450);
  t.is((await driver.io({ opcode: READ, namespaceId: 2, prp1 })).status, 0);
  t.is((await driver.io({ opcode: COMPARE, namespaceId: 2, prp1 })).status, 0);
  t.is((await driver.io({ opcode: VERIFY, namespaceId: 2 })).status, 0);
  t.is((await driver.io({ opcode: 0, namespaceId: 2 })).status, 0);
  storages[0].release();
});

test("log pages count what they move: a turn is no longer for hundreds of MiB", async (t) => {
  const { machine, driver } = await bringUp(t, { adminEntries: 64 });
  const [list, data] = [scratch(machine, 0), scratch(machine, 1)];
  for (let n = 0; n < 255; n++) machine.memory.data.setBigUint64(list.offset + n * 8, BigInt(data.address), true);
  let ended = 0;
  const pages = Array.from({ length: 60 }, () =>
    driver
      .admin({
        opcode: GET_LOG_PAGE,
        prp1: data.address,
        prp2: list.address,
        dwords: [0x02 | (0xffff << 16) | 0x8000, 3],
      })
      .then(({ status }) => {
        t.is(status, 0);
        ended++;
      }),
  );
  let turns = 0;
  for (; ended < 60; turns++) await new Promise((resolve) => setImmediate(resolve));
  await Promise.all(pages);
  t.true(turns >= 30, `${turns} turns`);
});

test("a queue that is deleted while its vector is masked leaves nothing behind", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 2 });
  machine.write(0x0c, 2);
  void driver.io({ opcode: 0, namespaceId: 1 });
  await settle();
  t.like(machine.device.inspect(), { interruptsDue: 1 });
  t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0);
  t.is((await driver.admin({ opcode: 4, dwords: [1] })).status, 0);
  t.like(machine.device.inspect(), { interruptsDue: 0 });
  const { count } = machine.interrupts;
  machine.write(0x10, 2);
  await settle();
  t.is(machine.interrupts.count, count);
});

test("a bug where a disk's data comes back stops the controller until it is reset, and nothing else", async (t) => {
  const { machine, storages, driver, prp1 } = await withTwoDisks(t);
  storages[0].hold();
  void driver.io({ opcode: READ, namespaceId: 1, prp1 });
  await storages[0].whenHeld(1);
  const { locate } = machine.dma;
  machine.dma.locate = () => {
    throw new Error("a bug");
  };
  storages[0].release();
  while (machine.read(0x1c) === 1) await settle();
  t.is(machine.read(0x1c), 3);
  machine.dma.locate = locate;
  const again = await NvmeDriver.open(machine);
  for (const namespaceId of [1, 2]) t.is((await again.io({ opcode: READ, namespaceId, prp1 })).status, 0);
});

/** Two disks, and an I/O queue with room for all that a controller works on. */
async function withTwoDisks(t: ExecutionContext) {
  const up = await bringUp(t, { moreSizes: [MiB], queues: 2, entries: 1024 });
  return { ...up, prp1: scratch(up.machine).address };
}
