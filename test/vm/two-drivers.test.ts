/** Two driver VMs, each with a disk from the same device VM: one bridge, two sessions, two device processes. */
import anyTest, { type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, disk, exerciseDisk, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Product } from "./product.js";

const MiB = 2 ** 20;
const DISK_MIB = 48;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB, disks: 2 });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

const serial = (vm: Vm) => vm.check("cat /sys/class/nvme/nvme0/serial", COMMAND_MS);

test.serial("both work at once, and what happens to one is nothing to the other", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const { deviceVm, bridge } = product;
  const [first, second] = await Promise.all([0, 1].map((n) => product.driverVm(t, { name: `driver VM ${n}` }, n)));
  for (const vm of [first, second]) t.is(await waitForDisk(vm), DISK_MIB * MiB);
  t.not(await serial(first), await serial(second));
  const [one, other] = await Promise.all([exerciseDisk(first, 4), exerciseDisk(second, 4)]);
  t.not(one, other);
  product.assertHealthy(t);

  // One driver VM dies in the middle of writing, while the other writes.
  const endless = "while dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=700 oflag=direct 2>/dev/null; do :; done &";
  await first.check(`${endless} sleep 0.5`, COMMAND_MS);
  const working = exerciseDisk(second, 4);
  await first.kill();
  t.regex(await working, /^[0-9a-f]{64}$/);

  // One device process dies, while the other's disk is written.
  const stillWorking = exerciseDisk(second, 2);
  await stopNvme(deviceVm, "KILL", disk(0));
  t.regex(await stillWorking, /^[0-9a-f]{64}$/);
  await startNvme(deviceVm, DISK_MIB, "", disk(0));
  const next = await product.driverVm(t, { name: "driver VM 0" }, 0);
  t.is(await waitForDisk(next), DISK_MIB * MiB);
  const both = await Promise.all([exerciseDisk(next, 2), exerciseDisk(second, 2)]);
  t.not(both[0], both[1]);
  t.true(bridge.alive);
});
