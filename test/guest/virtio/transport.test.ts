/** The transport and its queues, over each link and each way to driver-VM memory. */
import test from "ava";
import type { Device } from "../../../guest/device.js";
import { RegisterFile } from "../../../guest/pci/registers.js";
import { type Chain, type VirtioContext, type VirtioDevice, virtioDevice } from "../../../guest/virtio/index.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { DescriptorFlags, Feature, NO_VECTOR, PciCapType, Status } from "../../../shared/spec/virtio.js";
import { BASE, bind, connect, KINDS, type Ring, some, type VirtioDriver } from "./driver.js";

const EVENTS = Feature.RING_EVENT_IDX;
const BASIC = Feature.VERSION_1 | Feature.ACCESS_PLATFORM;
const ALL = BASIC | EVENTS | Feature.RING_INDIRECT_DESC | Feature.RING_RESET;

interface Echo {
  readonly device: Device;
  context(): VirtioContext;
  resets: number;
  readies: number;
  /** Chains that wait for this. */
  gate: Promise<void> | undefined;
  readonly config: RegisterFile;
}

/** Queue 0 copies what is readable to what is writable, backwards; queue 1 has no handler. */
function echo(more: Partial<VirtioDevice> = {}, parallel = 1): Echo {
  let context: VirtioContext;
  const config = new RegisterFile(8, {
    VALUE: { offset: 0, size: 4, reset: 0x1234 },
    SETTING: { offset: 4, size: 4, writable: 0xffff_ffff },
  });
  const made: Echo = {
    context: () => context,
    resets: 0,
    readies: 0,
    gate: undefined,
    config,
    device: virtioDevice({
      id: 4,
      features: 1n,
      queues: [
        { name: "echo", size: 64, parallel, handle: serve },
        { name: "events", size: 8 },
      ],
      config,
      start(given) {
        context = given;
      },
      ready() {
        made.readies++;
      },
      reset() {
        made.resets++;
      },
      ...more,
    }),
  };
  async function serve(chain: Chain): Promise<number> {
    await made.gate;
    const bytes = new Uint8Array(chain.readable.length);
    await chain.read(0, bytes);
    const length = Math.min(bytes.length, chain.writable.length);
    await chain.write(0, bytes.reverse().subarray(0, length));
    return length;
  }
  return made;
}

async function start(driver: VirtioDriver, features = ALL): Promise<Ring> {
  const status = await driver.negotiate(features);
  if ((status & Status.FEATURES_OK) === 0) throw new Error("the features were refused");
  const ring = await driver.queue(0, 16, features);
  await driver.driverOk();
  return ring;
}

async function roundTrip(driver: VirtioDriver, ring: Ring, length = 100) {
  const data = some(length);
  const room = driver.room(length);
  ring.add(driver.put(data), room);
  await ring.kick();
  const [used] = await ring.completed(1);
  return { used, isRight: driver.at(room.address, length).equals(data.reverse()) };
}

for (const kind of KINDS) {
  test.serial(`${kind}: chains go and come back, direct and indirect, in many pieces`, async (t) => {
    const { driver, end } = await connect(t, echo().device, kind);
    const ring = await start(driver);
    for (let n = 0; n < 40; n++) {
      const data = some(1 + n * 40);
      const [first, second] = [driver.put(data.subarray(0, n)), driver.put(data.subarray(n))];
      const [near, far] = [driver.room(7), driver.room(data.length)];
      const buffers = n === 0 ? [second, near, far] : [first, second, near, far];
      const head = n % 2 === 0 ? ring.addIndirect(...buffers) : ring.add(...buffers);
      await ring.kick();
      const [used] = await ring.completed(1);
      t.deepEqual(used, { id: head, length: data.length });
      const got = Buffer.concat([driver.at(near.address, 7), driver.at(far.address, data.length)]);
      t.deepEqual(got.subarray(0, data.length), data.reverse());
    }
    t.deepEqual(await end(), []);
  });

  test.serial(`${kind}: interrupts by the event index, and by the flags`, async (t) => {
    const { driver, client, end } = await connect(t, echo().device, kind);
    for (const features of [ALL, ALL & ~EVENTS]) {
      const ring = await start(driver, features);
      const vectors = await bind(t, client, 3);
      t.true((await roundTrip(driver, ring)).isRight);
      await vectors[1].next();
      // Not before the third from now.
      if (features & EVENTS) ring.interruptAfter(ring.usedIndex + 2);
      else driver.at(ring.available, 2).writeUInt16LE(1);
      await roundTrip(driver, ring);
      await roundTrip(driver, ring);
      t.is(vectors[1].count(), 0);
      if (!(features & EVENTS)) driver.at(ring.available, 2).writeUInt16LE(0);
      await roundTrip(driver, ring);
      await vectors[1].next();
      t.is(vectors[0].count() + vectors[2].count(), 0);
    }
    t.deepEqual(await end(), []);
  });

  test.serial(
    `${kind}: a driver that keeps a ring full is served, and one that waits to be asked is asked`,
    async (t) => {
      const { driver, end } = await connect(t, echo({}, 4).device, kind);
      const ring = await start(driver);
      const room = driver.room(8);
      const data = driver.put(some(8));
      let completed = 0;
      for (let n = 0; n < 100; n++) {
        for (let k = 0; k < 8; k++) ring.add(data, room);
        if (ring.wantsKick(8)) await ring.kick();
        completed += (await ring.completed(8)).length;
      }
      t.is(completed, 800);
      t.deepEqual(await end(), []);
    },
  );
}

