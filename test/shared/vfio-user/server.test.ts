/**
 * The termination against a peer without manners: every bad input gets its error, and afterwards the same connection,
 * or where it had to end the next one, works as before.
 */
import { closeSync, existsSync } from "node:fs";
import { join } from "node:path";
import test from "ava";
import { connect, createMemory, eventfd, isEventfd, listen, socketPair } from "../../../native/index.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { MAX_MESSAGE_SIZE } from "../../../shared/limits.js";
import { type Log, quietLog } from "../../../shared/log.js";
import { FdShare } from "../../../shared/peer-fds.js";
import {
  Command,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  HeaderFlags,
  Irq,
  IrqSetFlags,
  RegionAccess,
} from "../../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";
import { Server } from "../../../shared/vfio-user/server.js";
import { answer, FakeBackend, readThroughDma } from "./fake-backend.js";
import { copies, Fixture, until } from "./fixture.js";
import { isError, message, RawClient, type RawMessage, versionBody } from "./raw-client.js";
import { access, dirtyUnmap, irqs, map, READ_1, sealed, unmap, usable, withU64 } from "./raw-requests.js";

test("an error to a command that wants no reply is not sent", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  raw.send(message(99, Buffer.alloc(1), { flags: HeaderFlags.NO_REPLY }));
  raw.send(message(Command.REGION_READ, access(0, 9, 1), { flags: HeaderFlags.NO_REPLY }));
  raw.send(message(Command.REGION_WRITE, access(0, 0, 1, 1), { flags: HeaderFlags.NO_REPLY }));
  raw.send(message(Command.DMA_MAP, map(), { flags: HeaderFlags.NO_REPLY }));
  raw.send(message(Command.DMA_UNMAP, unmap({ address: 0x10000 }), { flags: HeaderFlags.NO_REPLY }));
  t.true(await usable(raw));
  t.is(fixture.backend.commands.length, 2);
  t.is(fixture.server.stats.maps, 0);
});

/** The size in a reply to DMA_UNMAP. */
const sizeOf = ({ body }: RawMessage) => Number(body.readBigUInt64LE(DmaUnmap.offsets.size));

const FATAL: readonly [name: string, bytes: Uint8Array, errno: number | undefined][] = [
  ["a header that says 15 bytes", message(Command.DMA_MAP, Buffer.alloc(0), { size: 15 }), Errno.EINVAL],
  [
    "a header that says too many bytes",
    message(Command.DMA_MAP, Buffer.alloc(0), { size: MAX_MESSAGE_SIZE + 1 }),
    Errno.EINVAL,
  ],
  ["a message of type 5", message(Command.DMA_MAP, map(), { flags: 5 }), undefined],
];
for (const [name, bytes, errno] of FATAL) {
  test(`the connection ends, and only that: ${name}`, async (t) => {
    const fixture = new Fixture(t);
    const raw = await fixture.negotiatedRaw();
    raw.send(bytes);
    if (errno !== undefined) t.true(isError(await raw.receive(), errno));
    await raw.closedByServer();
    t.true(await usable(await fixture.negotiatedRaw()));
    t.is(fixture.backend.disconnects, 1);
  });
}

const BAD_FIRST: readonly [name: string, bytes: Uint8Array][] = [
  ["not VERSION", READ_1],
  ["major version 1", message(Command.VERSION, versionBody("{}", { major: 1, minor: 0 }))],
  ["bad JSON", message(Command.VERSION, versionBody("{"))],
  ["a wrong type", message(Command.VERSION, versionBody('{"capabilities":{"max_msg_fds":"many"}}'))],
  ["no body", message(Command.VERSION)],
];
for (const [name, bytes] of BAD_FIRST) {
  test(`a first message that is no good gets an error, and the connection ends: ${name}`, async (t) => {
    const fixture = new Fixture(t);
    const raw = fixture.connectRaw();
    t.true(isError(await raw.exchange(bytes), Errno.EINVAL));
    await raw.closedByServer();
    t.is(fixture.backend.connects, 0);
    t.is(fixture.backend.disconnects, 0);
    t.true(await usable(await fixture.negotiatedRaw()));
  });
}

test("minor version 0 and none at all get on", async (t) => {
  const fixture = new Fixture(t);
  const raw = fixture.connectRaw();
  const reply = await raw.exchange(message(Command.VERSION, versionBody("{}", { major: 0, minor: 0 }), { id: 9 }));
  t.like(reply, { id: 9, command: Command.VERSION, flags: HeaderFlags.TYPE_REPLY });
  t.is(reply.body.readUInt16LE(2), 0);
  t.is(reply.body.at(-1), 0);
  t.true(await usable(raw));
});

