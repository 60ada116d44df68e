/**
 * Driver VMs whose memory is of huge pages. q35's begins, for a device, in the middle of the first one, which can be
 * mapped only whole: that part is copied, and the rest is in the window.
 */
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import * as native from "../../native/index.js";
import { COMMAND_MS, disk, exerciseDisk, nvmeLog, waitForDisk } from "../../scripts/vm/two-vms.js";
import { type HugePageSize, hugeFolder, reserveHugePages, withoutFreePages } from "./huge-pages.js";
import { startLocalDevice } from "./local-device.js";
import { Product } from "./product.js";

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
    const { maps } = endpoint.dma.inspect();
    const ram = maps.filter(({ size }) => size >= (memoryMiB / 4) * MiB);
    t.true(
      ram.some(({ windowOffset }) => windowOffset >= 0),
      "main memory is in the window",
    );
  } finally {
    await stop();
  }
}

test.serial("holes punched under a map are zeros where no page is left, and the page beside them stays", async (t) => {
  t.true(reserveHugePages(t, "2M", 3));
  const fd = native.createMemory("holes", 6 * MiB, true);
  const reserved = new native.Reservation(2 ** 30, 2 ** 30);
  t.teardown(() => {
    reserved.release();
    native.close(fd);
  });
  const map = (offset: number) => reserved.map(offset, 6 * MiB, fd, 0, native.PROT_READ | native.PROT_WRITE);
  map(0);
  const bytes = new Uint8Array(reserved.piece(0));
  for (const page of [0, 1, 2]) bytes[page * 2 * MiB] = page + 1;
  execFileSync("fallocate", ["-p", "-o", "2MiB", "-l", "2MiB", `/proc/${process.pid}/fd/${fd}`]);
  const giveBack = withoutFreePages("2M");
  try {
    t.deepEqual([bytes[0], bytes[2 * MiB], bytes[4 * MiB]], [1, 0, 3]);
    bytes[2 * MiB] = 9;
  } finally {
    giveBack();
  }
  t.is(reserved.repairs, 1);
  map(8 * MiB);
  bytes[10 * MiB] = 4;
  t.is(bytes[2 * MiB], 9, "what was repaired stays as it is until it is mapped anew");
  map(0);
  t.deepEqual([bytes[0], bytes[2 * MiB], bytes[4 * MiB]], [1, 4, 3]);
});

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
  // The device is told, resets, and writes its log, all in its own time.
  await product.deviceVm.check(`until grep -q 'served so far' ${disk(0).log}; do sleep 0.1; done`, COMMAND_MS);
  const lines = await nvmeLog(product.deviceVm);
  const served = lines.findLast(({ msg }) => msg === "served so far");
  t.is(served?.movedByMessage, 0);
  t.true(Number(served?.writtenThroughWindow) > 4 * MiB);
});
