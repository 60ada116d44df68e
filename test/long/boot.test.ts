/**
 * A driver VM whose firmware boots from the disk that the other VM serves: SeaBIOS, GRUB, Linux, and its root file
 * system.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { prepareExtras, prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { BOOT_MS, booted, COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { Product } from "../vm/product.js";
import { bootImage } from "./boot-image.js";

const DISK_MIB = 64;

const test = anyTest as TestFn<{ product: Product }>;

test.before(async (t) => {
  t.timeout(30 * 60_000);
  const [environment, extras] = [await prepareVmEnvironment(), await prepareExtras()];
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-boot-"));
  try {
    const image = await bootImage(environment, extras, directory, DISK_MIB);
    t.context.product = await Product.start({ diskMiB: DISK_MIB, image });
  } finally {
    await rm(directory, { recursive: true });
  }
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test.serial("it boots, reboots, is reset, and is restarted, with its files as it left them", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const choices = { bootsFromIt: true, reboots: true };
  const vm = await product.driverVm(t, choices);
  await vm.waitForLine(/@@grub/, BOOT_MS);
  t.regex(await vm.check("grep ' / ' /proc/mounts", COMMAND_MS), / ext4 rw/);
  t.regex(await vm.check("cat /proc/cmdline", COMMAND_MS), /root=\/dev\/nvme0n1p1/);
  await vm.check("echo one >/root/file && sync", COMMAND_MS);

  for (const [word, restart] of [
    ["two", () => vm.check("(sleep 0.5; reboot -f) &", COMMAND_MS)],
    ["three", () => vm.qmp("system_reset")],
  ] as const) {
    await vm.check(`echo ${word} >>/root/file && sync`, COMMAND_MS);
    const from = vm.nextLine;
    await restart();
    await vm.waitForLine(/@@grub/, BOOT_MS, from);
    await booted(vm, from);
  }
  await vm.check("sync", COMMAND_MS);
  await vm.stop();
  const next = await product.driverVm(t, choices);
  t.is(await next.check("cat /root/file", COMMAND_MS), "one\ntwo\nthree");
  product.assertHealthy(t);
});
