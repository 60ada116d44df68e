/** Registers and Identify, byte for byte, and the ways from enabled to disabled and back. */
import test from "ava";
import { NvmeDriver } from "../../../../scripts/drivers/nvme.js";
import { QueuePair } from "../../../../scripts/drivers/nvme-queue.js";
import { MEMORY_ADDRESS } from "./machine.js";
import { bringUp, powerOn, scratch, settle } from "./setup.js";

const CC = 0x14;
const CSTS = 0x1c;
const AQA = 0x24;
const ENABLE = 0x0046_0001;

test("the registers after power-on are those of the data sheet", async (t) => {
  const { machine } = await powerOn(t);
  const expected: Record<number, number> = {
    0: 0x3c0103ff, // CAP: TO 30 s, CQR, MQES 1023
    4: 0x00400030, // MPSMAX 4, CSS: NVM, NSSRS
    8: 0x00010400, // VS 1.4.0
  };
  for (let offset = 0; offset < 0x1000; offset += 4) t.is(machine.read(offset), expected[offset] ?? 0, `at ${offset}`);
  t.is(machine.read(0, 1), 0xff);
  t.is(machine.read(2, 2), 0x3c01);
});

test("PCI identity: class, 64-bit BAR 0, a vector for each queue", async (t) => {
  const { machine } = await powerOn(t, { queues: 5 });
  const { identity } = machine.device;
  t.is(identity.classCode, 0x010802);
  t.deepEqual(identity.bars, { 0: { size: 0x4000, is64Bit: true } });
  t.deepEqual(identity.msix, { vectors: 6, bar: 0, offset: 0x2000 });
  t.true(identity.intx, "for drivers without messages");
  t.deepEqual(identity.capabilities?.msi, { vectors: 4 });
});

test("there are at most 32 MSI vectors, which more queues share", async (t) => {
  const { machine } = await powerOn(t, { queues: 40 });
  t.deepEqual(machine.device.identity.capabilities?.msi, { vectors: 32 });
});

test("writable bits of the registers", async (t) => {
  const { machine } = await powerOn(t);
  for (const [offset, mask] of [
    [0x00, 0x3c0103ff],
    [0x08, 0x00010400],
    [CSTS, 0],
    [AQA, 0x0fff0fff],
    [0x28, 0xfffff000],
    [0x2c, 0xffffffff],
    [0x30, 0xfffff000],
    [0x34, 0xffffffff],
    [0x38, 0],
  ]) {
    machine.write(offset, 0xffffffff);
    t.is(machine.read(offset), mask, `at ${offset}`);
  }
  machine.write(CC, 0xfffffffe & ~0xc000);
  t.is(machine.read(CC), 0x00ff3ff0);
  // Odd-sized writes change their bytes alone.
  machine.write(0x2a, 0x1234, 2);
  t.is(machine.read(0x28), 0x1234f000);
  machine.write(0x29, 0x5f, 1);
  t.is(machine.read(0x28), 0x12345000);
});

test("INTMS and INTMC set and clear bits of one mask", async (t) => {
  const { machine } = await powerOn(t);
  machine.write(0x0c, 0x8000_0003);
  t.is(machine.read(0x0c), 0x8000_0003);
  t.is(machine.read(0x10), 0x8000_0003);
  machine.write(0x10, 0x8000_0001);
  t.is(machine.read(0x0c), 2);
});

test("Identify Controller, byte for byte", async (t) => {
  const { driver } = await bringUp(t, { serial: "SERIAL", model: "A model", vendorId: 0x1234, deviceId: 0x5678 });
  const bytes = Buffer.from(await driver.adminRead({ opcode: 6, dwords: [1] }, 4096));
  const expected = Buffer.alloc(4096);
  expected.writeUInt16LE(0x1234, 0);
  expected.writeUInt16LE(0x1234, 2);
  expected.write("SERIAL              ", 4, "ascii");
  expected.write("A model".padEnd(40), 24, "ascii");
  expected.write("1.0     ", 64, "ascii");
  expected[77] = 8; // MDTS
  expected.writeUInt32LE(0x10400, 80);
  expected.writeUInt32LE(60_000_000, 88); // RTD3E
  expected.writeUInt32LE(0x100, 92); // OAES
  expected[111] = 1; // CNTRLTYPE
  expected.writeUInt16LE(0x102, 256); // OACS
  expected[258] = 3; // ACL
  expected[259] = 3; // AERL
  expected[260] = 3; // FRMW
  expected[261] = 6; // LPA
  expected[262] = 15; // ELPE
  expected.writeUInt16LE(343, 266);
  expected.writeUInt16LE(353, 268);
  expected.writeUInt32LE(1024 * 1024, 280); // TNVMCAP
  expected.writeUInt16LE(1, 320); // KAS
  expected[512] = 0x66;
  expected[513] = 0x44;
  expected.writeUInt32LE(1, 516); // NN
  expected.writeUInt16LE(0x1dd, 520); // ONCS
  expected.writeUInt16LE(1, 522); // FUSES: Compare and Write
  expected[525] = 7; // VWC
  expected.writeUInt16LE(255, 532); // ACWU: 1 MiB
  expected.writeUInt16LE(1, 534); // OCFS
  expected.writeUInt32LE(2, 536); // SGLS: in dwords
  const nqn = bytes.toString("ascii", 768, 768 + 68);
  t.regex(
    nqn,
    /^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
  );
  expected.write(nqn, 768, "ascii");
  t.deepEqual(bytes, expected);
});

