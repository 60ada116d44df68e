/**
 * The driver VM and its controller are restarted in the middle of everything: what was flushed is there afterwards,
 * the disk works, and nothing of before is left open.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import type { Entry } from "../../scripts/vm/cpio.js";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { BOOT_MS, booted, COMMAND_MS, disk, exerciseDisk, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmChoices, driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";
import { startVerifiedIo } from "./verified-io.js";

const DISK_MIB = 64;
const PCI = "0000:01:00.0";

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

type Test = ExecutionContext<LongSetUp>;

/** Random data at the disk's beginning, flushed; gives their checksum. */
const mark = (vm: Vm) =>
  vm.check(
    `dd if=/dev/urandom of=/tmp/mark bs=1M count=4 2>/dev/null
dd if=/tmp/mark of=/dev/nvme0n1 bs=64k oflag=direct conv=fsync 2>/dev/null && sha256sum </tmp/mark`,
    COMMAND_MS,
  );
const readMark = (vm: Vm) =>
  vm.check("dd if=/dev/nvme0n1 bs=64k count=64 iflag=direct 2>/dev/null | sha256sum", COMMAND_MS);

/** Writes behind the mark, on and on, whatever fails. */
const keepWriting = (vm: Vm) =>
  vm.check(
    "while :; do dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek=512 count=300 oflag=direct; done >/dev/null 2>&1 &",
    COMMAND_MS,
  );

/** Does it again and again, whatever fails, until what this returns is called. */
async function untilEnd(vm: Vm, command: string): Promise<() => Promise<unknown>> {
  await vm.check(
    `{ while [ ! -e /tmp/enough ]; do ${command}; done; touch /tmp/ended; } >/dev/null 2>&1 &`,
    COMMAND_MS,
  );
  return () => vm.check("touch /tmp/enough; until [ -e /tmp/ended ]; do sleep 0.1; done", COMMAND_MS);
}

async function works(t: Test, vm: Vm): Promise<void> {
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  t.true(t.context.product.bridge.alive);
}

const noComplaints = async (t: Test, vm: Vm) =>
  t.notRegex(await kernelLog(vm), /I\/O error|nvme.*(timeout|error|abort|not ready)|Disabling device/i);

/** Gives the number of the console's first line afterwards, as the next does. */
async function systemReset(vm: Vm): Promise<number> {
  const from = vm.nextLine;
  const seen = vm.waitForEvent("RESET", COMMAND_MS);
  await vm.qmp("system_reset");
  await seen;
  return from;
}

/** A reset by a command in the background of the guest. */
async function resetBy(vm: Vm, command: string): Promise<number> {
  const from = vm.nextLine;
  await vm.check(`(sleep 0.5; ${command}) &`, COMMAND_MS);
  return from;
}

/** Makes the VM boot again by `reset`, while it writes. */
async function survives(t: Test, vm: Vm, reset: () => Promise<number>): Promise<void> {
  await waitForDisk(vm);
  const open = await t.context.product.openFiles();
  const sum = await mark(vm);
  await keepWriting(vm);
  await booted(vm, await reset());
  await waitForDisk(vm);
  t.is(await readMark(vm), sum);
  await works(t, vm);
  await noComplaints(t, vm);
  t.deepEqual(await t.context.product.openFiles(), open);
}

/** A VM that has its own kernel as a file, and a program to start it. */
async function withKexec(t: Test): Promise<readonly Entry[]> {
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-kexec-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const program = join(directory, "kexec");
  const options = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"];
  await promisify(execFile)("gcc", [...options, "-o", program, join(PROJECT_ROOT, "test/long/programs/kexec.c")]);
  const { kernel } = await driverVmChoices(t);
  return [
    { path: "/usr/bin/kexec", data: await readFile(program), mode: 0o755 },
    { path: "/vmlinuz", data: await readFile(kernel.image) },
  ];
}

/** An initramfs of what the one in use has. */
const NOT_PACKED = ["proc", "sys", "tmp", "dev"].map((name) => `-not -path './${name}/*'`).join(" ");
const PACK = `cd / && find . -xdev ${NOT_PACKED} |
cpio -o -H newc >/tmp/initrd 2>/dev/null`;

test.serial("another kernel by kexec, under writes", async (t) => {
  const { vm } = await driverVmOf(t, "trixie", { memoryMiB: 1536, entries: await withKexec(t) });
  await vm.check(PACK, COMMAND_MS);
  const kexec = 'kexec /vmlinuz /tmp/initrd "$(cat /proc/cmdline)" >/dev/console 2>&1';
  await survives(t, vm, () => resetBy(vm, kexec));
});

test.serial("a panic and the reboot after it, under writes", async (t) => {
  const { vm } = await driverVmOf(t, "trixie", { reboots: true });
  await survives(t, vm, () => resetBy(vm, "echo c >/proc/sysrq-trigger"));
});

test.serial("a system_reset in a short pause of the device VM, under writes", async (t) => {
  const { vm } = await driverVmOf(t, "trixie", { reboots: true });
  const { deviceVm } = t.context.product;
  await survives(t, vm, async () => {
    await deviceVm.qmp("stop");
    const from = await systemReset(vm);
    await deviceVm.qmp("cont");
    return from;
  });
});