test("fds with a command that takes none are closed, the command is done", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  const fds = [...socketPair(), eventfd(0), sealed(0x1000)];
  const reply = await raw.exchange(READ_1, fds);
  t.is(reply.flags, HeaderFlags.TYPE_REPLY);
  t.true(await usable(raw));
  for (const fd of fds) {
    t.is(copies(fd), 1);
    closeSync(fd);
  }
});

test("16 eventfds on one message", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  const fds = Array.from({ length: 16 }, () => eventfd(0));
  const reply = await raw.exchange(message(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24, start: 3, count: 16 })), fds);
  for (const fd of fds) closeSync(fd);
  t.is(reply.flags, HeaderFlags.TYPE_REPLY);
  const [request] = fixture.backend.irqs;
  t.like(request, {
    start: 3,
    count: 16,
    index: Irq.MSIX,
    flags: IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER,
  });
  t.true(request.eventfds?.every((fd) => isEventfd(fd)));
});

test("memory that can shrink, and read-only memory, is mapped, but not for a VM", async (t) => {
  for (const [seal, flags, trustUnsealedMemory, mapped, shareable] of [
    [false, 3, false, true, false],
    [false, 3, true, true, true],
    [true, 3, false, true, true],
    [true, DmaMapFlags.READ, true, true, false],
    [true, DmaMapFlags.READ, false, true, false],
    [false, DmaMapFlags.READ, false, true, false],
    [true, DmaMapFlags.WRITE, false, true, true],
  ] as const) {
    const fixture = new Fixture(t, { trustUnsealedMemory });
    const raw = await fixture.negotiatedRaw();
    const fd = seal ? sealed(0x1000) : createMemory("open", 0x1000, false);
    const reply = await raw.exchange(message(Command.DMA_MAP, map({ flags })), [fd]);
    closeSync(fd);
    t.is(reply.flags, HeaderFlags.TYPE_REPLY);
    t.is(fixture.backend.maps[0].fd !== -1, mapped, `seal ${seal} flags ${flags} trust ${trustUnsealedMemory}`);
    t.is(fixture.backend.maps[0].isShareable, shareable, `seal ${seal} flags ${flags} trust ${trustUnsealedMemory}`);
    t.is(fixture.backend.maps[0].windowOffset, -1);
    await fixture.close();
  }
});

test("pipelined commands are answered in order, each once, with a slow device too", async (t) => {
  const fixture = new Fixture(t);
  fixture.backend.onCommand = (command) => {
    if (fixture.backend.commands.length % 2) setImmediate(() => answer(command));
    else answer(command);
  };
  fixture.backend.onMap = () => new Promise((resolve) => setImmediate(resolve));
  const raw = await fixture.negotiatedRaw();
  const sent: Buffer[] = [];
  for (let id = 0; id < 200; id++) {
    const body = id % 10 === 0 ? map({ address: 0x10000 * (id + 1) }) : access(id, 0, 1);
    sent.push(message(id % 10 === 0 ? Command.DMA_MAP : Command.REGION_READ, body, { id }));
  }
  raw.send(Buffer.concat(sent));
  for (let id = 0; id < 200; id++) {
    const reply = await raw.receive();
    t.like(reply, { id, flags: HeaderFlags.TYPE_REPLY });
    if (id % 10) t.is(reply.body.at(-1), id);
  }
  t.is(fixture.server.stats.maps, 20);
});

test("a request split at every byte", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  for (let cut = 1; cut < READ_1.length; cut++) {
    raw.send(READ_1.subarray(0, cut));
    await new Promise((resolve) => setImmediate(resolve));
    raw.send(READ_1.subarray(cut));
    t.is((await raw.receive()).body.at(-1), 5);
  }
});

test("the same id many times over is nobody's business", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  raw.send(Buffer.concat([READ_1, READ_1, READ_1]));
  for (let count = 0; count < 3; count++) t.is((await raw.receive()).id, 4711);
});

test("every fd is closed when its map ends, or with the client, but not before", async (t) => {
  const fixture = new Fixture(t);
  const fds = [sealed(0x1000), sealed(0x1000), sealed(0x1000), createMemory("open", 0x1000, false)];
  const events = [eventfd(0), eventfd(0)];
  const raw = await fixture.negotiatedRaw();
  for (const [index, fd] of fds.entries()) {
    await raw.exchange(message(Command.DMA_MAP, map({ address: index * 0x1000 })), [fd]);
  }
  await raw.exchange(message(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24, count: 2 })), events);
  await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: 0x1000 })));
  t.deepEqual(fds.map(copies), [2, 1, 2, 2]);
  t.deepEqual(events.map(copies), [2, 2]);
  // An fd with a message that never becomes whole, and one with a command that waits.
  fixture.backend.onCommand = () => {};
  raw.send(READ_1);
  raw.send(message(Command.DMA_MAP, map({ address: 0x9000 })), [fds[1]]);
  raw.send(message(Command.DMA_MAP, map({ address: 0xa000 })).subarray(0, 20), [fds[3]]);
  await until(() => copies(fds[3]) === 3);
  t.deepEqual(fds.map(copies), [2, 2, 2, 3]);
  raw.close();
  await until(() => !fixture.server.stats.connected);
  t.deepEqual(fds.map(copies), [1, 1, 1, 1]);
  t.deepEqual(events.map(copies), [1, 1]);
  for (const fd of [...fds, ...events]) closeSync(fd);
});