test("Identify Namespace, lists and descriptors, byte for byte", async (t) => {
  const { driver } = await bringUp(t, { size: 3 * 1024 * 1024, blockSize: 4096 });
  const namespace = Buffer.from(await driver.adminRead({ opcode: 6, namespaceId: 1, dwords: [0] }, 4096));
  const expected = Buffer.alloc(4096);
  for (const offset of [0, 8, 16]) expected.writeUInt32LE(768, offset);
  expected[24] = 0x11; // NSFEAT
  expected[25] = 1; // NLBAF
  expected[26] = 1; // FLBAS
  expected[33] = 9; // DLFEAT
  expected.writeUInt32LE(3 * 1024 * 1024, 48);
  expected.writeUInt16LE(64, 74); // MSSRL
  expected.writeUInt32LE(64, 76); // MCL
  expected[80] = 127; // MSRC
  expected.set([0, 0, 9, 1, 0, 0, 12, 0], 128);
  const [nguid, eui64] = [namespace.subarray(104, 120), namespace.subarray(120, 128)];
  expected.set(namespace.subarray(104, 128), 104);
  t.deepEqual(namespace, expected);
  t.is(nguid[8] & 0x03, 0x02, "locally administered");
  t.is(eui64[0] & 0x03, 0x02);

  const list = Buffer.from(await driver.adminRead({ opcode: 6, dwords: [2] }, 4096));
  t.is(list.readUInt32LE(0), 1);
  t.true(list.subarray(4).every((byte) => byte === 0));
  const rest = await driver.adminRead({ opcode: 6, namespaceId: 1, dwords: [2] }, 4096);
  t.true(rest.every((byte) => byte === 0));

  const descriptors = Buffer.from(await driver.adminRead({ opcode: 6, namespaceId: 1, dwords: [3] }, 4096));
  t.deepEqual(descriptors.subarray(0, 12), Buffer.from([1, 8, 0, 0, ...eui64]));
  t.deepEqual(descriptors.subarray(12, 32), Buffer.from([2, 16, 0, 0, ...nguid]));
  t.deepEqual([...descriptors.subarray(32, 36)], [3, 16, 0, 0]);
  t.is(descriptors[36 + 6] >> 4, 8);
  t.true(descriptors.subarray(52).every((byte) => byte === 0));
});

test("two disks are told apart by their serial numbers, and one stays the same", async (t) => {
  const identify = async (serial: string): Promise<string[]> => {
    const { driver } = await bringUp(t, { serial });
    const controller = Buffer.from(await driver.adminRead({ opcode: 6, dwords: [1] }, 4096));
    const descriptor = Buffer.from(await driver.adminRead({ opcode: 6, namespaceId: 1, dwords: [3] }, 4096));
    return [controller.toString("ascii", 768, 836), descriptor.toString("hex", 4, 20)];
  };
  const [nqn, uuid] = await identify("A");
  const [otherNqn, otherUuid] = await identify("B");
  t.not(nqn, otherNqn);
  t.not(uuid, otherUuid);
  t.deepEqual(await identify("A"), [nqn, uuid]);
});

test("enable and disable: RDY follows EN, and queue registers stay", async (t) => {
  const { machine } = await powerOn(t);
  machine.write(AQA, 0x000f_000f);
  machine.write(0x28, MEMORY_ADDRESS % 2 ** 32);
  machine.write(0x2c, 1);
  machine.write(0x30, (MEMORY_ADDRESS + 0x1000) % 2 ** 32);
  machine.write(0x34, 1);
  t.is(machine.read(CSTS), 0);
  machine.write(CC, ENABLE);
  t.is(machine.read(CSTS), 1);
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 0);
  t.is(machine.read(AQA), 0x000f_000f);
  machine.write(CC, ENABLE);
  t.is(machine.read(CSTS), 1);
  await machine.reset();
  t.is(machine.read(CSTS), 0);
  t.is(machine.read(CC), 0);
  t.is(machine.read(AQA), 0);
});

