/**
 * Memory and eventfds that the bridge makes for a device process and gives to the client, for as long as each of them
 * lives.
 */
import test from "ava";
import * as native from "../../../../native/index.js";
import { Errno } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import { ClientGone, IoEvent, LinkCommand, NO_REGION } from "../../../../shared/spec/link.js";
import { Command, DmaMap, Region } from "../../../../shared/spec/vfio-user.js";
import type { LinkMessage } from "../../../fakes/front-end-device.js";
import { deviceAnswers, memory, ones, setUp } from "../set-up.js";
import {
  allocated,
  allocateEvents,
  allocateMemory,
  answer,
  beginMemory,
  eventsOf,
  mapBar,
  PARTS,
  share,
} from "./sharing-set-up.js";

test.serial("memory is at the window's start, and the client has the same", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  frontEnd.reset();
  const shared = await share(frontEnd, device);
  answer(device, shared);
  t.deepEqual([...shared.bar.offsets, ...shared.shadow.offsets], [0, 0x1000, 0x2000]);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: MiB, fd });
  const map = await device.waitFor(Command.DMA_MAP);
  t.true(DmaMap.view(map.data).offset >= 0x3000);
  const { views } = await mapBar(t, client);
  views[0][3] = 1;
  views[1][0xfff] = 2;
  t.deepEqual([shared.bar.views[0][3], shared.bar.views[1][0xfff]], [1, 2]);
  shared.bar.views[1][5] = 3;
  t.is(views[1][5], 3);

  const { events, fds } = await eventsOf(t, client);
  t.true(native.isEventfd(fds[events[0].fd]));
  t.deepEqual(events[1].shadow, { fd: 2, offset: 8 });
  const shadow = new Uint8Array(native.mapFile(fds[2], 0, 0x1000, native.PROT_READ | native.PROT_WRITE));
  shadow[8] = 77;
  t.is(shared.shadow.views[0][8], 77);
  native.eventfdWrite(fds[events[1].fd]);
  const event = await device.waitFor(LinkCommand.IO_EVENT);
  t.is(IoEvent.view(event.data).handle, shared.events[1]);
});

test.serial("one IO_EVENT of an eventfd at a time; what comes meanwhile is one more", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  frontEnd.reset();
  const shared = await share(frontEnd, device);
  answer(device, shared);
  const client = await connect();
  const { events, fds } = await eventsOf(t, client);
  const asBefore = device.onCommand;
  const asked: LinkMessage[] = [];
  device.onCommand = (received) => {
    if (received.command !== LinkCommand.IO_EVENT) return asBefore?.(received) ?? false;
    asked.push(received);
    return true;
  };
  const first = fds[events[0].fd];
  native.eventfdWrite(first);
  await device.waitFor(LinkCommand.IO_EVENT);
  for (let n = 0; n < 10; n++) native.eventfdWrite(first);
  // The other one is not held up. When it is there, the bridge has seen the ten as well.
  native.eventfdWrite(fds[events[1].fd]);
  await device.waitFor((m) => m.command === LinkCommand.IO_EVENT && IoEvent.view(m.data).handle === shared.events[1]);
  await client.getInfo();
  t.is(asked.length, 2);
  t.is(native.eventfdRead(first), 10, "they are still there");
  native.eventfdWrite(first);
  device.reply(asked[0]);
  await device.waitFor(LinkCommand.IO_EVENT, device.received.indexOf(asked[1]) + 1);
  t.is(asked.length, 3);
  t.is(native.eventfdRead(first), 0);
  device.reply(asked[1]);
  device.reply(asked[2]);
  await client.getInfo();
  t.is(asked.length, 3);
});

test.serial("the device process restarts under a client: memory, eventfds and waiting signals stay", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  frontEnd.reset();
  answer(device, await share(frontEnd, device));
  const client = await connect();
  const { views, inode } = await mapBar(t, client);
  const { events, fds } = await eventsOf(t, client);
  views[0][3] = 1;
  for (let restart = 1; restart <= 3; restart++) {
    const open = bridge.fds();
    frontEnd.reset();
    views[0][4] = restart;
    native.eventfdWrite(fds[events[1].fd]);
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
    const after = device.received.length;
    const shared = await share(frontEnd, device);
    answer(device, shared);
    t.deepEqual([...shared.bar.views[0].subarray(3, 5)], [1, restart]);
    const event = await device.waitFor(LinkCommand.IO_EVENT, after);
    t.is(IoEvent.view(event.data).handle, shared.events[1]);
    await deviceAnswers(client);
    t.is((await mapBar(t, client)).inode, inode);
    t.deepEqual(bridge.fds(), open);
  }
  // Another layout would leave the client with memory that nobody looks at.
  frontEnd.reset();
  device.start();
  t.is((await allocateMemory(device, Region.BAR0, [PARTS[0]])).errno, Errno.EBUSY);
  t.is((await allocateMemory(device, Region.BAR0, PARTS)).errno, 0);
});