test.serial(
  "a boot in a long pause of the device VM is one without a disk, and the next one has it again",
  async (t) => {
    const { vm } = await driverVmOf(t, "trixie", { reboots: true });
    const { deviceVm } = t.context.product;
    await survives(t, vm, async () => {
      await deviceVm.qmp("stop");
      // Longer than a command waits for the end of a pause.
      await delay(3000);
      await booted(vm, await systemReset(vm));
      t.is((await vm.run("[ -e /dev/nvme0 ]", COMMAND_MS)).status, 1);
      await deviceVm.qmp("cont");
      return systemReset(vm);
    });
  },
);

test.serial("a system_reset as soon as the firmware enables the controller, or Linux does", async (t) => {
  t.timeout(15 * 60_000);
  const { product } = t.context;
  const count = `grep -c '"msg":"enabled by the driver"' ${disk(0).log}`;
  let enabled = Number((await product.deviceVm.run(count, COMMAND_MS)).output);
  const vm = await product.switchOn(t, { ...(await driverVmChoices(t)), reboots: true });
  let from = 0;
  // The firmware's is each boot's first. (Earlier, while it copies itself to RAM, a reset is too much for QEMU: it
  // boots zeros.)
  for (const nth of [1, 2, 1, 2]) {
    await product.deviceVm.check(`until [ $(${count}) -ge $((${enabled} + ${nth})) ]; do sleep 0.05; done`, BOOT_MS);
    // Stopped, so that none is counted to the next boot that came before the reset, nor to this one that comes after.
    await vm.qmp("stop");
    from = await systemReset(vm);
    enabled = Number(await product.deviceVm.check(count, COMMAND_MS));
    await vm.qmp("cont");
  }
  await booted(vm, from);
  await works(t, vm);
  await noComplaints(t, vm);
});

for (const command of ["mkfs.ext4 -q -F /dev/nvme0n1", "nvme format /dev/nvme0n1 --force", "blkdiscard /dev/nvme0n1"]) {
  test.serial(`a system_reset in the middle of ${command}`, async (t) => {
    const { vm } = await driverVmOf(t, "trixie", { reboots: true });
    // Again and again: whenever the reset comes, one is being carried out, or begins.
    const loop = `while ${command}; do touch /tmp/once; done; touch /tmp/failed`;
    const begun = "[ -e /tmp/once ] || [ -e /tmp/failed ]";
    await vm.check(`(${loop}) >/dev/null 2>&1 & until ${begun}; do sleep 0.05; done; [ ! -e /tmp/failed ]`, COMMAND_MS);
    await booted(vm, await systemReset(vm));
    await works(t, vm);
    await noComplaints(t, vm);
  });
}

const LIVE =
  "i=0; until grep -q live /sys/class/nvme/nvme0/state; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done";

test.serial("the controller is reset a dozen times, and its subsystem five times, under verified I/O", async (t) => {
  const { vm } = await driverVmOf(t);
  const open = await t.context.product.openFiles();
  const io = await startVerifiedIo(vm, { offsetMiB: 16, sizeMiB: 32 });
  for (let n = 0; n < 12; n++) await vm.check(`nvme reset /dev/nvme0; sleep 0.5; ${LIVE}`, COMMAND_MS);
  for (let n = 0; n < 5; n++) await vm.check(`nvme subsystem-reset /dev/nvme0; sleep 0.5; ${LIVE}`, COMMAND_MS);
  await io.end();
  await works(t, vm);
  t.deepEqual(await t.context.product.openFiles(), open);
});

test.serial("the disk is formatted to other blocks and back, under I/O", async (t) => {
  const { vm } = await driverVmOf(t);
  const [write, read] = [
    "if=/dev/urandom of=/dev/nvme0n1 seek=100 oflag=direct",
    "if=/dev/nvme0n1 of=/dev/null iflag=direct",
  ];
  const both = `dd bs=16k count=300 ${write}; dd bs=16k count=300 ${read}`;
  const end = await untilEnd(vm, both);
  const size = "until [ $(cat /sys/block/nvme0n1/queue/logical_block_size) = $size ]; do sleep 0.1; done";
  for (const [format, bytes] of [
    [1, 4096],
    [0, 512],
    [1, 4096],
    [0, 512],
  ])
    await vm.check(`nvme format /dev/nvme0n1 --lbaf=${format} --force >/dev/null; size=${bytes}; ${size}`, COMMAND_MS);
  await end();
  await works(t, vm);
});

test.serial("the driver is unbound and bound fifteen times, under writes", async (t) => {
  const { vm } = await driverVmOf(t);
  const open = await t.context.product.openFiles();
  const sum = await mark(vm);
  // A file that dd makes in the disk's place is none.
  const write =
    "[ ! -b /dev/nvme0n1 ] || dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek=512 count=300 oflag=direct conv=nocreat";
  const end = await untilEnd(vm, write);
  for (let n = 0; n < 15; n++)
    await vm.check(`cd /sys/bus/pci/drivers/nvme && echo ${PCI} >unbind && echo ${PCI} >bind`, COMMAND_MS);
  await waitForDisk(vm);
  await end();
  t.is(await readMark(vm), sum);
  await works(t, vm);
  t.deepEqual(await t.context.product.openFiles(), open);
});
