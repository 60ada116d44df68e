/** What of the virtio link only a bridge in the same process can show, and commands that are wrong. */
import test from "ava";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { Errno } from "../../../shared/errors.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { ClientGone, Config, Hello, LinkCommand, NO_DOORBELL, Queue } from "../../../shared/spec/link.js";
import {
  Command,
  DmaAccess,
  DmaMapFlags,
  DmaUnmap,
  HeaderFlags,
  Irq,
  IrqSet,
  IrqSetFlags,
  Region,
  RegionAccess,
} from "../../../shared/spec/vfio-user.js";
import { CopyDevice } from "../../fakes/copy-device.js";
import { PciBridge } from "../../fakes/pci-bridge.js";
import { ADDRESS, setUp } from "./in-process.js";

test("a device that is not ours, or contradicts itself, is refused with a sentence", async (t) => {
  const refused = async (
    message: RegExp,
    change: (bridge: PciBridge, config: ReturnType<typeof Config.view>) => void,
  ) => {
    const bridge = new PciBridge();
    change(bridge, Config.view(new DataView(bridge.deviceConfig.buffer)));
    await t.throwsAsync(createVirtioLink(bridge, quietLog), { name: "UserError", message });
  };
  await refused(/no virtio-vfio-user device/, (_, config) => {
    config.magic = 0;
  });
  await refused(/speaks version 2/, (_, config) => {
    config.abiVersion = 2;
  });
  await refused(/window of 33554432 bytes/, (_, config) => {
    config.windowSize = 32 * MiB;
  });
  await refused(/window of 0 bytes/, (_, config) => {
    config.windowSize = 0;
  });
  await refused(/contradicts itself/, (_, config) => {
    config.doorbells = 5;
  });
  await refused(/contradicts itself/, (_, config) => {
    config.maxMessageSize = 100;
  });
  await refused(/not a VIRTIO device/, (bridge) => bridge.configBytes.fill(0xff, 0, 4));
});

test("a piece of the window is mapped once, and stays where it is", async (t) => {
  const bridge = new PciBridge();
  const { memory } = bridge;
  let mapped = 0;
  bridge.memory = (bar, offset, length) => {
    mapped++;
    return memory.call(bridge, bar, offset, length).slice(0);
  };
  const { window } = await createVirtioLink(bridge, quietLog);
  const before = mapped;
  t.is(window.piece(0), window.piece(0));
  t.is(mapped, before + 1);
});

test("start: every queue is set up, HELLO says what the device is; close: QUIESCE, then reset", async (t) => {
  const { bridge, hello, link } = await setUp(t);
  t.true(bridge.queues.every(({ enabled }) => enabled));
  t.deepEqual(
    bridge.queues.map(({ vector }) => vector),
    [0, 0, 0, 0xffff, 0xffff, 0xffff, 0xffff],
  );
  t.is(hello.body.length, Hello.size + 9 * 8 + 5 * 4);
  t.is(hello.body.readUInt32LE(0), 1);
  t.is(hello.body.readUInt32LE(4), 0b101);
  t.is(hello.body.readUInt32LE(8), 9);
  t.is(hello.body.readUInt32LE(16 + Region.CONFIG * 8), 4096);
  t.is(hello.body.readUInt32LE(16 + 9 * 8 + Irq.MSIX * 4), 4);
  const closed = link.close();
  const quiesce = await bridge.receive();
  t.is(quiesce.command, LinkCommand.QUIESCE);
  t.not(bridge.status, 0);
  bridge.reply(quiesce);
  await closed;
  t.is(bridge.status, 0);
  t.true(bridge.closed);
});

test("a client that goes while the link closes: nothing is reset before the bridge has answered QUIESCE", async (t) => {
  const { bridge, link, connect } = await setUp(t);
  await connect();
  const closed = link.close();
  const quiesce = await bridge.receive();
  t.is(quiesce.command, LinkCommand.QUIESCE);
  await bridge.request(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation: 1 }));
  t.not(bridge.status, 0);
  bridge.reply(quiesce);
  await closed;
  t.is(bridge.status, 0);
});

test("a refused HELLO is told", async (t) => {
  const bridge = new PciBridge();
  const link = await createVirtioLink(bridge, quietLog, false, "never");
  const opened = link.open(new DeviceEndpoint(new CopyDevice(), link, quietLog));
  bridge.reply(await bridge.receive(), undefined, Errno.EINVAL);
  await t.throwsAsync(opened, { name: "UserError", message: /does not take the device/ });
});

