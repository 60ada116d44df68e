/**
 * The device VM is paused and goes on, at any time: the rings stop and start where they were, and the link with them.
 * What the client asks meanwhile is answered in time; what it changes is made up for; and no request for the window is
 * on its way to QEMU.
 */
import test from "ava";
import { MiB } from "../../../../shared/limits.js";
import { ConfigStatus, LinkCommand, NO_DOORBELL } from "../../../../shared/spec/link.js";
import { Command, DmaMap, DmaUnmap, HeaderFlags, Irq, Region } from "../../../../shared/spec/vfio-user.js";
import { Status } from "../../../../shared/spec/virtio.js";
import { type LinkMessage, message } from "../../../fakes/front-end-device.js";
import { deviceAnswers, doorbellsOf, eventfd, memory, ones, readConfig, setUp } from "../set-up.js";

const commands = (messages: readonly LinkMessage[]) => messages.map(({ command }) => command);
const addressOf = ({ data, command }: LinkMessage) =>
  command === Command.DMA_MAP ? DmaMap.view(data).address : DmaUnmap.view(data).address;
const bytes = (...values: number[]) => Uint8Array.from(values);

test.serial("a link goes on where it was, as often as its VM is paused", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  const irq = eventfd(t);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd], action: "trigger" });
  const map = frontEnd.maps[0];
  const before = device.received.length;
  for (let pause = 1; pause <= 5; pause++) {
    frontEnd.pause();
    frontEnd.resume();
    await client.regionWrite(Region.BAR0, 8, bytes(pause, 1, 2, 3));
    t.deepEqual(await client.regionRead(Region.BAR0, 8, 4), bytes(pause, 1, 2, 3));
    const { signals } = irq;
    device.ring(0);
    await irq.signalled(signals + 1);
  }
  t.deepEqual(
    new Set(commands(device.received.slice(before))),
    new Set([Command.REGION_WRITE, Command.REGION_READ] as number[]),
    "the device process hears nothing of it",
  );
  t.deepEqual(frontEnd.maps, [map]);
  t.notRegex(bridge.log, /the device process left|"level":40/);
});

test.serial("a table as large as it can be comes right behind the features when the rings go on", async (t) => {
  const { bridge, frontEnd, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  // With two of the device VM's own.
  const count = 6;
  for (let n = 0; n < count; n++) {
    await client.mapMemory({ address: 2 * n * MiB, size: MiB / 16, fd, fdOffset: (n * MiB) / 16 });
  }
  t.is(frontEnd.maps.length, count);
  for (let pause = 1; pause <= 20; pause++) {
    frontEnd.pause();
    frontEnd.resume();
    await client.regionWrite(Region.BAR0, 8, bytes(pause, 1, 2, 3));
    t.deepEqual(await client.regionRead(Region.BAR0, 8, 4), bytes(pause, 1, 2, 3));
  }
  t.notRegex(bridge.log, /"level":40/);
});

test.serial("a doorbell that was rung right before the pause is relayed", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const irqs = Array.from({ length: 4 }, () => eventfd(t));
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: irqs.map(({ fd }) => fd), action: "trigger" });
  for (let pause = 0; pause < 20; pause++) {
    const signals = irqs.map((irq) => irq.signals);
    for (const n of irqs.keys()) device.ring(n);
    frontEnd.pause();
    for (const [n, irq] of irqs.entries()) await irq.signalled(signals[n] + 1);
    frontEnd.resume();
  }
  t.true(irqs.every(({ signals }) => signals >= 20));
});

test.serial("a pause signals no error, and no request to give the device back", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const [irq, error, request] = [eventfd(t), eventfd(t), eventfd(t)];
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd] });
  await client.setIrqs({ index: Irq.ERR, start: 0, eventfds: [error.fd] });
  await client.setIrqs({ index: Irq.REQ, start: 0, eventfds: [request.fd] });
  for (let pause = 0; pause < 3; pause++) {
    frontEnd.pause();
    frontEnd.resume();
    const { signals } = irq;
    device.ring(0);
    await irq.signalled(signals + 1);
  }
  t.deepEqual([error.signals, request.signals], [0, 0]);
  device.ring(1);
  await error.signalled(1);
});

test.serial("what the client asks waits for the end of a short pause", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  device.bar.fill(7, 0, 4);
  frontEnd.pause();
  const after = device.received.length;
  const read = client.regionRead(Region.BAR0, 0, 4);
  const info = client.getInfo();
  const write = client.regionWrite(Region.CONFIG, 4, bytes(6, 0));
  const { fd } = memory(t, MiB);
  setTimeout(() => frontEnd.resume(), 200);
  t.deepEqual(await read, bytes(7, 7, 7, 7));
  await info;
  await write;
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  t.deepEqual(commands(device.received.slice(after)), [
    Command.REGION_READ,
    Command.DEVICE_GET_INFO,
    Command.REGION_WRITE,
    Command.DMA_MAP,
  ]);
});

