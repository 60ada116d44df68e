/** The admin command set: queue management, features, log pages, events, and the status of each mistake. */
import test from "ava";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { QueuePair, writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import { bringUp, completed, disable, memoryDisk, scratch, settle, untilCompleted } from "../setup.js";

const DELETE_SQ = 0x00;
const CREATE_SQ = 0x01;
const GET_LOG_PAGE = 0x02;
const DELETE_CQ = 0x04;
const CREATE_CQ = 0x05;
const IDENTIFY = 0x06;
const ABORT = 0x08;
const SET_FEATURES = 0x09;
const GET_FEATURES = 0x0a;
const EVENT_REQUEST = 0x0c;
const KEEP_ALIVE = 0x18;
/** A feature. */
const TIMESTAMP = 0x0e;

const id = (queue: number, entries: number): number => (((entries - 1) << 16) | queue) >>> 0;

test("Create I/O Completion Queue refuses what is wrong", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 4 });
  const prp1 = scratch(machine).address;
  for (const [name, cdw10, cdw11, address, status] of [
    ["queue 0", id(0, 16), 3, prp1, 0x101],
    ["a queue that exists", id(1, 16), 3, prp1, 0x101],
    ["a queue above the number of queues", id(5, 16), 3, prp1, 0x101],
    ["queue 65535", id(0xffff, 16), 3, prp1, 0x101],
    ["one entry", id(2, 1), 3, prp1, 0x102],
    ["more entries than CAP.MQES", id(2, 1025), 3, prp1, 0x102],
    ["65536 entries", id(2, 65536), 3, prp1, 0x102],
    ["not contiguous", id(2, 16), 2, prp1, 0x02],
    ["a vector that is not there", id(2, 16), (5 << 16) | 3, prp1, 0x108],
    ["vector 65535", id(2, 16), 0xffff0003, prp1, 0x108],
    ["an address within a page", id(2, 16), 3, prp1 + 64, 0x13],
    ["an address that is not exact", id(2, 16), 3, 2n ** 63n, 0x04],
  ] as const) {
    const completion = await driver.admin({ opcode: CREATE_CQ, prp1: address, dwords: [cdw10, cdw11] });
    t.is(completion.status, status, name);
  }
  t.is((await driver.admin({ opcode: CREATE_CQ, prp1, dwords: [id(2, 1024), (4 << 16) | 3] })).status, 0);
});

test("Create I/O Submission Queue refuses what is wrong", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 4 });
  const prp1 = scratch(machine).address;
  const withQueue = (1 << 16) | 1;
  for (const [name, cdw10, cdw11, address, status] of [
    ["queue 0", id(0, 16), withQueue, prp1, 0x101],
    ["a queue that exists", id(1, 16), withQueue, prp1, 0x101],
    ["a queue above the number of queues", id(5, 16), withQueue, prp1, 0x101],
    ["the admin completion queue", id(2, 16), 1, prp1, 0x101],
    ["a completion queue that does not exist", id(2, 16), (2 << 16) | 1, prp1, 0x100],
    ["completion queue 65535, above the number of queues", id(2, 16), 0xffff0001, prp1, 0x101],
    ["one entry", id(2, 1), withQueue, prp1, 0x102],
    ["more entries than CAP.MQES", id(2, 1025), withQueue, prp1, 0x102],
    ["not contiguous", id(2, 16), 1 << 16, prp1, 0x02],
    ["an address within a page", id(2, 16), withQueue, prp1 + 2048, 0x13],
    ["an address that is not exact", id(2, 16), withQueue, 2n ** 62n, 0x04],
  ] as const) {
    const completion = await driver.admin({ opcode: CREATE_SQ, prp1: address, dwords: [cdw10, cdw11] });
    t.is(completion.status, status, name);
  }
  t.is((await driver.admin({ opcode: CREATE_SQ, prp1, dwords: [id(2, 1024), withQueue] })).status, 0);
});

