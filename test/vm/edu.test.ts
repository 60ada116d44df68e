/**
 * edu driven by a program in a driver VM, programs/edu.c, as docs/writing-a-device.md has it: through the BAR that the
 * kernel shows in sysfs, and by VFIO behind the VM's own IOMMU, whose every map and unmap reaches the device. The
 * device runs on this host.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import anyTest, { type TestFn } from "ava";
import { createEdu } from "../../guest/devices/edu/index.js";
import type { Entry } from "../../scripts/vm/cpio.js";
import { PROJECT_ROOT, prepareVmEnvironment, type VmEnvironment } from "../../scripts/vm/environment.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { type LocalDevice, mapsOf, startLocalDevice } from "./local-device.js";

const ADDRESS = "0000:01:00.0";
const SYSFS = `/sys/bus/pci/devices/${ADDRESS}`;

const run = promisify(execFile);
const test = anyTest as TestFn<{ directory: string; local: LocalDevice }>;

/** The program, which needs nothing of the VM's but its kernel. */
async function compile(directory: string): Promise<Buffer> {
  const program = join(directory, "edu");
  const options = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"];
  await run("gcc", [...options, "-o", program, join(PROJECT_ROOT, "test/vm/programs/edu.c")]);
  return await readFile(program);
}

/** The VFIO modules, which a driver VM's archive does not have by itself. */
async function modules({ modules }: VmEnvironment): Promise<Entry[]> {
  const entries: Entry[] = [{ path: "/modules/order", data: modules.map((path) => `${basename(path)}\n`).join("") }];
  for (const path of modules) entries.push({ path: `/modules/${basename(path)}`, data: await readFile(path) });
  return entries;
}

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const environment = await prepareVmEnvironment();
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-edu-"));
  t.context.directory = directory;
  const program = { path: "/bin/edu", data: await compile(directory), mode: 0o755 };
  t.context.local = await startLocalDevice(createEdu(), directory, {
    iommu: "intel",
    entries: [...(await modules(environment)), program],
  });
});

test.after.always(async (t) => {
  const { local, directory } = t.context;
  await local?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

test.serial("lspci sees QEMU's edu", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const text = await t.context.local.vm.check(`lspci -nvvs ${ADDRESS} 2>/dev/null`, COMMAND_MS);
  t.regex(text, /^01:00\.0 00ff: 1234:11e8 \(rev 10\)/);
  t.regex(text, /Interrupt: pin A routed to IRQ \d+/);
  t.regex(text, /Region 0: Memory at .* \(32-bit, non-prefetchable\) .*\[size=1M\]/);
  t.regex(text, /MSI: Enable- Count=1\/1 Maskable- 64bit\+/);
});

test.serial("a program maps resource0 and computes a factorial", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context.local;
  await vm.check(`echo 1 >${SYSFS}/enable`, COMMAND_MS);
  const output = await vm.check(`edu resource0 ${ADDRESS}`, COMMAND_MS);
  t.deepEqual(output.split("\n"), ["identification 010000ed", "liveness edcba987", "factorial 3628800"]);
  await vm.check(`echo 0 >${SYSFS}/enable`, COMMAND_MS);
});

test.serial("a program drives it by VFIO: INTx, MSI, DMA both ways, and DMA that the IOMMU keeps out", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context.local;
  await vm.check(`echo vfio-pci >${SYSFS}/driver_override && echo ${ADDRESS} >/sys/bus/pci/drivers_probe`, COMMAND_MS);
  const output = await vm.check(`edu vfio ${ADDRESS}`, COMMAND_MS);
  t.deepEqual(output.split("\n"), [
    "identification 010000ed",
    "liveness edcba987",
    "factorial 3628800",
    "INTx 1, causes 10, then 0",
    "INTx 1, causes 20, then 0",
    "MSI 1, causes 1, then 0",
    "factorial 120",
    "DMA 1, causes 100, then 0",
    "command 4",
    "DMA 1, causes 100, then 0",
    "command 6",
    "DMA there and back: the same",
    "DMA 1, causes 100, then 0",
    "command 6",
    "DMA 1, causes 100, then 0",
    "command 6",
    "DMA to what is unmapped: nothing came",
  ]);
});

test.serial("a program that leaves with pages mapped leaves nothing mapped for the device", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm, endpoint } = t.context.local;
  const before = mapsOf(endpoint);
  for (let times = 0; times < 2; times++) {
    const output = await vm.check(`edu leave ${ADDRESS}`, COMMAND_MS);
    t.is(output.split("\n").at(-1), "left with 16 pages mapped", output);
    t.is(mapsOf(endpoint), before);
  }
  t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
});
