/** `vfio-user-ctl plug` and `unplug`: running VMs get a device by QMP, and lose it in an order that QEMU survives. */
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { createEdu } from "../../guest/devices/edu/index.js";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, exerciseDisk, pciId, startNvme, stopNvme, waitForDisk } from "../../scripts/vm/two-vms.js";
import { serve } from "../guest/devices/serve.js";
import { Product } from "./product.js";

const DISK_MIB = 32;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

/** What it prints, and its exit code. */
async function ctl(...args: readonly string[]): Promise<{ code: number; output: string; errors: string }> {
  return await new Promise((resolve) => {
    execFile(process.execPath, [join(PROJECT_ROOT, "build/host/ctl/main.js"), ...args], (error, output, errors) =>
      resolve({ code: error === null ? 0 : Number(error.code), output, errors }),
    );
  });
}

/** A second QMP socket of a VM's, which goes with it. */
async function qmpOf(t: ExecutionContext, vm: Vm): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-qmp-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const path = join(directory, "qmp.sock");
  const data = { addr: { type: "unix", data: { path } }, server: true, wait: false };
  await vm.qmp("chardev-add", { id: "qmp1", backend: { type: "socket", data } });
  await vm.qmp("object-add", { "qom-type": "monitor-qmp", id: "monitor1", chardev: "qmp1" });
  return path;
}

test.serial("a driver VM gets a disk; it is not taken away, since QEMU would abort", async (t) => {
  t.timeout(15 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t, { plugged: false });
  const qmp = await qmpOf(t, vm);
  const plug = ["plug", "--qmp", qmp, "--socket-path", product.bridge.vfioUserSocket];
  t.deepEqual(await ctl(...plug), { code: 0, output: "vfio-user is in the driver VM, behind port0\n", errors: "" });
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  const again = await ctl(...plug, "--id", "second");
  t.is(again.code, 1);
  t.regex(again.errors, /the VM has no free root port/);
  const away = await ctl("unplug", "--qmp", qmp);
  t.is(away.code, 1);
  t.regex(away.errors, /QEMU 11 aborts.*--force/);
  const none = await ctl("unplug", "--qmp", qmp, "--id", "nothing");
  t.regex(none.errors, /the VM has no device nothing/);
  const other = await ctl("unplug", "--qmp", qmp, "--id", "port0");
  t.regex(other.errors, /port0 is a pcie-root-port/);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  product.assertHealthy(t);
});

test.serial("a device without MSI-X comes and goes, by force", async (t) => {
  t.timeout(15 * 60_000);
  const { socket } = await serve(t, createEdu());
  const vm = await t.context.product.driverVm(t, { plugged: false });
  const qmp = await qmpOf(t, vm);
  for (let round = 0; round < 2; round++) {
    t.is((await ctl("plug", "--qmp", qmp, "--socket-path", socket, "--id", "edu0")).code, 0);
    await vm.check("until [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do sleep 0.1; done", COMMAND_MS);
    t.regex(await pciId(vm), /^1234:11e8 /);
    const away = await ctl("unplug", "--qmp", qmp, "--id", "edu0", "--force", "--timeout", "90");
    t.deepEqual(away, { code: 0, output: "edu0 is gone\n", errors: "" });
    await vm.check("[ ! -e /sys/bus/pci/devices/0000:01:00.0 ]", COMMAND_MS);
  }
});

test.serial(
  "a device VM loses its device, gets it again, and serves; while a process has it open it stays",
  async (t) => {
    t.timeout(20 * 60_000);
    const { product } = t.context;
    const { deviceVm, bridge } = product;
    const qmp = await qmpOf(t, deviceVm);
    await stopNvme(deviceVm);
    const away = await ctl("unplug", "--qmp", qmp, "--id", "device0", "--timeout", "90");
    t.deepEqual(away, { code: 0, output: "device0 is gone\n", errors: "" });
    await bridge.waitForLog(({ msg }) => msg === "front-end gone");
    const back = await ctl("plug", "--qmp", qmp, "--vhost-user-socket-path", bridge.vhostUserSocket);
    t.deepEqual(back, { code: 0, output: "vfio-user is in the device VM, behind port0\n", errors: "" });
    await deviceVm.check("until [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do sleep 0.1; done", COMMAND_MS);
    await startNvme(deviceVm, DISK_MIB);
    const vm = await product.driverVm(t);
    t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
    t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
    await vm.stop();
    const held = await ctl("unplug", "--qmp", qmp, "--timeout", "10");
    t.is(held.code, 1);
    t.regex(held.errors, /the guest has not let vfio-user go within 10 s: vfio-user-device has to end there first/);
    t.true(bridge.alive);
  },
);
