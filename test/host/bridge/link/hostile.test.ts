/** Device processes that break the rules, and what that must cost nobody else. */
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { MAX_REGIONS, MiB } from "../../../../shared/limits.js";
import { ABI_VERSION, Hello, LinkCommand, Queue } from "../../../../shared/spec/link.js";
import {
  Command,
  DmaAccess,
  MigData,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
} from "../../../../shared/spec/vfio-user.js";
import { DescriptorFlags, Status } from "../../../../shared/spec/virtio.js";
import { Client } from "../../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../../fakes/front-end.js";
import { BAR_SIZE, message, TestDevice } from "../../../fakes/front-end-device.js";

import { deviceAnswers, memory, ones, pattern, setUp } from "../set-up.js";

const { regions: REGIONS, postedRegions: POSTED } = Hello.offsets;
const SIZES = Hello.size;
const IRQS = SIZES + 8 * NUM_PCI_REGIONS;

const hello = (device: TestDevice, change: (data: DataView) => void) => {
  const body = device.hello();
  change(new DataView(body.buffer));
  return message(9, LinkCommand.HELLO, 0, body);
};
/** HELLO as it is for so many regions. */
const helloOf = (regions: number, change: (data: DataView) => void = () => {}) => {
  const body = new Uint8Array(Hello.size + 8 * regions + 4 * NUM_PCI_IRQS);
  body.set(Hello.encode({ abiVersion: ABI_VERSION, regions }));
  change(new DataView(body.buffer));
  return message(9, LinkCommand.HELLO, 0, body);
};

/**
 * What a hostile device process might do with a client connected. Each must cost it the link and nobody else anything.
 */
const hostile: Record<string, (device: TestDevice, frontEnd: FrontEnd) => void> = {
  "a message shorter than a header": (device) => device.sendRaw(new Uint8Array(15)),
  "a message that says 0 bytes": (device) => device.sendRaw(new Uint8Array(16)),
  "a message that says more than the largest": (device) =>
    device.sendRaw(Uint8Array.of(0, 0, 9, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0)),
  "a buffer longer than its message": (device) =>
    device.sendRaw(Buffer.concat([message(0, LinkCommand.QUIESCE, 0), new Uint8Array(4)])),
  "a second HELLO": (device) => device.sendRaw(hello(device, () => {})),
  "a second QUIESCE before the reply": (device) => {
    device.sendRaw(message(0, LinkCommand.QUIESCE, 0));
    device.sendRaw(message(1, LinkCommand.QUIESCE, 0));
  },
  "HELLO before the reply to QUIESCE": (device) => {
    device.sendRaw(message(0, LinkCommand.QUIESCE, 0));
    device.sendRaw(hello(device, () => {}));
  },
  "a message of no type": (device) => device.sendRaw(message(0, LinkCommand.QUIESCE, 7)),
  "a command of nobody's": (device) => device.sendRaw(message(0, 0x999, 0)),
  "a command that is only for devices": (device) =>
    device.sendRaw(message(0, Command.REGION_READ, 0, new Uint8Array(16))),
  "a reply to nothing": (device) => device.sendRaw(message(3, Command.REGION_READ, 1)),
  "a reply with an id out of range": (device) => device.sendRaw(message(0xffff, Command.REGION_READ, 1)),
  "a DMA without an address": (device) => device.sendRaw(message(0, Command.DMA_READ, 0, new Uint8Array(8))),
  "a DMA_WRITE with too little data": (device) =>
    device.sendRaw(message(0, Command.DMA_WRITE, 0, DmaAccess.encode({ address: 0, count: 100 }))),
  "an available index that jumps": (device) => {
    device.rings[Queue.FROM_DEVICE].setAvailableIndex(40_000);
    device.notify(Queue.FROM_DEVICE);
  },
  "a loop of descriptors": (device) => {
    const ring = device.rings[Queue.FROM_DEVICE];
    ring.descriptor(60, 0x10_0000, 16, DescriptorFlags.NEXT, 60);
    ring.offer(60);
    device.notify(Queue.FROM_DEVICE);
  },
  "a buffer outside memory": (device) => {
    device.rings[Queue.FROM_DEVICE].add(60, { address: 0x7fff_0000_0000, length: 16 });
    device.notify(Queue.FROM_DEVICE);
  },
  "a copy without a header": (device) => {
    device.rings[Queue.COPY].add(
      0,
      { address: 0x10_0000, length: 15 },
      { address: 0x10_0000, length: 4, writable: true },
    );
    device.notify(Queue.COPY);
  },
  "a copy without room for its status": (device) => {
    device.rings[Queue.COPY].add(
      0,
      { address: 0x10_0000, length: 16 },
      { address: 0x10_0000, length: 3, writable: true },
    );
    device.notify(Queue.COPY);
  },
  "a loop of a copy's descriptors": (device) => {
    device.rings[Queue.COPY].descriptor(0, 0x10_0000, 16, DescriptorFlags.NEXT, 0);
    device.rings[Queue.COPY].offer(0);
    device.notify(Queue.COPY);
  },
  "a copy to memory that the device VM does not have": (device) => {
    const nowhere = { address: 0x7fff_0000_0000, length: 4100, writable: true };
    device.rings[Queue.COPY].add(0, { address: 0x10_0000, length: 16 }, nowhere);
    device.notify(Queue.COPY);
  },
  "a copy queue whose available index jumps": (device) => {
    device.rings[Queue.COPY].setAvailableIndex(40_000);
    device.notify(Queue.COPY);
  },
  "an empty buffer": (device) => {
    device.rings[Queue.FROM_DEVICE].add(60, { address: 0x10_0000, length: 0 });
    device.notify(Queue.FROM_DEVICE);
  },
};
for (const [name, act] of Object.entries(hostile)) {
  test.serial(`${name} costs the device process the link, and nobody else anything`, async (t) => {
    const { bridge, frontEnd, device, connect } = await setUp(t);
    const client = await connect();
    const { fd } = memory(t, MiB);
    await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
    act(device, frontEnd);
    await bridge.logged(/"msg":"the device process broke the link"/);
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
    await client.mapMemory({ address: 0x1000_0000, size: MiB, fd, fdOffset: 0 });
    t.is(frontEnd.maps.length, 0, "driver-VM memory was taken from it");
    // A reset, and all is well.
    await device.startAndGreet();
    await deviceAnswers(client);
    t.is(frontEnd.maps.length, 2);
  });
}

