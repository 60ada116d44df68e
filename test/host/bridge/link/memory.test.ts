/** Driver-VM memory in the window of the device VM, through the bridge. */
import test from "ava";
import * as native from "../../../../native/index.js";
import { Errno, ProtocolError } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import { Command, DmaMap, DmaMapFlags } from "../../../../shared/spec/vfio-user.js";
import type { Client } from "../../../../shared/vfio-user/client/client.js";
import { WINDOW_BAR } from "../../../fakes/front-end-config.js";
import type { LinkMessage } from "../../../fakes/front-end-device.js";

import { mapFlags, memory, setUp } from "../set-up.js";

test.serial("driver-VM memory appears in the window, and goes", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd, bytes } = memory(t, 4 * MiB);
  bytes.set([1, 2, 3, 4], 2 * MiB);
  await client.mapMemory({ address: 0x10_0000, size: 2 * MiB, fd, fdOffset: 2 * MiB });
  const map = await device.waitFor(Command.DMA_MAP);
  const { address, size, offset, flags } = DmaMap.view(map.data);
  t.deepEqual({ address, size, flags }, { address: 0x10_0000, size: 2 * MiB, flags: 7 });
  t.is(offset % (2 * MiB), 0, "so that large pages can be used");
  const window = new Uint8Array(frontEnd.memory(WINDOW_BAR, 0, frontEnd.windowSize));
  t.deepEqual([...window.subarray(offset, offset + 4)], [1, 2, 3, 4]);
  window[offset + 5] = 99;
  t.is(bytes[2 * MiB + 5], 99);
  t.is(frontEnd.maps.length, 1);

  await client.unmapMemory(0x10_0000, 2 * MiB);
  t.true(device.received.some(({ command }) => command === Command.DMA_UNMAP));
  t.is(frontEnd.maps.length, 0);
  t.is(window[offset], 0);
});

test.serial("memory that cannot be in the window is told without it", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: 0, size: 0x1000 });
  await client.mapMemory({ address: 0x10_0000, size: 0x1000, fd, writable: false });
  const maps = device.received.filter(({ command }) => command === Command.DMA_MAP).map(({ data }) => mapFlags(data));
  const { READ, WRITE, FILE_IO } = DmaMapFlags;
  t.deepEqual(maps, [READ | WRITE, READ | FILE_IO], "no fd: messages; read-only: copies");
  t.is(frontEnd.maps.length, 0);
});

test.serial("a map from the middle of a huge page: the edges are for copies, the rest is in the window", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const fd = native.createMemory("huge", 8 * MiB, true);
  t.teardown(() => native.close(fd));
  native.addSeals(fd, native.F_SEAL_SHRINK);
  await client.mapMemory({ address: 0x10_0000, size: 6 * MiB, fd, fdOffset: MiB });
  const received = (wanted: number) => device.received.filter(({ command }) => command === wanted);
  const maps = received(Command.DMA_MAP).map(({ data }) => {
    const { address, size, flags } = DmaMap.view(data);
    return [address / MiB, size / MiB, flags];
  });
  const { READ, WRITE, MMAP, FILE_IO } = DmaMapFlags;
  t.deepEqual(maps, [
    [1, 1, READ | WRITE | FILE_IO],
    [2, 4, READ | WRITE | MMAP],
    [6, 1, READ | WRITE | FILE_IO],
  ]);
  t.deepEqual(
    frontEnd.maps.map(({ length, fdOffset }) => [length, fdOffset]),
    [[4 * MiB, 2 * MiB]],
  );
  await client.unmapMemory(0x10_0000, 6 * MiB);
  t.is(received(Command.DMA_UNMAP).length, 1, "one message for all of it");
  t.is(frontEnd.maps.length, 0);

  device.onCommand = (message) => {
    if (message.command !== Command.DMA_MAP || DmaMap.view(message.data).address !== 2 * MiB) return false;
    device.reply(message, undefined, Errno.ENOMEM);
    return true;
  };
  await t.throwsAsync(client.mapMemory({ address: 0x10_0000, size: 6 * MiB, fd, fdOffset: MiB }));
  t.is(received(Command.DMA_UNMAP).length, 2, "the part that it took is taken back");
  t.is(frontEnd.maps.length, 0);
});

