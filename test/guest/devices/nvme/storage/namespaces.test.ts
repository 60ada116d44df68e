/** Several namespaces, what identifies them, sizes that change, and Format NVM. */
import test from "ava";
import { bringUp, scratch, settle } from "../setup.js";

const READ = 0x02;
const FLUSH = 0x00;
const IDENTIFY = 0x06;
const GET_LOG_PAGE = 0x02;
const SET_FEATURES = 0x09;
const EVENT_REQUEST = 0x0c;
const FORMAT = 0x80;
/** CDW10 for all of the Changed Namespace List. */
const CHANGED = 0x04 | (1023 << 16);
const MiB = 1024 * 1024;

const numbers = (bytes: Uint8Array): number[] => {
  const all = [...new Uint32Array(bytes.buffer, 0, 1024)];
  return all.slice(0, all.indexOf(0));
};

test("each namespace has its own blocks, size and identifiers", async (t) => {
  const { storages, driver } = await bringUp(t, { size: MiB, moreSizes: [2 * MiB, 3 * MiB] });
  t.deepEqual(driver.namespaces, [
    { id: 1, blockSize: 512, blockCount: 2048 },
    { id: 2, blockSize: 512, blockCount: 4096 },
    { id: 3, blockSize: 512, blockCount: 6144 },
  ]);
  for (const id of [1, 2, 3]) await driver.write(7, new Uint8Array(1024).fill(id), false, id);
  for (const [n, storage] of storages.entries()) {
    t.is(storage.bytes[7 * 512], n + 1);
    t.is(storage.bytes[6 * 512], 0);
    const target = new Uint8Array(1024);
    await driver.read(7, target, n + 1);
    t.true(target.every((byte) => byte === n + 1));
  }
  const uuids = new Set<string>();
  for (const namespaceId of [1, 2, 3]) {
    const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId, dwords: [3] }, 20);
    uuids.add(Buffer.from(bytes.subarray(4)).toString("hex"));
  }
  t.is(uuids.size, 3);
  const controller = new DataView((await driver.adminRead({ opcode: IDENTIFY, dwords: [1] }, 4096)).buffer);
  t.is(controller.getUint32(516, true), 3, "NN");
  t.is(controller.getBigUint64(280, true), BigInt(6 * MiB), "TNVMCAP");
});

test("the sizes that a driver is to prefer are 4 KiB, whatever the block size", async (t) => {
  for (const blockSize of [512, 4096]) {
    const { driver } = await bringUp(t, { size: MiB, blockSize });
    const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 4096);
    // NPWG, NPWA, NPDG, NPDA, NOWS, which is to be a multiple of NPWG; all 0's based, in blocks.
    t.deepEqual([...new Uint16Array(bytes.buffer, bytes.byteOffset + 64, 5)], Array(5).fill(4096 / blockSize - 1));
  }
});

test("the list of active namespaces begins above any number", async (t) => {
  const { driver } = await bringUp(t, { moreSizes: [MiB, MiB] });
  for (const [after, expected] of [
    [0, [1, 2, 3]],
    [1, [2, 3]],
    [2, [3]],
    [3, []],
    [0xffff_fffd, []],
  ] as const) {
    const list = await driver.adminRead({ opcode: IDENTIFY, namespaceId: after, dwords: [2] }, 4096);
    t.deepEqual(numbers(list), [...expected], `after ${after}`);
  }
});

test("namespaces end where each ends, and there is none behind the last", async (t) => {
  const { machine, storages, driver } = await bringUp(t, { size: MiB, moreSizes: [2 * MiB] });
  const prp1 = scratch(machine).address;
  const read = async (namespaceId: number, block: number): Promise<number> =>
    (await driver.io({ opcode: READ, namespaceId, prp1, dwords: [block, 0, 0] })).status;
  t.is(await read(1, 2048), 0x80);
  t.is(await read(2, 2048), 0);
  t.is(await read(2, 4096), 0x80);
  t.is(await read(3, 0), 0x0b);
  t.is((await driver.admin({ opcode: IDENTIFY, namespaceId: 3, prp1, dwords: [0] })).status, 0x0b);
  t.deepEqual(storages[0].calls, []);
});

