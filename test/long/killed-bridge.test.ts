/** kill -9 of the bridge while a driver VM boots and while it does I/O: neither VM, nor its kernel, notices. */
import anyTest, { type TestFn } from "ava";
import type { Entry } from "../../scripts/vm/cpio.js";
import { booted, exerciseDisk, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Random } from "../guest/devices/nvme/random.js";
import { kernelLog } from "../vm/kernel-log.js";
import { COMPLAINT, killAgainAndAgain } from "../vm/killed-bridge.js";
import { Product } from "../vm/product.js";
import { startVerifiedIo, verifiedIoEntry } from "../vm/verified-io.js";

const DISK_MIB = 64;
const KILLS = { boot: 6, io: 14 } as const;

const test = anyTest as TestFn<{ product: Product; program: Entry }>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  const product = await Product.start({ diskMiB: DISK_MIB, supervised: true });
  t.context = { product, program: await verifiedIoEntry(product.directory) };
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test.serial("kill -9 at 20 moments of a driver VM's boot and of its I/O", async (t) => {
  t.timeout(15 * 60_000);
  const { product, program } = t.context;
  const random = new Random();
  t.log(`SEED=${random.seed}`);
  const vm = await product.switchOn(t, { entries: [program] });
  await killAgainAndAgain(t, product, random, { count: KILLS.boot, least: 100, most: 1500 });
  await booted(vm);
  t.is(await waitForDisk(vm), DISK_MIB * 2 ** 20);
  const io = await startVerifiedIo(vm, DISK_MIB / 2);
  await killAgainAndAgain(t, product, random, { count: KILLS.io, least: 100, most: 2500 });
  const { requests, pausesMs } = await io.end();
  const longest = pausesMs.slice(0, KILLS.io);
  t.log(`${requests} requests; pauses: half of them below ${longest[KILLS.io / 2]} ms, the longest ${longest[0]} ms`);
  t.regex(await exerciseDisk(vm, 1), /^[0-9a-f]{64}$/);
  for (const each of [vm, product.deviceVm]) {
    t.notRegex(await kernelLog(each), COMPLAINT);
  }
  product.assertHealthy(t);
});