test("posted writes are answered before the device is done, in order, and its errors are nobody's", async (t) => {
  const fixture = new Fixture(t);
  const { backend } = fixture;
  backend.device = { regionSizes: [0x2000, 0, 0, 0, 0, 0, 0, 4096, 0], postedRegions: 1, irqCounts: [1, 0, 8, 1, 1] };
  let held: PendingCommand | undefined;
  backend.onCommand = (command) => {
    if (command.command === Command.REGION_WRITE) held = command;
    else answer(command);
  };
  const raw = await fixture.negotiatedRaw();
  const body = access(0x40, 0, 2, 2);
  const reply = await raw.exchange(message(Command.REGION_WRITE, body, { id: 3 }));
  t.deepEqual(reply.body, body.subarray(0, RegionAccess.size));
  await until(() => held !== undefined);
  raw.send(READ_1);
  held?.fail(Errno.EIO);
  t.is((await raw.receive()).id, 4711, "no second reply");
  t.deepEqual(
    backend.commands.map(({ command }) => command),
    [Command.REGION_WRITE, Command.REGION_READ],
  );
});

test("a device that does not answer: reads give all ones, the rest ETIMEDOUT, late replies are dropped", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  const late: PendingCommand[] = [];
  fixture.backend.onCommand = (command) => late.push(command);
  const raw = await fixture.negotiatedRaw();
  const read = await raw.exchange(message(Command.REGION_READ, access(8, 0, 300), { id: 1 }));
  t.is(read.flags, HeaderFlags.TYPE_REPLY);
  t.deepEqual(read.body, Buffer.concat([access(8, 0, 300), Buffer.alloc(300, 0xff)]));
  t.true(isError(await raw.exchange(message(Command.REGION_WRITE, access(8, 0, 4, 4), { id: 2 })), Errno.ETIMEDOUT));
  t.true(isError(await raw.exchange(message(Command.DEVICE_RESET, undefined, { id: 3 })), Errno.ETIMEDOUT));
  fixture.backend.onCommand = undefined;
  t.true(await usable(raw));
  // In the middle of the next command, where a mix-up would answer the wrong one.
  fixture.backend.onCommand = (command) => {
    for (const one of late) {
      t.not(one as PendingCommand, command);
      one.reserve(5000);
      one.replyBytes.fill(0xee, one.replyOffset);
      one.reply(5000);
      one.fail(Errno.EIO);
    }
    answer(command);
  };
  t.true(await usable(raw));
  t.true(await usable(raw));
  t.is(fixture.server.stats.timeouts, 3);
});

test("a late device still sees the body that it was given", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  let late: PendingCommand | undefined;
  fixture.backend.onCommand = (command) => {
    late = command;
  };
  const raw = await fixture.negotiatedRaw();
  const body = Buffer.concat([access(0, 0, 6), Buffer.from("secret")]);
  t.true(isError(await raw.exchange(message(Command.REGION_WRITE, body)), Errno.ETIMEDOUT));
  fixture.backend.onCommand = undefined;
  for (let count = 0; count < 10; count++) t.true(await usable(raw));
  if (!late) return t.fail();
  t.deepEqual(Buffer.from(late.bytes.subarray(late.offset, late.offset + late.length)), body);
});

test("a map that comes too late is taken away again; an unmap waits for one under way", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  const { backend } = fixture;
  let finish = () => {};
  backend.onMap = () =>
    new Promise((resolve) => {
      finish = resolve;
    });
  const raw = await fixture.negotiatedRaw();
  const fd = sealed(0x1000);
  t.true(isError(await raw.exchange(message(Command.DMA_MAP, map()), [fd]), Errno.ETIMEDOUT));
  closeSync(fd);
  t.true(isError(await raw.exchange(message(Command.DMA_MAP, map())), Errno.EEXIST));
  t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: 0x10000 }))), Errno.ETIMEDOUT));
  t.is(fixture.server.stats.maps, 1);
  raw.send(message(Command.DMA_UNMAP, unmap({ address: 0, size: 0x100000 })));
  await until(() => fixture.server.stats.commands === 5);
  finish();
  t.is((await raw.receive()).flags, HeaderFlags.TYPE_REPLY);
  t.is(fixture.server.stats.maps, 0);
  t.is(backend.maps.length, 0);
  backend.onMap = undefined;
  t.is((await raw.exchange(message(Command.DMA_MAP, map()))).flags, HeaderFlags.TYPE_REPLY);
});