test.serial(
  "the client leaves: the next one gets other memory and eventfds, whatever the device process does",
  async (t) => {
    const { bridge, frontEnd, device, connect } = await setUp(t);
    frontEnd.reset();
    let shared = await share(frontEnd, device);
    answer(device, shared);
    let fds: string[] | undefined;
    const inodes = new Set<number>();
    for (const scenario of ["stays", "stays", "restarts after", "is away", "prepares", "stays"]) {
      const client = await connect();
      const { views, inode } = await mapBar(t, client);
      const events = await eventsOf(t, client);
      t.false(inodes.has(inode), scenario);
      inodes.add(inode);
      t.deepEqual([views[0][3], shared.bar.views[0][3], shared.bar.views[0][4]], [0, 0, 0]);
      views[0][3] = 1;
      t.is(shared.bar.views[0][3], 1);
      const now = bridge.fds();
      fds ??= now;
      t.deepEqual(now, fds, scenario);
      const after = device.received.length;
      if (scenario === "is away" || scenario === "prepares") frontEnd.reset();
      if (scenario === "prepares") {
        device.start();
        const reply = await allocateMemory(device, Region.BAR0, PARTS);
        const bar = allocated(frontEnd, reply, PARTS);
        t.is(bar.views[0][3], 1, "the client is still there");
        client.close();
        await bridge.logged(/"msg":"client gone"/, inodes.size);
        const shadow = allocated(frontEnd, await allocateMemory(device, NO_REGION, [PARTS[0]]), [PARTS[0]]);
        const { data } = await allocateEvents(device, Region.BAR0, 2);
        shared = { bar, shadow, events: [data.getUint32(0, true), data.getUint32(4, true)] };
        await device.request(LinkCommand.HELLO, device.hello());
      } else {
        client.close();
        await bridge.logged(/"msg":"client gone"/, inodes.size);
      }
      if (scenario === "stays" || scenario === "restarts after") await device.waitFor(LinkCommand.CLIENT_GONE, after);
      if (scenario === "restarts after") frontEnd.reset();
      if (scenario === "restarts after" || scenario === "is away") shared = await share(frontEnd, device);
      answer(device, shared);
      const next = await connect();
      const gone = device.received.slice(after).filter(({ command }) => command === LinkCommand.CLIENT_GONE);
      t.is(gone.length, scenario === "is away" ? 0 : 1, scenario);
      for (const { data } of gone) t.is(ClientGone.view(data).generation, inodes.size);
      views[0][4] = 1;
      native.eventfdWrite(events.fds[0]);
      t.deepEqual([shared.bar.views[0][3], shared.bar.views[0][4]], [0, 0], scenario);
      const nextMap = await mapBar(t, next);
      inodes.add(nextMap.inode);
      nextMap.views[0][9] = 9;
      t.is(shared.bar.views[0][9], 9);
      const heard = device.received.slice(after).some(({ command }) => command === LinkCommand.IO_EVENT);
      t.false(heard, "the old eventfd means nothing any more");
      next.close();
      await bridge.logged(/"msg":"client gone"/, inodes.size);
      await device.waitFor(
        (m) => m.command === LinkCommand.CLIENT_GONE && ClientGone.view(m.data).generation === inodes.size,
      );
    }
    t.is(frontEnd.fatal, undefined);
  },
);

test.serial("QUIESCE takes the memory out of the window, also before HELLO; no fd is left behind", async (t) => {
  const { bridge, frontEnd, device } = await setUp(t);
  const fds = bridge.fds();
  for (const greeted of [true, false]) {
    frontEnd.reset();
    if (greeted) await share(frontEnd, device);
    else {
      device.start();
      await allocateMemory(device, Region.BAR0, PARTS);
    }
    t.is(frontEnd.maps.length, greeted ? 3 : 2);
    t.is((await device.request(LinkCommand.QUIESCE)).errno, 0);
    t.is(frontEnd.maps.length, 0);
    t.deepEqual(bridge.fds(), fds);
    // It may go on without a reset.
    t.is((await allocateMemory(device, Region.BAR0, PARTS)).errno, 0);
    t.is(frontEnd.maps.length, 2);
    frontEnd.reset();
  }
  await device.startAndGreet();
  t.deepEqual(bridge.fds(), fds);
});

test.serial("the device stops while its memory is mapped", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const fds = bridge.fds();
  beginMemory(frontEnd, device);
  frontEnd.busy = false;
  frontEnd.reset();
  t.is(frontEnd.fatal, undefined);
  await device.startAndGreet();
  // What the front-end mapped as it stopped is memory of the device VM's, until its next table.
  const mapped = frontEnd.maps.map(() => "/memfd:vfio-user-region (deleted)");
  t.deepEqual(bridge.fds(), [...fds, ...mapped].sort());
  const client = await connect();
  t.is((await client.getInfo()).numIrqs, 5);
});
