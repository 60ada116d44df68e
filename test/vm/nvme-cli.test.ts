/**
 * nvme-cli in the driver VM: what it prints is what is served, what it tells the disk to do is done, and it complains
 * of nothing.
 */
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, diskBlocks, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { Product } from "./product.js";

const MiB = 2 ** 20;
const DISK_MIB = 64;
const MEMORY_MIB = 16;
const SERIAL = "REAL-USE-0001";
const MODEL = "A disk from another VM";
const QUEUES = 5;
/** SMART's data units: a thousand times 512 bytes, rounded up. */
const UNIT = 512_000;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const product = await Product.start({ diskMiB: DISK_MIB });
  t.context.product = product;
  await stopNvme(product.deviceVm);
  const options = `--serial ${SERIAL} --model '${MODEL}' --queues ${QUEUES} --memory ${MEMORY_MIB}M`;
  await startNvme(product.deviceVm, DISK_MIB, options);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

async function vmWithDisks(t: ExecutionContext<{ product: Product }>): Promise<Vm> {
  t.timeout(10 * 60_000);
  // To look at registers, nvme-cli maps a BAR that the kernel's driver has.
  const vm = await t.context.product.driverVm(t, { append: "iomem=relaxed", cpus: 2 });
  await waitForDisk(vm);
  await vm.check("until [ -b /dev/nvme0n2 ]; do sleep 0.1; done", COMMAND_MS);
  return vm;
}

/** The output of an nvme command. A complaint beside it makes it no JSON. */
async function nvme(vm: Vm, command: string): Promise<Record<string, unknown>> {
  return JSON.parse(await vm.check(`nvme ${command} -o json 2>&1`, COMMAND_MS));
}

/** The kernel's name of a namespace: it numbers disks in the order in which its scan came to an end. */
async function diskOf(vm: Vm, nsid: number): Promise<string> {
  return await vm.check(`cd /sys/block && grep -lx ${nsid} nvme0n*/nsid | cut -d / -f 1`, COMMAND_MS);
}

test.serial("list, id-ctrl, id-ns, ns-descs, list-ns and show-regs print what is served", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisks(t);
  const disk = await diskOf(vm, 1);
  t.like(await nvme(vm, "smart-log /dev/nvme0"), { num_err_log_entries: 0 }, "Linux asked for something in vain");
  await vm.check(`dd if=/dev/urandom of=/dev/${disk} bs=1M count=8 conv=fsync 2>/dev/null`, COMMAND_MS);
  const listed = (await nvme(vm, "list")).Devices as Record<string, unknown>[];
  const common = { ModelNumber: MODEL, SerialNumber: SERIAL, Firmware: "1.0", SectorSize: 512 };
  const sizes = [DISK_MIB, MEMORY_MIB].map((MiBs) => ({ PhysicalSize: MiBs * MiB, MaximumLBA: MiBs * 2048 }));
  const sorted = listed.toSorted((a, b) => Number(a.NameSpace) - Number(b.NameSpace));
  t.like(sorted, [
    { ...common, ...sizes[0], NameSpace: 1, UsedBytes: (await diskBlocks(product.deviceVm)) * 512 },
    // Memory that is looked at takes space, too, so how much is not foretold.
    { ...common, ...sizes[1], NameSpace: 2 },
  ]);

  const controller = await nvme(vm, "id-ctrl /dev/nvme0");
  t.is(String(controller.sn).trim(), SERIAL);
  t.is(String(controller.mn).trim(), MODEL);
  t.is(String(controller.fr).trim(), "1.0");
  t.like(controller, { vid: 0xfff0, ssvid: 0xfff0, ver: 0x10400, nn: 2, mdts: 8, cntrltype: 1, vwc: 0x7 });
  t.is(Number(controller.tnvmcap), (DISK_MIB + MEMORY_MIB) * MiB);
  t.regex(String(controller.subnqn), /^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f-]{36}$/);
  const namespace = await nvme(vm, `id-ns /dev/${disk}`);
  t.like(namespace, { nsze: DISK_MIB * 2048, ncap: DISK_MIB * 2048, flbas: 0, dlfeat: 9 });
  t.like(namespace.lbafs, [
    { ms: 0, ds: 9 },
    { ms: 0, ds: 12 },
  ]);
  const uuid = await vm.check(`cat /sys/block/${disk}/uuid`, COMMAND_MS);
  t.regex(await vm.check(`nvme ns-descs /dev/${disk} 2>&1`, COMMAND_MS), new RegExp(`uuid +: ${uuid}$`));
  t.deepEqual((await nvme(vm, "list-ns /dev/nvme0")).nsid_list, [{ nsid: 1 }, { nsid: 2 }]);
  const registers = await nvme(vm, "show-regs /dev/nvme0");
  t.like(registers, { vs: 0x10400, csts: 1, intms: 0 });
  t.is(Number(registers.cc) & 1, 1);
  // For people, with every bit explained.
  for (const command of ["list -v", "id-ctrl -H /dev/nvme0", `id-ns -H /dev/${disk}`, "show-regs -H /dev/nvme0"])
    t.notRegex(await vm.check(`nvme ${command} 2>&1 >/dev/null`, COMMAND_MS), /./, command);
  product.assertHealthy(t);
});