const badHellos: Record<string, (device: TestDevice) => Uint8Array> = {
  "another ABI version": (device) => hello(device, (data) => data.setUint32(0, 2, true)),
  "posted config writes": (device) => hello(device, (data) => data.setUint32(POSTED, 1 << Region.CONFIG, true)),
  "a posted region behind the last": (device) => hello(device, (data) => data.setUint32(POSTED, 0x200, true)),
  "posted region 31 of 31": () => helloOf(31, (data) => data.setUint32(POSTED, 2 ** 31, true)),
  "no regions": (device) => hello(device, (data) => data.setUint32(REGIONS, 0, true)),
  "no regions, and no sizes": () => helloOf(0),
  "fewer regions than PCI has": () => helloOf(8),
  "more regions than there may be": () => helloOf(MAX_REGIONS + 1),
  "2^32 - 1 regions": (device) => hello(device, (data) => data.setUint32(REGIONS, 0xffff_ffff, true)),
  "more regions than sizes": (device) => hello(device, (data) => data.setUint32(REGIONS, 10, true)),
  "more sizes than regions": () => helloOf(11, (data) => data.setUint32(REGIONS, 10, true)),
  "a region of 2^63 bytes": (device) => hello(device, (data) => data.setUint32(SIZES + 4, 0x8000_0000, true)),
  "a region of its own of 2^53 bytes": () => helloOf(11, (data) => data.setUint32(SIZES + 84, 0x20_0000, true)),
  "too many vectors": (device) => hello(device, (data) => data.setUint32(IRQS, 2049, true)),
  "a cut body": (device) => message(9, LinkCommand.HELLO, 0, device.hello().slice(0, -1)),
  "a byte too many": (device) => message(9, LinkCommand.HELLO, 0, Uint8Array.from([...device.hello(), 0])),
  "less than its fixed part": (device) => message(9, LinkCommand.HELLO, 0, device.hello().slice(0, 15)),
  "a flag that nobody knows": (device) => hello(device, (data) => data.setUint32(Hello.offsets.flags, 2, true)),
  "no body": () => message(9, LinkCommand.HELLO, 0),
  "something else first": () => message(9, LinkCommand.QUIESCE, 0),
};
for (const [name, make] of Object.entries(badHellos)) {
  test.serial(`HELLO with ${name} is refused`, async (t) => {
    const { bridge, frontEnd, device } = await setUp(t);
    frontEnd.reset();
    device.start();
    device.sendRaw(make(device));
    await bridge.logged(/"msg":"the device process broke the link"/);
    await device.startAndGreet();
    t.is(frontEnd.status & Status.DRIVER_OK, Status.DRIVER_OK);
  });
}