test("queue entry sizes are wanted before queues are created", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 2 });
  const prp1 = scratch(machine).address;
  machine.write(0x14, 0x1);
  t.is((await driver.admin({ opcode: CREATE_CQ, prp1, dwords: [id(2, 16), 3] })).status, 0x02);
  t.is((await driver.admin({ opcode: CREATE_SQ, prp1, dwords: [id(2, 16), (1 << 16) | 1] })).status, 0x02);
});

test("queues are deleted and created again; a completion queue last", async (t) => {
  const { machine, driver } = await bringUp(t, { controllerQueues: 4 });
  const status = async (opcode: number, queue: number): Promise<number> =>
    (await driver.admin({ opcode, dwords: [queue] })).status;
  t.is(await status(DELETE_CQ, 1), 0x10c, "its submission queue is there");
  for (const queue of [0, 2, 0xffff]) {
    t.is(await status(DELETE_SQ, queue), 0x101);
    t.is(await status(DELETE_CQ, queue), 0x101);
  }
  t.is(await status(DELETE_SQ, 1), 0);
  t.is(await status(DELETE_SQ, 1), 0x101);
  t.is(await status(DELETE_CQ, 1), 0);
  t.is(await status(DELETE_CQ, 1), 0x101);
  const { address, offset } = scratch(machine);
  await driver.checkAdmin({ opcode: CREATE_CQ, prp1: address, dwords: [id(1, 8), (1 << 16) | 3] });
  await driver.checkAdmin({ opcode: CREATE_SQ, prp1: address + 4096, dwords: [id(1, 8), (1 << 16) | 1] });
  const pair = new QueuePair(machine, 1, 8, offset + 4096, offset, 1);
  const flush = pair.submit({ opcode: 0, namespaceId: 1 });
  await settle();
  t.is(await pair.reap(), 1);
  t.is((await flush).status, 0);
});

test("deleting a submission queue ends its commands, and nothing comes of them afterwards", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  storage.bytes.fill(7);
  storage.hold();
  const read = driver.io({ opcode: 2, namespaceId: 1, prp1: address });
  await storage.whenHeld(1);
  t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0);
  t.is((await read).status, 0x08);
  t.is((await driver.admin({ opcode: DELETE_SQ, dwords: [1] })).status, 0x101);
  storage.release();
  await settle();
  t.is(machine.memory.bytes[offset], 0);
  t.deepEqual(storage.calls, ["read"]);
});

test("Identify refuses what is not there", async (t) => {
  const { machine, driver } = await bringUp(t);
  const prp1 = scratch(machine).address;
  const status = async (cns: number, namespaceId = 0, commandSet = 0): Promise<number> =>
    (await driver.admin({ opcode: IDENTIFY, namespaceId, prp1, dwords: [cns, commandSet << 24] })).status;
  for (const cns of [5, 6]) t.is(await status(cns, 1, 2), 0x02, `CNS ${cns} of a command set that is not there`);
  for (const cns of [4, 7, 8, 0x10, 0x11, 0x13, 0x1c, 0xff]) t.is(await status(cns, 1), 0x02, `CNS ${cns}`);
  for (const cns of [0, 3, 5]) {
    for (const namespaceId of [0, 2, 0xffff_ffff]) t.is(await status(cns, namespaceId), 0x0b);
  }
  t.is(await status(2, 0xffff_fffe), 0x0b);
  t.is(await status(2, 0xffff_fffd), 0);
});

test("Identify for the NVM command set says nothing new, and is no error in the log", async (t) => {
  const { driver } = await bringUp(t);
  for (const cns of [5, 6]) {
    const bytes = await driver.adminRead({ opcode: IDENTIFY, namespaceId: 1, dwords: [cns, 0] }, 4096);
    t.true(bytes.every((byte) => byte === 0));
  }
});