test.serial("a map that is larger than its file of huge pages: what there is is in the window", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const fd = native.createMemory("huge", 2 * MiB, true);
  t.teardown(() => native.close(fd));
  native.addSeals(fd, native.F_SEAL_SHRINK);
  await client.mapMemory({ address: 0x10_0000, size: 4 * MiB, fd });
  const maps = device.received
    .filter(({ command }) => command === Command.DMA_MAP)
    .map(({ data }) => {
      const { address, size, flags } = DmaMap.view(data);
      return [address / MiB, size / MiB, flags];
    });
  const { READ, WRITE, MMAP } = DmaMapFlags;
  t.deepEqual(maps, [
    [1, 2, READ | WRITE | MMAP],
    [3, 2, READ | WRITE],
  ]);
  t.deepEqual(
    frontEnd.maps.map(({ length, fdOffset }) => [length, fdOffset]),
    [[2 * MiB, 0]],
  );
  await client.unmapMemory(0x10_0000, 4 * MiB);
  t.is(frontEnd.maps.length, 0);
  t.is(native.fileStatus(fd).size, 2 * MiB);
});

test.serial("what the front-end refuses is for copies", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  frontEnd.window.refusal = "no";
  await client.mapMemory({ address: 0, size: MiB, fd });
  frontEnd.window.refusal = undefined;
  await client.mapMemory({ address: MiB, size: MiB, fd });
  const flags = device.received.filter(({ command }) => command === Command.DMA_MAP).map(({ data }) => mapFlags(data));
  const { READ, WRITE, MMAP, FILE_IO } = DmaMapFlags;
  t.deepEqual(flags, [READ | WRITE | FILE_IO, READ | WRITE | MMAP]);
});

test.serial("more maps than a memory table holds, and a window that is full", async (t) => {
  const { frontEnd, device, connect } = await setUp(t, { windowSize: "1M" });
  const client = await connect();
  const { fd } = memory(t, MiB);
  for (let i = 0; i < 16; i++)
    await client.mapMemory({ address: i * 0x1_0000, size: 0x1_0000, fd, fdOffset: i * 0x1_0000 });
  t.is(frontEnd.maps.length, 16);
  t.true(frontEnd.complaints.includes("No buffer space available"), "QEMU says so itself");
  await client.mapMemory({ address: 0x100_0000, size: 0x1000, fd, fdOffset: 0 });
  const flags = device.received.filter(({ command }) => command === Command.DMA_MAP).map(({ data }) => mapFlags(data));
  t.deepEqual(flags, [...new Array(16).fill(7), 3 | DmaMapFlags.FILE_IO], "the last one is for copies");
  for (let i = 0; i < 16; i++) await client.unmapMemory(i * 0x1_0000, 0x1_0000);
  t.is(frontEnd.maps.length, 0);
});

