/**
 * The bridge against stock QEMU's vhost-user-test-device-pci, without a guest: the test is the driver. This is what
 * keeps the fake front-end honest.
 */
import test, { type ExecutionContext } from "ava";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { MiB } from "../../shared/limits.js";
import { Config, LinkCommand, MAGIC, MemoryAllocated } from "../../shared/spec/link.js";
import { Command, DmaMap, Irq, IrqSet, Region, RegionInfo } from "../../shared/spec/vfio-user.js";
import { getU64 } from "../../shared/struct/struct.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import { BridgeProcess } from "../fakes/front-end-bridge.js";
import { Layout, REGISTER_BAR, WINDOW_BAR } from "../fakes/front-end-config.js";
import { TestDevice } from "../fakes/front-end-device.js";
import { mapBar, memoryBody, PARTS, regionInfo, replyWithHandles } from "../host/bridge/link/sharing-set-up.js";
import { deviceAnswers, eventfd, memory } from "../host/bridge/set-up.js";
import { QtestVm } from "./qtest.js";

async function setUp(t: ExecutionContext) {
  t.timeout(120_000);
  const { qemu } = await prepareVmEnvironment();
  const bridge = await BridgeProcess.start({ windowSize: "64G" });
  t.teardown(() => bridge.stop());
  const { directory, vhostUserSocketPath } = bridge;
  const vm = await QtestVm.start({ qemu, directory, vhostUserSocketPath });
  t.teardown(() => vm.quit());
  const device = new TestDevice(vm);
  await device.startAndGreet();
  const client = await Client.connect(bridge.socketPath);
  t.teardown(() => client.close());
  return { bridge, vm, device, client };
}

/** The window offset of the last map that the device process was told of. */
const lastPlace = (device: TestDevice) => {
  const map = device.received.filter(({ command }) => command === Command.DMA_MAP).at(-1);
  if (!map) throw new Error("there was no map");
  return DmaMap.view(map.data).offset;
};

test.serial("realized with a 64 GiB window and our config space", async (t) => {
  const { vm } = await setUp(t);
  t.is(vm.barSize(WINDOW_BAR), 64 * 1024 * MiB);
  const registers = vm.registers(REGISTER_BAR);
  t.is(registers.read32(Layout.DEVICE), MAGIC);
  t.is(registers.read16(Layout.DEVICE + Config.offsets.doorbells), 5);
});

test.serial("maps are live when the device process is told of them, however many there are", async (t) => {
  const { vm, device, client } = await setUp(t);
  const { fd, bytes } = memory(t, 40 * MiB);
  for (let i = 0; i < 20; i++) {
    const at = i * 2 * MiB;
    bytes.set([i + 1, 99], at);
    await client.mapMemory({ address: at, size: 2 * MiB, fd, fdOffset: at });
    const place = lastPlace(device);
    t.deepEqual(vm.readWindow(place, 2), [i + 1, 99]);
    vm.writeWindow(place + 8, Uint8Array.of(i + 100));
    t.is(bytes[at + 8], i + 100);
  }
  const place = lastPlace(device);
  for (let i = 0; i < 20; i++) await client.unmapMemory(i * 2 * MiB, 2 * MiB);
  t.deepEqual(vm.readWindow(place, 2), [0, 0]);
  t.true(vm.alive);
});

test.serial("doorbells and region accesses", async (t) => {
  const { device, client } = await setUp(t);
  const irq = eventfd(t);
  await client.setIrqs({ index: Irq.MSIX, start: 3, eventfds: [irq.fd], action: "trigger" });
  const set = device.received.at(-1);
  t.is(set?.command, Command.DEVICE_SET_IRQS);
  device.ring(set?.data.getUint32(IrqSet.size, true) ?? -1);
  await irq.signalled(1);
  await client.regionWrite(Region.BAR0, 4, Uint8Array.of(1, 2, 3, 4));
  t.deepEqual([...(await client.regionRead(Region.BAR0, 4, 4))], [1, 2, 3, 4]);
});