test("Identify to any two pages, and to none", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  const identify = async (prp1: number, prp2: number): Promise<number> =>
    (await driver.admin({ opcode: IDENTIFY, prp1, prp2, dwords: [1] })).status;
  const whole = await driver.adminRead({ opcode: IDENTIFY, dwords: [1] }, 4096);
  t.is(await identify(address + 1024, address + 0x5000), 0);
  const { bytes } = machine.memory;
  t.deepEqual(bytes.slice(offset + 1024, offset + 4096), whole.slice(0, 3072));
  t.deepEqual(bytes.slice(offset + 0x5000, offset + 0x5400), whole.slice(3072));
  t.is(await identify(0, 0), 0x04);
  t.is(await identify(address + 1024, 0), 0x04);
  t.is(await identify(address + 1, 0), 0x13);
  t.is(await identify(address + 1024, address + 8), 0x13);
});

test("every opcode that the log does not name is Invalid Opcode, and so it is the other way round", async (t) => {
  const { driver } = await bringUp(t);
  const log = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x05 | (1023 << 16)] }, 4096);
  const supported = Array.from({ length: 256 }, (_, opcode) => opcode).filter((opcode) => log[opcode * 4] & 1);
  t.deepEqual(supported, [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x18, 0x7c, 0x80]);
  for (let opcode = 0; opcode < 256; opcode++) {
    if (supported.includes(opcode)) continue;
    t.like(await driver.admin({ opcode }), { status: 0x01, doNotRetry: true }, `opcode ${opcode}`);
  }
  const io = Array.from({ length: 256 }, (_, opcode) => opcode).filter((opcode) => log[1024 + opcode * 4] & 1);
  t.deepEqual(io, [0, 1, 2, 5, 8, 9, 12, 25]);
  t.deepEqual([...log.subarray(0x80 * 4, 0x80 * 4 + 4)], [7, 0, 1, 0], "Format NVM changes data and namespaces, alone");
  t.is(log[1024 + 9 * 4], 3, "Dataset Management changes data");
});

test("features have values, defaults and capabilities, and are reset with the controller", async (t) => {
  const { driver } = await bringUp(t, { controllerQueues: 3 });
  const get = async (feature: number, select = 0, cdw11 = 0): Promise<{ status: number; result: number }> =>
    driver.admin({ opcode: GET_FEATURES, dwords: [feature | (select << 8), cdw11] });
  const set = async (feature: number, value: number): Promise<number> =>
    (await driver.admin({ opcode: SET_FEATURES, dwords: [feature, value] })).status;
  for (const [feature, initial, value, stored] of [
    [0x01, 4, 0x0102_0307, 0x0102_0307],
    [0x02, 0, 0x20, 0x20],
    [0x04, 343, 350, 350],
    [0x05, 0, 0xfffe_1234, 0x1234],
    [0x06, 1, 0, 0],
    [0x08, 0, 0x5_0203, 0x0203],
    [0x0a, 0, 3, 1],
    [0x0b, 0, 0x11f, 0x11f],
    [0x0f, 0, 3_600_000, 3_600_000],
  ]) {
    t.like(await get(feature), { status: 0, result: initial }, `feature ${feature}`);
    t.is(await set(feature, value), 0);
    t.like(await get(feature), { status: 0, result: stored }, `feature ${feature}`);
    t.like(await get(feature, 1), { status: 0, result: initial }, `default of feature ${feature}`);
    t.like(await get(feature, 2), { status: 0, result: initial }, `saved value of feature ${feature}`);
    t.like(await get(feature, 3), { status: 0, result: 4 }, `capabilities of feature ${feature}`);
    t.is((await get(feature, 4)).status, 0x02);
  }
  t.like(await get(0x07), { status: 0, result: 0x0002_0002 });
  for (const feature of [0x00, 0x03, 0x0c, 0x0d, 0x10, 0x80, 0xff]) {
    t.is((await get(feature)).status, 0x02, `feature ${feature}`);
    t.is(await set(feature, 0), 0x02, `feature ${feature}`);
  }
  t.is(await set(0x02, 1), 0x02, "there is one power state");
  t.is(await set(0x05, 1 << 16), 0x02, "no error for deallocated blocks");
  for (const bit of [9, 11, 14, 31]) t.is(await set(0x0b, 0x100 | (2 ** bit)), 0x02, `no event of bit ${bit}`);
  t.is((await get(0x0b)).result, 0x11f, "what is refused changes nothing");
  t.is(await set(0x0f, 0x8000_0000), 0x19, "longer than a timer can be");
  t.is((await driver.admin({ opcode: SET_FEATURES, dwords: [0x8000_0006, 0] })).status, 0x10d);
});

