/** As test/vm/viommu.test.ts, six times over; and IOMMUs whose addresses are high. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { exerciseDisk, nvmeMaps, nvmeState, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { mapsOf, startLocalDevice } from "../vm/local-device.js";
import { type Reset, surviveResets, VIOMMU } from "../vm/viommu.js";
import { driverVmChoices, driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

const DISK_MIB = 64;
const RESETS: readonly Reset[] = Array.from({ length: 12 }, (_, n) => (n % 2 === 0 ? "reboot" : "system_reset"));

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test.serial("six reboots and six resets, on the local link", async (t) => {
  t.timeout(30 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-viommu-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const device = await createNvme({ memory: [DISK_MIB * 2 ** 20] });
  const { vm, endpoint, stop } = await startLocalDevice(device, directory, VIOMMU);
  t.teardown(stop);
  await surviveResets(t, vm, RESETS, async () => mapsOf(endpoint));
});

test.serial("six reboots and six resets, in two VMs", async (t) => {
  t.timeout(30 * 60_000);
  const { product } = t.context;
  const vm = await product.driverVm(t, VIOMMU);
  await surviveResets(t, vm, RESETS, () => nvmeMaps(product.deviceVm));
  t.true(product.bridge.alive);
});

/**
 * Rows of IOMMU, more for the kernel's command line, and what the highest addresses look like in the device's state.
 */
const HIGH = [
  ["virtio-iommu, whose addresses are right below 2^64", { iommu: "virtio" }, /"address":"0xffff[0-9a-f]{12}"/],
  [
    "intel-iommu with addresses above 4 GiB",
    { iommu: "intel", append: "iommu.forcedac=1" },
    /"address":"0x[1-9a-f][0-9a-f]{8,}"/,
  ],
] as const;

for (const [what, iommu, high] of HIGH) {
  const work = async (t: ExecutionContext<LongSetUp>, vm: Vm, state: () => Promise<string>) => {
    t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
    t.regex(await state(), high);
    t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
    t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)|I\/O error/i);
    t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
  };

  test.serial(`${what}, on the local link`, async (t) => {
    t.timeout(30 * 60_000);
    const directory = await mkdtemp(join(tmpdir(), "vfio-user-viommu-"));
    t.teardown(() => rm(directory, { recursive: true }));
    const device = await createNvme({ memory: [DISK_MIB * 2 ** 20] });
    const choices = { ...(await driverVmChoices(t)), ...iommu };
    const { vm, endpoint, stop } = await startLocalDevice(device, directory, choices);
    t.teardown(stop);
    await work(t, vm, async () => JSON.stringify(endpoint.dma.inspect()));
  });

  test.serial(`${what}, in two VMs`, async (t) => {
    const { vm } = await driverVmOf(t, "trixie", iommu);
    await work(t, vm, () => nvmeState(t.context.product.deviceVm));
  });
}
