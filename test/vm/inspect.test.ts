/** What an operator sees of two VMs by the bridge's control socket, and of the device inside its VM. */
import anyTest, { type TestFn } from "ava";
import * as vms from "../../scripts/vm/two-vms.js";
import { ControlClient } from "../../shared/control/control-client.js";
import { Product } from "./product.js";

const DISK_MIB = 16;
const test = anyTest as TestFn<{ product: Product }>;

// biome-ignore lint/suspicious/noExplicitAny: what the schema says
type Answer = any;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.product = await Product.start({ diskMiB: DISK_MIB });
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

test("a disk's state comes out of its VM, with the driver VM's memory and what it did", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const control = await ControlClient.connect(product.bridge.control);
  t.teardown(() => control.close());
  const ask = async (method: string): Promise<Answer> => control.request(method);
  const [{ state: before }] = await ask("inspect");
  t.like(before.inDeviceVm.device.namespaces[0], { id: 1, blockCount: DISK_MIB * 2048 });
  t.is(before.inDeviceVm.dma.mapCount, 0);
  await ask("latency");
  const vm = await product.driverVm(t);
  await vm.check("dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16", vms.COMMAND_MS);
  const [{ state: after }] = await ask("inspect");
  t.true(after.inDeviceVm.dma.mapCount > 0);
  t.true(after.inDeviceVm.device.reads > 0);
  const [session] = await ask("sessions");
  t.like(session, { client: true, device: "connected" });
  t.true(session.windowMaps > 0 && session.mappedBytes > 64 * 2 ** 20);
  const [{ counts, commands }] = await ask("counts");
  t.true(counts.doorbells > 0 && commands.REGION_WRITE > 0 && commands.DMA_MAP > 0);
  t.true((await ask("latency")).some(({ command, p50 }: Answer) => command === "REGION_READ" && p50 > 0));
  product.assertHealthy(t);
});
