/** Clients, device processes and device VMs that come and go. */
import test from "ava";
import { Errno, PeerGone, ProtocolError } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import { ClientConnected, ClientGone, LinkCommand, NO_DOORBELL } from "../../../../shared/spec/link.js";
import {
  Command,
  DeviceInfo,
  DmaAccess,
  DmaMap,
  HeaderFlags,
  Irq,
  IrqSet,
  Region,
} from "../../../../shared/spec/vfio-user.js";
import { Client } from "../../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../../fakes/front-end.js";
import { BridgeProcess } from "../../../fakes/front-end-bridge.js";
import { WINDOW_BAR } from "../../../fakes/front-end-config.js";
import { type LinkMessage, TestDevice } from "../../../fakes/front-end-device.js";
import { message, RawClient } from "../../../shared/vfio-user/raw-client.js";

import { deviceAnswers, doorbellsOf, eventfd, memory, ones, setUp } from "../set-up.js";

test.serial("a client that leaves takes its memory and eventfds along; the next one starts anew", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const { fd } = memory(t, MiB);
  const irq = eventfd(t);
  let fds: string[] | undefined;
  for (let generation = 1; generation <= 4; generation++) {
    const after = device.received.length;
    const client = await connect();
    await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
    await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd], action: "trigger" });
    const connected = await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
    t.is(ClientConnected.view(connected.data).generation, generation);
    client.close();
    const gone = await device.waitFor(LinkCommand.CLIENT_GONE, after);
    t.is(ClientGone.view(gone.data).generation, generation);
    await bridge.logged(/"msg":"client gone"/, generation);
    // The next client is served only when everything of this one is gone.
    const next = await connect();
    t.is(frontEnd.maps.length, 0);
    const now = bridge.fds();
    fds ??= now;
    t.deepEqual(now, fds);
    generation++;
    next.close();
    await device.waitFor(
      (m) => m.command === LinkCommand.CLIENT_GONE && ClientGone.view(m.data).generation === generation,
    );
  }
});

test.serial("the device process restarts under a client: maps and doorbells come again", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd, bytes } = memory(t, 2 * MiB);
  const irq = eventfd(t);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  await client.mapMemory({ address: 0x1000_0000, size: 0x1000 });
  await client.setIrqs({ index: Irq.MSIX, start: 2, eventfds: [irq.fd], action: "trigger" });
  await client.setIrqs({ index: Irq.ERR, start: 0, eventfds: [irq.fd], action: "trigger" });

  for (let restart = 1; restart <= 2; restart++) {
    // Killed: the guest's kernel resets the device.
    frontEnd.reset();
    await bridge.logged(/"msg":"the device VM is paused, or the device was reset"/, restart);
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4), "as from a dead PCI device");
    await client.mapMemory({ address: 0x2000_0000 * restart, size: 0x1000, fd, fdOffset: MiB });

    const after = device.received.length;
    await device.startAndGreet();
    const connected = await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
    t.is(ClientConnected.view(connected.data).generation, 1, "the same client");
    await bridge.logged(/"msg":"the device has the client"/, 1 + restart);
    t.is(frontEnd.maps.length, 1 + restart);
    const maps = device.received.slice(after).filter(({ command }) => command === Command.DMA_MAP);
    t.deepEqual(
      maps.map(({ data }) => DmaMap.view(data).address),
      [0, 0x1000_0000, ...[0x2000_0000, 0x4000_0000].slice(0, restart)],
    );
    bytes[0] = 40 + restart;
    const window = new Uint8Array(frontEnd.memory(WINDOW_BAR, 0, frontEnd.windowSize));
    t.is(window[DmaMap.view(maps[0].data).offset], 40 + restart);
    const irqs = device.received.slice(after).filter(({ command }) => command === Command.DEVICE_SET_IRQS);
    const msix = irqs.find(({ data }) => IrqSet.view(data).index === Irq.MSIX);
    t.truthy(msix);
    const doorbells = msix ? doorbellsOf(msix.body) : [];
    t.deepEqual(doorbells.slice(0, 2), [NO_DOORBELL, NO_DOORBELL]);
    const before = irq.signals;
    device.ring(doorbells[2]);
    await irq.signalled(before + 1);
    device.bar[0] = 7;
    t.is((await client.regionRead(Region.BAR0, 0, 1))[0], 7);
  }
});

test.serial("a command under way when the device goes is answered", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  device.onCommand = ({ command }) => command === Command.REGION_READ || command === Command.DEVICE_GET_INFO;
  const read = client.regionRead(Region.BAR0, 0, 8);
  await device.waitFor(Command.REGION_READ);
  frontEnd.reset();
  t.deepEqual(await read, ones(8));
  const after = device.received.length;
  await device.startAndGreet();
  await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
  await deviceAnswers(client);
  const info = t.throwsAsync(client.getInfo(), { instanceOf: ProtocolError });
  await device.waitFor(Command.DEVICE_GET_INFO, after);
  frontEnd.reset();
  t.is(((await info) as ProtocolError).errno, Errno.ENODEV);
});

test.serial("a command that comes while a new device process is told of the client waits for that", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  device.bar.fill(42, 0, 4);
  for (const dies of [false, true]) {
    frontEnd.reset();
    const after = device.received.length;
    device.onCommand = ({ command }) => command === Command.DMA_MAP;
    await device.startAndGreet();
    const map = await device.waitFor(Command.DMA_MAP, after);
    const read = client.regionRead(Region.BAR0, 0, 4);
    // The bridge polls all its sockets between one request of the device's and the next.
    const tooMuch = DmaAccess.encode({ address: 0, count: 2 * MiB });
    for (let i = 0; i < 2; i++) t.is((await device.request(Command.DMA_READ, tooMuch)).errno, Errno.EINVAL);
    device.onCommand = undefined;
    if (dies) frontEnd.reset();
    else device.reply(map);
    t.deepEqual(await read, dies ? ones(4) : new Uint8Array(4).fill(42));
    t.false(dies && device.received.slice(after).some(({ command }) => command === Command.REGION_READ));
  }
});