const resets: Record<string, (vm: QtestVm, device: TestDevice) => Promise<unknown> | undefined> = {
  "QUIESCE and a reset": (_, device) => device.request(LinkCommand.QUIESCE),
  "a reset with live maps": () => undefined,
  "a reset of the machine with live maps": async (vm) => vm.systemReset(),
  "the end of bus mastering with live maps": async (vm) => {
    vm.config.write16(4, 2);
    vm.config.write16(4, 6);
  },
};
for (const [name, act] of Object.entries(resets)) {
  test.serial(`QEMU and the bridge live on after ${name}`, async (t) => {
    const { bridge, vm, device, client } = await setUp(t);
    const { fd, bytes } = memory(t, 4 * MiB);
    bytes[0] = 42;
    await client.mapMemory({ address: 0, size: 4 * MiB, fd });
    for (let round = 1; round <= 3; round++) {
      await act(vm, device);
      await device.startAndGreet();
      await deviceAnswers(client);
      t.deepEqual(vm.readWindow(lastPlace(device), 1), [42]);
    }
    t.true(vm.alive, vm.stderr);
    t.true(bridge.alive);
  });
}

test.serial(
  "memory that the device process shares: in the window before HELLO, and anew for each client",
  async (t) => {
    const { bridge, vm, device, client: first } = await setUp(t);
    first.close();
    await device.waitFor(LinkCommand.CLIENT_GONE);
    await device.request(LinkCommand.QUIESCE);
    device.start();
    const body = new Uint8Array(memoryBody(Region.BAR0, PARTS));
    const { data } = await device.request(LinkCommand.ALLOCATE_MEMORY, body);
    const { handle } = MemoryAllocated.view(data);
    const places = PARTS.map((_, n) => getU64(data, MemoryAllocated.size + 8 * n));
    t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
    device.onCommand = (received) => {
      if (received.command !== Command.DEVICE_GET_REGION_INFO) return false;
      const description = regionInfo(PARTS);
      const fits = received.data.getUint32(0, true) >= description.length;
      if (fits) replyWithHandles(device, received, description, [handle]);
      else device.reply(received, new Uint8Array(description.subarray(0, RegionInfo.size)));
      return true;
    };
    const inodes = new Set<number>();
    for (let round = 1; round <= 3; round++) {
      const client = await Client.connect(bridge.socketPath);
      const { views, inode } = await mapBar(t, client);
      inodes.add(inode);
      t.deepEqual(vm.readWindow(places[1] + 8, 2), [0, 0]);
      views[0][0] = round;
      views[1][9] = 10 + round;
      t.deepEqual([...vm.readWindow(places[0], 1), ...vm.readWindow(places[1] + 9, 1)], [round, 10 + round]);
      vm.writeWindow(places[1] + 8, Uint8Array.of(20 + round));
      t.is(views[1][8], 20 + round);
      client.close();
    }
    t.is(inodes.size, 3);
    // The next client is let in when the last one's memory is gone.
    const last = await Client.connect(bridge.socketPath);
    t.deepEqual(vm.readWindow(places[0], 1), [0]);
    last.close();
    t.true(vm.alive, vm.stderr);
  },
);

test.serial("QEMU goes with everything mapped, and another one comes", async (t) => {
  const { bridge, vm, client } = await setUp(t);
  const { fd } = memory(t, 4 * MiB);
  await client.mapMemory({ address: 0, size: 4 * MiB, fd });
  await vm.quit();
  await bridge.logged(/"msg":"front-end gone"/);
  const { qemu } = await prepareVmEnvironment();
  const { directory, vhostUserSocketPath } = bridge;
  const next = await QtestVm.start({ qemu, directory, vhostUserSocketPath });
  t.teardown(() => next.quit());
  const device = new TestDevice(next);
  await device.startAndGreet();
  await deviceAnswers(client);
  t.is(device.received.filter(({ command }) => command === Command.DMA_MAP).length, 1);
});