test("a client that leaves while its unmap waits for a map: all is closed, and the next one is served", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  const { backend, server } = fixture;
  let finish = () => {};
  backend.onMap = () =>
    new Promise((resolve) => {
      finish = resolve;
    });
  const raw = await fixture.negotiatedRaw();
  const fd = sealed(0x1000);
  t.true(isError(await raw.exchange(message(Command.DMA_MAP, map()), [fd]), Errno.ETIMEDOUT));
  raw.send(message(Command.DMA_UNMAP, unmap({ address: 0, size: 0x100000 })));
  await until(() => server.stats.commands === 3);
  let unmaps = 0;
  backend.onUnmap = async () => {
    unmaps++;
  };
  raw.close();
  await until(() => backend.disconnects === 1 && server.stats.maps === 0);
  finish();
  backend.onMap = undefined;
  const next = await fixture.negotiatedRaw();
  t.is((await next.exchange(message(Command.DMA_MAP, map()), [fd])).flags, HeaderFlags.TYPE_REPLY);
  t.is((await next.exchange(message(Command.DMA_UNMAP, unmap({ address: 0, size: 0x100000 })))).flags, 1);
  t.is(unmaps, 1, "that of the next one: the first one's map went with it");
  t.is(copies(fd), 1);
  closeSync(fd);
});

test("an unmap takes every map that lies in its range, and tells how many bytes that was", async (t) => {
  const fixture = new Fixture(t);
  const { backend, server } = fixture;
  const requests: string[] = [];
  backend.onUnmap = async ({ address, size, maps }) => {
    requests.push(`${address}+${size}: ${maps.map((each) => each.address)}`);
  };
  const raw = await fixture.negotiatedRaw();
  const mapAt = async (address: number, size = 0x1000) => {
    const fd = sealed(size);
    t.false(isError(await raw.exchange(message(Command.DMA_MAP, map({ address, size })), [fd]), 0), `${address}`);
    closeSync(fd);
  };
  const unmapped = async (body: Uint8Array) => sizeOf(await raw.exchange(message(Command.DMA_UNMAP, body)));
  for (const address of [0, 0x2000, 0xfee0_0000, 0xfef0_0000, -0x3000, -0x1000]) await mapAt(address);
  await mapAt(0x4000, 0x4000);

  // What stock QEMU sends when an IOMMU's tables change as a whole.
  t.is(await unmapped(unmap({ address: 0x1000, size: 0x1000 })), 0, "none");
  t.deepEqual(requests, [], "and the device is not asked");
  for (const [address, size] of [
    [0, 0x5000],
    [0x5000, 0x1000],
    [0x5000, 0x10000],
    [0x5000, 2 ** 64 - 0x5000],
  ]) {
    const reply = await raw.exchange(message(Command.DMA_UNMAP, unmap({ address, size })));
    t.true(isError(reply, Errno.EINVAL), `cuts a map: ${address}+${size}`);
  }
  t.is(server.stats.maps, 7);
  t.deepEqual(requests, []);
  t.is(await unmapped(unmap({ address: 0, size: 0xfee0_0000 })), 0x6000);
  t.is(await unmapped(unmap({ address: 0xfef0_0000, size: 2 ** 64 - 0xfef0_0000 })), 0x3000);
  t.is(server.stats.maps, 1);
  await mapAt(2 ** 53 - 0x1000 - 0x1000);
  t.is(await unmapped(unmap({ address: 0, size: 2 ** 63 })), 0x2000);
  t.is(await unmapped(unmap({ address: -(2 ** 63), size: 2 ** 63 })), 0, "the other half");
  await mapAt(0x1000);
  await mapAt(-0x1000);
  t.is(await unmapped(unmap({ flags: DmaUnmapFlags.ALL, address: 0, size: 0 })), 0x2000);
  t.is(server.stats.maps, 0);
  t.deepEqual(requests, [
    "0+4276092928: 0,8192,16384",
    `${0xfef0_0000}+${2 ** 64 - 0xfef0_0000}: -12288,-4096,${0xfef0_0000}`,
    `0+${2 ** 63}: ${0xfee0_0000},${2 ** 53 - 0x2000}`,
    `0+${2 ** 64}: -4096,4096`,
  ]);
  t.is(backend.maps.length, 0);
});

test("what cannot be mapped so far from both ends of the address space is unmapped all the same", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  for (const address of [2n ** 53n, 2n ** 60n, 2n ** 63n, 2n ** 64n - 2n ** 53n]) {
    const refused = await raw.exchange(message(Command.DMA_MAP, withU64(map(), DmaMap.offsets.address, address)));
    t.true(isError(refused, Errno.EINVAL), `${address}`);
    const body = withU64(unmap(), DmaUnmap.offsets.address, address);
    const reply = await raw.exchange(message(Command.DMA_UNMAP, body));
    t.is(reply.flags, HeaderFlags.TYPE_REPLY);
    t.deepEqual(reply.body, Buffer.from(withU64(body, DmaUnmap.offsets.size, 0n)));
  }
});