test("features are the controller's, and so are log pages", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address } = scratch(machine);
  for (const [opcode, dwords, statuses] of [
    [GET_FEATURES, [0x06], { 0: 0, 1: 0, 2: 0x0b, 77: 0x0b, 4294967295: 0 }],
    [SET_FEATURES, [0x06, 1], { 0: 0, 1: 0x10f, 2: 0x0b, 77: 0x0b, 4294967295: 0 }],
    [GET_LOG_PAGE, [0x02 | (127 << 16)], { 0: 0, 1: 0x02, 2: 0x02, 4294967295: 0 }],
    [GET_LOG_PAGE, [0x01 | (127 << 16)], { 0: 0, 1: 0x02, 2: 0x02, 4294967295: 0 }],
  ] as const) {
    for (const [namespaceId, expected] of Object.entries(statuses)) {
      const { status } = await driver.admin({ opcode, namespaceId: Number(namespaceId), prp1: address, dwords });
      t.is(status, expected, `opcode ${opcode}, namespace ${namespaceId}`);
    }
  }
});

test("the number of queues is settled before queues are created", async (t) => {
  const { driver } = await bringUp(t, { controllerQueues: 3 });
  const set = (value: number) => driver.admin({ opcode: SET_FEATURES, dwords: [0x07, value] });
  t.is((await set(0x0001_0001)).status, 0x0c);
  t.is((await set(0x0001_ffff)).status, 0x02);
  t.is((await set(0xffff_0001)).status, 0x02);
  await driver.checkAdmin({ opcode: DELETE_SQ, dwords: [1] });
  t.is((await set(0)).status, 0x0c);
  await driver.checkAdmin({ opcode: DELETE_CQ, dwords: [1] });
  t.like(await set(0x003f_003f), { status: 0, result: 0x0002_0002 });
});

test("temperature thresholds and interrupt vectors are features with an index", async (t) => {
  const { driver } = await bringUp(t, { controllerQueues: 2 });
  const get = (feature: number, cdw11: number) => driver.admin({ opcode: GET_FEATURES, dwords: [feature, cdw11] });
  const set = async (feature: number, cdw11: number): Promise<number> =>
    (await driver.admin({ opcode: SET_FEATURES, dwords: [feature, cdw11] })).status;
  t.is(await set(0x04, 0x0010_0000 | 280), 0);
  t.like(await get(0x04, 0x0010_0000), { status: 0, result: 280 });
  t.like(await get(0x04, 0), { status: 0, result: 343 });
  t.is(await set(0x04, 0x0001_0000 | 300), 0x02, "a sensor that is not there");
  t.is((await get(0x04, 0x0001_0000)).status, 0x02);
  t.is(await set(0x04, 0x000f_0000 | 345), 0, "all sensors that there are");
  t.like(await get(0x04, 0), { status: 0, result: 345 });
  t.is(await set(0x04, 0x001f_0000 | 281), 0);
  t.like(await get(0x04, 0x0010_0000), { status: 0, result: 281 });
  t.is((await get(0x04, 0x000f_0000)).status, 0x02);
  t.is(await set(0x04, 0x002f_0000 | 281), 0x02, "a threshold that is neither");
  const critical = async (): Promise<number> =>
    (await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x02 | (127 << 16)] }, 512))[0];
  t.is(await critical(), 0);
  t.is(await set(0x04, 300), 0);
  t.is(await critical(), 2);
  t.is(await set(0x09, 0x1_0002), 0);
  t.like(await get(0x09, 2), { status: 0, result: 0x1_0002 });
  t.like(await get(0x09, 1), { status: 0, result: 1 });
  t.is(await set(0x09, 3), 0x02);
  t.is((await get(0x09, 3)).status, 0x02);
});

