/** Memory is plugged into a driver VM and unplugged again: the device has it for DMA exactly as long as it is there. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { createNvme } from "../../guest/devices/nvme/index.js";
import { COMMAND_MS, waitForDisk } from "../../scripts/vm/two-vms.js";
import { type LocalDevice, mapsOf, startLocalDevice } from "./local-device.js";

const DISK = 64 * 2 ** 20;
const DIMM = 256 * 2 ** 20;

const test = anyTest as TestFn<{ directory: string; local: LocalDevice }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.directory = await mkdtemp(join(tmpdir(), "vfio-user-memory-"));
  t.context.local = await startLocalDevice(await createNvme({ memory: [DISK] }), t.context.directory, {
    memoryOptions: ",slots=2,maxmem=4G",
    // What is plugged is for data that can be moved away again.
    append: "memhp_default_state=online_movable",
  });
});

test.after.always(async (t) => {
  const { local, directory } = t.context;
  await local?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

test.serial("a DIMM is plugged, filled from the disk, and unplugged", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { vm, endpoint } = t.context.local;
  t.is(await waitForDisk(vm), DISK);
  await vm.check("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=64 oflag=direct 2>/dev/null", COMMAND_MS);
  const sums = async () =>
    vm.check("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/nvme0n1; sha256sum </dev/nvme0n1", COMMAND_MS);
  const expected = (await sums()).split("\n")[0];
  const total = async () => Number(await vm.check("awk '/MemTotal/ { print $2 }' /proc/meminfo", COMMAND_MS)) * 1024;
  const [maps, before] = [mapsOf(endpoint), await total()];
  for (let round = 0; round < 2; round++) {
    await vm.qmp("object-add", { "qom-type": "memory-backend-memfd", id: "dimm", size: DIMM, share: true });
    await vm.qmp("device_add", { driver: "pc-dimm", id: "dimm0", memdev: "dimm" });
    const plugged = `[ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -ge $((${before + DIMM} / 1024)) ]`;
    await vm.check(`until ${plugged}; do sleep 0.1; done`, COMMAND_MS);
    t.is(mapsOf(endpoint), maps + 1, "it is mapped");
    t.deepEqual((await sums()).split("\n"), [expected, expected]);
    await vm.check("echo 3 >/proc/sys/vm/drop_caches", COMMAND_MS);
    const deleted = vm.waitForEvent("DEVICE_DELETED", COMMAND_MS, ({ device }) => device === "dimm0");
    await vm.qmp("device_del", { id: "dimm0" });
    await deleted;
    await vm.qmp("object-del", { id: "dimm" });
    t.is(await total(), before);
    t.is(mapsOf(endpoint), maps, "and is mapped no more");
    t.deepEqual((await sums()).split("\n"), [expected, expected]);
  }
  t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
});