test.serial("what the device is, in config space and in its structures", async (t) => {
  const { driver, client } = await connect(t, echo().device);
  const config = Buffer.from(await client.regionRead(Region.CONFIG, 0, 64));
  t.is(config.readUInt16LE(0), 0x1af4);
  t.is(config.readUInt16LE(2), 0x1044);
  t.true(config[8] >= 1);
  t.is(await driver.offered(), ALL | 1n);
  t.is(await driver.get("numQueues", 2), 2);
  t.deepEqual(Object.keys(driver.places).map(Number), [1, 2, 3, 4, 5]);
  await driver.set("queueSelect", 2, 1);
  t.is(await driver.get("queueSize", 2), 8);
  t.is(await driver.get("queueNotifyOff", 2), 1);
  await driver.set("queueSelect", 2, 2);
  t.is(await driver.get("queueSize", 2), 0);
  t.is(await driver.get("queueMsixVector", 2), NO_VECTOR);
  await driver.set("queueSize", 2, 8);
  t.is(await driver.get("queueSize", 2), 0);
});

test.serial("features: only what was offered, VERSION_1 always, what the device agrees to, and not late", async (t) => {
  const { driver } = await connect(t, echo({ accepts: (features) => (features & 1n) === 0n }).device);
  for (const wrong of [0n, EVENTS, ALL | 2n, ALL | Feature.IN_ORDER, ALL | 1n]) {
    t.is((await driver.negotiate(wrong)) & Status.FEATURES_OK, 0, `${wrong}`);
  }
  t.not((await driver.negotiate(ALL)) & Status.FEATURES_OK, 0);
  await driver.set("driverFeatureSelect", 4, 0);
  await driver.set("driverFeature", 4, 0);
  t.not(await driver.get("driverFeature", 4), 0);
});

test.serial("the configuration: read, written, and told of when it changes", async (t) => {
  const made = echo();
  const { driver, client } = await connect(t, made.device);
  const { offset } = driver.places[PciCapType.DEVICE];
  t.is(await driver.read(offset, 4), 0x1234);
  await driver.write(offset + 4, 4, 77);
  t.is(made.config.get("SETTING"), 77);
  await start(driver);
  const [vector] = await bind(t, client, 1);
  await driver.set("configMsixVector", 2, 0);
  const generation = await driver.get("configGeneration", 1);
  made.config.set("VALUE", 5);
  made.context().configChanged();
  await vector.next();
  t.not(await driver.get("configGeneration", 1), generation);
  t.is(await driver.read(offset, 4), 5);
});

test.serial("without MSI-X, INTA# and the ISR status say what happened, once", async (t) => {
  const made = echo();
  const { driver, client } = await connect(t, made.device);
  const ring = await start(driver);
  const { interrupt } = await import("../devices/serve.js");
  const pin = interrupt(t);
  await client.setIrqs({ index: Irq.INTX, eventfds: [pin.fd] });
  const { offset } = driver.places[PciCapType.ISR];
  await roundTrip(driver, ring);
  await pin.next();
  made.context().configChanged();
  t.is(await driver.read(offset, 1), 3);
  t.is(await driver.read(offset, 1), 0);
});

test.serial(
  "a reset by the driver reads 0 when nothing goes on any more, and nothing of before happens then",
  async (t) => {
    const made = echo();
    const { driver } = await connect(t, made.device);
    const ring = await start(driver);
    let open = () => {};
    made.gate = new Promise((resolve) => {
      open = resolve;
    });
    ring.add(driver.put(some(10)), driver.room(10));
    await ring.kick();
    await new Promise((resolve) => setTimeout(resolve, 20));
    const before = made.resets;
    await driver.set("deviceStatus", 1, 0);
    t.not(await driver.get("deviceStatus", 1), 0);
    t.is(made.resets, before);
    open();
    made.gate = undefined;
    while ((await driver.get("deviceStatus", 1)) !== 0) await new Promise((resolve) => setTimeout(resolve, 1));
    t.is(made.resets, before + 1);
    t.deepEqual(ring.takeUsed(), []);
    const again = await start(driver);
    t.true((await roundTrip(driver, again)).isRight);
    t.is(made.readies, 2);
  },
);

