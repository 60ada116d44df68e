/** The disk under the nvme drivers of three kernels: Debian 12's, Debian 13's, and the newest of its backports. */
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS, exerciseDisk, nvmeInterrupts } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

const MiB = 2 ** 20;
const DISK_MIB = 64;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
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
    const { vm, kernelVersion, diskBytes } = await driverVmOf(t, suite);
    const release = await vm.check("uname -r", COMMAND_MS);
    t.is(release, kernelVersion);
    t.regex(release, version);
    t.log(release);
    t.is(diskBytes, DISK_MIB * MiB);
    t.regex(await exerciseDisk(vm, 16), /^[0-9a-f]{64}$/);
    t.true((await nvmeInterrupts(vm)) > 0);
    const said = (await kernelLog(vm)).split("\n").filter((line) => /nvme/i.test(line));
    t.true(said.length > 0);
    t.deepEqual(
      said.filter((line) => /error|fail|timeout|quirk|invalid/i.test(line)),
      [],
    );
    const smart = JSON.parse(await vm.check("nvme smart-log /dev/nvme0 -o json 2>&1", COMMAND_MS));
    t.is(smart.num_err_log_entries, 0, "it asked for something that is not there");
    t.context.product.assertHealthy(t);
  });
}
