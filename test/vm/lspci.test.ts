/**
 * What Linux and lspci make of our configuration spaces: a driver VM with two functions, straight on vfio-user sockets
 * of this host. One declares everything that can be declared; the other, the NVMe controller, leaves all to the
 * defaults.
 */
import type { ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { driverVmArguments, vfioUserDevice } from "../../scripts/vm/arguments.js";
import { PROJECT_ROOT, prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { initScript } from "../../scripts/vm/init.js";
import { driverVmBase, writeInitrd } from "../../scripts/vm/initramfs.js";
import { Vm } from "../../scripts/vm/qemu.js";
import { BOOT_MS, COMMAND_MS, waitForDisk } from "../../scripts/vm/two-vms.js";
import { ROM } from "../fakes/every-kind-device.js";
import { startDevice, stopDevices } from "./device-process.js";

/** Where each function is: behind the first and the second root port. */
const NVME = "01:00.0";
const EVERY_KIND = "02:00.0";

interface Context {
  directory: string;
  devices: ChildProcess[];
  vm: Vm;
}
const test = anyTest as TestFn<Context>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const environment = await prepareVmEnvironment();
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-lspci-"));
  const devices: ChildProcess[] = [];
  Object.assign(t.context, { directory, devices });
  const [first, second, disk] = ["nvme.sock", "every-kind.sock", "disk.img"].map((name) => join(directory, name));
  await writeFile(disk, "");
  await truncate(disk, 16 * 2 ** 20);
  await startDevice(devices, first, "nvme", "--file", disk);
  await startDevice(devices, second, join(PROJECT_ROOT, "build/test/fakes/every-kind-device.js"));
  const initrd = join(directory, "driver.cpio");
  await writeInitrd(await driverVmBase(environment), initScript({ afterwards: "commands" }), initrd);
  t.context.vm = new Vm(environment, "driver VM", [
    ...driverVmArguments({ kernel: environment.kernel, initrd, memoryMiB: 512, vfioUserSocket: first }),
    ...["-device", "pcie-root-port,id=port1,bus=pcie.0,chassis=2,addr=6"],
    ...["-device", JSON.stringify({ ...vfioUserDevice(second), id: "device1", bus: "port1" })],
  ]);
  await t.context.vm.waitForLine(/^@@ready$/, BOOT_MS);
});

test.after.always(async (t) => {
  const { vm, devices, directory } = t.context;
  await vm?.stop();
  await stopDevices(devices ?? []);
  if (directory !== undefined) await rm(directory, { recursive: true });
});

/** lspci's whole account of a function; what it says on stderr comes first. */
async function lspci(vm: Vm, address: string): Promise<string> {
  const command = `lspci -nvvvs ${address} 2>/tmp/said; s=$?; grep -v libkmod /tmp/said; exit $s`;
  return await vm.check(command, COMMAND_MS);
}

/**
 * Lines in which lspci says that it does not understand; its "<?>" on vendor-specific contents is what it always says.
 */
function complaints(text: string): string[] {
  const lines = text.split("\n").filter((line) => !/Vendor Specific Information: .*<\?>$/.test(line));
  return lines.filter((line) =>
    /<\?>|unknown|!!!|access denied|chain (looped|broken)|^lspci:|<unassigned>/i.test(line),
  );
}

test.serial("lspci understands the NVMe function, and Linux drives it", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context;
  t.is(await waitForDisk(vm), 16 * 2 ** 20);
  const text = await lspci(vm, NVME);
  t.deepEqual(complaints(text), []);
  for (const expected of [
    /^01:00\.0 0108: /,
    /Control: .*Mem\+ BusMaster\+ /,
    /Status: Cap\+ .*INTx-/,
    /Region 0: Memory at .* \(64-bit, non-prefetchable\) \[size=/,
    /Capabilities: \[40\] Power Management version 3/,
    /Status: D0 NoSoftRst\+ /,
    /Capabilities: \[48\] Express \(v2\) Endpoint, /,
    /FLReset\+/,
    /LnkSta:\s+Speed 2\.5GT\/s, Width x1/,
    /Capabilities: \[84\] MSI-X: Enable\+ Count=\d+ Masked-/,
    /Capabilities: \[90\] MSI: Enable- Count=1\/\d+ Maskable- 64bit\+/,
    /Interrupt: pin A routed to IRQ \d+/,
    /Kernel driver in use: nvme/,
  ])
    t.regex(text, expected);
});