test.serial("a queue alone can be reset, and enabled again elsewhere", async (t) => {
  const { driver } = await connect(t, echo().device);
  const ring = await start(driver);
  t.true((await roundTrip(driver, ring)).isRight);
  await driver.set("queueSelect", 2, 0);
  await driver.set("queueReset", 2, 1);
  while ((await driver.get("queueReset", 2)) !== 0) await new Promise((resolve) => setTimeout(resolve, 1));
  t.is(await driver.get("queueEnable", 2), 0);
  const again = await driver.queue(0, 32, ALL);
  t.true((await roundTrip(driver, again)).isRight);
});

test.serial("DEVICE_RESET in the middle of it all", async (t) => {
  const made = echo();
  const { driver, client } = await connect(t, made.device);
  const ring = await start(driver);
  made.gate = new Promise((resolve) => setTimeout(resolve, 50));
  ring.add(driver.put(some(10)), driver.room(10));
  await ring.kick();
  await client.reset();
  t.is(await driver.get("deviceStatus", 1), 0);
  t.deepEqual(ring.takeUsed(), []);
  await client.regionWrite(
    Region.CONFIG,
    Header.COMMAND,
    Uint8Array.of(CommandBits.MEMORY | CommandBits.BUS_MASTER, 0),
  );
  t.true((await roundTrip(driver, await start(driver))).isRight);
});

test.serial("config space reaches the structures as well", async (t) => {
  const { client, driver } = await connect(t, echo().device);
  const config = Buffer.from(await client.regionRead(Region.CONFIG, 0, 256));
  let at = config[0x34];
  while (!(config[at] === 9 && config[at + 3] === PciCapType.PCI)) at = config[at + 1];
  const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  const access = async (offset: number, length: number) => {
    await client.regionWrite(Region.CONFIG, at + 8, u32(offset));
    await client.regionWrite(Region.CONFIG, at + 12, u32(length));
  };
  await access(driver.places[PciCapType.DEVICE].offset, 4);
  t.is(Buffer.from(await client.regionRead(Region.CONFIG, at + 16, 4)).readUInt32LE(), 0x1234);
  await access(0x14, 1);
  await client.regionWrite(Region.CONFIG, at + 16, Uint8Array.of(Status.ACKNOWLEDGE));
  t.is(await driver.get("deviceStatus", 1), Status.ACKNOWLEDGE);
  // What lies outside, and lengths that cannot be.
  for (const [offset, length] of [
    [0xffff_fffc, 4],
    [0x15, 3],
    [1, 4],
  ]) {
    await access(offset, length);
    t.is(Buffer.from(await client.regionRead(Region.CONFIG, at + 16, 4)).readUInt32LE(), 0);
  }
});

/** What a hostile driver does with the first ring, and what it is told. */
const HOSTILE: Readonly<Record<string, (ring: Ring, driver: VirtioDriver) => void>> = {
  "a loop": (ring) => {
    ring.describe(0, BASE, 16, DescriptorFlags.NEXT, 1);
    ring.describe(1, BASE, 16, DescriptorFlags.NEXT, 0);
    ring.offer(0);
  },
  "a head outside of the table": (ring) => ring.offer(16),
  "a next descriptor outside of the table": (ring) => {
    ring.describe(0, BASE, 16, DescriptorFlags.NEXT, 999);
    ring.offer(0);
  },
  "readable behind writable": (ring, driver) => {
    ring.add(driver.room(4), driver.put(some(4)));
  },
  "an index that jumps": (ring, driver) => {
    driver.at(ring.available, 4).writeUInt16LE(5000, 2);
  },
  "an address that is not mapped": (ring) => {
    ring.add({ address: 0x10, length: 8 }, { address: BASE, length: 8, isWritable: true });
  },
  "an address between the halves of the address space": (ring) => {
    ring.add({ address: 2 ** 62, length: 8 });
  },
  "a length past the map": (ring) => {
    ring.add({ address: BASE, length: 0xffff_ffff });
  },
  "indirect within indirect": (ring, driver) => {
    const table = driver.allocate(32);
    driver.at(table, 16).writeBigUInt64LE(BigInt(table), 0);
    driver.at(table, 16).writeUInt32LE(16, 8);
    driver.at(table, 16).writeUInt16LE(DescriptorFlags.INDIRECT, 12);
    ring.describe(0, table, 16, DescriptorFlags.INDIRECT);
    ring.offer(0);
  },
  "an indirect table of a length that is none": (ring, driver) => {
    ring.describe(0, driver.allocate(32), 17, DescriptorFlags.INDIRECT);
    ring.offer(0);
  },
  "an indirect table larger than the queue": (ring, driver) => {
    ring.describe(0, driver.allocate(17 * 16), 17 * 16, DescriptorFlags.INDIRECT);
    ring.offer(0);
  },
  "an indirect table that is not mapped": (ring) => {
    ring.describe(0, 0x1000, 32, DescriptorFlags.INDIRECT);
    ring.offer(0);
  },
  "an indirect descriptor with a next one": (ring, driver) => {
    ring.describe(0, driver.allocate(32), 32, DescriptorFlags.INDIRECT | DescriptorFlags.NEXT, 1);
    ring.offer(0);
  },
};

