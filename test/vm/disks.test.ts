/** Disks as Linux sees them: one that may not be written, a block device with large sectors, and names that stay. */
import anyTest, { type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, disk, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Product } from "./product.js";

const MiB = 2 ** 20;
const FILE_MIB = 16;
const DRIVE_MIB = 32;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const product = await Product.start({ diskMiB: FILE_MIB, drive: { sizeMiB: DRIVE_MIB, sector: 4096 } });
  t.context.product = product;
  const { deviceVm } = product;
  await stopNvme(deviceVm);
  const { file } = disk(0);
  await deviceVm.check(`printf kept | dd of=${file} conv=notrunc 2>/dev/null; chmod 444 ${file}`, COMMAND_MS);
  await startNvme(deviceVm, FILE_MIB, "--file /dev/vda");
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

/** The kernel's names of both disks, which it gives in the order in which its scan comes to an end. */
async function names(vm: Vm): Promise<{ readOnly: string; drive: string }> {
  await waitForDisk(vm);
  await vm.check("until [ -b /dev/nvme0n2 ]; do sleep 0.1; done", COMMAND_MS);
  const name = (nsid: number) => vm.check(`cd /sys/block && grep -lx ${nsid} nvme0n*/nsid | cut -d / -f 1`, COMMAND_MS);
  return { readOnly: await name(1), drive: await name(2) };
}

const wwid = (vm: Vm, name: string) => vm.check(`cat /sys/block/${name}/wwid`, COMMAND_MS);

test.serial(
  "a file that nobody may write is a read-only disk, a device with sectors of 4096 bytes has such blocks",
  async (t) => {
    t.timeout(10 * 60_000);
    const { product } = t.context;
    const vm = await product.driverVm(t);
    const { readOnly, drive } = await names(vm);
    const read = (file: string) => vm.check(`cat /sys/block/${file}`, COMMAND_MS);

    t.is(await read(`${readOnly}/ro`), "1");
    t.is(await vm.check(`head -c 4 /dev/${readOnly}`, COMMAND_MS), "kept");
    t.not((await vm.run(`dd if=/dev/zero of=/dev/${readOnly} bs=4k count=1 oflag=direct 2>&1`, COMMAND_MS)).status, 0);
    const forced = await vm.run("nvme write-zeroes /dev/nvme0 -n 1 -s 0 -c 0 2>&1", COMMAND_MS);
    t.not(forced.status, 0);
    t.is(await vm.check(`nvme id-ns /dev/nvme0 -n 1 -o json | grep -o '"nsattr":1'`, COMMAND_MS), '"nsattr":1');

    t.is(await read(`${drive}/ro`), "0");
    t.is(await read(`${drive}/queue/logical_block_size`), "4096");
    t.is(Number(await read(`${drive}/size`)) * 512, DRIVE_MIB * MiB);
    const place = "bs=4096 seek=5 count=3 oflag=direct";
    await vm.check(
      `tr '\\0' x </dev/zero | head -c 12288 >/tmp/x; dd if=/tmp/x of=/dev/${drive} ${place} 2>/dev/null`,
      COMMAND_MS,
    );
    await vm.check(`nvme write-zeroes /dev/${drive} -s 6 -c 0 && nvme dsm /dev/${drive} -d -s 100 -b 1`, COMMAND_MS);
    t.is(await vm.check(`head -c 40960 /dev/${drive} | tr -d '\\0' | wc -c`, COMMAND_MS), "8192");
    await vm.check(`mkdir -p /mnt && mkfs.ext4 -q /dev/${drive} && mount -t ext4 /dev/${drive} /mnt`, COMMAND_MS);
    await vm.check("cp /tmp/x /mnt/x && umount /mnt", COMMAND_MS);
    product.assertHealthy(t);
  },
);

test.serial("the names of both disks are the same at the next start of either side", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const first = await product.driverVm(t);
  const before = await names(first);
  const expected = [await wwid(first, before.readOnly), await wwid(first, before.drive)];
  t.not(expected[0], expected[1]);
  await first.kill();
  await stopNvme(product.deviceVm);
  await startNvme(product.deviceVm, FILE_MIB, "--file /dev/vda");
  const second = await product.driverVm(t);
  const after = await names(second);
  t.deepEqual([await wwid(second, after.readOnly), await wwid(second, after.drive)], expected);
});
