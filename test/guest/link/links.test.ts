import { eventfdRead } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { Header } from "../../../shared/spec/pci.js";
import { DeviceFeatureFlags, Feature, Irq, IrqInfoFlags, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { Commands, CopyDevice, Registers, Statuses } from "../../fakes/copy-device.js";
import { both, each, memory } from "./machine.js";

const BASE = 0x1_0000_0000;
const SIZE = 4 * MiB;

both("info: regions and interrupts as the identity says", async (t, { client }) => {
  t.deepEqual(await client.getInfo(), { flags: 3, numRegions: 9, numIrqs: 5 });
  const sizes = await Promise.all(Array.from({ length: 9 }, async (_, n) => (await client.getRegionInfo(n)).size));
  t.deepEqual(sizes, [0x1000, 0, 0x1000, 0, 0, 0, 0, 4096, 0]);
  t.is((await client.getRegionInfo(Region.BAR0)).flags, 3);
  t.is((await client.getRegionInfo(Region.ROM)).flags, 0);
  await t.throwsAsync(client.getRegionInfo(9), { message: new RegExp(`errno ${Errno.EINVAL}`) });
  t.like(await client.getIrqInfo(Irq.MSIX), { count: 4 });
  const intx = await client.getIrqInfo(Irq.INTX);
  t.is(intx.count, 1);
  t.is(intx.flags & IrqInfoFlags.AUTOMASKED, IrqInfoFlags.AUTOMASKED);
  t.like(await client.getIrqInfo(Irq.MSI), { count: 0, flags: 0 });
  await t.throwsAsync(client.getIrqInfo(5), { message: new RegExp(`errno ${Errno.EINVAL}`) });
});

both("config space is read whole, and in pieces of any size", async (t, { client }) => {
  const whole = await client.regionRead(Region.CONFIG, 0, 4096);
  t.is(Buffer.from(whole.subarray(0, 4)).toString("hex"), "f4ff0200");
  const pieces = await client.regionRead(Region.CONFIG, 1, 13);
  t.deepEqual([...pieces], [...whole.subarray(1, 14)]);
});

both(
  "odd accesses reach the device as naturally aligned ones; the MSI-X table does not reach it",
  async (t, { client, device }) => {
    await client.regionWrite(Region.BAR0, 0x41, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    t.deepEqual([...(await client.regionRead(Region.BAR0, 0x40, 10))], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    t.deepEqual(device.accesses, [
      "w1 0:41=1",
      "w2 0:42=302",
      "w4 0:44=7060504",
      "w1 0:48=8",
      "r4 0:40",
      "r4 0:44",
      "r2 0:48",
    ]);
    await client.regionWrite(Region.BAR2, 0, Uint8Array.of(0x10, 0, 0xe0, 0xfe));
    t.deepEqual([...(await client.regionRead(Region.BAR2, 0, 4))], [0x10, 0, 0xe0, 0xfe]);
    t.is(device.accesses.length, 7);
  },
);

both("accesses outside of a region are refused and do not reach the device", async (t, { client, device }) => {
  await t.throwsAsync(client.regionRead(Region.BAR0, 0xffd, 4));
  await t.throwsAsync(client.regionWrite(Region.BAR0, 0x1000, Uint8Array.of(1)));
  await t.throwsAsync(client.regionRead(Region.BAR1, 0, 4));
  t.deepEqual(device.accesses, []);
});

both("several writes in one command; one that is wrong and none is done", async (t, { client, device }) => {
  const entry = (offset: number, ...bytes: number[]) => ({
    region: Region.BAR0,
    offset,
    bytes: Uint8Array.from(bytes),
  });
  t.is(await client.writeMulti([entry(0x40, 1, 0, 0, 0), entry(0x44, 2, 0)]), 2);
  t.deepEqual(device.accesses, ["w4 0:40=1", "w2 0:44=2"]);
  await t.throwsAsync(client.writeMulti([entry(0x40, 3), entry(0x1000, 1)]));
  t.is(device.accesses.length, 2);
});

both(
  "a device's exception: a write is lost, a read gives all ones, the device goes on",
  async (t, { client, device, write32, read32 }) => {
    device.readBar = () => {
      throw new Error("a bug");
    };
    t.is(await read32(Registers.STATUS), 0xffffffff);
    device.readBar = CopyDevice.prototype.readBar;
    await write32(Registers.COMMAND, Commands.THROW);
    t.is(await read32(Registers.STATUS), 0);
    t.is((await client.getInfo()).numRegions, 9);
  },
);

both("DMA through the window, interrupt at the end", async (t, { client, endpoint, enable, bind, copy }) => {
  const { fd, bytes } = memory(t, SIZE);
  await client.mapMemory({ address: BASE, size: SIZE, fd });
  await enable();
  await bind();
  for (let n = 0; n < 10000; n++) bytes[100 + n] = n * 7;
  t.is(await copy(BASE + 100, BASE + 2 * MiB + 3, 10000), Statuses.DONE);
  t.true(Buffer.from(bytes.subarray(2 * MiB + 3, 2 * MiB + 10003)).equals(bytes.subarray(100, 10100)));
  t.is(await copy(BASE + 100, BASE + 3 * MiB, 10, Commands.COPY_SYNC), Statuses.DONE);
  t.deepEqual(bytes.slice(3 * MiB, 3 * MiB + 10), bytes.slice(100, 110));
  t.is(endpoint.dma.bytesRead, 10010);
  t.is(endpoint.dma.bytesWritten, 10010);
  t.is(endpoint.interrupts.count, 2);
});

each(
  "one access goes over adjacent maps, and from the window to memory without an fd",
  async (t, { client, enable, bind, copy }) => {
    const [first, second] = [memory(t, MiB), memory(t, MiB)];
    const third = new Uint8Array(3 * MiB);
    await client.mapMemory({ address: BASE, size: MiB, fd: first.fd });
    await client.mapMemory({ address: BASE + MiB, size: MiB, fd: second.fd });
    await client.mapMemory({ address: BASE + 2 * MiB, size: 3 * MiB });
    client.registerMemory(BASE + 2 * MiB, third);
    await enable();
    await bind();
    for (let n = 0; n < third.length; n++) third[n] = n * 31 + (n >> 8);
    // More than max_data_xfer_size by messages, and source and target overlap.
    const expected = third.slice(5, 5 + 2 * MiB - 7 + 100);
    t.is(await copy(BASE + 2 * MiB + 5, BASE + 7, 2 * MiB - 7 + 100), Statuses.DONE);
    const copied = Buffer.concat([first.bytes.subarray(7), second.bytes, third.subarray(0, 100)]);
    t.true(copied.equals(expected));
    for (let n = 0; n < MiB; n++) first.bytes[n] = n * 13 + (n >> 8);
    t.is(await copy(BASE + 1, BASE + 2 * MiB + 9, MiB + MiB / 2), Statuses.DONE);
    const written = Buffer.concat([first.bytes.subarray(1), second.bytes.subarray(0, MiB / 2 + 1)]);
    t.true(written.equals(third.subarray(9, 9 + MiB + MiB / 2)));
  },
);

both(
  "DMA to what is not mapped, or not for it, fails and changes nothing",
  async (t, { client, device, enable, bind, copy }) => {
    const { fd, bytes } = memory(t, SIZE);
    await client.mapMemory({ address: BASE, size: SIZE, fd });
    await client.mapMemory({ address: 2 * BASE, size: PAGE_SIZE, writable: false });
    client.registerMemory(2 * BASE, new Uint8Array(PAGE_SIZE));
    await bind();
    t.is(await copy(BASE, BASE + MiB, 16), Statuses.DMA_ERROR, "bus mastering is off");
    await enable();
    t.is(await copy(BASE, BASE + MiB, 16), Statuses.DONE);
    t.is(await copy(0x1000, BASE, 16), Statuses.DMA_ERROR);
    t.is(await copy(BASE + SIZE - 8, BASE, 16), Statuses.DMA_ERROR);
    t.is(await copy(BASE - 8, BASE, 16, Commands.COPY_SYNC), Statuses.DMA_ERROR);
    t.is(await copy(Number.MAX_SAFE_INTEGER + 1, BASE, 16), Statuses.DMA_ERROR);
    t.is(await copy(BASE, 2 * BASE, 16), Statuses.DMA_ERROR);
    t.is(await copy(2 * BASE, BASE, 16), Statuses.DONE, "reading it is permitted");
    t.is(await copy(2 * BASE, BASE, 16, Commands.COPY_SYNC), Statuses.DMA_ERROR, "it is not in the window");
    t.is(bytes[0], 0);
    const segment = { bytes: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), offset: 0, length: 0 };
    t.is(device.context.dma.locate(2 * BASE, 16, "read", segment), 0);
    t.is(device.context.dma.locate(BASE + SIZE - 8, 16, "write", segment), 8);
    t.is(device.context.dma.view(BASE + SIZE - 8, 16, "write"), undefined);
    const view = device.context.dma.view(BASE + SIZE - 8, 8, "write");
    view?.fill(7);
    t.is(bytes[SIZE - 1], 7);
  },
);

both(
  "unmapping waits for the device; then the memory is out of reach",
  async (t, { client, device, enable, bind, copy }) => {
    const { fd, bytes } = memory(t, SIZE);
    await client.mapMemory({ address: BASE, size: SIZE, fd });
    await enable();
    await bind();
    const view = device.context.dma.view(BASE, 1, "write");
    let release = () => {};
    const order: string[] = [];
    const asked = new Promise<void>((resolve) => {
      device.onQuiesce = () => {
        resolve();
        return new Promise((finish) => {
          release = () => {
            order.push("quiesced");
            finish();
          };
        });
      };
    });
    const unmapped = client.unmapMemory(BASE, SIZE).then(() => order.push("unmapped"));
    await asked;
    view?.fill(1);
    t.is(bytes[0], 1, "the device may finish what it began");
    release();
    await unmapped;
    t.deepEqual(order, ["quiesced", "unmapped"]);
    view?.fill(2);
    t.is(bytes[0], 1, "a stale view does not reach the client's memory");
    t.is(await copy(BASE, BASE, 4), Statuses.DMA_ERROR);
  },
);

each("DMA right below 2^64, where an IOMMU's allocator begins", async (t, machine) => {
  const { client, kind, device, enable, bind, copy } = machine;
  const { fd, bytes } = memory(t, SIZE);
  const own = new Uint8Array(2 * PAGE_SIZE);
  await client.mapMemory({ address: -SIZE, size: SIZE, fd });
  await client.mapMemory({ address: 0, size: PAGE_SIZE, fd });
  await client.mapMemory({ address: -SIZE - 2 * PAGE_SIZE, size: 2 * PAGE_SIZE });
  client.registerMemory(-SIZE - 2 * PAGE_SIZE, own);
  await enable();
  await bind();
  bytes.set([1, 2, 3, 4], SIZE - 4);
  t.is(await copy(-4, -SIZE + 9, 4), Statuses.DONE);
  t.deepEqual([...bytes.subarray(9, 13)], [1, 2, 3, 4]);
  t.is(await copy(-SIZE + 9, -SIZE - PAGE_SIZE - 2, 4), Statuses.DONE, "by messages, to and fro");
  t.deepEqual([...own.subarray(PAGE_SIZE - 2, PAGE_SIZE + 2)], [1, 2, 3, 4]);
  t.is(await copy(-SIZE - PAGE_SIZE - 1, -SIZE - 1, 1), Statuses.DONE);
  t.is(own.at(-1), 2);
  t.is(await copy(2 ** 60, -SIZE, 1), Statuses.DMA_ERROR);
  if (kind !== "isolated") t.is(device.context.dma.view(-4, 4, "read")?.[3], 4);
  t.is(await client.unmapMemory(-SIZE, SIZE), SIZE);
  t.is(await copy(-4, -SIZE - PAGE_SIZE, 1), Statuses.DMA_ERROR);
  t.is(await client.unmapMemory(PAGE_SIZE, 2 ** 64 - PAGE_SIZE), 2 * PAGE_SIZE);
});

each("an unmap of a range takes all maps in it, with one quiesce, and refuses to cut one", async (t, machine) => {
  const { client, device, enable, bind, copy } = machine;
  const { fd } = memory(t, SIZE);
  const count = 5;
  for (let n = 0; n < count; n++) {
    await client.mapMemory({ address: BASE + n * 2 * PAGE_SIZE, size: PAGE_SIZE, fd, fdOffset: n * PAGE_SIZE });
  }
  await enable();
  await bind();
  await t.throwsAsync(client.unmapMemory(BASE - SIZE, SIZE + PAGE_SIZE / 2), { message: /errno 22/ });
  await client.mapMemory({ address: BASE - SIZE, size: SIZE, fd });
  await t.throwsAsync(client.unmapMemory(BASE - PAGE_SIZE, SIZE), { message: /errno 22/ });
  t.is(await copy(BASE, BASE + 2 * PAGE_SIZE, 4), Statuses.DONE, "all is as it was");
  device.events.length = 0;
  t.is(await client.unmapMemory(BASE - 2 * SIZE, 2 ** 40), SIZE + count * PAGE_SIZE);
  t.deepEqual(device.events, ["quiesce"]);
  for (const address of [BASE - SIZE, BASE, BASE + 2 * (count - 1) * PAGE_SIZE]) {
    t.is(await copy(address, address, 4), Statuses.DMA_ERROR);
  }
  t.is(await client.unmapMemory(BASE, PAGE_SIZE), 0);
  t.deepEqual(device.events, ["quiesce"], "there was nothing to end");
  await client.mapMemory({ address: BASE - SIZE, size: 2 * SIZE });
});

both(
  "reset: waits for the device, and puts config space back",
  async (t, { client, device, enable, write32, read32 }) => {
    await enable();
    await write32(Registers.SCRATCH, 5);
    device.onReset = () => new Promise((resolve) => setImmediate(resolve));
    await client.reset();
    t.is(await read32(Registers.SCRATCH), 0);
    t.is((await client.regionRead(Region.CONFIG, Header.COMMAND, 1))[0], 0);
    t.deepEqual(device.events, ["start", "reset"]);
  },
);

both("a device whose reset fails does not hang the client", async (t, { client, device }) => {
  device.onReset = () => Promise.reject(new Error("a bug"));
  await client.reset();
  t.is((await client.getInfo()).numIrqs, 5);
});

both(
  "a client leaves: the device is reset, memory is gone, the next one is served",
  async (t, { client, device, socket, enable, bind, write32, copy }) => {
    const { fd } = memory(t, SIZE);
    await client.mapMemory({ address: BASE, size: SIZE, fd });
    await enable();
    await bind();
    t.is(await copy(BASE, BASE, 1), Statuses.DONE);
    await write32(Registers.SCRATCH, 5);
    client.close();
    const next = await Client.connect(socket);
    t.teardown(() => next.close());
    t.deepEqual(device.events, ["start", "reset"]);
    t.deepEqual([...(await next.regionRead(Region.BAR0, Registers.SCRATCH, 4))], [0, 0, 0, 0]);
    t.is((await next.regionRead(Region.CONFIG, Header.COMMAND, 1))[0], 0);
    await next.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(6));
    t.throws(() => device.context.dma.readSync(BASE, new Uint8Array(1)), { name: "DmaError" });
    await next.mapMemory({ address: BASE, size: SIZE, fd });
    t.notThrows(() => device.context.dma.readSync(BASE, new Uint8Array(1)));
  },
);

both(
  "interrupts: the client's own trigger, replaced and unbound eventfds",
  async (t, { client, bind, write32, doorbells }) => {
    await bind();
    let rung = doorbells[1].next();
    await client.setIrqs({ index: Irq.MSIX, start: 1, count: 1 });
    await rung;
    // Vector 1 gets the other eventfd.
    await client.setIrqs({ index: Irq.MSIX, start: 0, count: 1, eventfds: [] });
    await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [doorbells[0].fd] });
    rung = doorbells[0].next();
    await write32(Registers.LENGTH, 1);
    await write32(Registers.COMMAND, Commands.TRIGGER);
    await rung;
    // An interrupt of a vector that is not bound waits until it is.
    await write32(Registers.LENGTH, 3);
    await write32(Registers.COMMAND, Commands.TRIGGER);
    rung = doorbells[1].next();
    await client.setIrqs({ index: Irq.MSIX, start: 3, eventfds: [doorbells[1].fd] });
    await rung;
    await client.setIrqs({ index: Irq.MSIX, count: 0 });
    t.is(eventfdRead(doorbells[0].fd), 0);
  },
);

both("what the device does not do is refused", async (t, { client }) => {
  const probe = DeviceFeatureFlags.GET | DeviceFeatureFlags.PROBE | Feature.MIGRATION;
  await t.throwsAsync(client.deviceFeature(probe), { message: new RegExp(`errno ${Errno.ENOTTY}`) });
  t.deepEqual(await client.getRegionIoFds(Region.BAR0), { events: [], fds: [] });
});