for (const kind of KINDS) {
  test.serial(`${kind}: a hostile driver gets DEVICE_NEEDS_RESET, and after a reset all works`, async (t) => {
    const { driver, client, end } = await connect(t, echo().device, kind);
    for (const [name, act] of Object.entries(HOSTILE)) {
      const ring = await start(driver);
      await driver.set("configMsixVector", 2, 0);
      const [vector] = await bind(t, client, 1);
      act(ring, driver);
      await ring.kick();
      await vector.next();
      t.not((await driver.get("deviceStatus", 1)) & Status.DEVICE_NEEDS_RESET, 0, name);
      // Until then nothing is served.
      ring.add(driver.put(some(4)), driver.room(4));
      await ring.kick();
      t.deepEqual(ring.takeUsed(), [], name);
      t.true((await roundTrip(driver, await start(driver))).isRight, name);
    }
    t.deepEqual(await end(), []);
  });
}

test.serial("queue addresses that cannot be, and settings that change late", async (t) => {
  const { driver } = await connect(t, echo().device);
  await driver.negotiate(ALL);
  await driver.set("queueSelect", 2, 0);
  for (const size of [3, 0, 128, 0xffff]) {
    await driver.set("queueSize", 2, size);
    t.is(await driver.get("queueSize", 2), 64);
  }
  await driver.set("queueDesc", 4, 8);
  await driver.set("queueEnable", 2, 1);
  t.is(await driver.get("queueEnable", 2), 0);
  t.not((await driver.get("deviceStatus", 1)) & Status.DEVICE_NEEDS_RESET, 0);
  const ring = await start(driver);
  await driver.set("queueDesc", 4, 0);
  await driver.set("queueSize", 2, 4);
  await driver.set("queueEnable", 2, 0);
  t.is(await driver.get("queueSize", 2), 16);
  t.is(await driver.get("queueEnable", 2), 1);
  t.true((await roundTrip(driver, ring)).isRight);
});

test.serial("a queue without a handler: chains are taken and given back by the device", async (t) => {
  const notified: number[] = [];
  const made = echo({
    queues: [
      { name: "none", size: 2, handle: () => 0 },
      { name: "events", size: 8, notified: ({ index }) => notified.push(index) },
    ],
  });
  const { driver, client } = await connect(t, made.device);
  await driver.negotiate(ALL);
  const ring = await driver.queue(1, 8, ALL);
  await driver.driverOk();
  const vectors = await bind(t, client, 3);
  const queue = made.context().queues[1];
  t.is(await queue.take(), undefined);
  const room = driver.room(16);
  const head = ring.add(room);
  t.true(ring.wantsKick(1));
  await ring.kick();
  t.true(notified.length >= 1);
  const chain = await queue.take();
  await chain?.write(0, Buffer.from("an event"));
  if (chain) await queue.complete(chain, 8);
  await vectors[2].next();
  t.deepEqual(ring.takeUsed(), [{ id: head, length: 8 }]);
  t.is(driver.at(room.address, 8).toString(), "an event");
});

test("declarations that cannot be are refused when the device is made", (t) => {
  const queues = [{ name: "q" }];
  for (const [what, device] of Object.entries<VirtioDevice>({
    "no virtio device type": { id: 0, queues },
    "0 queues": { id: 4, queues: [] },
    "q of 3 entries": { id: 4, queues: [{ name: "q", size: 3 }] },
    "feature bit 28": { id: 4, queues, features: Feature.RING_INDIRECT_DESC },
    "a configuration of 8192 bytes": { id: 4, queues, config: new RegisterFile(8192, {}) },
  })) {
    t.throws(() => virtioDevice(device), { name: "RangeError", message: new RegExp(what) });
  }
});