test("bodies that are too short, and what is out of bounds, get an error reply and nothing else", async (t) => {
  const { bridge, connect, map } = await setUp(t);
  await connect();
  const commands = [
    Command.DMA_MAP,
    Command.DMA_UNMAP,
    Command.DEVICE_SET_IRQS,
    Command.DEVICE_GET_INFO,
    Command.DEVICE_GET_REGION_INFO,
    Command.DEVICE_GET_IRQ_INFO,
    Command.REGION_READ,
    Command.REGION_WRITE,
    Command.REGION_WRITE_MULTI,
    LinkCommand.CLIENT_CONNECTED,
  ];
  for (const command of commands) {
    const reply = await bridge.request(command, new Uint8Array(7));
    t.is(reply.errno, Errno.EINVAL, `command ${command}`);
    t.is(reply.flags, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR);
    t.is(reply.body.length, 0);
  }
  t.is((await bridge.request(0x999)).errno, Errno.ENOTSUP);
  t.is((await map({ offset: 16 * MiB - 0x1000, size: 0x2000 })).errno, Errno.EINVAL, "behind the window's end");
  t.is((await map({ offset: 2 ** 52 })).errno, Errno.EINVAL);
  t.is((await map({ address: 0x123 })).errno, Errno.EINVAL, "not on a page");
  t.is((await map({ size: 0 })).errno, Errno.EINVAL);
  t.is((await map({})).errno, 0);
  t.is((await map({})).errno, Errno.EEXIST);
  t.is((await map({ address: ADDRESS + 0x1000, size: 0x2000 })).errno, 0);
  const unmap = async (address: number, size: number) =>
    (await bridge.request(Command.DMA_UNMAP, DmaUnmap.encode({ argsz: 24, address, size }))).errno;
  t.is(await unmap(ADDRESS, 0x2000), Errno.EINVAL, "a map and a half");
  t.is(await unmap(ADDRESS, 0), Errno.EINVAL);
  t.is(await unmap(-0x1000, 0x2000), Errno.EINVAL, "past 2^64");
  t.is((await map({})).errno, Errno.EEXIST, "all is there as it was");
  t.is(await unmap(ADDRESS, -ADDRESS + 2 ** 64), 0, "both");
  t.is(await unmap(ADDRESS, 0x1000), 0, "nothing is left");
  t.is((await map({ size: 0x3000 })).errno, 0);
  const read = RegionAccess.encode({ offset: 0xfff, region: 0, count: 2 });
  t.is((await bridge.request(Command.REGION_READ, read)).errno, Errno.EINVAL);
  const cut = Buffer.concat([RegionAccess.encode({ offset: 0, region: 0, count: 8 }), new Uint8Array(4)]);
  t.is((await bridge.request(Command.REGION_WRITE, cut)).errno, Errno.EINVAL);
  const multi = new Uint8Array(8 + 24).fill(0xff);
  t.is((await bridge.request(Command.REGION_WRITE_MULTI, multi)).errno, Errno.EINVAL);
});

test("doorbells: bound by number, rung by notification; wrong numbers are refused", async (t) => {
  const { bridge, connect, endpoint } = await setUp(t);
  await connect();
  const flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER;
  const set = (index: number, start: number, ...doorbells: number[]) =>
    bridge.request(
      Command.DEVICE_SET_IRQS,
      Buffer.concat([
        IrqSet.encode({ argsz: IrqSet.size, flags, index, start, count: doorbells.length }),
        new Uint8Array(Uint32Array.from(doorbells).buffer),
      ]),
    );
  t.is((await set(Irq.MSIX, 0, 3, NO_DOORBELL, 1)).errno, 0);
  bridge.notified.length = 0;
  for (const vector of [0, 1, 2]) endpoint.interrupts.trigger(vector);
  t.deepEqual(bridge.notified, [Queue.FIRST_DOORBELL + 3, Queue.FIRST_DOORBELL + 1]);
  t.is((await set(Irq.MSIX, 0, 4)).errno, Errno.EINVAL);
  t.is((await set(Irq.MSIX, 3, 0, 1)).errno, Errno.EINVAL);
  t.is((await set(9, 0, 0)).errno, Errno.EINVAL);
  const cut = IrqSet.encode({ argsz: IrqSet.size, flags, index: Irq.MSIX, start: 0, count: 4 });
  t.is((await bridge.request(Command.DEVICE_SET_IRQS, cut)).errno, Errno.EINVAL);
  bridge.notified.length = 0;
  endpoint.interrupts.trigger(0);
  t.deepEqual(bridge.notified, [Queue.FIRST_DOORBELL + 3], "what was refused changed nothing");
  await bridge.request(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation: 1 }));
  bridge.notified.length = 0;
  endpoint.interrupts.trigger(0);
  t.deepEqual(bridge.notified, []);
});