test.serial("smart-log and error-log count what was done, over a reset too", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisks(t);
  const disk = await diskOf(vm, 1);
  const smart = () => nvme(vm, "smart-log /dev/nvme0");
  const before = await smart();
  t.like(before, { critical_warning: 0, temperature: 313, avail_spare: 100, percent_used: 0, media_errors: 0 });
  await vm.check(`dd if=/dev/urandom of=/dev/${disk} bs=64k count=160 oflag=direct 2>/dev/null`, COMMAND_MS);
  await vm.check(`dd if=/dev/${disk} of=/dev/null bs=64k count=80 iflag=direct 2>/dev/null`, COMMAND_MS);
  const after = await smart();
  const rise = (name: string) => Number(after[name]) - Number(before[name]);
  t.is(rise("host_write_commands"), 160);
  t.is(rise("host_read_commands"), 80);
  // Both numbers are rounded up.
  for (const [name, bytes] of [
    ["data_units_written", 160 * 65536],
    ["data_units_read", 80 * 65536],
  ] as const)
    t.true(Math.abs(rise(name) - bytes / UNIT) < 1, `${name} rose by ${rise(name)}`);
  t.is(rise("num_err_log_entries"), 0);

  const beyond = await vm.run(`nvme read /dev/${disk} -s ${DISK_MIB * 2048} -c 0 -z 512 -d /tmp/x 2>&1`, COMMAND_MS);
  t.is(beyond.status, 1);
  t.regex(beyond.output, /LBA Out of Range/);
  const failed = await smart();
  t.is(Number(failed.num_err_log_entries), Number(after.num_err_log_entries) + 1);
  const { errors } = (await nvme(vm, "error-log /dev/nvme0")) as { errors: Record<string, unknown>[] };
  const lba = { lba: DISK_MIB * 2048, parm_error_location: 40 };
  t.like(errors[0], { error_count: failed.num_err_log_entries, status_field: 0x4080, nsid: 1, ...lba });
  t.true(Number(errors[0].sqid) > 0);

  const written = await vm.check(`head -c 65536 /dev/${disk} | sha256sum`, COMMAND_MS);
  t.is(await vm.check("nvme reset /dev/nvme0 2>&1", COMMAND_MS), "");
  await vm.check("until grep -q live /sys/class/nvme/nvme0/state; do sleep 0.1; done", COMMAND_MS);
  const { host_write_commands, unsafe_shutdowns } = failed;
  t.like(await smart(), { host_write_commands, unsafe_shutdowns, critical_warning: 0, power_cycles: 1 });
  const read = `dd if=/dev/${disk} bs=64k count=1 iflag=direct 2>/dev/null | sha256sum`;
  t.is(await vm.check(read, COMMAND_MS), written);
  t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|invalid)/i);
  product.assertHealthy(t);
});

test.serial("flush, write-zeroes, dsm, verify, compare and format do it; the logs are there", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisks(t);
  const { deviceVm } = product;
  const disk = await diskOf(vm, 1);
  await vm.check("dd if=/dev/urandom of=/tmp/x bs=64k count=1 2>/dev/null", COMMAND_MS);
  const range = `/dev/${disk} -s 8 -c 127`;
  await vm.check(`nvme write ${range} -z 65536 -d /tmp/x && nvme read ${range} -z 65536 -d /tmp/y`, COMMAND_MS);
  await vm.check("cmp /tmp/x /tmp/y", COMMAND_MS);
  await vm.check(`nvme flush /dev/${disk} && nvme verify ${range}`, COMMAND_MS);
  await vm.check(`nvme compare ${range} -z 65536 -d /tmp/x`, COMMAND_MS);
  await vm.check("printf other | dd of=/tmp/x conv=notrunc 2>/dev/null", COMMAND_MS);
  const differs = await vm.run(`nvme compare ${range} -z 65536 -d /tmp/x 2>&1`, COMMAND_MS);
  t.regex(differs.output, /Compare Failure/);
  await vm.check(`nvme write-zeroes ${range}`, COMMAND_MS);
  await vm.check(`nvme compare ${range} -z 65536 -d /dev/zero`, COMMAND_MS);

  await vm.check(`dd if=/dev/urandom of=/dev/${disk} bs=1M count=16 conv=fsync 2>/dev/null`, COMMAND_MS);
  const full = await diskBlocks(deviceVm);
  await vm.check(`nvme dsm /dev/${disk} -d -s 0 -b ${8 * 2048}`, COMMAND_MS);
  t.is(await diskBlocks(deviceVm), full - 8 * 2048);

  t.regex(await vm.check("nvme fw-log /dev/nvme0 2>&1", COMMAND_MS), /frs1 .*\(1\.0/);
  t.regex(await vm.check("nvme effects-log /dev/nvme0 2>&1", COMMAND_MS), /Format NVM +\] 00010007/);
  t.regex(await vm.check("nvme get-feature /dev/nvme0 -f 7 -H 2>&1", COMMAND_MS), new RegExp(`NSQA\\): ${QUEUES}$`));
  for (const [format, size] of [
    [1, 4096],
    [0, 512],
  ]) {
    await vm.check(`nvme format /dev/${disk} -l ${format} -f`, COMMAND_MS);
    t.is(await vm.check(`cat /sys/block/${disk}/queue/logical_block_size`, COMMAND_MS), `${size}`);
    t.is(await vm.check(`tr -d '\\0' </dev/${disk} | wc -c`, COMMAND_MS), "0");
  }
  t.is(await diskBlocks(deviceVm), 0);
  product.assertHealthy(t);
});

test.serial("a subsystem reset stops the controller, and a reset starts it again", async (t) => {
  const { product } = t.context;
  const vm = await vmWithDisks(t);
  t.is(await vm.check("nvme subsystem-reset /dev/nvme0 2>&1", COMMAND_MS), "");
  await vm.check("nvme reset /dev/nvme0 2>&1", COMMAND_MS);
  await vm.check("until grep -q live /sys/class/nvme/nvme0/state; do sleep 0.1; done", COMMAND_MS);
  await vm.check("dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null", COMMAND_MS);
  product.assertHealthy(t);
});