test("a temperature beyond its threshold is an event, once, to a driver that wants it", async (t) => {
  const { driver } = await bringUp(t);
  const set = (feature: number, cdw11: number) => driver.checkAdmin({ opcode: SET_FEATURES, dwords: [feature, cdw11] });
  const readLog = () => driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x02 | (127 << 16)] }, 512);
  const answered: number[] = [];
  for (let n = 0; n < 4; n++) void driver.admin({ opcode: EVENT_REQUEST }).then(({ result }) => answered.push(result));
  await set(0x04, 300);
  await settle();
  t.deepEqual(answered, [], "nobody asked");
  await set(0x0b, 0x02);
  await settle();
  t.deepEqual(answered.splice(0), [0x0002_0101], "it is so already");
  t.is((await readLog())[0], 2);
  await set(0x04, 301);
  await settle();
  t.deepEqual(answered, [], "as it was");
  await set(0x04, 343);
  t.is((await readLog())[0], 0);
  await set(0x04, 0x0010_0000 | 320);
  await settle();
  t.deepEqual(answered.splice(0), [0x0002_0101], "below the other threshold");
});

test("Get Log Page: lengths, offsets and pages that are not there", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  const get = async (page: number, dwords: number, at = 0, atHigh = 0): Promise<number> =>
    (
      await driver.admin({
        opcode: GET_LOG_PAGE,
        prp1: address,
        prp2: address + 4096,
        dwords: [(page | ((dwords - 1) << 16)) >>> 0, (dwords - 1) >>> 16, at, atHigh],
      })
    ).status;
  for (const page of [0x00, 0x06, 0x0d, 0x70, 0x80, 0xff]) t.is(await get(page, 1), 0x109, `page ${page}`);
  t.is(await get(0x03, 1, 8), 0);
  t.is(Buffer.from(machine.memory.bytes.slice(offset, offset + 4)).toString(), "1.0 ");
  t.is(await get(0x03, 1, 512), 0, "the page's end");
  t.is(await get(0x03, 1, 516), 0x02);
  t.is(await get(0x03, 1, 2), 0x02);
  t.is(await get(0x03, 1, 0, 1), 0x02);
  t.is(await get(0x03, 1, 0xffff_fffc, 0xffff_ffff), 0x02);
  t.is(await get(0x02, 1 << 19), 0x02, "more than MDTS");
  machine.memory.bytes.fill(0xff, offset, offset + 4096);
  t.is(await get(0x03, 1024), 0);
  t.true(
    machine.memory.bytes.subarray(offset + 512, offset + 4096).every((byte) => byte === 0),
    "zeros behind the page",
  );
  t.is(await get(0x04, 1024), 0);
  t.true(
    machine.memory.bytes.subarray(offset, offset + 4096).every((byte) => byte === 0),
    "no namespace changed",
  );
});

test("the error log tells of the latest errors, the newest first", async (t) => {
  const { driver } = await bringUp(t);
  await driver.io({ opcode: 0x7f, namespaceId: 5 });
  await driver.io({ opcode: 2, namespaceId: 1, prp1: 0, dwords: [0xffff_ffff, 0xffff_ffff, 0] });
  await driver.admin({ opcode: IDENTIFY, dwords: [0xee] });
  const log = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01 | (255 << 16)] }, 1024);
  const view = new DataView(log.buffer);
  const entry = (n: number) => ({
    count: view.getBigUint64(n * 64, true),
    queue: view.getUint16(n * 64 + 8, true),
    status: view.getUint16(n * 64 + 12, true),
    location: view.getUint16(n * 64 + 14, true),
    block: view.getBigUint64(n * 64 + 16, true),
    namespace: view.getUint32(n * 64 + 24, true),
  });
  t.deepEqual(entry(0), { count: 3n, queue: 0, status: 0x8004, location: 0xffff, block: 0n, namespace: 0 });
  t.deepEqual(entry(1), { count: 2n, queue: 1, status: 0x8100, location: 40, block: 2n ** 64n - 1n, namespace: 1 });
  t.deepEqual(entry(2), { count: 1n, queue: 1, status: 0x8002, location: 0, block: 0n, namespace: 5 });
  t.is(entry(3).count, 0n);
  for (let n = 0; n < 20; n++) await driver.io({ opcode: 0x7f, namespaceId: 5 });
  const full = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01 | (255 << 16)] }, 1024);
  t.is(new DataView(full.buffer).getBigUint64(0, true), 23n);
  t.is(new DataView(full.buffer).getBigUint64(15 * 64, true), 8n);
});

