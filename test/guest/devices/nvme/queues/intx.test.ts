/**
 * A driver VM that has neither MSI-X nor MSI: INTA# is a level, up as long as entries of completion queues were not
 * taken.
 */
import test, { type ExecutionContext } from "ava";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import type { QueuePair } from "../../../../../scripts/drivers/nvme-queue.js";
import type { Machine } from "../machine.js";
import { bringUp, disable, enable, powerOn, scratch, settle } from "../setup.js";

const [INTMS, INTMC] = [0x0c, 0x10];
const CQ0_HEAD = 0x1004;
const DOORBELL_BUFFER_CONFIG = 1 << 8;
const INVALID_OPCODE = 0x001;
const KEEP_ALIVE = { opcode: 0x18 };

async function pinMachine(t: ExecutionContext): Promise<{ machine: Machine; admin: QueuePair }> {
  const { machine } = await powerOn(t);
  machine.interrupts.byPin = true;
  return { machine, admin: enable(machine) };
}

test("up with an entry, down when the driver has taken all of them", async (t) => {
  const { machine, admin } = await pinMachine(t);
  const { interrupts } = machine;
  t.false(interrupts.asserted);
  void admin.submit(KEEP_ALIVE);
  void admin.submit(KEEP_ALIVE);
  await settle();
  t.true(interrupts.asserted);
  machine.write(CQ0_HEAD, 1);
  t.true(interrupts.asserted, "one entry is left");
  machine.write(CQ0_HEAD, 2);
  t.false(interrupts.asserted);
  void admin.submit(KEEP_ALIVE);
  await settle();
  t.true(interrupts.asserted, "and up again");
});

test("INTMS takes it down and INTMC up again, as long as an entry is there", async (t) => {
  const { machine, admin } = await pinMachine(t);
  const { interrupts } = machine;
  void admin.submit(KEEP_ALIVE);
  await settle();
  machine.write(INTMS, 1);
  t.false(interrupts.asserted);
  machine.write(INTMC, 1);
  await settle();
  t.true(interrupts.asserted);
  machine.write(INTMS, 1);
  machine.write(CQ0_HEAD, 1);
  machine.write(INTMC, 1);
  await settle();
  t.false(interrupts.asserted, "nothing is left to tell");
  machine.write(INTMS, 1);
  void admin.submit(KEEP_ALIVE);
  await settle();
  t.false(interrupts.asserted);
  machine.write(INTMC, 1);
  await settle();
  t.true(interrupts.asserted, "what came while it was masked");
});

test("a controller reset, a reset of the function and the end of a queue take it down", async (t) => {
  const { machine, admin } = await pinMachine(t);
  const { interrupts } = machine;
  void admin.submit(KEEP_ALIVE);
  await settle();
  t.true(interrupts.asserted);
  await disable(machine);
  t.false(interrupts.asserted);
  void enable(machine).submit(KEEP_ALIVE);
  await settle();
  t.true(interrupts.asserted);
  await machine.reset();
  t.false(interrupts.asserted);
});

test("a driver works by it, and is not offered doorbells that would spare it the registers", async (t) => {
  const { machine } = await powerOn(t);
  machine.interrupts.byPin = true;
  const driver = await NvmeDriver.open(machine, { shadowDoorbells: true });
  t.is(driver.oacs & DOORBELL_BUFFER_CONFIG, 0);
  const status = (await driver.admin({ opcode: 0x7c, prp1: scratch(machine).address })).status;
  t.is(status & 0x7ff, INVALID_OPCODE);
  const bytes = new Uint8Array(4096).fill(9);
  const target = new Uint8Array(4096);
  for (let n = 0; n < 20; n++) {
    await driver.write(n * 8, bytes);
    await driver.read(n * 8, target);
  }
  t.deepEqual(target, bytes);
  t.false(machine.interrupts.asserted);
});

test("the same with doorbells that the driver VM's VMM may map", async (t) => {
  const { machine, driver } = await bringUp(t, { doorbells: "shared" });
  machine.interrupts.byPin = true;
  const before = machine.interrupts.count;
  await driver.write(0, new Uint8Array(512).fill(1));
  t.true(machine.interrupts.count > before);
  while (machine.interrupts.asserted) await settle();
  t.pass("it is down once the head is seen");
});
