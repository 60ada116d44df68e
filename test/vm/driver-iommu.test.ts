/**
 * A driver VM with an IOMMU of its own: Linux maps and unmaps the data of each request, what the device only reads
 * read-only, and waits in each unmap.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { COMMAND_MS, exerciseDisk, waitForDisk } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { startLocalDevice } from "./local-device.js";

const DISK = 64 * 2 ** 20;

test("a disk on the local link behind the driver VM's IOMMU: no DMA by message", async (t) => {
  t.timeout(20 * 60_000);
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-iommu-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const { vm, endpoint, stop } = await startLocalDevice(await createNvme({ memory: [DISK] }), directory, {
    iommu: "intel",
  });
  t.teardown(stop);
  t.is(await waitForDisk(vm), DISK);
  const group = "/sys/bus/pci/devices/0000:01:00.0/iommu_group";
  t.is(await vm.check(`cat ${group}/type`, COMMAND_MS), "DMA");
  t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
  await vm.check("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=2000 oflag=direct 2>/dev/null", COMMAND_MS);
  await vm.check("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null", COMMAND_MS);
  t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)|I\/O error|fault addr/i);
  const { movedByMessage, readThroughWindow } = endpoint.statistics();
  t.is(movedByMessage, 0);
  t.true(readThroughWindow > 2000 * 4096);
});
