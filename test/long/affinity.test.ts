/**
 * As test/vm/affinity.test.ts, for a while and with many commands in flight: fio verifies every block that it wrote.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { waitForDisk } from "../../scripts/vm/two-vms.js";
import { movesMade, moveVectors } from "../vm/affinity.js";
import { kernelLog } from "../vm/kernel-log.js";
import { startLocalDevice } from "../vm/local-device.js";
import { driverVmChoices, driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";
import { startVerifiedIo } from "./verified-io.js";

const DISK_MIB = 64;
/** Each is a race that a lost interrupt would have to win; a busy machine takes minutes for so many. */
const MOVES = 1000;
const MOVES_MS = 10 * 60_000;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

async function verifyWhileVectorsMove(t: ExecutionContext<LongSetUp>, vm: Vm): Promise<void> {
  const endOfMoves = await moveVectors(vm);
  const io = await startVerifiedIo(vm, { sizeMiB: DISK_MIB });
  await movesMade(vm, MOVES, MOVES_MS);
  await io.end();
  const moves = await endOfMoves();
  t.log(`${moves} times moved`);
  t.true(moves > MOVES, `${moves}`);
  t.notRegex(await kernelLog(vm), /I\/O error|timeout|completion polled/);
}

test.serial("on the local link", async (t) => {
  t.timeout(20 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-affinity-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const device = await createNvme({ memory: [DISK_MIB * 2 ** 20] });
  const { vm, stop } = await startLocalDevice(device, directory, await driverVmChoices(t));
  t.teardown(stop);
  await waitForDisk(vm);
  await verifyWhileVectorsMove(t, vm);
});

test.serial("in two VMs", async (t) => {
  const { vm } = await driverVmOf(t);
  await verifyWhileVectorsMove(t, vm);
  t.context.product.assertHealthy(t);
});
