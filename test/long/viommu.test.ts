/** As test/vm/viommu.test.ts, six times over; and an IOMMU whose addresses are right below 2^64. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { extraDriverVmBase } from "../../scripts/vm/initramfs.js";
import { COMMAND_MS, exerciseDisk, nvmeMaps, nvmeState, waitForDisk } from "../../scripts/vm/two-vms.js";
import { mapsOf, startLocalDevice } from "../vm/local-device.js";
import { type Reset, surviveResets, VIOMMU } from "../vm/viommu.js";
import { type LongSetUp, startLong } from "./driver-vms.js";

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

for (const kind of ["on the local link", "in two VMs"] as const) {
  test.serial(`virtio-iommu, whose addresses are right below 2^64, ${kind}`, async (t) => {
    t.timeout(30 * 60_000);
    const { product, extras } = t.context;
    const environment = await prepareVmEnvironment();
    const kernel = extras.kernels.find(({ suite }) => suite === "trixie");
    if (kernel === undefined) throw new Error("no kernel of trixie was set up");
    const choices = {
      kernel,
      base: await extraDriverVmBase(environment, extras, kernel),
      iommu: "virtio" as const,
      memoryMiB: 768,
    };
    const high = /"address":"0xffff[0-9a-f]{12}"/;
    const work = async (vm: Awaited<ReturnType<typeof product.driverVm>>, state: () => Promise<string>) => {
      t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
      t.regex(await state(), high);
      t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
      t.notRegex(await vm.check("dmesg", COMMAND_MS), /nvme.*(error|timeout|abort)|I\/O error/i);
      t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
    };
    if (kind === "in two VMs") {
      await work(await product.driverVm(t, choices), () => nvmeState(product.deviceVm));
      return;
    }
    const directory = await mkdtemp(join(tmpdir(), "vfio-user-viommu-"));
    t.teardown(() => rm(directory, { recursive: true }));
    const device = await createNvme({ memory: [DISK_MIB * 2 ** 20] });
    const { vm, endpoint, stop } = await startLocalDevice(device, directory, choices);
    t.teardown(stop);
    await work(vm, async () => JSON.stringify(endpoint.dma.inspect()));
  });
}