test.serial("a command that the device process has is answered after the pause", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  device.onCommand = ({ command }) => command === Command.REGION_READ;
  const read = client.regionRead(Region.BAR0, 0, 4);
  const asked = await device.waitFor(Command.REGION_READ);
  frontEnd.pause();
  // The reply is in the ring, and its notification is lost.
  device.reply(asked, Uint8Array.from([...asked.body.slice(0, 16), 1, 2, 3, 4]));
  frontEnd.resume();
  t.deepEqual(await read, bytes(1, 2, 3, 4));
});

test.serial(
  "in a long pause the device is as one that is not there, and afterwards as if nothing had been",
  async (t) => {
    const { bridge, frontEnd, device, connect } = await setUp(t);
    const client = await connect();
    const { fd } = memory(t, 4 * MiB);
    await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
    device.onCommand = ({ command, data }) => command === Command.REGION_READ && data.getUint32(12, true) === 8;
    const pending = client.regionRead(Region.BAR0, 0, 8);
    const asked = await device.waitFor(Command.REGION_READ);
    frontEnd.pause();
    const after = device.received.length;
    t.deepEqual(await pending, ones(8));
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4), "from now on at once");
    await t.throwsAsync(client.getInfo(), { message: /ENODEV|errno 19|19/ });
    await client.regionWrite(Region.CONFIG, 4, bytes(6, 0));
    await client.mapMemory({ address: 0x1000_0000, size: MiB, fd, fdOffset: MiB });
    await client.unmapMemory(0, MiB);
    await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 2 * MiB });
    await client.mapMemory({ address: 0x2000_0000, size: MiB, fd, fdOffset: 3 * MiB });
    await client.unmapMemory(0x2000_0000, MiB);
    await client.regionWrite(Region.BAR0, 0, bytes(1, 2, 3, 4));
    await client.regionWrite(Region.BAR0, 4, bytes(5, 6, 7, 8));
    t.is(frontEnd.maps.length, 1, "QEMU is asked for nothing");
    frontEnd.resume();
    device.reply(asked, Uint8Array.from([...asked.body.slice(0, 16), ...ones(8)]));
    t.deepEqual(await client.regionRead(Region.BAR0, 2, 4), bytes(3, 4, 5, 6));
    const told = device.received.slice(after);
    t.deepEqual(commands(told), [
      Command.DMA_UNMAP,
      Command.DMA_MAP,
      Command.DMA_MAP,
      Command.REGION_WRITE,
      Command.REGION_WRITE,
      Command.REGION_WRITE,
      Command.REGION_READ,
    ]);
    t.deepEqual(told.slice(0, 3).map(addressOf), [0, 0x1000_0000, 0]);
    t.deepEqual(frontEnd.maps.map(({ fdOffset }) => fdOffset).sort(), [MiB, 2 * MiB]);
    t.notRegex(bridge.log, /"level":40/);
  },
);

test.serial("a write that the device process has when it is paused for long is made once", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  device.onCommand = ({ command }) => command === Command.REGION_WRITE;
  const after = device.received.length;
  const write = client.regionWrite(Region.CONFIG, 4, bytes(6, 0));
  const asked = await device.waitFor(Command.REGION_WRITE);
  frontEnd.pause();
  await write;
  frontEnd.resume();
  device.onCommand = undefined;
  device.reply(asked, asked.body.slice(0, 16));
  await client.getInfo();
  t.deepEqual(commands(device.received.slice(after)), [Command.REGION_WRITE, Command.DEVICE_GET_INFO]);
});

test.serial("a reset in a long pause is made when the pause ends, before anything else", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  frontEnd.pause();
  const after = device.received.length;
  await client.regionWrite(Region.BAR0, 0, bytes(1, 1, 1, 1));
  await client.reset();
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
  await client.regionWrite(Region.BAR0, 0, bytes(2, 2, 2, 2));
  await client.regionWrite(Region.CONFIG, 4, bytes(6, 0));
  frontEnd.resume();
  await deviceAnswers(client);
  t.deepEqual(commands(device.received.slice(after)), [
    LinkCommand.CLIENT_GONE,
    LinkCommand.CLIENT_CONNECTED,
    Command.DMA_MAP,
    Command.REGION_WRITE,
    Command.REGION_WRITE,
    Command.DEVICE_GET_IRQ_INFO,
  ]);
  t.deepEqual(
    device.bar.slice(0, 8),
    bytes(2, 2, 2, 2, 6, 0, 0, 0),
    "what was written before the reset is not written",
  );
});