test("thousands of maps are unmapped by one request", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  const count = 20_000;
  for (let n = 0; n < count; n += 1000) {
    const maps = Array.from({ length: 1000 }, (_, i) =>
      message(Command.DMA_MAP, map({ address: (n + i) * 0x1000 - count * 0x800 })),
    );
    raw.send(Buffer.concat(maps));
    for (let i = 0; i < 1000; i++) await raw.receive();
  }
  t.is(fixture.server.stats.maps, count);
  const reply = await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: -count * 0x800, size: count * 0x800 })));
  t.is(sizeOf(reply), count * 0x800);
  await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: 0, size: 2 ** 64 - 0x1000 })));
  t.is(fixture.server.stats.maps, 0);
});

test("an unmap waits for the backend, and echoes the request", async (t) => {
  const fixture = new Fixture(t);
  let letGo = () => {};
  fixture.backend.onUnmap = () =>
    new Promise((resolve) => {
      letGo = resolve;
    });
  const raw = await fixture.negotiatedRaw();
  await raw.exchange(message(Command.DMA_MAP, map()));
  const body = unmap({ address: 0x10000, argsz: 100 });
  raw.send(Buffer.concat([message(Command.DMA_UNMAP, body, { id: 5 }), READ_1]));
  await until(() => fixture.server.stats.commands === 3);
  t.is(fixture.backend.commands.length, 0, "what comes behind waits");
  letGo();
  const reply = await raw.receive();
  t.like(reply, { id: 5, flags: HeaderFlags.TYPE_REPLY });
  t.deepEqual(reply.body, Buffer.from(body));
  t.is((await raw.receive()).id, 4711);
});

test("an unmap with a bitmap: the backend's bits follow the request in the reply", async (t) => {
  const fixture = new Fixture(t);
  fixture.backend.onUnmap = async ({ dirty }) => {
    t.is(dirty?.pageSize, 4096);
    t.deepEqual(dirty?.bitmap, new Uint8Array(16));
    dirty?.bitmap.set([0x81, 2], 7);
  };
  const raw = await fixture.negotiatedRaw();
  const place = { address: 0x10000, size: 65 * 4096 };
  await raw.exchange(message(Command.DMA_MAP, map(place)));
  const body = dirtyUnmap({ ...place, argsz: 56 }, 4096, 16);
  const reply = await raw.exchange(message(Command.DMA_UNMAP, body));
  const bitmap = Buffer.alloc(16);
  bitmap.set([0x81, 2], 7);
  t.deepEqual(reply.body, Buffer.concat([body, bitmap]));
  t.is(fixture.server.stats.maps, 0);
});

test("an unmap whose bitmap the backend refuses leaves the map; larger pages make a smaller bitmap", async (t) => {
  const fixture = new Fixture(t);
  fixture.backend.onUnmap = () => Promise.reject(new ProtocolError("no log", Errno.EINVAL));
  const raw = await fixture.negotiatedRaw();
  const place = { address: 0x10000, size: 0x10000 };
  await raw.exchange(message(Command.DMA_MAP, map(place)));
  const body = dirtyUnmap(place, 0x10000);
  t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, body)), Errno.EINVAL));
  t.is(fixture.server.stats.maps, 1);
  fixture.backend.onUnmap = undefined;
  t.is((await raw.exchange(message(Command.DMA_UNMAP, body))).body.length, 48);
  t.is(fixture.server.stats.maps, 0);
});

test("an unmap that takes too long goes on, and is not begun twice: the next one waits for it", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  let letGo = () => {};
  let begun = 0;
  fixture.backend.onUnmap = () =>
    new Promise((resolve) => {
      begun++;
      letGo = resolve;
    });
  const raw = await fixture.negotiatedRaw();
  const fd = sealed(0x1000);
  await raw.exchange(message(Command.DMA_MAP, map()), [fd]);
  const body = unmap({ address: 0x10000 });
  t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, body)), Errno.ETIMEDOUT));
  t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, body)), Errno.ETIMEDOUT));
  raw.send(message(Command.DMA_UNMAP, body));
  await until(() => fixture.server.stats.commands === 5);
  t.is(copies(fd), 2);
  letGo();
  t.is((await raw.receive()).flags, HeaderFlags.TYPE_REPLY);
  t.is(begun, 1);
  t.is(fixture.server.stats.maps, 0);
  t.is(copies(fd), 1);
  closeSync(fd);
});