test("SMART counts what was read and written", async (t) => {
  const { driver } = await bringUp(t, { size: 2 * 1024 * 1024 });
  await driver.write(0, new Uint8Array(1024 * 1024));
  await driver.read(0, new Uint8Array(512));
  await driver.read(0, new Uint8Array(512));
  const log = await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x02 | (127 << 16)] }, 512);
  const counter = (at: number): bigint => new DataView(log.buffer).getBigUint64(at, true);
  t.is(log[0], 0);
  t.is(new DataView(log.buffer).getUint16(1, true), 313);
  t.is(counter(32), 1n);
  t.is(counter(48), 3n);
  t.is(counter(64), 2n);
  t.is(counter(80), 1n);
  t.is(counter(144), 0n, "unsafe shutdowns");
});

test("Abort ends a command that is in flight, and answers of others that it did not", async (t) => {
  const { storage, machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  storage.bytes.fill(7);
  storage.hold();
  const read = driver.io({ opcode: 2, namespaceId: 1, prp1: address });
  await storage.whenHeld(1);
  t.like(await driver.admin({ opcode: ABORT, dwords: [1 | (0xffff << 16)] }), { status: 0, result: 1 });
  t.like(await driver.admin({ opcode: ABORT, dwords: [1] }), { status: 0, result: 0 });
  t.like(await read, { status: 0x07, doNotRetry: false });
  t.like(await driver.admin({ opcode: ABORT, dwords: [1] }), { status: 0, result: 1 });
  storage.release();
  await settle();
  t.is(machine.memory.bytes[offset], 0);
  t.is((await driver.io({ opcode: 2, namespaceId: 1, prp1: address })).status, 0);
  t.is(machine.memory.bytes[offset], 7);
});

test("Abort ends what waits: an event request, and a command that was not fetched yet", async (t) => {
  const { storage, machine, driver } = await bringUp(t, { entries: 1024, queues: 2 });
  const { address } = scratch(machine);
  const request = driver.admin({ opcode: EVENT_REQUEST });
  await settle();
  // The identifiers of the driver's commands are the lowest that are free.
  t.like(await driver.admin({ opcode: ABORT, dwords: [1 << 16] }), { status: 0, result: 1 }, "another one's");
  t.like(await driver.admin({ opcode: ABORT, dwords: [0] }), { status: 0, result: 0 });
  t.like(await request, { status: 0x07 });

  storage.hold();
  const read = { opcode: 2, namespaceId: 1, prp1: address };
  const others = Array.from({ length: 1000 }, () => driver.io(read, 0));
  await storage.whenHeld(1000);
  const reads = Array.from({ length: 30 }, () => driver.io(read, 1));
  await storage.whenHeld(1024);
  t.like(await driver.admin({ opcode: ABORT, dwords: [2 | (26 << 16)] }), { status: 0, result: 0 });
  t.like(await reads[26], { status: 0x07 });
  t.like(await driver.admin({ opcode: ABORT, dwords: [2 | (26 << 16)] }), { status: 0, result: 1 }, "once");
  t.like(await driver.admin({ opcode: ABORT, dwords: [2 | (30 << 16)] }), { status: 0, result: 1 }, "not sent");
  t.like(await driver.admin({ opcode: ABORT, dwords: [7] }), { status: 0, result: 1 });
  storage.release();
  for (const [n, { status }] of (await Promise.all(reads)).entries()) t.is(status, n === 26 ? 0x07 : 0, `${n}`);
  await Promise.all(others);
  t.is(storage.calls.length, 1029);
  // The queue's places are reused, and that of the one that was aborted means nothing any more.
  for (let n = 0; n < 1024; n++) t.is((await driver.io(read, 1)).status, 0);
});

test("a temperature threshold that is passed is a critical warning, and an event each time", async (t) => {
  const { driver } = await bringUp(t);
  const set = (feature: number, cdw11: number) => driver.checkAdmin({ opcode: SET_FEATURES, dwords: [feature, cdw11] });
  const smart = async () => (await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x02 | (127 << 16)] }, 512))[0];
  await set(0x0b, 0x02);
  for (const [threshold, usual] of [
    [300, 343],
    [0x0010_0000 | 320, 0x0010_0000],
  ]) {
    const request = driver.admin({ opcode: EVENT_REQUEST });
    await set(0x04, threshold);
    t.like(await request, { status: 0, result: 0x02_01_01 });
    t.is(await smart(), 2);
    await set(0x04, usual);
    t.is(await smart(), 0);
  }
});