test.serial("interrupts that are bound, unbound, masked and disabled in a pause are so afterwards", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const [first, second, third] = [eventfd(t), eventfd(t), eventfd(t)];
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [first.fd, second.fd], action: "trigger" });
  frontEnd.pause();
  const after = device.received.length;
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [third.fd] });
  await client.setIrqs({ index: Irq.MSIX, start: 1, count: 1, eventfds: [] });
  await client.setIrqs({ index: Irq.MSIX, start: 1, count: 1, action: "mask" });
  frontEnd.resume();
  await client.getInfo();
  const told = device.received.slice(after).filter(({ command }) => command === Command.DEVICE_SET_IRQS);
  const doorbells = doorbellsOf(told[told.length - 1].body);
  t.not(doorbells[0], NO_DOORBELL);
  t.is(doorbells[1], NO_DOORBELL);
  const signals = third.signals;
  device.ring(doorbells[0]);
  await third.signalled(signals + 1);
  t.is(first.signals, 0);
  t.is(second.signals, 0);
  frontEnd.pause();
  const again = device.received.length;
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 0, action: "trigger" });
  frontEnd.resume();
  await client.getInfo();
  t.deepEqual(commands(device.received.slice(again)), [Command.DEVICE_SET_IRQS, Command.DEVICE_GET_INFO]);
});

test.serial("a client that leaves in a pause, and the next one that comes", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, 2 * MiB);
  const irq = eventfd(t);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd], action: "trigger" });
  const fds = bridge.fds().length;
  frontEnd.pause();
  const after = device.received.length;
  client.close();
  await bridge.logged(/"msg":"client gone"/);
  const connecting = connect();
  await bridge.logged(/"msg":"client connected"/, 2);
  t.is(frontEnd.maps.length, 1);
  t.true(bridge.fds().length < fds, "its memory and eventfds are closed");
  frontEnd.resume();
  const next = await connecting;
  await next.mapMemory({ address: 0, size: MiB, fd, fdOffset: MiB });
  t.deepEqual(commands(device.received.slice(after)), [
    LinkCommand.CLIENT_GONE,
    LinkCommand.CLIENT_CONNECTED,
    Command.DMA_MAP,
  ]);
  t.deepEqual(
    frontEnd.maps.map(({ fdOffset }) => fdOffset),
    [MiB],
  );
});

test.serial("a map, an unmap and a client's introduction that are under way when the VM is paused", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, 8 * MiB);
  const wanted = new Set<number>();
  for (const [n, command] of [Command.DMA_MAP, Command.DMA_UNMAP, Command.DMA_MAP].entries()) {
    device.onCommand = (message) => message.command === command;
    const after = device.received.length;
    const address = 0x1000_0000 * (n === 1 ? 0 : n);
    const work =
      n === 1 ? client.unmapMemory(address, MiB) : client.mapMemory({ address, size: MiB, fd, fdOffset: n * MiB });
    const asked = await device.waitFor(command, after);
    frontEnd.pause();
    await work;
    if (n === 1) wanted.delete(address);
    else wanted.add(address);
    // What it has just been told to be done it may take back.
    if (n === 2) {
      await client.unmapMemory(address, MiB);
      wanted.delete(address);
    }
    frontEnd.resume();
    device.onCommand = undefined;
    device.reply(asked);
    await client.getInfo();
    t.is(frontEnd.maps.length, wanted.size);
  }
  client.close();
  device.onCommand = ({ command }) => command === LinkCommand.CLIENT_CONNECTED;
  const after = device.received.length;
  const connecting = connect();
  const asked = await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
  frontEnd.pause();
  device.onCommand = undefined;
  device.reply(asked);
  frontEnd.resume();
  t.is((await (await connecting).getInfo()).numIrqs, 5);
});

test.serial("no deadline of the bridge's own counts while the VM is paused", async (t) => {
  t.timeout(60_000);
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  device.onCommand = ({ command }) => command === Command.DMA_MAP || command === Command.DMA_UNMAP;
  const mapped = client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  const asked = await device.waitFor(Command.DMA_MAP);
  frontEnd.pause();
  await mapped;
  await new Promise((resolve) => setTimeout(resolve, 6000));
  frontEnd.resume();
  device.reply(asked);
  await client.getInfo();
  t.notRegex(bridge.log, /"level":40/);
  t.is(frontEnd.maps.length, 1);
  device.onCommand = undefined;
});

test.serial("a pause that was a reset after all: the next device process is given the client", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, 2 * MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  frontEnd.pause();
  await client.unmapMemory(0, MiB);
  await client.mapMemory({ address: 0x4000_0000, size: MiB, fd, fdOffset: MiB });
  frontEnd.reset();
  const after = device.received.length;
  await device.startAndGreet();
  await deviceAnswers(client);
  t.deepEqual(commands(device.received.slice(after)).slice(0, 2), [LinkCommand.CLIENT_CONNECTED, Command.DMA_MAP]);
  t.deepEqual(
    frontEnd.maps.map(({ fdOffset }) => fdOffset),
    [MiB],
  );
});