test("what a backend rejects with becomes the errno; what it throws becomes EIO", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  for (const [error, errno] of [
    [new ProtocolError("no room", Errno.ENOSPC), Errno.ENOSPC],
    [Object.assign(new Error("mmap"), { code: "ENOMEM", errno: 12, syscall: "mmap" }), Errno.ENOMEM],
    [new TypeError("a bug"), Errno.EIO],
  ] as const) {
    fixture.backend.onMap = () => Promise.reject(error);
    const fd = sealed(0x1000);
    t.true(isError(await raw.exchange(message(Command.DMA_MAP, map()), [fd]), errno));
    closeSync(fd);
    t.is(fixture.server.stats.maps, 0);
    fixture.backend.onCommand = () => {
      throw error;
    };
    t.true(isError(await raw.exchange(READ_1), errno));
    fixture.backend.onCommand = undefined;
    t.true(await usable(raw));
  }
  fixture.backend.onMap = undefined;
  await raw.exchange(message(Command.DMA_MAP, map()));
  fixture.backend.onUnmap = () => Promise.reject(new ProtocolError("busy", Errno.EBUSY));
  for (const body of [unmap({ address: 0x10000 }), unmap({ flags: DmaUnmapFlags.ALL, address: 0, size: 0 })]) {
    t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, body)), Errno.EBUSY));
  }
  t.is(fixture.server.stats.maps, 1, "it is still there");
  fixture.backend.onUnmap = undefined;
  const reply = await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: 0x10000 })));
  t.is(reply.flags, HeaderFlags.TYPE_REPLY);
});

test("VERSION waits for a device; without one it is ETIMEDOUT", async (t) => {
  const fixture = new Fixture(t, { deviceWaitMs: 30 });
  const { backend } = fixture;
  backend.onConnect = () => new Promise(() => {});
  const raw = fixture.connectRaw();
  raw.send(Buffer.concat([message(Command.VERSION, versionBody()), READ_1]));
  t.true(isError(await raw.receive(), Errno.ETIMEDOUT));
  await raw.closedByServer();
  await until(() => backend.disconnects === 1);
  t.is(backend.commands.length, 0);
  backend.onConnect = () => Promise.reject(new ProtocolError("no", Errno.ENODEV));
  const second = fixture.connectRaw();
  t.true(isError(await second.exchange(message(Command.VERSION, versionBody())), Errno.ENODEV));
  await second.closedByServer();
  backend.onConnect = () => new Promise((resolve) => setImmediate(resolve));
  t.true(await usable(await fixture.negotiatedRaw()));
});

test("a device that went away: reads give all ones, writes are dropped, the rest is ENODEV", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  const { device } = fixture.backend;
  fixture.backend.device = undefined;
  t.deepEqual([...(await raw.exchange(READ_1)).body.subarray(16)], [0xff]);
  t.true(isError(await raw.exchange(message(Command.REGION_READ, access(0, 0, 0xffffffff))), Errno.EINVAL));
  t.deepEqual([...(await raw.exchange(message(Command.REGION_WRITE, access(0, 0, 1, 1)))).body], [...access(0, 0, 1)]);
  const fd = eventfd(0);
  t.true(isError(await raw.exchange(message(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24 })), [fd]), Errno.ENODEV));
  closeSync(fd);
  t.is((await raw.exchange(message(Command.DMA_MAP, map()))).flags, HeaderFlags.TYPE_REPLY);
  fixture.backend.device = device;
  t.true(await usable(raw));
});

test("interrupts are set up while the device is away, and checked as ever", async (t) => {
  const fixture = new Fixture(t);
  const { backend } = fixture;
  const raw = await fixture.negotiatedRaw();
  backend.awayIrqCounts = [1, 0, 4, 0, 0];
  backend.device = undefined;
  const fd = eventfd(0);
  const bind = (start: number) => message(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24, start }));
  t.is((await raw.exchange(bind(3), [fd])).flags, HeaderFlags.TYPE_REPLY);
  t.true(isError(await raw.exchange(bind(4), [fd]), Errno.EINVAL));
  t.is(copies(fd), 2);
  t.like(backend.irqs, [{ index: Irq.MSIX, start: 3, count: 1 }]);
  closeSync(fd);
});

test("a second client is refused at once; one that comes when the first has left waits for its release", async (t) => {
  const warnings: unknown[] = [];
  const log = { ...quietLog, warn: (...said: unknown[]) => void warnings.push(said.at(-1)) };
  const fixture = new Fixture(t, { log });
  const { backend, server } = fixture;
  let letGo = () => {};
  backend.onDisconnect = () =>
    new Promise((resolve) => {
      letGo = resolve;
    });
  const first = await fixture.negotiatedRaw();
  const fd = sealed(0x1000);
  await first.exchange(message(Command.DMA_MAP, map()), [fd]);
  closeSync(fd);
  const refused = fixture.connectRaw();
  refused.send(message(Command.VERSION, versionBody()));
  await t.throwsAsync(refused.receive(), { message: /closed|ECONNRESET/ });
  t.deepEqual(warnings, ["refused a second client: one at a time"]);
  t.true(await usable(first));
  t.is(backend.connects, 1);
  // Nobody has heard of its end when the next one is there.
  first.close();
  const second = fixture.connectRaw();
  second.send(message(Command.VERSION, versionBody()));
  await until(() => backend.disconnects === 1);
  await new Promise((resolve) => setImmediate(resolve));
  t.is(backend.connects, 1, "not before the memory is let go");
  t.is(server.stats.maps, 1);
  letGo();
  t.is((await second.receive()).command, Command.VERSION);
  t.is(server.stats.maps, 0);
  t.true(await usable(second));
  backend.onDisconnect = undefined;
});