test("Host Behavior Support is remembered, and nothing after a reset", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  const { bytes } = machine.memory;
  const data = bytes.subarray(offset, offset + 512);
  const set = async () => (await driver.admin({ opcode: SET_FEATURES, prp1: address, dwords: [0x16] })).status;
  const get = async (select = 0, from = driver) => {
    data.fill(0xee);
    const { status } = await from.admin({ opcode: GET_FEATURES, prp1: address, dwords: [0x16 | (select << 8)] });
    return status === 0 && data.subarray(1).every((byte) => byte === 0) ? data[0] : -1;
  };
  t.is(await get(), 0);
  data.fill(0);
  data[0] = 1;
  t.is(await set(), 0);
  t.is(await get(), 1);
  t.is(await get(1), 0, "as after a reset");
  t.like(await driver.admin({ opcode: GET_FEATURES, dwords: [0x16 | (3 << 8)] }), { status: 0, result: 4 });
  data.fill(0);
  data[0] = 2;
  t.is(await set(), 0x02);
  t.is(await get(), 1);
  t.is((await driver.admin({ opcode: SET_FEATURES, prp1: 0x1000, dwords: [0x16] })).status, 0x04);
  await machine.reset();
  t.is(await get(0, await NvmeDriver.open(machine)), 0);
});

test("Identify: Compare and Write of all that one command moves", async (t) => {
  const { driver } = await bringUp(t);
  const data = Buffer.from(await driver.adminRead({ opcode: IDENTIFY, dwords: [1] }, 4096));
  t.is(data.readUInt16LE(522), 1);
  t.is(data.readUInt16LE(532), 255);
});

test("asynchronous events: one for a type until its log page is read, four requests at most", async (t) => {
  const { machine, driver } = await bringUp(t);
  const requests = Array.from({ length: 4 }, () => driver.admin({ opcode: EVENT_REQUEST }));
  t.like(await driver.admin({ opcode: EVENT_REQUEST }), { status: 0x105, doNotRetry: true });
  const answered: number[] = [];
  for (const request of requests) void request.then(({ result }) => answered.push(result));
  machine.write(0x1000 + 8 * 40, 1);
  await settle();
  t.deepEqual(answered, [0x0001_0000]);
  machine.write(0x1000 + 8, 0xffff);
  machine.write(0x1000 + 8, 0xffff);
  await settle();
  t.is(answered.length, 1, "the first was not taken note of");
  await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01 | (1 << 15)] }, 4);
  await settle();
  t.is(answered.length, 1, "Retain Asynchronous Event");
  await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01] }, 4);
  await settle();
  t.deepEqual(answered, [0x0001_0000, 0x0001_0100]);
  machine.write(0x1000 + 8 * 40 + 4, 1);
  await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01] }, 4);
  await settle();
  t.deepEqual(answered.slice(2), [0x0001_0000]);
});

