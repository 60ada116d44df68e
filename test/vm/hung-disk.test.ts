/**
 * A disk that hangs in the device VM: the driver VM's other disk goes on, resets are answered, and it is back when it
 * is back.
 */
import { setTimeout as sleep } from "node:timers/promises";
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS, waitForDisk } from "../../scripts/vm/two-vms.js";
import { goOn, hang, serveHangingDisk } from "./hanging-disk.js";
import { kernelLog } from "./kernel-log.js";
import { Product } from "./product.js";

const DISK_MIB = 32;
const DATA_MIB = 4;
const HANG_MS = 9_000;
const TIME_OUT_S = 4;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

for (const cache of ["writeback", "none"]) {
  test.serial(`under writes, by the page cache or past it: --cache ${cache}`, async (t) => {
    t.timeout(15 * 60_000);
    const { product } = t.context;
    const { deviceVm } = product;
    await serveHangingDisk(deviceVm, DISK_MIB, `--memory 16M --cache ${cache}`);
    const vm = await product.driverVm(t, { append: `nvme_core.io_timeout=${TIME_OUT_S}` });
    await waitForDisk(vm);
    await vm.check("until [ -b /dev/nvme0n2 ]; do sleep 0.1; done", COMMAND_MS);
    const [slow, other] = (await vm.check("cat /sys/block/nvme0n1/nsid", COMMAND_MS)) === "1" ? [1, 2] : [2, 1];
    await vm.check(`dd if=/dev/urandom of=/tmp/data bs=1M count=${DATA_MIB} 2>/dev/null`, COMMAND_MS);
    // Each piece is flushed before the next.
    const flags = "bs=4k count=4 skip=$n seek=$n oflag=direct conv=fsync";
    const piece = `dd if=/tmp/data of=/dev/nvme0n${slow} ${flags} 2>/tmp/said`;
    const all = `for n in $(seq 0 4 ${DATA_MIB * 256 - 4}); do ${piece} || exit 1; done`;
    const write = `until [ -e /tmp/enough ]; do ${all}; done`;
    const half = `[ $(awk '{ print $7 }' /sys/block/nvme0n${slow}/stat) -gt ${DATA_MIB * 1024} ]`;
    await vm.check(
      `{ (${write}); echo $? >/tmp/status; } & until ${half} || [ -e /tmp/status ]; do :; done`,
      COMMAND_MS,
    );
    await hang(deviceVm);
    const until = performance.now() + HANG_MS;
    try {
      const exercise = `dd if=/tmp/data of=/dev/nvme0n${other} bs=64k oflag=direct conv=fsync 2>/dev/null`;
      const read = `dd if=/dev/nvme0n${other} bs=64k count=${DATA_MIB * 16} iflag=direct 2>/dev/null | cmp - /tmp/data`;
      await vm.check(`${exercise} && ${read}`, COMMAND_MS);
      await vm.check("nvme id-ctrl /dev/nvme0 >/dev/null", COMMAND_MS);
      await vm.check("until dmesg | grep -q 'nvme.*timeout'; do sleep 0.1; done", COMMAND_MS);
      await vm.check("echo 1 >/sys/class/nvme/nvme0/reset_controller", COMMAND_MS);
      await vm.check(`${exercise} && ${read}`, COMMAND_MS);
      await vm.check("[ ! -e /tmp/status ]", COMMAND_MS);
      await sleep(Math.max(0, until - performance.now()));
    } finally {
      await goOn(deviceVm);
    }
    const status = await vm.check(
      "touch /tmp/enough; until [ -e /tmp/status ]; do sleep 0.1; done; cat /tmp/status",
      COMMAND_MS,
    );
    t.is(status, "0", await vm.check("cat /tmp/said; dmesg | grep nvme", COMMAND_MS));
    const back = `dd if=/dev/nvme0n${slow} bs=1M count=${DATA_MIB} iflag=direct 2>/dev/null | cmp - /tmp/data`;
    await vm.check(back, COMMAND_MS);
    t.notRegex(await kernelLog(vm), /Disabling device|not ready|I\/O error/);
    t.true(product.bridge.alive);
    await vm.stop();
  });
}