test("clients that come and go again and again are served with a rest in between, and all of them are", async (t) => {
  const fixture = new Fixture(t);
  const begun = performance.now();
  for (let n = 0; n < 10; n++) {
    const raw = await fixture.negotiatedRaw();
    t.true(await usable(raw));
    raw.close();
  }
  t.is(fixture.backend.connects, 10);
  t.true(performance.now() - begun > 60, "a rest may be longer than it should, and not shorter");
});

for (const [what, beginning] of [
  ["nothing", new Uint8Array(0)],
  ["half of a message", message(Command.VERSION, versionBody()).subarray(0, 20)],
] as const) {
  test(`a client that says ${what} goes in time, and the next one is served`, async (t) => {
    const fixture = new Fixture(t, { versionWaitMs: 50 });
    const silent = fixture.connectRaw();
    if (beginning.length > 0) silent.send(beginning);
    await t.throwsAsync(silent.receive(), { message: /closed/ });
    t.is(fixture.backend.connects, 0);
    const next = await fixture.negotiatedRaw();
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.true(await usable(next), "the deadline is for the first message alone");
  });
}

test("a client that goes in the middle of a map, an unmap, a command and VERSION leaves nothing behind", async (t) => {
  const fixture = new Fixture(t);
  const { backend, server } = fixture;
  let finish = () => {};
  const held = () =>
    new Promise<void>((resolve) => {
      finish = resolve;
    });
  const goAway = async (raw: RawClient) => {
    const { disconnects } = backend;
    raw.close();
    await until(() => backend.disconnects > disconnects && !server.stats.connected);
    finish();
    await new Promise((resolve) => setImmediate(resolve));
  };
  const unmaps: number[] = [];
  backend.onUnmap = async ({ address }) => {
    unmaps.push(address);
  };
  backend.onMap = held;
  const raw = await fixture.negotiatedRaw();
  const fd = sealed(0x1000);
  raw.send(message(Command.DMA_MAP, map()), [fd]);
  await until(() => server.stats.maps === 1);
  await goAway(raw);
  t.deepEqual(unmaps, [], "disconnect has let go of it");
  t.is(server.stats.maps, 0);
  backend.onMap = undefined;
  backend.maps.length = 0;

  const second = await fixture.negotiatedRaw();
  await second.exchange(message(Command.DMA_MAP, map()), [fd]);
  closeSync(fd);
  backend.onUnmap = held;
  second.send(message(Command.DMA_UNMAP, unmap({ address: 0x10000 })));
  await until(() => server.stats.commands === 5);
  await goAway(second);
  backend.onUnmap = undefined;

  let command: PendingCommand | undefined;
  backend.onCommand = (pending) => {
    command = pending;
  };
  const third = await fixture.negotiatedRaw();
  third.send(READ_1);
  await until(() => command !== undefined);
  await goAway(third);
  if (command) answer(command);
  backend.onCommand = undefined;

  backend.onConnect = held;
  const fourth = fixture.connectRaw();
  fourth.send(message(Command.VERSION, versionBody()));
  await until(() => backend.connects === 4);
  await goAway(fourth);
  backend.onConnect = undefined;

  t.is(backend.disconnects, 4);
  t.true(await usable(await fixture.negotiatedRaw()));
});

