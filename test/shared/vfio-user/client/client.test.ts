/** The client against a server that answers what the test says. */
import { closeSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { createMemory, eventfd, socketPair } from "../../../../native/index.js";
import { Errno, PeerGone, ProtocolError } from "../../../../shared/errors.js";
import {
  Command,
  DeviceFeatureFlags,
  DeviceInfo,
  DmaAccess,
  Feature,
  HeaderFlags,
  IrqInfo,
  MigData,
  RegionAccess,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../../../../shared/spec/vfio-user.js";
import { Client, type ClientOptions } from "../../../../shared/vfio-user/client/client.js";
import { copies, Fixture } from "../fixture.js";
import { message, type RawMessage, RawClient as RawServer, versionBody } from "../raw-client.js";

const REPLY = HeaderFlags.TYPE_REPLY;
const ERROR = HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR;

async function pair(t: ExecutionContext, options: ClientOptions = {}) {
  const [near, far] = socketPair();
  const server = new RawServer(far);
  const connecting = Client.connect(near, options);
  await answer(server, versionBody("{}"));
  const client = await connecting;
  t.teardown(() => {
    client.close();
    server.close();
  });
  return { client, server };
}

/** Takes the next request and answers it. */
async function answer(
  server: RawServer,
  body: Uint8Array = Buffer.alloc(0),
  fields: { flags?: number; errno?: number; command?: number; fds?: number[] } = {},
): Promise<RawMessage> {
  const request = await server.receive();
  const { flags = REPLY, errno = 0, command = request.command, fds } = fields;
  server.send(message(command, body, { id: request.id, flags, errno }), fds);
  return request;
}

const badReply = { instanceOf: ProtocolError, message: /the server's reply/ };

test("VERSION's reply is checked", async (t) => {
  for (const body of [
    versionBody("{}", { major: 1, minor: 0 }),
    versionBody("{}", { major: 0, minor: 3 }),
    versionBody("{"),
    Buffer.alloc(2),
  ]) {
    const [near, far] = socketPair();
    const server = new RawServer(far);
    const connecting = t.throwsAsync(Client.connect(near), { instanceOf: ProtocolError });
    await answer(server, body);
    await connecting;
    await server.closedByServer();
    server.close();
  }
});

test("what the client sends for VERSION", async (t) => {
  const [near, far] = socketPair();
  const server = new RawServer(far);
  const connecting = Client.connect(near, { minor: 0, capabilities: { maxMsgFds: 8 } });
  const request = await answer(server, versionBody("{}", { major: 0, minor: 0 }));
  (await connecting).close();
  server.close();
  t.is(request.command, Command.VERSION);
  t.is(
    request.body.toString("latin1"),
    '\0\0\0\0{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,' +
      '"write_multiple":true}}\0',
  );
});

test("an error reply becomes a ProtocolError with its errno, EIO when it has none", async (t) => {
  const { client, server } = await pair(t);
  for (const [errno, expected] of [
    [Errno.EEXIST, Errno.EEXIST],
    [0, Errno.EIO],
  ]) {
    const mapping = client.mapMemory({ address: 0, size: 4096 });
    await answer(server, undefined, { flags: ERROR, errno });
    t.like(await t.throwsAsync(mapping, { instanceOf: ProtocolError }), { errno: expected, command: Command.DMA_MAP });
  }
});

test("replies that make no sense are errors, and the next request works", async (t) => {
  const { client, server } = await pair(t);
  const access = RegionAccess.encode({ offset: 1, region: 0, count: 2 });
  const cases: [() => Promise<unknown>, Uint8Array, { command?: number; fds?: number[] }?][] = [
    [() => client.getInfo(), Buffer.alloc(15)],
    [() => client.getInfo(), Buffer.alloc(16), { command: Command.DEVICE_GET_IRQ_INFO }],
    [() => client.getIrqInfo(0), Buffer.alloc(17)],
    [() => client.regionRead(0, 1, 2), Buffer.concat([access, Buffer.alloc(1)])],
    [() => client.regionRead(0, 1, 2), Buffer.concat([access, Buffer.alloc(3)])],
    [() => client.regionRead(0, 2, 2), Buffer.concat([access, Buffer.alloc(2)])],
    [() => client.regionRead(1, 1, 2), Buffer.concat([access, Buffer.alloc(2)])],
    [() => client.regionWrite(0, 1, Buffer.alloc(3)), access],
    [() => client.writeMulti([]), Buffer.alloc(7)],
    [() => client.unmapMemory(0x1000, 0x1000), Buffer.alloc(24)],
    [() => client.unmapMemory(0x1000, 0x1000), Buffer.alloc(0)],
    [() => client.reset(), Buffer.alloc(1)],
    [() => client.deviceFeature(1), Buffer.alloc(7)],
    [() => client.migDataRead(4), MigData.encode({ size: 1 })],
    [() => client.migDataRead(4), Buffer.concat([MigData.encode({ size: 5 }), Buffer.alloc(5)])],
    [() => client.migration.flags(), Buffer.alloc(15)],
    [() => client.migration.getState(), Buffer.alloc(17)],
    [() => client.migration.startLogging(4096), Buffer.alloc(23)],
    [() => client.migration.report(0x1000, 0x1000, 4096), Buffer.alloc(39)],
    [() => client.migration.report(0x1000, 0x1000, 4096), Buffer.alloc(40)],
    [() => client.unmapMemoryDirty(0x1000, 0x1000, 4096), Buffer.alloc(47)],
    [() => client.unmapMemoryDirty(0x1000, 0x1000, 4096), Buffer.alloc(48)],
  ];
  for (const [call, body, fields] of cases) {
    const result = t.throwsAsync(call(), badReply);
    await answer(server, body, fields);
    t.like(await result, { errno: Errno.EPROTO });
  }
  const info = client.getInfo();
  await answer(server, DeviceInfo.encode({ argsz: 16, flags: 3, numRegions: 9, numIrqs: 5 }));
  t.deepEqual(await info, { flags: 3, numRegions: 9, numIrqs: 5 });
});

test("fds that were not asked for are closed, and an error", async (t) => {
  const { client, server } = await pair(t);
  const fd = createMemory("unasked", 4096, false);
  const reset = t.throwsAsync(client.reset(), badReply);
  await answer(server, undefined, { fds: [fd] });
  await reset;
  t.is(copies(fd), 1);
  closeSync(fd);
});

/** A region info with one SPARSE_MMAP capability behind it. */
function sparse(areas: { offset: number; size: number }[], next = 0, capOffset: number = RegionInfo.size): Buffer {
  const parts = [
    RegionCapHeader.encode({ id: 1, version: 1, next }),
    SparseMmap.encode({ areas: areas.length }),
    ...areas.map((area) => SparseMmapArea.encode(area)),
  ];
  const argsz = RegionInfo.size + Buffer.concat(parts).length;
  const flags = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;
  return Buffer.concat([
    RegionInfo.encode({ argsz, flags, index: 0, capOffset, size: 0x4000, offset: 0x1000 }),
    ...parts,
  ]);
}

test("GET_REGION_INFO asks again for capabilities, and gives the fd", async (t) => {
  const { client, server } = await pair(t);
  const full = sparse([
    { offset: 0x1000, size: 0x1000 },
    { offset: 0x3000, size: 0x1000 },
  ]);
  const fd = createMemory("region", 0x4000, false);
  const description = client.getRegionInfo(0);
  const first = await answer(server, RegionInfo.encode({ argsz: full.length, flags: 0xf, size: 0x4000 }));
  const second = await answer(server, full, { fds: [fd] });
  t.is(RegionInfo.view(new DataView(first.body.buffer, first.body.byteOffset)).argsz, 32);
  t.is(RegionInfo.view(new DataView(second.body.buffer, second.body.byteOffset)).argsz, full.length);
  const region = await description;
  t.like(region, { index: 0, size: 0x4000, offset: 0x1000 });
  t.deepEqual(region.areas, [
    { offset: 0x1000, size: 0x1000 },
    { offset: 0x3000, size: 0x1000 },
  ]);
  t.is(copies(fd), 2);
  closeSync(region.fd);
  closeSync(fd);
});

test("GET_REGION_INFO of a region of the device's own: the type, alone or with areas", async (t) => {
  const { client, server } = await pair(t);
  const areas = [{ offset: 0, size: 0x1000 }];
  const type = Buffer.concat([
    RegionCapHeader.encode({ id: RegionCap.TYPE, version: 1, next: RegionInfo.size + 16 }),
    RegionType.encode({ type: 0x8000_8086, subtype: 0xffff_ffff }),
  ]);
  const both = sparse(areas);
  const whole = Buffer.concat([both.subarray(0, RegionInfo.size), type, both.subarray(RegionInfo.size)]);
  whole.writeUInt32LE(9, RegionInfo.offsets.index);
  whole.writeUInt32LE(32, 0);
  const description = client.getRegionInfo(9);
  await answer(server, whole);
  t.like(await description, { type: { type: 0x8000_8086, subtype: 0xffff_ffff }, isSparse: true, areas, fd: -1 });
  const alone = Buffer.from(whole.subarray(0, RegionInfo.size + 16));
  alone.writeUInt32LE(0, RegionInfo.size + RegionCapHeader.offsets.next);
  const second = client.getRegionInfo(9);
  await answer(server, alone);
  t.like(await second, { type: { type: 0x8000_8086 }, isSparse: false, areas: [] });
  const twice = Buffer.concat([alone, type]);
  twice.writeUInt32LE(RegionInfo.size + 16, RegionInfo.size + RegionCapHeader.offsets.next);
  twice.writeUInt32LE(0, RegionInfo.size + 16 + RegionCapHeader.offsets.next);
  for (const bad of [alone.subarray(0, -4), twice, Buffer.concat([whole, both.subarray(RegionInfo.size)])]) {
    // The last: areas twice.
    if (bad.length > whole.length) bad.writeUInt32LE(whole.length, RegionInfo.size + 16 + RegionCapHeader.offsets.next);
    const result = t.throwsAsync(client.getRegionInfo(9), badReply);
    await answer(server, bad);
    await result;
  }
});

test("region capabilities that make no sense are errors, their fd is closed", async (t) => {
  const { client, server } = await pair(t);
  const fd = createMemory("region", 0x4000, false);
  const good = [{ offset: 0, size: 0x1000 }];
  const bodies = [
    sparse(good, RegionInfo.size),
    sparse(good, 0, 8),
    sparse(good, 0, 0xfffffff0),
    sparse(good, 0xffffffff),
    sparse([{ offset: 0x3000, size: 0x2000 }]),
    sparse(good).subarray(0, -1),
    Buffer.alloc(31),
  ];
  const many = sparse(good);
  many.writeUInt32LE(0xffffffff, RegionInfo.size + RegionCapHeader.size);
  const other = sparse(good);
  other.writeUInt32LE(3, RegionInfo.offsets.index);
  for (const body of [...bodies, many, other]) {
    const result = t.throwsAsync(client.getRegionInfo(0), badReply);
    // The size that the request allowed is not looked at.
    if (body.length >= 4) body.writeUInt32LE(32, 0);
    await answer(server, body, { fds: [fd] });
    await result;
    t.is(copies(fd), 1);
  }
  closeSync(fd);
});

test("no answer is ETIMEDOUT, what comes late is dropped, fds closed", async (t) => {
  const { client, server } = await pair(t, { timeoutMs: 200 });
  const fd = createMemory("late", 4096, false);
  const info = client.getInfo();
  const request = await server.receive();
  t.like(await t.throwsAsync(info, { instanceOf: ProtocolError }), { errno: Errno.ETIMEDOUT });
  server.send(message(request.command, Buffer.alloc(16), { id: request.id, flags: REPLY }), [fd]);
  const irq = client.getIrqInfo(1);
  await answer(server, IrqInfo.encode({ argsz: 16, flags: 1, index: 1, count: 7 }));
  t.deepEqual(await irq, { flags: 1, count: 7 });
  t.is(copies(fd), 1);
  closeSync(fd);
});

test("PeerGone when the server goes, for what waits and what comes later", async (t) => {
  const { client, server } = await pair(t);
  const waiting = [client.getInfo(), client.reset(), client.regionRead(0, 0, 4)];
  for (const one of waiting) one.catch(() => {});
  await server.receive();
  server.close();
  for (const one of waiting) await t.throwsAsync(one, { instanceOf: PeerGone });
  await t.throwsAsync(client.reset(), { instanceOf: PeerGone });
  t.true((await client.closed) instanceof PeerGone);
});

test("replies may come in any order", async (t) => {
  const { client, server } = await pair(t);
  const reads = [1, 2, 3].map((offset) => client.regionRead(0, offset, 1));
  const requests = [await server.receive(), await server.receive(), await server.receive()];
  for (const { id, command, body } of requests.reverse()) {
    server.send(message(command, Buffer.concat([body, body.subarray(0, 1)]), { id, flags: REPLY }));
  }
  t.deepEqual(
    (await Promise.all(reads)).map(([byte]) => byte),
    [1, 2, 3],
  );
});

test("the server's DMA is bounded by what was registered", async (t) => {
  const { client, server } = await pair(t);
  const memory = Uint8Array.from({ length: 64 }, (_, index) => index);
  const takeBack = client.registerMemory(0x1000, memory);
  const dma = (address: number, count: number, data = Buffer.alloc(0)) =>
    Buffer.concat([DmaAccess.encode({ address, count }), data]);
  const exchange = (command: number, body: Uint8Array, flags = 0) =>
    server.exchange(message(command, body, { id: 8, flags }));
  const read = await exchange(Command.DMA_READ, dma(0x103e, 2));
  t.like(read, { id: 8, flags: REPLY });
  t.deepEqual(read.body, dma(0x103e, 2, Buffer.from([62, 63])));
  const write = await exchange(Command.DMA_WRITE, dma(0x1000, 2, Buffer.from([0xaa, 0xbb])));
  t.deepEqual(write.body, dma(0x1000, 2));
  t.deepEqual(memory.subarray(0, 3), Uint8Array.of(0xaa, 0xbb, 2));
  for (const [command, body, errno] of [
    [Command.DMA_READ, dma(0x103f, 2), Errno.EFAULT],
    [Command.DMA_READ, dma(0xfff, 2), Errno.EFAULT],
    [Command.DMA_READ, Buffer.alloc(16, 0xff).fill(0, 8), Errno.EFAULT],
    [Command.DMA_READ, dma(0x1000, 2 ** 32), Errno.E2BIG],
    [Command.DMA_READ, dma(0x1000, 2).subarray(1), Errno.EINVAL],
    [Command.DMA_READ, dma(0x1000, 2, Buffer.alloc(1)), Errno.EINVAL],
    [Command.DMA_WRITE, dma(0x1000, 2, Buffer.alloc(3)), Errno.EINVAL],
    [Command.DMA_WRITE, dma(0x1000, 2, Buffer.alloc(1)), Errno.EINVAL],
    [Command.REGION_READ, dma(0, 0), Errno.EINVAL],
    [99, Buffer.alloc(0), Errno.EINVAL],
  ] as const) {
    t.like(await exchange(command, body), { id: 8, command, flags: ERROR, errno });
  }
  server.send(message(99, undefined, { flags: HeaderFlags.NO_REPLY }));
  server.send(message(Command.DMA_WRITE, dma(0x1000, 1, Buffer.from([0xcc])), { flags: HeaderFlags.NO_REPLY }));
  takeBack();
  takeBack();
  t.like(await exchange(Command.DMA_READ, dma(0x1000, 1)), { errno: Errno.EFAULT });
});

test("everything else, against our own server", async (t) => {
  const fixture = new Fixture(t);
  const client = await fixture.connect();
  t.is(await client.writeMulti([{ region: 0, offset: 4, bytes: Uint8Array.of(1, 2) }]), 1);
  const { body } = fixture.backend.commands[0];
  t.is(
    Buffer.from(body).toString("hex"),
    "01000000000000000400000000000000000000000200000001020000 00000000".replace(" ", ""),
  );
  const payload = Uint8Array.of(3, 0, 0, 0, 255, 255, 255, 255);
  const flags = DeviceFeatureFlags.SET | Feature.MIG_DEVICE_STATE;
  t.deepEqual(Buffer.from(await client.deviceFeature(flags, payload)), Buffer.from(payload));
  await client.migDataWrite(Uint8Array.of(1, 2, 3));
  fixture.backend.onCommand = (command) => {
    const data = Buffer.concat([MigData.encode({ argsz: 11, size: 3 }), Buffer.from("abc")]);
    command.reserve(data.length);
    command.replyBytes.set(data, command.replyOffset);
    command.reply(data.length);
  };
  t.is(Buffer.from(await client.migDataRead(100)).toString(), "abc");
  const fd = eventfd(0);
  t.like(await t.throwsAsync(client.setIrqs({ index: 3, action: "mask", eventfds: [fd] })), { errno: Errno.EINVAL });
  closeSync(fd);
  t.like(await t.throwsAsync(client.request(99)), { errno: Errno.EINVAL });
});