test.serial("no DMA message reaches a client before its VERSION was answered, and none after QUIESCE", async (t) => {
  const { bridge, device } = await setUp(t);
  const access = DmaAccess.encode({ address: 0, count: 4 });
  let early: Promise<LinkMessage> | undefined;
  device.onCommand = (received) => {
    if (received.command !== LinkCommand.CLIENT_CONNECTED) return false;
    early = device.request(Command.DMA_READ, access);
    void early.then(() => device.reply(received));
    return true;
  };
  const raw = new RawClient(bridge.socketPath);
  t.teardown(() => raw.close());
  t.is((await raw.negotiate()).command, Command.VERSION);
  t.is((await early)?.errno, Errno.ENODEV);
  await device.request(LinkCommand.QUIESCE);
  const write = Buffer.concat([access, Buffer.from("late")]);
  t.is((await device.request(Command.DMA_WRITE, write)).errno, Errno.ENODEV);
  const info = message(Command.DEVICE_GET_INFO, DeviceInfo.encode({ argsz: DeviceInfo.size }));
  t.is((await raw.exchange(info)).command, Command.DEVICE_GET_INFO);
});

test.serial("after QUIESCE nothing is in the window and nothing is asked of QEMU", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  t.is(frontEnd.maps.length, 1);
  t.is((await device.request(LinkCommand.QUIESCE)).flags, HeaderFlags.TYPE_REPLY);
  t.is(frontEnd.maps.length, 0);
  await client.mapMemory({ address: 0x1000_0000, size: MiB, fd, fdOffset: 0 });
  await client.unmapMemory(0, MiB);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
  frontEnd.reset();
  t.is(frontEnd.fatal, undefined);
  await device.startAndGreet();
  await deviceAnswers(client);
  t.is(frontEnd.maps.length, 1);
});

test.serial("QUIESCE waits for a map that is under way", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  frontEnd.busy = true;
  const mapped = client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  const quiesced = device.request(LinkCommand.QUIESCE);
  frontEnd.busy = false;
  await quiesced;
  await mapped;
  frontEnd.reset();
  t.is(frontEnd.fatal, undefined);
});

test.serial("a reply that crosses QUIESCE is nobody's, and QUIESCE is answered", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  device.onCommand = ({ command }) => command === Command.REGION_READ;
  const read = client.regionRead(Region.BAR0, 0, 4);
  const asked = await device.waitFor(Command.REGION_READ);
  const quiesced = device.request(LinkCommand.QUIESCE);
  device.reply(asked, Uint8Array.from([...asked.body.slice(0, 16), 1, 2, 3, 4]));
  t.is((await quiesced).flags, HeaderFlags.TYPE_REPLY);
  t.deepEqual(await read, ones(4), "as from a device that is not there");
  t.is(frontEnd.maps.length, 0);
  t.notRegex(bridge.log, /broke the link/);
  // It was answered once: a second reply is what it would be at any time.
  device.reply(asked, Uint8Array.from([...asked.body.slice(0, 16), 1, 2, 3, 4]));
  await bridge.logged(/"msg":"the device process broke the link"/);
  frontEnd.reset();
  device.onCommand = undefined;
  await device.startAndGreet();
  await deviceAnswers(client);
});

test.serial("a client that comes before the device waits for it", async (t) => {
  const bridge = await BridgeProcess.start();
  t.teardown(() => bridge.stop());
  const connecting = Client.connect(bridge.socketPath);
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath);
  t.teardown(() => frontEnd.quit());
  const device = new TestDevice(frontEnd);
  await bridge.logged(/"msg":"client connected"/);
  await device.startAndGreet();
  const client = await connecting;
  t.is((await client.getInfo()).numIrqs, 5);
  client.close();
  t.is(frontEnd.fatal, undefined);
});

test.serial("a client that leaves while it waits for the device leaves nothing behind", async (t) => {
  const bridge = await BridgeProcess.start();
  t.teardown(() => bridge.stop());
  const fds = bridge.fds();
  for (let i = 1; i <= 3; i++) {
    const client = Client.connectRaw(bridge.socketPath);
    const negotiated = t.throwsAsync(client.negotiate(), { instanceOf: PeerGone });
    await bridge.logged(/"msg":"client connected"/, i);
    client.close();
    await negotiated;
    await bridge.logged(/"msg":"client gone"/, i);
  }
  t.deepEqual(bridge.fds(), fds);
});

test.serial("the front-end goes and another comes; only one at a time", async (t) => {
  const { bridge, frontEnd, connect } = await setUp(t);
  const client = await connect();
  t.throws(() => new FrontEnd(bridge.vhostUserSocketPath), { message: /closed the socket|EPIPE|ECONNRESET/ });
  frontEnd.quit();
  await bridge.logged(/"msg":"front-end gone"/);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
  for (let i = 1; i <= 3; i++) {
    const next = new FrontEnd(bridge.vhostUserSocketPath);
    const device = new TestDevice(next);
    await device.startAndGreet();
    await deviceAnswers(client);
    t.is(next.fatal, undefined);
    next.quit();
    await bridge.logged(/"msg":"front-end gone"/, 1 + i);
  }
  t.regex(bridge.log, /"maps":\d+.*"doorbells":\d+.*"msg":"statistics"/);
});