for (const { name, cc = ENABLE, aqa = 0x000f_000f, asq = MEMORY_ADDRESS, acq = MEMORY_ADDRESS + 0x1000 } of [
  { name: "ACQ is not aligned to the memory page size", cc: ENABLE | (1 << 7), acq: MEMORY_ADDRESS + 0x1000 },
  {
    name: "ASQ is not aligned to the memory page size",
    cc: ENABLE | (1 << 7),
    asq: MEMORY_ADDRESS + 0x1000,
    acq: 0x2000,
  },
  { name: "ASQ is above 2^53", asq: 2 ** 60 },
  { name: "an admin submission queue of one entry", aqa: 0x000f_0000 },
  { name: "an admin completion queue of one entry", aqa: 0x0000_000f },
  { name: "CC.MPS above CAP.MPSMAX", cc: ENABLE | (5 << 7), asq: 2 ** 40, acq: 2 ** 40 },
  { name: "a command set that is not there", cc: ENABLE | (6 << 4) },
  { name: "an arbitration that is not there", cc: ENABLE | (1 << 11) },
]) {
  test(`enabling fails with CSTS.CFS: ${name}`, async (t) => {
    const { machine } = await powerOn(t);
    machine.write(AQA, aqa);
    machine.write(0x28, asq % 2 ** 32);
    machine.write(0x2c, Math.floor(asq / 2 ** 32));
    machine.write(0x30, acq % 2 ** 32);
    machine.write(0x34, Math.floor(acq / 2 ** 32));
    machine.write(CC, cc);
    t.is(machine.read(CSTS), 2);
    machine.write(CC, 0);
    t.is(machine.read(CSTS), 0);
    await t.notThrowsAsync(NvmeDriver.open(machine), "a proper set-up works afterwards");
  });
}

test("an admin queue in memory that is not mapped is fatal when it is used", async (t) => {
  const { machine } = await powerOn(t);
  machine.write(AQA, 0x000f_000f);
  machine.write(0x28, 0x1000);
  machine.write(0x30, 0x2000);
  machine.write(CC, ENABLE);
  t.is(machine.read(CSTS), 1);
  machine.write(0x1000, 1);
  await settle();
  t.is(machine.read(CSTS), 3);
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 0);
  await NvmeDriver.open(machine);
});

test("a completion queue that goes away is fatal, and a reset heals it", async (t) => {
  const { machine, driver } = await bringUp(t);
  const { maps } = machine.dma;
  machine.dma.maps = [{ ...maps[0], writable: false }];
  void driver.admin({ opcode: 0x18 });
  await settle();
  t.is(machine.read(CSTS), 3);
  machine.dma.maps = maps;
  const again = await NvmeDriver.open(machine);
  await again.flush();
});

test("disabling waits for no disk: nothing of before lands, is posted or interrupts", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address } = scratch(machine);
  storage.bytes.fill(7);
  storage.hold();
  void driver.io({ opcode: 2, namespaceId: 1, prp1: address });
  await storage.whenHeld(1);
  machine.write(0x0c, 2);
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 0);
  t.is(machine.read(0x0c), 0, "INTMS");
  const { count } = machine.interrupts;
  const memory = machine.memory.bytes.slice();
  storage.release();
  await settle();
  t.is(machine.read(CSTS), 0);
  t.is(machine.interrupts.count, count);
  t.is(Buffer.compare(machine.memory.bytes, memory), 0);
  const again = await NvmeDriver.open(machine);
  await again.write(0, new Uint8Array(512));
});

test("disabling waits for DMA by messages, and enabling meanwhile takes effect when that has ended", async (t) => {
  const { machine, driver } = await bringUp(t);
  machine.leaveWindow();
  let open = (): void => {};
  machine.dma.gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  void driver.io({ opcode: 2, namespaceId: 1, prp1: scratch(machine).address });
  await settle();
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 1, "RDY stays while the driver VM may still get bytes");
  machine.write(CC, ENABLE);
  t.is(machine.read(CSTS), 1);
  t.is(machine.queueCount, 0);
  open();
  await settle();
  t.is(machine.read(CSTS), 1);
  t.is(machine.queueCount, 1);
});