test("a flush is of one namespace, or of all", async (t) => {
  const { storages, driver } = await bringUp(t, { moreSizes: [MiB] });
  const [one, two] = storages;
  const flush = async (namespaceId: number): Promise<number> =>
    (await driver.io({ opcode: FLUSH, namespaceId })).status;
  t.is(await flush(2), 0);
  t.deepEqual([one.calls.splice(0), two.calls.splice(0)], [[], ["sync"]]);
  t.is(await flush(0xffff_ffff), 0);
  t.deepEqual([one.calls.splice(0), two.calls.splice(0)], [["sync"], ["sync"]]);
  t.is(await flush(3), 0x0b);
  two.errors.sync = "EIO";
  t.is(await flush(0xffff_ffff), 0x280);
  t.is(await flush(1), 0, "the other is as good as ever");
  t.is(await flush(2), 0x280);
});

test("a file that grows: an event, a list, the new size, and the new blocks", async (t) => {
  const { machine, storages, driver } = await bringUp(t, { moreSizes: [MiB, MiB] });
  // The controller's look at sizes keeps no process alive.
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(alive));
  await driver.checkAdmin({ opcode: SET_FEATURES, dwords: [0x0b, 0x100] });
  const event = driver.admin({ opcode: EVENT_REQUEST });
  const prp1 = scratch(machine).address;
  const last = { opcode: READ, namespaceId: 2, prp1, dwords: [4095, 0, 0] };
  t.is((await driver.io(last)).status, 0x80);
  storages[1].resize(2 * MiB);
  t.like(await event, { status: 0, result: 0x0004_0002 });
  t.is((await driver.io(last)).status, 0);
  const retained = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [CHANGED | 0x8000] }, 4096);
  t.deepEqual(numbers(retained), [2]);
  const next = driver.admin({ opcode: EVENT_REQUEST });
  storages[2].resize(MiB / 2);
  storages[0].resize(MiB + 300);
  await driver.rescan();
  t.deepEqual(
    driver.namespaces.map(({ blockCount }) => blockCount),
    [2048, 4096, 1024],
    "Identify looks itself; part of a block is none",
  );
  t.is((await driver.admin({ opcode: GET_LOG_PAGE, dwords: [CHANGED], prp1: 0x7000_0000 })).status, 0x004);
  const both = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [CHANGED] }, 4096);
  t.deepEqual(numbers(both), [2, 3]);
  t.is((await next).result, 0x0004_0002, "it waited for the page to be read");
  const third = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [CHANGED] }, 4096);
  t.deepEqual(numbers(third), []);
});

test("a change of size is no event to a driver that did not ask, and nothing to the next driver", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  let reported = false;
  void driver.admin({ opcode: EVENT_REQUEST }).then(() => {
    reported = true;
  });
  storage.resize(2 * MiB);
  await driver.rescan();
  t.is(driver.blockCount, 4096);
  await settle();
  t.false(reported);
  machine.write(0x14, 0);
  const { driver: other } = await bringUp(t);
  t.deepEqual(numbers(await other.adminRead({ opcode: GET_LOG_PAGE, dwords: [CHANGED] }, 4096)), []);
});

test("Identify gives the size of when it was asked for, not one that was being looked up before", async (t) => {
  const { storage, driver } = await bringUp(t);
  let end = (): void => t.fail("nothing was looked up");
  storage.refresh = (done) => {
    Reflect.deleteProperty(storage, "refresh");
    const size = storage.bytes.length;
    end = () => {
      storage.size = size;
      done(null);
    };
  };
  const blocks = async (): Promise<bigint> => {
    const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [0] }, 8);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  };
  const before = blocks();
  await settle();
  storage.resize(2 * MiB);
  const after = blocks();
  await settle();
  end();
  t.deepEqual(await Promise.all([before, after]), [2048n, 4096n]);
});

test("a file that shrinks: what is gone is out of range", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  storage.resize(0);
  await driver.rescan();
  t.is(driver.blockCount, 0);
  const prp1 = scratch(machine).address;
  t.is((await driver.io({ opcode: READ, namespaceId: 1, prp1 })).status, 0x80);
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [0] })).status, 0x10a, "no room for one block");
});

