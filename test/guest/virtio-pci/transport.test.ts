import test from "ava";
import { discover } from "../../../guest/virtio-pci/capabilities.js";
import { VirtioPci } from "../../../guest/virtio-pci/transport.js";
import { Feature, PciCap, PciCapType, Status } from "../../../shared/spec/virtio.js";
import { DriverQueue, ringBytes } from "../../../shared/virtqueue/driver.js";
import { Layout, NOTIFY_MULTIPLIER, REGISTER_BAR, WINDOW_BAR } from "../../fakes/front-end-config.js";
import { PciBridge } from "../../fakes/pci-bridge.js";

/** Offset of the capability of that type. */
function capability(bridge: PciBridge, type: number): number {
  for (let at = bridge.configBytes[0x34]; at !== 0; at = bridge.configBytes[at + 1]) {
    if (bridge.configBytes[at] === 9 && bridge.configBytes[at + 3] === type) return at;
  }
  throw new Error(`no capability of type ${type}`);
}

test("discovery finds stock QEMU's structures", (t) => {
  const layout = discover(new PciBridge());
  t.deepEqual(layout.common, { bar: REGISTER_BAR, offset: Layout.COMMON, length: 0x1000 });
  t.deepEqual(layout.device, { bar: REGISTER_BAR, offset: Layout.DEVICE, length: 0x1000 });
  t.deepEqual(layout.notify, { bar: REGISTER_BAR, offset: Layout.NOTIFY, length: 0x1000 });
  t.is(layout.notifyMultiplier, NOTIFY_MULTIPLIER);
  t.deepEqual(layout.sharedMemory.get(0), { bar: WINDOW_BAR, offset: 0, length: 16 * 2 ** 20 });
});

test("a capability list that loops ends; what is not VIRTIO's is passed over", (t) => {
  const bridge = new PciBridge();
  // The last capability points to the first.
  bridge.configBytes[0x41] = bridge.configBytes[0x34];
  t.is(discover(bridge).common.length, 0x1000);
  bridge.configBytes[0x34] = 0x30;
  t.throws(() => discover(bridge), { name: "UserError", message: /no common configuration/ });
});

test("a structure outside of its BAR, too short, missing, or in no BAR is refused", (t) => {
  const refused = (message: RegExp, change: (bridge: PciBridge) => void) => {
    const bridge = new PciBridge();
    change(bridge);
    t.throws(() => discover(bridge), { name: "UserError", message });
  };
  const at = (type: number, field: number) => (bridge: PciBridge, value: number) =>
    new DataView(bridge.configBytes.buffer).setUint32(capability(bridge, type) + field, value, true);
  refused(/outside of BAR 2/, (bridge) => at(PciCapType.NOTIFY, PciCap.offsets.offset)(bridge, Layout.SIZE));
  refused(/outside of BAR 2/, (bridge) => at(PciCapType.COMMON, PciCap.offsets.length)(bridge, 0xffffffff));
  refused(/outside of BAR 4/, (bridge) => at(PciCapType.SHARED_MEMORY, PciCap.size + 4)(bridge, 1));
  refused(/no common/, (bridge) => at(PciCapType.COMMON, PciCap.offsets.length)(bridge, 8));
  refused(/no notification/, (bridge) => {
    bridge.configBytes[capability(bridge, PciCapType.NOTIFY) + PciCap.offsets.bar] = 6;
  });
  refused(/no device configuration/, (bridge) => {
    bridge.configBytes[capability(bridge, PciCapType.DEVICE) + PciCap.offsets.capLen] = 8;
  });
  refused(/not a VIRTIO device/, (bridge) => {
    bridge.configBytes[0] = 0;
  });
});

test("status, features and queues, as the specification orders them", async (t) => {
  const bridge = new PciBridge();
  const transport = new VirtioPci(bridge);
  bridge.status = Status.DRIVER_OK;
  await transport.reset();
  t.is(bridge.status, 0);
  transport.negotiate(Feature.VERSION_1);
  t.is(bridge.driverFeatures, Feature.VERSION_1);
  t.is(bridge.status, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK);
  const memory = bridge.allocate(ringBytes(8));
  const queue = new DriverQueue(8, { ...memory, address: 0x12_3456_0000 }, 0);
  transport.enableQueue(3, queue, true);
  t.is(bridge.queues[3].size, 8);
  t.true(bridge.queues[3].enabled);
  t.is(bridge.queues[3].vector, 0);
  t.deepEqual(bridge.addresses(3), [queue.descriptorAddress, queue.availableAddress, queue.usedAddress]);
  transport.notify(3);
  transport.notify(5);
  t.deepEqual(bridge.notified, [3], "a queue that is not set up is not notified");
  await transport.reset();
  transport.notify(3);
  t.deepEqual(bridge.notified, [3]);
});

test("what the device does not offer or not accept ends in FAILED", (t) => {
  const without = new PciBridge();
  without.offeredFeatures = 0n;
  t.throws(() => new VirtioPci(without).negotiate(Feature.VERSION_1), { name: "UserError", message: /lacks features/ });
  t.is(without.status & Status.FAILED, Status.FAILED);
  const stubborn = new PciBridge();
  stubborn.acceptsFeatures = false;
  t.throws(() => new VirtioPci(stubborn).negotiate(Feature.VERSION_1), { name: "UserError", message: /not accept/ });
  t.is(stubborn.status & Status.FAILED, Status.FAILED);
});

test("a queue larger than the device's, or notified outside of its registers, is refused", (t) => {
  const bridge = new PciBridge(0x500);
  const transport = new VirtioPci(bridge);
  const memory = bridge.allocate(ringBytes(128));
  t.throws(() => transport.enableQueue(0, new DriverQueue(128, memory, 0), true), {
    message: /64 descriptors at most/,
  });
  const small = new DriverQueue(8, memory, 0);
  t.throws(() => transport.enableQueue(0x400, small, true), { message: /outside of its registers/ });
});

test("configuration is read as one, again when it changes meanwhile", (t) => {
  const bridge = new PciBridge();
  const transport = new VirtioPci(bridge);
  let reads = 0;
  bridge.onConfigRead = () => {
    if (++reads === 5) {
      bridge.deviceConfig[16] = 0x77;
      bridge.deviceConfig[0] = 0x11;
      bridge.generation++;
    }
  };
  const config = transport.readConfig(80);
  t.is(config[0], 0x11);
  t.is(config[16], 0x77);
  t.is(reads, 40);
  bridge.onConfigRead = () => bridge.generation++;
  t.throws(() => transport.readConfig(80), { name: "UserError", message: /hold still/ });
  t.throws(() => transport.readConfig(0x1004), { name: "UserError", message: /bytes of configuration/ });
});
