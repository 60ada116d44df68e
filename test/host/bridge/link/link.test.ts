/** Commands, messages and interrupts from the client to the device process and back, through the bridge. */
import test, { type ExecutionContext } from "ava";
import * as native from "../../../../native/index.js";
import { Errno, ProtocolError } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import {
  ABI_VERSION,
  ClientConnected,
  Config,
  ConfigStatus,
  LinkCommand,
  MAGIC,
  NO_DOORBELL,
  Queue,
} from "../../../../shared/spec/link.js";
import {
  Command,
  DmaAccess,
  HeaderFlags,
  Irq,
  IrqSet,
  Region,
  RegionAccess,
  RegionInfoFlags,
} from "../../../../shared/spec/vfio-user.js";
import { Layout, REGISTER_BAR } from "../../../fakes/front-end-config.js";
import { BAR_SIZE, message } from "../../../fakes/front-end-device.js";
import { closeFd } from "../raw-peer.js";

import { doorbellsOf, eventfd, pattern, readConfig, setUp } from "../set-up.js";

test.serial("the config space tells what the specification says", async (t) => {
  const { frontEnd, connect } = await setUp(t, { queues: 7 });
  const { bytes, ...config } = readConfig(frontEnd);
  const expected = {
    magic: MAGIC,
    abiVersion: ABI_VERSION,
    doorbells: 4,
    windowSize: 2 ** 30,
    maxMessageSize: MiB + 4096,
  };
  t.deepEqual(config, { ...expected, status: ConfigStatus.BRIDGE_UP, generation: 0 });
  const name = bytes.subarray(Config.offsets.name);
  t.is(new TextDecoder().decode(name.subarray(0, name.indexOf(0))), "vfio-user-0.sock");
  t.true(bytes.subarray(Config.offsets.uuid, Config.offsets.uuid + 16).some((byte) => byte !== 0));

  const client = await connect();
  t.like(readConfig(frontEnd), { status: ConfigStatus.BRIDGE_UP | ConfigStatus.CLIENT_CONNECTED, generation: 1 });
  frontEnd.registers(REGISTER_BAR).write32(Layout.DEVICE, 0);
  t.is(readConfig(frontEnd).magic, MAGIC, "read-only");
  client.close();
});

test.serial("commands go to the device process and its answers come back", async (t) => {
  const { device, connect } = await setUp(t);
  const client = await connect();
  const connected = await device.waitFor(LinkCommand.CLIENT_CONNECTED);
  const { generation, major, minor, maxDataXferSize } = ClientConnected.view(connected.data);
  t.deepEqual(
    { generation, major, minor, maxDataXferSize },
    { generation: 1, major: 0, minor: 2, maxDataXferSize: MiB },
  );

  t.deepEqual(await client.getInfo(), { flags: 3, numRegions: 9, numIrqs: 5 });
  const info = await client.getRegionInfo(Region.BAR0);
  t.is(info.size, BAR_SIZE);
  t.is(info.flags, RegionInfoFlags.READ | RegionInfoFlags.WRITE, "nothing that the bridge cannot map is offered");
  t.is(info.fd, -1);
  t.is((await client.getIrqInfo(Irq.MSIX)).count, 4);
  await client.reset();
  t.is(device.received.at(-1)?.command, Command.DEVICE_RESET);

  const sent = pattern(8);
  await client.regionWrite(Region.CONFIG, 16, sent);
  t.deepEqual(device.bar.slice(16, 24), sent, "a config write waits for the device");
  t.deepEqual(await client.regionRead(Region.BAR0, 16, 8), sent);

  device.onCommand = (received) => {
    if (received.command !== Command.REGION_READ) return false;
    device.reply(received, undefined, Errno.EPERM);
    return true;
  };
  const error = await t.throwsAsync(client.regionRead(Region.BAR0, 0, 4), { instanceOf: ProtocolError });
  t.is((error as ProtocolError).errno, Errno.EPERM);
});

test.serial("a posted write is answered before the device has dealt with it, and stays in order", async (t) => {
  const { device, connect } = await setUp(t);
  const client = await connect();
  const seen: number[] = [];
  device.onCommand = (received) => {
    if (received.command === Command.REGION_WRITE) {
      seen.push(received.body[RegionAccess.size]);
      t.true((received.flags & HeaderFlags.NO_REPLY) !== 0);
    }
    return received.command === Command.REGION_WRITE;
  };
  for (let i = 0; i < 200; i++) await client.regionWrite(Region.BAR0, 0, Uint8Array.of(i));
  await client.regionRead(Region.BAR0, 0, 4);
  t.deepEqual(
    seen,
    Array.from({ length: 200 }, (_, i) => i),
    "a read comes after the writes before it",
  );
});

test.serial("messages larger than a buffer span several, both ways", async (t) => {
  const { device, connect } = await setUp(t, { device: { bufferSize: 512, buffers: 16, postedRegions: 0 } });
  const client = await connect();
  const bytes = pattern(BAR_SIZE);
  await client.regionWrite(Region.BAR0, 0, bytes);
  t.deepEqual(device.bar, bytes);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, BAR_SIZE), bytes);
  // The device's replies in buffers of 100 bytes.
  device.onCommand = (received) => {
    if (received.command !== Command.REGION_READ) return false;
    const body = Uint8Array.from([...received.body, ...pattern(3000, 5)]);
    device.sendRaw(message(received.id, received.command, HeaderFlags.TYPE_REPLY, body), 100);
    return true;
  };
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 3000), pattern(3000, 5));
});