test("DMA by message: replies that are wrong, refused, or never come for a client that left", async (t) => {
  const { bridge, connect, map, enable, device } = await setUp(t);
  await connect();
  await map({ flags: DmaMapFlags.READ | DmaMapFlags.WRITE });
  await enable();
  const { dma } = device.context;
  const target = new Uint8Array(16);
  const access = DmaAccess.encode({ address: ADDRESS, count: 16 });

  let done = dma.read(ADDRESS, target);
  let request = await bridge.receive();
  t.is(request.command, Command.DMA_READ);
  t.deepEqual(Uint8Array.from(request.body), access);
  bridge.reply(request, Buffer.concat([access, new Uint8Array(16).fill(9)]));
  await done;
  t.deepEqual(target, new Uint8Array(16).fill(9));

  done = dma.write(ADDRESS, target);
  request = await bridge.receive();
  t.deepEqual(Uint8Array.from(request.body), Uint8Array.from([...access, ...target]));
  bridge.reply(request, access);
  await done;

  done = dma.read(ADDRESS, target);
  bridge.reply(await bridge.receive(), Buffer.concat([access, new Uint8Array(15)]));
  await t.throwsAsync(done, { name: "ProtocolError" });

  done = dma.read(ADDRESS, target);
  bridge.reply(await bridge.receive(), Buffer.concat([DmaAccess.encode({ count: 8 }), new Uint8Array(16)]));
  await t.throwsAsync(done, { name: "ProtocolError" });

  done = dma.write(ADDRESS, target);
  bridge.reply(await bridge.receive(), undefined, Errno.EFAULT);
  await t.throwsAsync(done, { name: "ProtocolError", message: new RegExp(`errno ${Errno.EFAULT}`) });

  done = dma.read(ADDRESS, target);
  request = await bridge.receive();
  const gone = bridge.request(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation: 1 }));
  await t.throwsAsync(done, { name: "PeerGone" });
  t.is((await gone).errno, 0);
  // The late reply is taken, and its data left alone.
  bridge.reply(request, Buffer.concat([access, new Uint8Array(16).fill(1)]));
  t.is((await connect()).errno, 0);
  t.deepEqual(target, new Uint8Array(16).fill(9));
});

test("DMA by message that is given up before it was sent never is; half sent, it has the bytes of then", async (t) => {
  const { bridge, connect, map, enable, device } = await setUp(t);
  await connect();
  await map({ flags: DmaMapFlags.READ | DmaMapFlags.WRITE, size: 64 * MiB });
  await enable();
  const sources = Array.from({ length: 16 }, () => new Uint8Array(MiB).fill(1));
  const writes = sources.map((source, n) => device.context.dma.write(ADDRESS + n * MiB, source));
  const gone = bridge.send(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation: 1 }));
  for (const write of writes) await t.throwsAsync(write, { name: "PeerGone" });
  // They are their owner's again.
  for (const source of sources) source.fill(2);
  let sent = 0;
  for (;;) {
    const { id, command, body } = await bridge.receive();
    if (id === gone && command === LinkCommand.CLIENT_GONE) break;
    t.is(command, Command.DMA_WRITE);
    t.false(body.subarray(DmaAccess.size).includes(2));
    sent++;
  }
  t.log(`${sent} of ${writes.length} were sent`);
  t.true(sent < writes.length);
  t.is((await connect()).errno, 0);
});

test("a DMA's reply overtakes the command that waits for the DMA", async (t) => {
  const { bridge, connect, map, enable, device } = await setUp(t);
  await connect();
  await map({ flags: DmaMapFlags.READ });
  await enable();
  const { dma } = device.context;
  const job = dma.read(ADDRESS, new Uint8Array(4));
  device.onQuiesce = () => job;
  const request = await bridge.receive();
  const unmap = bridge.send(Command.DMA_UNMAP, DmaUnmap.encode({ argsz: 24, address: ADDRESS, size: 0x1000 }));
  const info = bridge.send(Command.DEVICE_GET_INFO, new Uint8Array(Uint32Array.of(16, 0, 0, 0).buffer));
  t.is(bridge.poll(), undefined, "the unmap waits, and what came behind it too");
  bridge.reply(request, Buffer.concat([DmaAccess.encode({ address: ADDRESS, count: 4 }), new Uint8Array(4)]));
  t.is((await bridge.receive()).id, unmap);
  t.is((await bridge.receive()).id, info);
});

test("many commands behind one that takes long: kept in order, the rest left in the ring", async (t) => {
  const { bridge, connect, device } = await setUp(t);
  await connect();
  let release = () => {};
  const resetting = new Promise<void>((began) => {
    device.onReset = () => {
      began();
      return new Promise((resolve) => {
        release = resolve;
      });
    };
  });
  bridge.send(Command.DEVICE_RESET);
  await resetting;
  const writes = 600;
  const body = (n: number) =>
    Buffer.concat(
      [RegionAccess.encode({ offset: 0x40, region: 0, count: 4 }), Uint32Array.of(n)].map(
        (part) => new Uint8Array(part.buffer),
      ),
    );
  let sent = 0;
  // The bridge stops where the driver offers no more buffers.
  const sendMore = () => {
    try {
      while (sent < writes) {
        bridge.send(Command.REGION_WRITE, body(sent), HeaderFlags.NO_REPLY);
        sent++;
      }
    } catch (error) {
      t.regex(String(error), /no buffer/);
    }
  };
  sendMore();
  t.true(sent > 256 && sent < writes, `${sent} were taken`);
  t.deepEqual(device.accesses, []);
  release();
  while (sent < writes || device.accesses.length < writes) {
    await new Promise((resolve) => setImmediate(resolve));
    sendMore();
  }
  t.deepEqual(
    device.accesses,
    Array.from({ length: writes }, (_, n) => `w4 0:40=${n.toString(16)}`),
  );
  t.is((await bridge.receive()).command, Command.DEVICE_RESET);
});