test("DMA by message: errors, silence, nonsense and a client that goes", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  const raw = await fixture.negotiatedRaw();
  const { memory } = fixture.backend;
  if (memory === undefined) return t.fail();
  const target = new Uint8Array(4);
  const reply = { flags: HeaderFlags.TYPE_REPLY };
  const first = memory.read(0x1000, target);
  const probe = await raw.receive();
  t.is(probe.command, Command.DMA_READ);
  t.is(probe.body.readUInt32LE(12), 1, "2^32 bytes");
  raw.send(message(Command.DMA_READ, undefined, { id: probe.id, flags: 0x21, errno: Errno.EINVAL }));
  const request = await raw.receive();
  raw.send(message(Command.DMA_READ, undefined, { id: request.id, flags: 0x21, errno: 0 }));
  t.like(await t.throwsAsync(first, { instanceOf: ProtocolError }), { errno: Errno.EIO });

  for (const body of [
    request.body,
    Buffer.concat([request.body, Buffer.alloc(3)]),
    Buffer.concat([withU64(Buffer.from(request.body), 0, 0x2000n), Buffer.alloc(4)]),
    Buffer.concat([withU64(Buffer.from(request.body), 8, 5n), Buffer.alloc(4)]),
  ]) {
    const read = memory.read(0x1000, target);
    raw.send(message(Command.DMA_READ, body, { id: (await raw.receive()).id, ...reply }));
    t.like(await t.throwsAsync(read, { instanceOf: ProtocolError }), { errno: Errno.EPROTO });
  }

  const late = memory.read(0x1000, target);
  const lateId = (await raw.receive()).id;
  t.like(await t.throwsAsync(late, { instanceOf: ProtocolError }), { errno: Errno.ETIMEDOUT });
  const data = Buffer.concat([request.body, Buffer.from("late")]);
  raw.send(message(Command.DMA_READ, data, { id: lateId, ...reply }));
  raw.send(message(Command.DMA_READ, data, { id: 0x7777, ...reply }));
  t.true(await usable(raw));
  t.deepEqual(target, new Uint8Array(4));

  for (const address of [-1, 0.5, 2 ** 53, Number.NaN]) {
    t.like(await t.throwsAsync(memory.read(address, target)), { errno: Errno.EINVAL });
  }
  const many = Array.from({ length: 100 }, (_, index) => memory.write(index * 0x1000, target));
  for (const write of many) write.catch(() => {});
  await raw.receive();
  raw.close();
  for (const write of many) await t.throwsAsync(write, { instanceOf: PeerGone });
  await t.throwsAsync(memory.read(0, target), { instanceOf: PeerGone });
});

test("a reply to DMA_READ gets through while a command waits for it, others queued in front", async (t) => {
  const fixture = new Fixture(t);
  const { backend } = fixture;
  const client = await fixture.connect();
  client.registerMemory(0x1000, Uint8Array.of(7, 8, 9, 10));
  backend.onCommand = (command) => readThroughDma(backend, command, 0x1001);
  const reads = Array.from({ length: 50 }, (_, index) => client.regionRead(0, index, 2));
  for (const read of reads) t.deepEqual(await read, Uint8Array.of(8, 9));
});

test("a path that is served already, a path that cannot be, and the file's end", async (t) => {
  const fixture = new Fixture(t);
  const other = new Server({ backend: new FakeBackend(), socket: fixture.path });
  t.regex(t.throws(() => other.open(), { instanceOf: UserError })?.message ?? "", /served already/);
  const nowhere = new Server({ backend: new FakeBackend(), socket: join(fixture.directory, "no", "where") });
  t.throws(() => nowhere.open(), { instanceOf: UserError });
  await other.close();
  const raw = await fixture.negotiatedRaw();
  t.true(await usable(raw));
  await fixture.server.close();
  t.false(existsSync(fixture.path));
  t.is(fixture.backend.disconnects, 1);
  await raw.closedByServer();
});

test("a listening socket from outside is served", async (t) => {
  const fixture = new Fixture(t);
  const path = join(fixture.directory, "given");
  const server = new Server({ backend: new FakeBackend(), socket: listen(path, 1) });
  server.open();
  const raw = new RawClient(connect(path));
  await raw.negotiate();
  t.true(await usable(raw));
  await server.close();
  raw.close();
  t.true(existsSync(path), "whose file is not ours");
});

test("a client has its share of file descriptors: what is beyond it fails, and nothing else", async (t) => {
  const fds = new FdShare(() => 10);
  const lines: string[] = [];
  const log = { ...quietLog, error: (_: object, message: string) => lines.push(message) } as unknown as Log;
  const fixture = new Fixture(t, { fds, log });
  const client = await fixture.connect();
  const memory = sealed(1 << 20);
  const add = (n: number) => client.mapMemory({ address: n << 20, size: 4096, fd: memory, fdOffset: 0 });
  for (let n = 0; n < 10; n++) await add(n);
  t.is(fds.used, 10);
  const outOfFds = { instanceOf: ProtocolError, message: /errno 24/ };
  await t.throwsAsync(add(10), outOfFds);
  t.deepEqual(lines, ["out of file descriptors for a client: raise LimitNOFILE"]);
  t.is((await client.regionRead(0, 0, 4)).length, 4, "the connection goes on");
  await client.mapMemory({ address: 11 << 20, size: 4096 });
  await client.unmapMemory(3 << 20, 4096);
  await add(10);
  await t.throwsAsync(add(3), outOfFds);
  client.close();
  await until(() => fds.used === 0);
  t.is(copies(memory), 1);
  const next = await fixture.connect();
  await next.mapMemory({ address: 0, size: 4096, fd: memory, fdOffset: 0 });
});
