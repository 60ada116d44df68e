/**
 * Driver VMs whose memory is of huge pages. q35's begins, for a device, in the middle of the first one, which can be mapped only
 * whole: that part is copied, and the rest is in the window.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import type { DmaMapping } from "../../guest/link/link.js";
import { type HugePageSize, hugeFolder, reserveHugePages } from "./huge-pages.js";
import { startLocalDevice } from "./local-device.js";
import { Product } from "./product.js";
import { exerciseDisk, nvmeLog, waitForDisk } from "./two-vms.js";

const MiB = 2 ** 20;
const DISK = 64 * MiB;

const memfd = (size: HugePageSize) => `memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=${size}`;

async function useLocalDisk(t: ExecutionContext, memoryBackend: string, memoryMiB: number): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-huge-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const device = await createNvme({ memory: [DISK] });
  const { vm, endpoint, stop } = await startLocalDevice(device, directory, { memoryBackend, memoryMiB });
  try {
    t.is(await waitForDisk(vm), DISK);
    t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
    const { movedByMessage, movedByCopy, readThroughWindow, writtenThroughWindow } = endpoint.statistics();
    t.is(movedByMessage, 0);
    t.true(movedByCopy + readThroughWindow + writtenThroughWindow > 8 * MiB);
    const { maps } = endpoint.dma.inspect() as { maps: readonly DmaMapping[] };
    const ram = maps.filter(({ size }) => size >= (memoryMiB / 4) * MiB);
    t.true(
      ram.some(({ windowOffset }) => windowOffset >= 0),
      "main memory is in the window",
    );
  } finally {
    await stop();
  }
}

test.serial("pages of 2 MiB on the local link", async (t) => {
  t.timeout(20 * 60_000);
  t.true(reserveHugePages(t, "2M", 256));
  await useLocalDisk(t, memfd("2M"), 512);
});

test.serial("a file of hugetlbfs on the local link, which is not sealed", async (t) => {
  t.timeout(20 * 60_000);
  t.true(reserveHugePages(t, "2M", 256));
  await useLocalDisk(t, `memory-backend-file,share=on,mem-path=${hugeFolder(t, "2M")}`, 512);
});

test.serial("pages of 1 GiB on the local link", async (t) => {
  t.timeout(20 * 60_000);
  // Where the machine has none, test/shared/vfio-user/map-parts.test.ts is what there is.
  const isThere = reserveHugePages(t, "1G", 2);
  t.log(isThere ? "2 pages of 1 GiB" : "no pages of 1 GiB to be had");
  if (isThere) await useLocalDisk(t, memfd("1G"), 2048);
  else t.pass();
});

test.serial("pages of 2 MiB through the bridge: QEMU refuses nothing, and only edges are copied", async (t) => {
  t.timeout(20 * 60_000);
  t.true(reserveHugePages(t, "2M", 256));
  const product = await Product.start({ diskMiB: DISK / MiB });
  t.teardown(() => product.stop());
  const vm = await product.driverVm(t, { memoryBackend: memfd("2M") });
  t.is(await waitForDisk(vm), DISK);
  t.regex(await exerciseDisk(vm, 4), /^[0-9a-f]{64}$/);
  product.assertHealthy(t);
  const said = product.bridge.lines.filter(({ msg }) => /DMA by/.test(String(msg)));
  t.deepEqual(said, []);
  await vm.stop();
  const lines = await nvmeLog(product.deviceVm);
  const served = lines.findLast(({ msg }) => msg === "served so far");
  t.is(served?.movedByMessage, 0);
  t.true(Number(served?.writtenThroughWindow) > 4 * MiB);
});
