/** The disk under the nvme drivers of three kernels: Debian 12's, Debian 13's, and the newest of its backports. */
import anyTest, { type TestFn } from "ava";
import { type Extras, prepareExtras } from "../vm/environment.js";
import { extraDriverVmBase } from "../vm/initramfs.js";
import { Product } from "../vm/product.js";
import { COMMAND_MS, exerciseDisk, nvmeInterrupts, waitForDisk } from "../vm/two-vms.js";

const MiB = 2 ** 20;
const DISK_MIB = 64;

const test = anyTest as TestFn<{ product: Product; extras: Extras }>;

test.before(async (t) => {
  t.timeout(30 * 60_000);
  t.context.extras = await prepareExtras();
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

for (const [suite, version] of [
  ["bookworm", /^6\.1\./],
  ["trixie", /^6\.12\./],
  ["trixie-backports", /^(6\.1[3-9]|[7-9]|\d\d)\./],
] as const) {
  test.serial(`the kernel of Debian ${suite}`, async (t) => {
    t.timeout(15 * 60_000);
    const { product, extras } = t.context;
    const kernel = extras.kernels.find((known) => known.suite === suite);
    if (kernel === undefined) throw new Error(`no kernel of ${suite} was set up`);
    const base = await extraDriverVmBase(product.environment, extras, kernel);
    const vm = await product.driverVm(t, { kernel, base, memoryMiB: 768, cpus: 2 });
    const release = await vm.check("uname -r", COMMAND_MS);
    t.is(release, kernel.version);
    t.regex(release, version);
    t.log(release);
    t.is(await waitForDisk(vm), DISK_MIB * MiB);
    t.regex(await exerciseDisk(vm, 16), /^[0-9a-f]{64}$/);
    t.true((await nvmeInterrupts(vm)) > 0);
    t.is(await vm.check("dmesg | grep -i nvme | grep -iE 'error|fail|timeout|quirk|invalid' || true", COMMAND_MS), "");
    product.assertHealthy(t);
  });
}