test.serial(
  "all maps in a range are one message to the device process, and gone from the window with its reply",
  async (t) => {
    const { frontEnd, device, connect } = await setUp(t);
    const client = await connect();
    const { fd } = memory(t, 3 * MiB);
    const count = 262;
    for (let n = 0; n < count; n++) {
      await client.mapMemory({ address: -2 * n * 0x2000 - 0x2000, size: 0x2000, fd, fdOffset: n * 0x2000 });
    }
    await client.mapMemory({ address: 0x10000, size: 0x2000, fd });
    await client.mapMemory({ address: 0x20000, size: 0x1000, fd, writable: false });
    t.is(frontEnd.maps.length, count + 1);
    const unmaps = () =>
      device.received
        .filter(({ command }) => command === Command.DMA_UNMAP)
        .map(({ body }) => Buffer.from(body).toString("hex"));
    await t.throwsAsync(client.unmapMemory(0x11000, 2 ** 64 - 0x11000), { message: /errno 22/ });
    t.is(await client.unmapMemory(0x0800_0000, 0x0800_0000), 0);
    t.deepEqual(unmaps(), [], "what is refused, or covers nothing, does not reach it");
    t.is(frontEnd.maps.length, count + 1);
    t.is(await client.unmapMemory(0x1f000, 2 ** 64 - 0x1f000), count * 0x2000 + 0x1000);
    t.is(frontEnd.maps.length, 1);
    t.deepEqual(unmaps(), ["18000000" + "00000000" + "00f0010000000000" + "0010feffffffffff"]);
    t.is(await client.unmapAll(), 0x2000);
    t.is(unmaps()[1], "18000000" + "02000000" + "0000000000000000" + "0000000000000000");
    t.is(frontEnd.maps.length, 0);
  },
);

test.serial("a map that the device process refuses is refused to the client, and is not in the window", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  device.onCommand = (received) => {
    if (received.command !== Command.DMA_MAP) return false;
    device.reply(received, undefined, Errno.ENOMEM);
    return true;
  };
  const error = await t.throwsAsync(client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 }), {
    instanceOf: ProtocolError,
  });
  t.is((error as ProtocolError).errno, Errno.ENOMEM);
  t.is(frontEnd.maps.length, 0);
});

test.serial("a device process that does not answer an unmap: the memory is taken by force", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const [first, second] = [memory(t, 4 * MiB), memory(t, MiB)];
  const unanswered: LinkMessage[] = [];
  device.onCommand = (received) => {
    if (received.command !== Command.DMA_UNMAP) return false;
    unanswered.push(received);
    return true;
  };
  for (let n = 0; n < 4; n++) {
    await client.mapMemory({ address: n * MiB, size: MiB, fd: first.fd, fdOffset: n * MiB });
  }
  const places = frontEnd.maps.map(({ offset }) => offset);
  const window = new Uint8Array(frontEnd.memory(WINDOW_BAR, 0, frontEnd.windowSize));
  // Together they do not take longer than one, so that the client hears of it in time.
  await client.unmapAll();
  t.is(unanswered.length, 1);
  t.is(frontEnd.maps.length, 0);
  await bridge.logged(/taken by force/, 1);
  for (const place of places) window[place] = 9;
  t.true([0, 1, 2, 3].every((n) => first.bytes[n * MiB] === 0));

  // The device process goes on; what it may still use is nobody's.
  await client.getInfo();
  await client.mapMemory({ address: 0, size: MiB, fd: second.fd });
  t.false(places.includes(frontEnd.maps[0].offset));
  for (const message of unanswered) device.reply(message);
  device.onCommand = undefined;
  await client.unmapMemory(0, MiB);
  t.is(frontEnd.maps.length, 0);
  t.notRegex(bridge.log, /broke the link/);
});

test.serial(
  "a device process that does not let go in time and says so keeps its place, empty, until it has",
  async (t) => {
    const { frontEnd, device, connect } = await setUp(t);
    const client = await connect();
    const { fd } = memory(t, MiB);
    const map = async (on: Client, address: number) => {
      await on.mapMemory({ address, size: MiB, fd });
      return frontEnd.maps[0].offset;
    };
    const place = await map(client, 0);
    device.onCommand = (received) => {
      if (received.command !== Command.DMA_UNMAP) return false;
      device.reply(received, undefined, Errno.ETIMEDOUT);
      return true;
    };
    await client.unmapMemory(0, MiB);
    t.is(frontEnd.maps.length, 0);
    t.not(await map(client, 0), place);
    client.close();
    // It takes the next client only when it has.
    t.is(await map(await connect(), 0), place);
  },
);
