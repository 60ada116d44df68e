/**
 * Linux's own virtio drivers with devices of ours, which run on this host: what the kernel finds, and that it works.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { createRng } from "../../guest/devices/rng/index.js";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "./kernel-log.js";
import { type LocalDevice, startLocalDevice } from "./local-device.js";

const test = anyTest as TestFn<{ directory: string; local: LocalDevice }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.directory = await mkdtemp(join(tmpdir(), "vfio-user-virtio-"));
  const { modules } = await prepareVmEnvironment();
  const module = modules.find((path) => basename(path) === "virtio-rng.ko");
  if (module === undefined) throw new Error("the guest kernel has no virtio-rng");
  t.context.local = await startLocalDevice(createRng(), t.context.directory, {
    entries: [
      { path: "/modules/order", data: "virtio-rng.ko\n" },
      { path: "/modules/virtio-rng.ko", data: await readFile(module) },
    ],
  });
});

test.after.always(async (t) => {
  const { local, directory } = t.context;
  await local?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

const served = ({ local }: { local: LocalDevice }) =>
  (local.endpoint.inspect() as { device: { device: { served: number } } }).device.device.served;

test.serial("Linux finds an entropy source and reads from it, again after a new probe", async (t) => {
  t.timeout(20 * COMMAND_MS);
  const { vm } = t.context.local;
  for (let times = 0; times < 3; times++) {
    const before = served(t.context);
    t.is(await vm.check("cat /sys/class/misc/hw_random/rng_current", COMMAND_MS), "virtio_rng.0");
    const sums = await vm.check("for n in 1 2; do head -c 100000 /dev/hwrng | sha256sum; done", COMMAND_MS);
    const [first, second] = sums.split("\n");
    t.not(first, second);
    t.true(served(t.context) - before >= 200_000);
    const driver = "/sys/bus/virtio/drivers/virtio_rng";
    await vm.check(`echo virtio0 >${driver}/unbind && echo virtio0 >${driver}/bind`, COMMAND_MS);
  }
  t.notRegex(await kernelLog(vm), /(virtio|hw_random|0000:01:00).*(error|fail|time|reset|wrong|bad)/i);
  t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
});