test.serial("lspci understands every capability, with its values", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context;
  const text = await lspci(vm, EVERY_KIND);
  t.deepEqual(complaints(text), []);
  for (const expected of [
    /^02:00\.0 ff00: fff4:0003 \(rev 07\)/,
    /Subsystem: fff5:0042/,
    /Interrupt: pin A routed to IRQ \d+/,
    /Region 0: I\/O ports at .*\[size=256\]/,
    /Region 1: Memory at .* \(32-bit, non-prefetchable\) .*\[size=4K\]/,
    /Region 2: Memory at .* \(64-bit, prefetchable\) .*\[size=8K\]/,
    /Expansion ROM at .*\[size=4K\]/,
    /Capabilities: \[40\] Power Management version 3/,
    /Status: D\d NoSoftRst- /,
    /Capabilities: \[48\] Express \(v2\) Endpoint, /,
    /DevCap:\s+MaxPayload 256 bytes/,
    /LnkCap:\s+Port #0, Speed 5GT\/s, Width x4, ASPM not supported/,
    /LnkSta:\s+Speed 5GT\/s, Width x4/,
    /LnkCap2: Supported Link Speeds: 2\.5-5GT\/s/,
    /Capabilities: \[84\] MSI: Enable- Count=1\/4 Maskable\+ 64bit\+/,
    /Capabilities: \[9c\] Vendor Specific Information: Len=0c/,
    /Capabilities: \[100 v1\] Advanced Error Reporting/,
    /UESvrt:\s+DLP\+ SDES- TLP- FCP\+ CmpltTO- CmpltAbrt- UnxCmplt- RxOF\+ MalfTLP\+\s+ECRC- UnsupReq-/,
    /Capabilities: \[12c v1\] Device Serial Number 00-11-22-33-44-55-66-77/,
    /Capabilities: \[138 v1\] Vendor Specific Information: ID=1234 Rev=3 Len=010/,
  ])
    t.regex(text, expected);
});

test.serial("registers of the author's own are reached by config accesses of every size", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context;
  const setpci = (...registers: string[]) => vm.check(`setpci -s ${EVERY_KIND} ${registers.join(" ")}`, COMMAND_MS);
  t.is(await setpci("CAP_VNDR+4.l=ffffffff", "CAP_VNDR+4.l"), "040fff01");
  t.is(await setpci("CAP_VNDR+5.b=42", "CAP_VNDR+4.w"), "4201");
  t.is(await setpci("ECAP_VNDR+8.w=beef", "ECAP_VNDR+a.w=cafe", "ECAP_VNDR+8.l"), "cafebeef");
  t.is(await setpci("ffc.l"), "00000000");
});

test.serial(
  "Linux resets the function by FLR and by power management, and config space survives as it wants",
  async (t) => {
    t.timeout(10 * COMMAND_MS);
    const { vm } = t.context;
    const sys = `/sys/bus/pci/devices/0000:${EVERY_KIND}`;
    const resets = async () => Number.parseInt(await vm.check(`setpci -s ${EVERY_KIND} CAP_VNDR+8.l`, COMMAND_MS), 16);
    const methods = await vm.check(`cat ${sys}/reset_method`, COMMAND_MS);
    t.regex(methods, /flr/);
    t.regex(methods, /pm/);
    const before = await lspci(vm, EVERY_KIND);
    for (const method of ["flr", "pm"]) {
      const count = await resets();
      await vm.check(`setpci -s ${EVERY_KIND} ECAP_VNDR+8.l=12345678`, COMMAND_MS);
      await vm.check(`echo ${method} >${sys}/reset_method && echo 1 >${sys}/reset`, COMMAND_MS);
      t.is(await resets(), count + 1, method);
      t.is(await vm.check(`setpci -s ${EVERY_KIND} ECAP_VNDR+8.l`, COMMAND_MS), "00000000");
      t.is(await lspci(vm, EVERY_KIND), before);
    }
  },
);

test.serial("Linux reads the expansion ROM", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm } = t.context;
  const rom = `/sys/bus/pci/devices/0000:${EVERY_KIND}/rom`;
  const sum = await vm.check(`echo 1 >${rom} && sha256sum <${rom}`, COMMAND_MS);
  t.is(sum.split(" ")[0], createHash("sha256").update(ROM).digest("hex"));
});
