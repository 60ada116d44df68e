/** Faults that an operator injects, and a disk that becomes larger, by the control socket's methods. */
import { spawnSync } from "node:child_process";
import { statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { ERRORS, Faults, OPCODES } from "../../../../guest/devices/nvme/faults.js";
import { createNvme } from "../../../../guest/devices/nvme/index.js";
import { Namespaces } from "../../../../guest/devices/nvme/storage/namespaces.js";
import type { CommandFields } from "../../../../scripts/drivers/nvme-queue.js";
import { METHODS } from "../../../../shared/control/methods.js";
import { UserError } from "../../../../shared/errors.js";
import { ServiceProcess, socketArgs } from "../../../fakes/service-process.js";
import { folder } from "../../../native/helpers.js";
import { memoryDisk, scratch } from "./setup.js";

const [FLUSH, WRITE, READ] = [0x00, 0x01, 0x02];
const MIB = 1024 * 1024;

function data(opcode: number, prp1: number, block: number, blocks = 1): CommandFields {
  return { opcode, namespaceId: 1, prp1, prp2: prp1 + 4096, dwords: [block, 0, blocks - 1] };
}

/** A disk in memory, whose commands are done at once where nothing is injected. */
async function withFaults(t: ExecutionContext) {
  const { machine, driver } = await memoryDisk(t);
  const { address } = scratch(machine);
  const { methods } = machine.device;
  return { machine, driver, address, methods };
}

test("what fits a fault fails; the rest goes on, and all of it when the fault is taken back", async (t) => {
  const { driver, address, methods } = await withFaults(t);
  const read = async (block: number, blocks = 1) => (await driver.io(data(READ, address, block, blocks))).status;
  methods.inject({ error: "unrecovered-read-error", opcode: "read", namespace: 1, first: 10, last: 19 });
  t.deepEqual([await read(9), await read(10), await read(19), await read(20)], [0, 0x281, 0x281, 0]);
  t.deepEqual([await read(5, 5), await read(5, 6), await read(15, 16), await read(20, 4)], [0, 0x281, 0x281, 0]);
  t.is((await driver.io(data(WRITE, address, 10))).status, 0);
  t.like(methods.faults({}), [{ id: 1, hits: 4 }]);
  t.deepEqual(methods["clear-faults"]({}), { cleared: 1 });
  t.is(await read(10), 0);
});

test("once is once; each error is the one that it says; the first fault that fits counts", async (t) => {
  const { driver, address, methods } = await withFaults(t);
  const write = async () => (await driver.io(data(WRITE, address, 0))).status;
  for (const [error, status] of Object.entries(ERRORS)) {
    methods.inject({ error, once: true });
    methods.inject({ error: "internal-error", opcode: "read" });
    t.is(await write(), status, error);
    t.is(await write(), 0);
    methods["clear-faults"]({});
  }
  methods.inject({ error: "write-fault", opcode: "flush" });
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0x280);
  // A flush has no blocks.
  methods["clear-faults"]({});
  methods.inject({ error: "write-fault", first: 0 });
  t.is((await driver.io({ opcode: FLUSH, namespaceId: 1 })).status, 0);
});

test("what is late is carried out then; what ended meanwhile is not", async (t) => {
  const { driver, address, methods, machine } = await withFaults(t);
  methods.inject({ delay: 50, opcode: "write", once: true });
  const { offset } = scratch(machine);
  const bytes = machine.memory.bytes.subarray(offset);
  bytes.fill(7, 0, 512);
  const late = driver.io(data(WRITE, address, 3));
  let isDone = false;
  void late.then(() => {
    isDone = true;
  });
  t.is((await driver.io(data(READ, address + 4096, 4))).status, 0, "others do not wait");
  t.false(isDone);
  t.is((await late).status, 0);
  bytes.fill(0, 0, 512);
  t.is((await driver.io(data(READ, address, 3))).status, 0);
  t.deepEqual([...bytes.subarray(0, 512)], new Array(512).fill(7));
  methods.inject({ delay: 30, error: "write-fault" });
  t.is((await driver.io(data(WRITE, address, 3))).status, 0x280);
});

test("what does nothing, or is one too many, is refused; the methods' table has the same words", (t) => {
  const faults = new Faults();
  const none = { opcode: undefined, namespace: undefined, first: undefined, last: undefined, once: false };
  const add = (fault: object) => faults.add({ ...none, error: undefined, delay: undefined, ...fault });
  t.throws(() => add({}), { instanceOf: UserError });
  t.throws(() => add({ delay: 1, first: 2, last: 1 }), { instanceOf: UserError });
  const changes: boolean[] = [];
  faults.onActive = (isActive) => changes.push(isActive);
  for (let n = 0; n < 32; n++) add({ delay: 1 });
  t.throws(() => add({ delay: 1 }), { instanceOf: UserError });
  t.is(faults.clear(3), 1);
  t.is(faults.clear(3), 0);
  t.is(faults.clear(), 31);
  t.deepEqual(changes, [true, false]);
  t.false(new Namespaces([]).faults.isActive);
  const words = (name: string) =>
    METHODS.find((each) => each.name === "inject")?.parameters.find((each) => each.name === name)?.words;
  t.deepEqual([words("opcode"), words("error")], [Object.keys(OPCODES), Object.keys(ERRORS)]);
});

test("a disk's file becomes larger, and never smaller; memory has the size that it has", async (t) => {
  const file = join(folder(t), "disk");
  writeFileSync(file, "");
  truncateSync(file, MIB);
  const controller = await createNvme({ files: [file], memory: [MIB] });
  t.teardown(() => controller.close());
  const { methods } = controller;
  t.like(methods.namespaces({}), [{ id: 1, bytes: MIB, blocks: 2048, readOnly: false }, { id: 2 }]);
  t.like(await methods["namespace-resize"]({ namespace: 1, size: 2 * MIB }), { id: 1, bytes: 2 * MIB, blocks: 4096 });
  t.is(statSync(file).size, 2 * MIB);
  for (const params of [
    { namespace: 1, size: MIB },
    { namespace: 2, size: 4 * MIB },
    { namespace: 3, size: 4 * MIB },
  ]) {
    await t.throwsAsync(async () => methods["namespace-resize"](params), { instanceOf: UserError });
  }
  t.is(statSync(file).size, 2 * MIB);
});

test("vfio-user-ctl has all of it", async (t) => {
  const directory = folder(t);
  const file = join(directory, "disk");
  writeFileSync(file, "");
  truncateSync(file, MIB);
  const main = (name: string) => fileURLToPath(new URL(`../../../../${name}`, import.meta.url));
  const [, ...sockets] = ["", ...socketArgs("device", directory), `--control-admin=${join(directory, "admin")}`];
  const device = new ServiceProcess(t, [main("guest/main.js"), "run", "nvme", `--file=${file}`, ...sockets]);
  await device.serving();
  const ctl = (...args: string[]) => {
    const all = [main("host/ctl/main.js"), `--control=${join(directory, "admin")}`, ...args];
    return spawnSync(process.execPath, all, { encoding: "utf8" });
  };
  t.regex(ctl("namespace-resize", "--namespace=1", "--size=2M").stdout, /bytes: 2097152/);
  t.regex(ctl("inject", "--delay=5", "--opcode=read", "--once").stdout, /id: 1\n/);
  t.regex(ctl("faults").stdout, /^OPCODE.*\nread/);
  t.is(ctl("inject").stderr, "vfio-user-ctl: inject: neither an error nor a delay\n");
  t.regex(ctl("clear-faults").stdout, /cleared: 1/);
});
