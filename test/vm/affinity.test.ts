/**
 * Interrupts whose vectors are bound anew all the time: Linux masks a vector while it moves it to another CPU, and QEMU
 * then binds it again. A completion whose interrupt is lost waits for the driver's time-out of 30 s, which the kernel's
 * log would tell.
 */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, nvmeInterrupts, waitForDisk } from "../../scripts/vm/two-vms.js";
import { moveVectors } from "./affinity.js";
import { kernelLog } from "./kernel-log.js";
import { startLocalDevice } from "./local-device.js";
import { Product } from "./product.js";

const DISK_MIB = 16;
const CPUS = 2;
const IO_MS = 5 * 60_000;
/** Each of them waits for the one before: a lost interrupt is a stall. */
const BLOCKS = 1000;

async function readAndWrite(t: ExecutionContext, vm: Vm): Promise<void> {
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  await vm.check("dd if=/dev/urandom of=/tmp/data bs=4k count=1000 2>/dev/null", COMMAND_MS);
  const before = await nvmeInterrupts(vm);
  const endOfMoves = await moveVectors(vm);
  const write = `dd if=/tmp/data of=/dev/nvme0n1 bs=4k count=${BLOCKS} oflag=direct 2>/dev/null`;
  const read = `dd if=/dev/nvme0n1 bs=4k count=${BLOCKS} iflag=direct 2>/dev/null`;
  for (let round = 0; round < 2; round++) await vm.check(`${write} && ${read} | cmp - /tmp/data`, IO_MS);
  const moves = await endOfMoves();
  t.log(`${moves} times moved, ${(await nvmeInterrupts(vm)) - before} interrupts`);
  t.true(moves > 100, `${moves}`);
  t.true((await nvmeInterrupts(vm)) - before > BLOCKS);
  t.notRegex(await kernelLog(vm), /I\/O error|timeout|completion polled/);
}

test.serial("local link: no completion waits while every vector's affinity changes", async (t) => {
  t.timeout(20 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-affinity-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, DISK_MIB * 2 ** 20);
  const { vm, stop } = await startLocalDevice(await createNvme({ files: [file] }), directory, { cpus: CPUS });
  t.teardown(stop);
  await readAndWrite(t, vm);
});

test.serial("two VMs: no completion waits while every vector's affinity changes", async (t) => {
  t.timeout(20 * 60_000);
  const product = await Product.start({ diskMiB: DISK_MIB });
  t.teardown(() => product.stop());
  await readAndWrite(t, await product.driverVm(t, { cpus: CPUS }));
  product.assertHealthy(t);
});