test("Format NVM erases one namespace, and changes its block size", async (t) => {
  const { storages, driver } = await bringUp(t, { size: MiB + 512, moreSizes: [MiB] });
  for (const { bytes } of storages) bytes.fill(7);
  await driver.checkAdmin({ opcode: FORMAT, namespaceId: 1, dwords: [1] });
  t.deepEqual(storages[0].calls, ["setBlockSize", "sync", "deallocate", "sync"]);
  t.deepEqual(storages[1].calls, []);
  t.true(storages[0].bytes.every((byte) => byte === 0));
  t.true(storages[1].bytes.every((byte) => byte === 7));
  t.is(storages[0].blockSize, 4096);
  await driver.rescan();
  t.deepEqual(driver.namespaces, [
    { id: 1, blockSize: 4096, blockCount: 256 },
    { id: 2, blockSize: 512, blockCount: 2048 },
  ]);
  const source = Uint8Array.from({ length: 8192 }, (_, n) => n * 3);
  await driver.write(254, source);
  t.is(Buffer.compare(storages[0].bytes.subarray(254 * 4096, 256 * 4096), source), 0);
  await driver.checkAdmin({ opcode: FORMAT, namespaceId: 0xffff_ffff, dwords: [0x200] });
  await driver.rescan();
  t.deepEqual(
    driver.namespaces.map(({ blockCount }) => blockCount),
    [2049, 2048],
  );
  t.true(storages.every(({ bytes }) => bytes.every((byte) => byte === 0)));
});

test("Format NVM writes zeros where nothing can be deallocated", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  storage.errors.deallocate = "ENOTSUP";
  await driver.checkAdmin({ opcode: FORMAT, namespaceId: 1 });
  t.true(storage.bytes.every((byte) => byte === 0));
});

test("Format NVM refuses what is wrong, and erases nothing", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  for (const [name, namespaceId, cdw10, status] of [
    ["a format that is not there", 1, 2, 0x10a],
    ["format 15", 1, 15, 0x10a],
    ["protection information", 1, 1 << 5, 0x10a],
    ["metadata", 1, 1 << 4, 0x10a],
    ["a cryptographic erase", 1, 2 << 9, 0x02],
    ["an erase that does not exist", 1, 7 << 9, 0x02],
    ["namespace 0", 0, 0, 0x0b],
    ["namespace 2", 2, 0, 0x0b],
  ] as const) {
    t.like(await driver.admin({ opcode: FORMAT, namespaceId, dwords: [cdw10] }), { status, doNotRetry: true }, name);
  }
  storage.errors.setBlockSize = "ENOTSUP";
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] })).status, 0x10a, "no place for the size");
  await driver.rescan();
  t.is(driver.blockSize, 512);
  t.true(storage.bytes.every((byte) => byte === 7));
  storage.errors.deallocate = "EIO";
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1 })).status, 0x280);
  delete storage.errors.deallocate;
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1 })).status, 0, "and once more");
});

test("Format NVM whose block size cannot be made to last keeps the one before, and erases nothing", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  storage.errors.sync = "ENOSPC";
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] })).status, 0x81);
  t.deepEqual(storage.calls, ["setBlockSize", "sync", "setBlockSize", "sync"]);
  t.is(storage.blockSize, 512);
  t.true(storage.bytes.every((byte) => byte === 7));
  await driver.rescan();
  t.is(driver.blockSize, 512);
  delete storage.errors.sync;
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] })).status, 0);
  t.is(storage.blockSize, 4096);
});

test("Format NVM heals a disk that could not be synced, when it succeeds", async (t) => {
  const { storage, driver } = await bringUp(t);
  const flush = async (): Promise<number> => (await driver.io({ opcode: FLUSH, namespaceId: 1 })).status;
  storage.errors.sync = "EIO";
  t.is(await flush(), 0x280);
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] })).status, 0x280);
  delete storage.errors.sync;
  t.is(await flush(), 0x280);
  storage.errors.setBlockSize = "ENOTSUP";
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1, dwords: [1] })).status, 0x10a);
  storage.errors.deallocate = "EIO";
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1 })).status, 0x280);
  t.is(await flush(), 0x280, "nothing was erased");
  delete storage.errors.deallocate;
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1 })).status, 0);
  t.is(await flush(), 0);
});

test("Format NVM waits for commands in flight, and lets none begin", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const prp1 = scratch(machine).address;
  storage.hold();
  const read = driver.io({ opcode: READ, namespaceId: 1, prp1 });
  await storage.whenHeld(1);
  const format = driver.admin({ opcode: FORMAT, namespaceId: 1 });
  await settle();
  t.deepEqual(storage.calls, ["read"]);
  const during = await driver.io({ opcode: READ, namespaceId: 1, prp1 });
  t.like(during, { status: 0x84, doNotRetry: false });
  t.is((await driver.admin({ opcode: FORMAT, namespaceId: 1 })).status, 0x84);
  storage.release();
  t.is((await read).status, 0);
  t.is((await format).status, 0);
  t.deepEqual(storage.calls, ["read", "deallocate", "sync"]);
  t.is((await driver.io({ opcode: READ, namespaceId: 1, prp1 })).status, 0);
});
