/**
 * ext4 and xfs on the disk: made, filled by several writers, checked, and read again by a kernel that has nothing of it
 * in memory.
 */
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS, diskBlocks } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

/** xfs wants more than 300 MiB, and 1 GiB before it aligns what it writes to the disk's optimal size. */
const DISK_MIB = 1024;
const WRITERS = 4;
/** Of each writer's larger file in the end, and of what is read of the empty disk. */
const FILE_BYTES = 3_000_001;
const READ_BYTES = 32 * 2 ** 20;
/** What writes, reads or checks all of it; the device VM's disk, and so its speed, is the machine's. */
const FILES_MS = 10 * 60_000;
/** A file system writes of its own, too. */
const METADATA_BLOCKS = 2048;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

const WRITE = `
cd /mnt
write() {
  mkdir -p $1/small && dd if=/dev/urandom of=$1/large bs=1M count=8
  for n in $(seq 100); do head -c $((n * 100)) /dev/urandom >$1/small/$n; done
  rm -r $1/small/*5 && mv $1/small/1 $1/moved && ln $1/large $1/linked && truncate -s ${FILE_BYTES} $1/linked
}
for n in $(seq ${WRITERS}); do write $n 2>/dev/null & done
wait
`;
const SUMS =
  "cd /mnt && find . -type f | sort | xargs sha256sum >/tmp/sums && wc -l </tmp/sums && sha256sum </tmp/sums";

for (const [name, make, check] of [
  ["ext4", "mkfs.ext4 -q -F /dev/nvme0n1 2>&1", "e2fsck -fn /dev/nvme0n1"],
  ["xfs", "mkfs.xfs -q -f /dev/nvme0n1 2>&1", "xfs_repair -n /dev/nvme0n1 2>&1"],
] as const) {
  test.serial(name, async (t) => {
    const { product } = t.context;
    const { vm } = await driverVmOf(t);
    t.timeout(30 * 60_000);
    const mount = `mkdir -p /mnt && mount -t ${name} /dev/nvme0n1 /mnt`;
    t.is(await vm.check(make, FILES_MS), "", "it warns of something");
    await vm.check(mount, COMMAND_MS);
    await vm.check(WRITE, FILES_MS);
    const sums = await vm.check(SUMS, FILES_MS);
    t.regex(sums, new RegExp(`^${WRITERS * 92}\\n`));
    await vm.check("umount /mnt", FILES_MS);
    await vm.check(check, FILES_MS);
    await vm.check(`echo 3 >/proc/sys/vm/drop_caches && ${mount}`, COMMAND_MS);
    t.is(await vm.check(SUMS, FILES_MS), sums);

    // What a file system frees goes back to the file behind it.
    const full = await diskBlocks(product.deviceVm);
    await vm.check(`rm -r /mnt/1 /mnt/2 && umount /mnt && ${mount} && fstrim /mnt && umount /mnt`, FILES_MS);
    const trimmed = await diskBlocks(product.deviceVm);
    t.log(`${full} blocks, ${trimmed} after fstrim`);
    t.true(trimmed <= full - (2 * FILE_BYTES) / 512 + METADATA_BLOCKS);
    await vm.kill();

    const next = (await driverVmOf(t)).vm;
    await next.check(`${check} && ${mount}`, FILES_MS);
    await next.check("cd /mnt && [ -d 3 ] && [ ! -e 2 ] && cd / && umount /mnt", COMMAND_MS);
    await next.check("blkdiscard /dev/nvme0n1", FILES_MS);
    t.is(await diskBlocks(product.deviceVm), 0);
    t.is(await next.check(`head -c ${READ_BYTES} /dev/nvme0n1 | tr -d '\\0' | wc -c`, FILES_MS), "0");
    t.notRegex(await kernelLog(next), /I\/O error|nvme.*(error|timeout|abort)/i);
    product.assertHealthy(t);
  });
}
