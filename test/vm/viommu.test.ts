/**
 * A driver VM with an IOMMU of its own is reset in the middle of I/O: nothing of before stays mapped, and the disk
 * works on.
 */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { nvmeMaps } from "../../scripts/vm/two-vms.js";
import { mapsOf, startLocalDevice } from "./local-device.js";
import { Product } from "./product.js";
import { surviveResets, VIOMMU } from "./viommu.js";

const DISK = 64 * 2 ** 20;

test.serial("on the local link", async (t) => {
  t.timeout(15 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-viommu-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, DISK);
  const { vm, endpoint, stop } = await startLocalDevice(await createNvme({ files: [file] }), directory, VIOMMU);
  t.teardown(stop);
  await surviveResets(t, vm, ["reboot", "system_reset"], async () => mapsOf(endpoint));
});

test.serial("in two VMs", async (t) => {
  t.timeout(20 * 60_000);
  const product = await Product.start({ diskMiB: DISK / 2 ** 20 });
  t.teardown(() => product.stop());
  const vm = await product.driverVm(t, VIOMMU);
  await surviveResets(t, vm, ["system_reset", "reboot"], () => nvmeMaps(product.deviceVm));
  t.true(product.bridge.alive);
  t.deepEqual(
    product.bridge.lines.filter((line) => Number(line.level) >= 40),
    [],
  );
});