const badReplies: Record<string, Uint8Array> = {
  "too short": new Uint8Array(19),
  "too long": new Uint8Array(21),
  "for another region": Uint8Array.from([...RegionAccess.encode({ offset: 0, region: 1, count: 4 }), 1, 2, 3, 4]),
  empty: new Uint8Array(0),
};
for (const [name, body] of Object.entries(badReplies)) {
  test.serial(`a reply to REGION_READ that is ${name} never reaches the client`, async (t) => {
    const { bridge, device, connect } = await setUp(t);
    const client = await connect();
    device.onCommand = (received) => {
      if (received.command === Command.REGION_READ) device.reply(received, body as Uint8Array<ArrayBuffer>);
      return received.command === Command.REGION_READ;
    };
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
    await bridge.logged(/"msg":"the device process broke the link"/);
  });
}

/** Replies to MIG_DATA_READ of 8 bytes, and to MIG_DATA_WRITE. */
const badMigrationReplies: Record<string, [command: number, body: Uint8Array]> = {
  "MIG_DATA_READ without a size": [Command.MIG_DATA_READ, new Uint8Array(7)],
  "MIG_DATA_READ of more than was asked for": [
    Command.MIG_DATA_READ,
    Uint8Array.from([...MigData.encode({ argsz: 17, size: 9 }), ...new Uint8Array(9)]),
  ],
  "MIG_DATA_READ of more than there is": [
    Command.MIG_DATA_READ,
    Uint8Array.from([...MigData.encode({ argsz: 12, size: 8 }), ...new Uint8Array(4)]),
  ],
  "MIG_DATA_WRITE with a body": [Command.MIG_DATA_WRITE, new Uint8Array(8)],
};
for (const [name, [command, body]] of Object.entries(badMigrationReplies)) {
  test.serial(`a reply to ${name} never reaches the client`, async (t) => {
    const { bridge, device, connect } = await setUp(t);
    const client = await connect();
    device.onCommand = (received) => {
      if (received.command === command) device.reply(received, body as Uint8Array<ArrayBuffer>);
      return received.command === command;
    };
    const request = command === Command.MIG_DATA_READ ? client.migDataRead(8) : client.migDataWrite(new Uint8Array(8));
    await t.throwsAsync(request, { message: new RegExp(`errno ${Errno.ENODEV}`) });
    await bridge.logged(/"msg":"the device process broke the link"/);
  });
}

test.serial("a device process that breaks the link disturbs no other session", async (t) => {
  const { bridge, device, connect } = await setUp(t, { sessions: 2 });
  const other = new FrontEnd(bridge.path("vhost-user", 1));
  t.teardown(() => other.quit());
  const otherDevice = new TestDevice(other);
  await otherDevice.startAndGreet();
  const otherClient = await Client.connect(bridge.path("vfio-user", 1));
  t.teardown(() => otherClient.close());
  await connect();
  device.sendRaw(new Uint8Array(3));
  await bridge.logged(/"msg":"the device process broke the link"/);
  otherDevice.bar[3] = 5;
  t.is((await otherClient.regionRead(Region.BAR0, 3, 1))[0], 5);
});

test.serial("a device process that takes no messages does not block the client", async (t) => {
  const { device, frontEnd, connect } = await setUp(t);
  const client = await connect();
  // It keeps all buffers, and writes pile up: the client's are held back, never lost, and the bridge lives.
  const ring = device.rings[Queue.TO_DEVICE];
  device.poll = () => {};
  const taken = ring.usedIndex;
  const writes: Promise<void>[] = [];
  for (let i = 0; i < 100; i++) writes.push(client.regionWrite(Region.BAR0, 0, pattern(BAR_SIZE)));
  frontEnd.memoryChanged();
  while (ring.usedIndex - taken < 30) await new Promise((resolve) => setImmediate(resolve));
  frontEnd.reset();
  await Promise.all(writes);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
});