test("a reset waits for no disk: nothing of before lands, is posted or interrupts", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  storage.hold();
  void driver.io({ opcode: 2, namespaceId: 1, prp1: scratch(machine).address });
  await storage.whenHeld(1);
  await machine.reset();
  t.is(machine.read(CSTS), 0);
  const again = await NvmeDriver.open(machine);
  const { count } = machine.interrupts;
  const memory = machine.memory.bytes.slice();
  storage.release();
  await settle();
  t.is(machine.interrupts.count, count);
  t.is(Buffer.compare(machine.memory.bytes, memory), 0);
  await again.flush();
});

test("no old write reaches the disk after a new one: enabling waits for it", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  const { address, offset } = scratch(machine);
  machine.memory.bytes.fill(1, offset, offset + 1024);
  storage.hold();
  // The second waits for the first; after the reset it is not done any more.
  for (const id of [1, 2]) void driver.io({ opcode: 1, namespaceId: 1, prp1: address, dwords: [id - 1, 0, 1] });
  await storage.whenHeld(1);
  machine.memory.bytes.fill(9, offset, offset + 1024);
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 0);
  machine.write(CC, ENABLE);
  await settle();
  t.is(machine.read(CSTS), 0);
  const opening = NvmeDriver.open(machine);
  storage.release();
  await (await opening).write(0, new Uint8Array(512).fill(2));
  t.is(storage.bytes[0], 2);
  t.is(storage.bytes[512], 1, "what the driver had in its memory when it sent the command");
  t.deepEqual(storage.calls, ["write", "write"]);
});

test("a disk that hangs does not keep the controller from being enabled", async (t) => {
  const { machine, storages, driver } = await bringUp(t, { moreSizes: [1024 * 1024] });
  storages[0].hold();
  void driver.io({ opcode: 1, namespaceId: 1, prp1: scratch(machine).address });
  await storages[0].whenHeld(1);
  machine.write(CC, 0);
  machine.write(CC, ENABLE);
  while (machine.read(CSTS) === 0) await settle();
  t.is(machine.read(CSTS), 1);
});

test("shutdown notification: what was written is synced before SHST says complete", async (t) => {
  const { machine, storage, driver } = await bringUp(t);
  storage.hold();
  void driver.io({ opcode: 1, namespaceId: 1, prp1: scratch(machine).address });
  await storage.whenHeld(1);
  machine.write(CC, ENABLE | (1 << 14));
  await settle();
  t.is(machine.read(CSTS), 1 | (1 << 2), "the write is not done yet");
  storage.release();
  storage.hold();
  await storage.whenHeld(1);
  t.is(storage.calls.at(-1), "sync");
  t.is(machine.read(CSTS), 1 | (1 << 2));
  storage.release();
  await settle();
  t.is(machine.read(CSTS), 1 | (2 << 2));
  machine.write(CC, 0);
  t.is(machine.read(CSTS), 0);
});

test("a shutdown that ends after the controller was enabled again does not show", async (t) => {
  const { machine, storage } = await bringUp(t);
  storage.hold();
  machine.write(CC, ENABLE | (1 << 14));
  await storage.whenHeld(1);
  machine.write(CC, 0);
  machine.write(CC, ENABLE);
  storage.release();
  await settle();
  t.is(machine.read(CSTS), 1);
});

test("doorbells of a disabled controller do nothing", async (t) => {
  const { machine } = await powerOn(t);
  machine.write(0x1000, 1);
  machine.write(0x1004, 1);
  await settle();
  t.is(machine.read(CSTS), 0);
});

test("accesses outside of the registers read zeros and change nothing", async (t) => {
  const { machine } = await powerOn(t);
  for (const offset of [0x50, 0xffc, 0x1000, 0x1ffc, 0x2000, 0x3ffc]) {
    t.is(machine.read(offset), 0);
    t.notThrows(() => machine.write(offset, 0xffffffff));
  }
  machine.device.writeBar(1, CC, 4, 1);
  t.is(machine.read(CC), 0);
});

test("a queue pair is all it takes to talk to the admin queue", async (t) => {
  const { machine } = await powerOn(t);
  machine.write(AQA, 0x0001_0001);
  machine.write(0x28, MEMORY_ADDRESS % 2 ** 32);
  machine.write(0x2c, 1);
  machine.write(0x30, (MEMORY_ADDRESS + 0x1000) % 2 ** 32);
  machine.write(0x34, 1);
  machine.write(CC, ENABLE);
  const pair = new QueuePair(machine, 0, 2, 0, 0x1000, 0);
  for (let n = 0; n < 5; n++) {
    const sent = pair.submit({ opcode: 0x18 });
    await machine.interrupts.wait(0);
    t.is(await pair.reap(), 1);
    t.like(await sent, { status: 0, sqhd: (n + 1) % 2 });
  }
});
