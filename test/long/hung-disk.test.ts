/** fio in the driver VM while its disk hangs in the device VM, for longer than Linux waits for a command: no I/O fails, and no byte is lost. */
import { setTimeout as sleep } from "node:timers/promises";
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { goOn, hang, serveHangingDisk } from "../vm/hanging-disk.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

const DISK_MIB = 64;
const FIO_MS = 10 * 60_000;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

/** Linux waits 30 s for a command, and asks for it again up to five times. */
for (const seconds of [20, 45, 120]) {
  for (const cache of ["writeback", "none"]) {
    test.serial(`${seconds} s, --cache ${cache}`, async (t) => {
      const { deviceVm, bridge } = t.context.product;
      await serveHangingDisk(deviceVm, DISK_MIB, `--cache ${cache}`);
      const { vm } = await driverVmOf(t);
      const job =
        "--name=job --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bsrange=512-64k";
      const verify = "--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --fsync=16";
      const fio = `fio ${job} ${verify} --size=${DISK_MIB}m --time_based --runtime=${seconds + 15} >/tmp/fio.out 2>&1`;
      const written = "awk '{ print $7 }' /sys/block/nvme0n1/stat";
      await vm.check(`{ ${fio}; echo $? >/tmp/status; } & until [ $(${written}) -gt 8192 ]; do :; done`, COMMAND_MS);
      await hang(deviceVm);
      try {
        await sleep(seconds * 1000);
        await vm.check(
          "[ ! -e /tmp/status ] || { cat /tmp/status /tmp/fio.out; dmesg | grep nvme; false; }",
          COMMAND_MS,
        );
      } finally {
        await goOn(deviceVm);
      }
      const status = await vm.check("until [ -e /tmp/status ]; do sleep 1; done; cat /tmp/status", FIO_MS);
      t.is(status, "0", await vm.check("tail -n 20 /tmp/fio.out; dmesg | grep nvme", COMMAND_MS));
      t.notRegex(await vm.check("dmesg", COMMAND_MS), /Disabling device|not ready|I\/O error/);
      t.true(bridge.alive);
      await vm.stop();
    });
  }
}