test.serial("a doorbell arrives at the client's eventfd", async (t) => {
  const { device, connect, bridge } = await setUp(t);
  const client = await connect();
  const [first, second, other] = [eventfd(t), eventfd(t), eventfd(t)];
  // Kicks from before the binding are for nobody.
  device.ring(0);
  device.ring(1);
  await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [first.fd, second.fd], action: "trigger" });
  const set = await device.waitFor(Command.DEVICE_SET_IRQS);
  const { index, start, count } = IrqSet.view(set.data);
  t.deepEqual({ index, start, count }, { index: Irq.MSIX, start: 1, count: 2 });
  const [a, b] = doorbellsOf(set.body);
  t.true(a !== b && a < 5 && b < 5);
  device.ring(b);
  await second.signalled(1);
  device.ring(a);
  await first.signalled(1);
  t.is(second.signals, 1);

  // Another eventfd for the same vector.
  const before = device.received.length;
  await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [other.fd], action: "trigger" });
  const again = await device.waitFor(Command.DEVICE_SET_IRQS, before);
  device.ring(doorbellsOf(again.body)[0]);
  await other.signalled(1);
  t.is(first.signals, 1);

  // Disabled: all of the index's eventfds are let go.
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 0, action: "trigger" });
  t.is(bridge.fds().filter((fd) => fd === "anon_inode:[eventfd]").length, (await idleEventfds(t)) + 0);
});

/** Eventfds that a bridge has when no client has bound any. */
async function idleEventfds(t: ExecutionContext): Promise<number> {
  const { bridge, connect } = await setUp(t);
  const client = await connect();
  const fd = native.eventfd(0);
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [fd], action: "trigger" });
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 0, action: "trigger" });
  closeFd(fd);
  return bridge.fds().filter((name) => name === "anon_inode:[eventfd]").length;
}

test.serial("when there are fewer doorbells than vectors, the client is told", async (t) => {
  const { connect, device } = await setUp(t, { queues: Queue.FIRST_DOORBELL + 2 });
  const client = await connect();
  const fds = [eventfd(t), eventfd(t), eventfd(t)].map(({ fd }) => fd);
  const error = await t.throwsAsync(client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: fds, action: "trigger" }), {
    instanceOf: ProtocolError,
  });
  t.is((error as ProtocolError).errno, Errno.ENOSPC);
  t.false(device.received.some(({ command }) => command === Command.DEVICE_SET_IRQS));
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: fds.slice(0, 2), action: "trigger" });
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 2, eventfds: [], action: "trigger" });
  const last = device.received.at(-1);
  t.deepEqual(last && doorbellsOf(last.body), [NO_DOORBELL, NO_DOORBELL]);
});

test.serial("interrupt set-ups without eventfds are passed on as they are", async (t) => {
  const { connect, device } = await setUp(t);
  const client = await connect();
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 1, action: "trigger" });
  await client.setIrqs({ index: Irq.INTX, start: 0, count: 1, action: "mask" });
  await client.setIrqs({ index: Irq.MSIX, start: 1, bools: [true, false], action: "trigger" });
  const bodies = device.received
    .filter(({ command }) => command === Command.DEVICE_SET_IRQS)
    .map(({ body }) => [...body]);
  t.deepEqual(bodies, [
    [20, 0, 0, 0, 0x21, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    [20, 0, 0, 0, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    [22, 0, 0, 0, 0x22, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0],
  ]);
});

test.serial("DMA by message reaches the client's memory", async (t) => {
  const { device, connect } = await setUp(t);
  const client = await connect();
  const bytes = pattern(70_000);
  client.registerMemory(0x5000, bytes);
  const access = (address: number, count: number) => DmaAccess.encode({ address, count });
  const read = await device.request(Command.DMA_READ, access(0x5000, 70_000));
  t.deepEqual(read.body, Uint8Array.from([...access(0x5000, 70_000), ...pattern(70_000)]));
  const write = await device.request(Command.DMA_WRITE, Uint8Array.from([...access(0x5010, 5), 9, 8, 7, 6, 5]));
  t.deepEqual(write.body, access(0x5010, 5));
  t.deepEqual([...bytes.subarray(0x10, 0x15)], [9, 8, 7, 6, 5]);

  const many = await Promise.all(
    Array.from({ length: 40 }, (_, i) => device.request(Command.DMA_READ, access(0x5000 + i, 8))),
  );
  t.true(many.every(({ flags }) => flags === HeaderFlags.TYPE_REPLY));
  const refused = await device.request(Command.DMA_READ, access(0x1, 8));
  t.is(refused.flags, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR);
  t.true(refused.errno > 0);
  t.is(
    (await device.request(Command.DMA_READ, access(0x5000, MiB + 1))).errno,
    Errno.EINVAL,
    "more than one transfer may be",
  );
  client.close();
  await device.waitFor(LinkCommand.CLIENT_GONE);
  t.is((await device.request(Command.DMA_READ, access(0x5000, 8))).errno, Errno.ENODEV);
});