test.serial("a pause in each state that a device process has", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const pause = () => {
    frontEnd.pause();
    frontEnd.resume();
  };
  pause();
  frontEnd.reset();
  device.start();
  pause();
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  const client = await connect();
  const quiesced = device.request(LinkCommand.QUIESCE);
  pause();
  t.is((await quiesced).errno, 0);
  pause();
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4), "at once");
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  await deviceAnswers(client);
  device.sendRaw(message(1, 0x999, HeaderFlags.TYPE_COMMAND));
  await bridge.logged(/"msg":"the device process broke the link"/);
  while ((readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET) === 0) await new Promise(setImmediate);
  pause();
  t.not(readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET, 0, "it is still broken");
  await device.startAndGreet();
  await deviceAnswers(client);
});

test.serial("bus mastering is switched off and on: what is mapped stays, and the link goes on", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  const { status } = frontEnd;
  const command = frontEnd.config.read16(4);
  frontEnd.config.write16(4, command & ~4);
  t.is(frontEnd.status & Status.DRIVER_OK, 0);
  frontEnd.config.write16(4, command | 4);
  frontEnd.setStatus(status);
  device.bar.fill(9, 0, 4);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), bytes(9, 9, 9, 9));
  t.is(frontEnd.maps.length, 1);
});

test.serial("a function without memory decoding, or in D3hot, is mapped into all the same", async (t) => {
  const { frontEnd, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, 2 * MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  frontEnd.setDecoding(false);
  await client.mapMemory({ address: 0x1000_0000, size: MiB, fd, fdOffset: MiB });
  frontEnd.setDecoding(true);
  await client.unmapMemory(0, MiB);
  t.is(frontEnd.maps.length, 1);
});

test.serial(
  "QEMU does not start the device again, since its memory has too many regions: the driver is told to reset it",
  async (t) => {
    const { bridge, frontEnd, device, connect } = await setUp(t);
    const client = await connect();
    const { fd } = memory(t, 8 * MiB);
    for (let n = 0; n < 7; n++) {
      await client.mapMemory({ address: n * 0x1000_0000, size: MiB, fd, fdOffset: n * MiB });
    }
    frontEnd.pause();
    await client.unmapMemory(0, MiB);
    const { generation } = frontEnd;
    frontEnd.resume();
    t.false(frontEnd.started);
    await bridge.logged(/"msg":"the device process broke the link"/);
    while (frontEnd.generation === generation) await new Promise(setImmediate);
    t.is(readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET, ConfigStatus.NEEDS_RESET);
    while (frontEnd.maps.length > 0) await new Promise(setImmediate);
    frontEnd.reset();
    const after = device.received.length;
    await device.startAndGreet();
    t.is(readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET, 0);
    await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
    await deviceAnswers(client);
    t.is(frontEnd.maps.length, 6);
  },
);

test.serial("pauses in the middle of everything lose nothing and change no order", async (t) => {
  t.timeout(60_000);
  // Without requests for the window: one that QEMU has not read when it stops is its end, whatever anybody does.
  const { bridge, frontEnd, device, connect } = await setUp(t, {
    device: { bufferSize: 64, buffers: 8, isolated: true },
  });
  const client = await connect();
  const { fd } = memory(t, 64 * MiB);
  let done = false;
  const pausing = (async () => {
    for (let n = 0; !done; n++) {
      frontEnd.pause();
      for (let turns = n % 5; turns > 0; turns--) await new Promise(setImmediate);
      frontEnd.resume();
      // Long enough for something to happen.
      await new Promise((resolve) => setTimeout(resolve, n % 4));
    }
  })();
  const payload = new Uint8Array(256);
  for (let n = 0; n < 300; n++) {
    payload.fill(n);
    await client.regionWrite(Region.BAR0, (n % 16) * 256, payload);
    if (n % 3 === 0) {
      await client.mapMemory({ address: (n % 30) * MiB, size: MiB, fd, fdOffset: (n % 30) * MiB });
    }
    t.deepEqual(await client.regionRead(Region.BAR0, (n % 16) * 256, 256), payload);
    if (n % 3 === 2) await client.unmapMemory(((n - 2) % 30) * MiB, MiB);
  }
  done = true;
  await pausing;
  await client.getInfo();
  t.is(device.received.filter(({ command }) => command === LinkCommand.CLIENT_CONNECTED).length, 1);
  t.notRegex(bridge.log, /"level":40/);
});