test("Timestamp: what was set goes on from there, until a reset", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  const view = machine.memory.data;
  const read = async (): Promise<[number, number]> => {
    await driver.checkAdmin({ opcode: GET_FEATURES, prp1: address + 64, dwords: [TIMESTAMP] });
    const value = view.getUint32(offset + 64, true) + view.getUint16(offset + 68, true) * 2 ** 32;
    return [value, view.getUint16(offset + 70, true)];
  };
  const [since, origin] = await read();
  t.is(origin, 0);
  t.true(since < 600_000, "milliseconds since the reset");
  const now = 1_700_000_000_123;
  view.setBigUint64(offset, BigInt(now), true);
  await driver.checkAdmin({ opcode: SET_FEATURES, prp1: address, dwords: [TIMESTAMP] });
  const [first, setBy] = await read();
  t.is(setBy, 2);
  t.true(first >= now && first < now + 600_000);
  const start = performance.now();
  while (performance.now() - start < 3) await settle();
  t.true((await read())[0] > first);
  t.is((await driver.admin({ opcode: SET_FEATURES, prp1: 0x7000_0000, dwords: [TIMESTAMP] })).status, 0x04);
  t.true((await read())[0] > first, "what could not be read sets nothing");
  t.is((await driver.admin({ opcode: SET_FEATURES, prp1: address, dwords: [TIMESTAMP | 0x8000_0000] })).status, 0x10d);
  t.is((await driver.admin({ opcode: GET_FEATURES, dwords: [TIMESTAMP | (3 << 8)] })).result, 1 << 2);
});

test("a log page that could not be written was not read: its event stays", async (t) => {
  const { machine, driver } = await bringUp(t);
  const answered: number[] = [];
  for (let n = 0; n < 2; n++) void driver.admin({ opcode: EVENT_REQUEST }).then(({ result }) => answered.push(result));
  machine.write(0x1000 + 8 * 40, 1);
  machine.write(0x1000 + 8, 0xffff);
  await settle();
  t.deepEqual(answered, [0x0001_0000]);
  const nowhere = { opcode: GET_LOG_PAGE, dwords: [0x01], prp1: 0x7000_0000 };
  t.is((await driver.admin(nowhere)).status, 0x004);
  await settle();
  t.is(answered.length, 1);
  await driver.adminRead({ opcode: GET_LOG_PAGE, dwords: [0x01] }, 4);
  await settle();
  t.deepEqual(answered, [0x0001_0000, 0x0001_0100]);
});

for (const doorbells of ["trapped", "shared"] as const) {
  test(`an event waits for a place in the admin completion queue, doorbells ${doorbells}`, async (t) => {
    const { machine } = await memoryDisk(t, { doorbells });
    await disable(machine);
    const [submission, completion] = [scratch(machine, 4), scratch(machine, 5)];
    machine.write(0x24, (1 << 16) | 15); // 16 and 2 entries: one completion fills the queue
    for (const [register, { address }] of [
      [0x28, submission],
      [0x30, completion],
    ] as const) {
      machine.write(register, address % 2 ** 32);
      machine.write(register + 4, Math.floor(address / 2 ** 32));
    }
    machine.memory.bytes.fill(0, completion.offset, completion.offset + 4096);
    machine.write(0x14, 0x0046_0001);
    const { shared } = machine;
    const ring = (doorbell: number, value: number): void => {
      if (shared === undefined) machine.write(0x1000 + doorbell * 4, value);
      else Atomics.store(shared.words, doorbell * 16, value);
    };
    writeCommand(machine.memory.data, submission.offset, 7, { opcode: EVENT_REQUEST });
    writeCommand(machine.memory.data, submission.offset + 64, 8, { opcode: KEEP_ALIVE });
    ring(0, 2);
    await untilCompleted(machine, completion.offset, 1);
    ring(0, 500);
    if (shared !== undefined) machine.device.sharedWritten(0, 0x1000, 4);
    await settle();
    t.is(completed(machine, completion.offset), 1, "there is no place");
    ring(1, 1);
    await untilCompleted(machine, completion.offset, 2);
    t.is(machine.memory.data.getUint32(completion.offset + 16, true), 0x0001_0100);
  });
}

test("an event that comes before its request waits for it", async (t) => {
  const { machine, driver } = await bringUp(t);
  machine.write(0x1000 + 8 * 40, 1);
  t.like(await driver.admin({ opcode: EVENT_REQUEST }), { status: 0, result: 0x0001_0000 });
});
