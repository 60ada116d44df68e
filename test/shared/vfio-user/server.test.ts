/**
 * The termination against a peer without manners: every bad input gets its error, and afterwards the same connection, or
 * where it had to end the next one, works as before.
 */
import { closeSync, existsSync, openSync } from "node:fs";
import { join } from "node:path";
import test from "ava";
import {
  addSeals,
  connect,
  createMemory,
  eventfd,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  isEventfd,
  listen,
  socketPair,
} from "../../../native/index.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { MAX_DATA_XFER_SIZE, MAX_MESSAGE_SIZE } from "../../../shared/limits.js";
import {
  Bitmap,
  Command,
  DeviceFeature,
  DeviceInfo,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  HeaderFlags,
  Irq,
  IrqInfo,
  IrqSet,
  IrqSetFlags,
  MigData,
  RegionAccess,
  RegionInfo,
  RegionIoFds,
  WriteMulti,
  WriteMultiEntry,
} from "../../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";
import { Server } from "../../../shared/vfio-user/server.js";
import { answer, FakeBackend } from "./fake-backend.js";
import { copies, Fixture, until } from "./fixture.js";
import { isError, message, RawClient, versionBody } from "./raw-client.js";

const READ_1 = message(Command.REGION_READ, RegionAccess.encode({ offset: 5, region: 0, count: 1 }), { id: 4711 });

/** The connection still does what it should. */
async function usable(raw: RawClient): Promise<boolean> {
  const reply = await raw.exchange(READ_1);
  return reply.id === 4711 && reply.flags === HeaderFlags.TYPE_REPLY && reply.body.at(-1) === 5;
}

const sealed = (size: number) => {
  const fd = createMemory("test", size, false);
  addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
  return fd;
};

const map = (fields: Partial<Record<keyof (typeof DmaMap)["offsets"], number>> = {}) =>
  DmaMap.encode({ argsz: DmaMap.size, flags: 3, address: 0x10000, size: 0x1000, ...fields });
const unmap = (fields: Partial<Record<keyof (typeof DmaUnmap)["offsets"], number>> = {}) =>
  DmaUnmap.encode({ argsz: DmaUnmap.size, address: 0x8000, size: 0x1000, ...fields });
const irqs = (fields: Partial<Record<keyof (typeof IrqSet)["offsets"], number>> = {}, tail = 0) =>
  Buffer.concat([
    IrqSet.encode({ argsz: IrqSet.size, flags: 0x21, index: Irq.MSIX, count: 1, ...fields }),
    Buffer.alloc(tail),
  ]);
const access = (offset: number, region: number, count: number, data = 0) =>
  Buffer.concat([RegionAccess.encode({ offset, region, count }), Buffer.alloc(data)]);
const multi = (writes: number, ...entries: { offset?: number; region?: number; count?: number }[]) =>
  Buffer.concat([
    WriteMulti.encode({ writes }),
    ...entries.map((entry) => WriteMultiEntry.encode({ count: 4, ...entry })),
  ]);
/** A 64-bit number that no JavaScript number holds exactly. */
const withU64 = (body: Uint8Array, offset: number, value: bigint) => {
  new DataView(body.buffer, body.byteOffset).setBigUint64(offset, value, true);
  return body;
};

type Fds = () => number[];
const BAD_REQUESTS: readonly [name: string, command: number, body: Uint8Array, errno: number, fds?: Fds][] = [
  ["command 0", 0, Buffer.alloc(8), Errno.EINVAL],
  ["command 14, which was removed", 14, Buffer.alloc(16), Errno.EINVAL],
  ["command 19", 19, Buffer.alloc(16), Errno.EINVAL],
  ["command 65535", 65535, Buffer.alloc(0), Errno.EINVAL],
  ["DMA_READ, which is the server's", Command.DMA_READ, Buffer.alloc(16), Errno.EINVAL],
  ["DMA_WRITE, which is the server's", Command.DMA_WRITE, Buffer.alloc(16), Errno.EINVAL],
  ["a second VERSION", Command.VERSION, versionBody(), Errno.EINVAL],
  ["an unknown command with an fd", 99, Buffer.alloc(4), Errno.EINVAL, () => [eventfd(0)]],

  ["DMA_MAP too short", Command.DMA_MAP, map().subarray(1), Errno.EINVAL],
  ["DMA_MAP too long", Command.DMA_MAP, Buffer.concat([map(), Buffer.alloc(1)]), Errno.EINVAL],
  ["DMA_MAP argsz", Command.DMA_MAP, map({ argsz: 31 }), Errno.EINVAL],
  ["DMA_MAP flags", Command.DMA_MAP, map({ flags: 0x13 }), Errno.EINVAL],
  ["DMA_MAP neither readable nor writable", Command.DMA_MAP, map({ flags: 0 }), Errno.EINVAL],
  ["DMA_MAP MMAP without fd", Command.DMA_MAP, map({ flags: 3 | DmaMapFlags.MMAP }), Errno.EINVAL],
  ["DMA_MAP FILE_IO without fd", Command.DMA_MAP, map({ flags: 3 | DmaMapFlags.FILE_IO }), Errno.EINVAL],
  ["DMA_MAP of nothing", Command.DMA_MAP, map({ size: 0 }), Errno.EINVAL],
  ["DMA_MAP of half a page", Command.DMA_MAP, map({ size: 0x800 }), Errno.EINVAL],
  ["DMA_MAP on half a page", Command.DMA_MAP, map({ address: 0x800 }), Errno.EINVAL],
  ["DMA_MAP over another", Command.DMA_MAP, map({ address: 0x7000, size: 0x2000 }), Errno.EEXIST],
  ["DMA_MAP around the end", Command.DMA_MAP, withU64(map(), 16, 0xffff_ffff_ffff_f000n), Errno.EINVAL],
  ["DMA_MAP of everything", Command.DMA_MAP, withU64(map(), 24, 0xffff_ffff_ffff_f000n), Errno.EINVAL],
  ["DMA_MAP over another, with an fd", Command.DMA_MAP, map({ address: 0x8000 }), Errno.EEXIST, () => [sealed(0x1000)]],
  ["DMA_MAP with two fds", Command.DMA_MAP, map(), Errno.EINVAL, () => [sealed(0x1000), sealed(0x1000)]],
  ["DMA_MAP of an eventfd", Command.DMA_MAP, map(), Errno.EINVAL, () => [eventfd(0)]],
  ["DMA_MAP of a socket", Command.DMA_MAP, map(), Errno.EINVAL, () => socketPair().slice(0, 1)],
  ["DMA_MAP of a directory", Command.DMA_MAP, map(), Errno.EINVAL, () => [openSync("/", "r")]],
  ["DMA_MAP of a short file", Command.DMA_MAP, map({ size: 0x2000 }), Errno.EINVAL, () => [sealed(0x1000)]],
  ["DMA_MAP past the file", Command.DMA_MAP, map({ offset: 0x1000 }), Errno.EINVAL, () => [sealed(0x1000)]],
  ["DMA_MAP at byte 1 of a file", Command.DMA_MAP, map({ offset: 1 }), Errno.EINVAL, () => [sealed(0x2000)]],
  [
    "DMA_MAP with a wrapping offset",
    Command.DMA_MAP,
    withU64(map(), 8, 0xffff_ffff_ffff_f000n),
    Errno.EINVAL,
    () => [sealed(0x1000)],
  ],
  ["DMA_MAP writable of a read-only fd", Command.DMA_MAP, map(), Errno.EACCES, () => [openSync("/proc/self/exe", "r")]],

  ["DMA_UNMAP too short", Command.DMA_UNMAP, unmap().subarray(1), Errno.EINVAL],
  ["DMA_UNMAP too long", Command.DMA_UNMAP, Buffer.alloc(41, 0), Errno.EINVAL],
  ["DMA_UNMAP a little too long", Command.DMA_UNMAP, Buffer.concat([unmap(), Buffer.alloc(8)]), Errno.EINVAL],
  ["DMA_UNMAP argsz too small", Command.DMA_UNMAP, unmap({ argsz: 23 }), Errno.EINVAL],
  ["DMA_UNMAP argsz too large", Command.DMA_UNMAP, unmap({ argsz: 0xffffffff }), Errno.EINVAL],
  ["DMA_UNMAP flags", Command.DMA_UNMAP, unmap({ flags: 4 }), Errno.EINVAL],
  ["DMA_UNMAP of a part", Command.DMA_UNMAP, unmap({ size: 0x800 }), Errno.ENOENT],
  ["DMA_UNMAP of more", Command.DMA_UNMAP, unmap({ size: 0x2000 }), Errno.ENOENT],
  ["DMA_UNMAP of what is not mapped", Command.DMA_UNMAP, unmap({ address: 0x9000 }), Errno.ENOENT],
  ["DMA_UNMAP of all, with a size", Command.DMA_UNMAP, unmap({ flags: DmaUnmapFlags.ALL, address: 0 }), Errno.EINVAL],
  [
    "DMA_UNMAP with a dirty bitmap",
    Command.DMA_UNMAP,
    Buffer.concat([unmap({ flags: 1, argsz: 48 }), Bitmap.encode({ pageSize: 4096, size: 8 })]),
    Errno.ENOTSUP,
  ],

  ["GET_INFO too short", Command.DEVICE_GET_INFO, Buffer.alloc(12), Errno.EINVAL],
  ["GET_INFO argsz", Command.DEVICE_GET_INFO, DeviceInfo.encode({ argsz: 15 }), Errno.EINVAL],
  ["GET_REGION_INFO without a body", Command.DEVICE_GET_REGION_INFO, Buffer.alloc(0), Errno.EINVAL],
  ["GET_REGION_INFO argsz", Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: 31 }), Errno.EINVAL],
  ["GET_REGION_INFO index", Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: 32, index: 9 }), Errno.EINVAL],
  [
    "GET_REGION_IO_FDS index",
    Command.DEVICE_GET_REGION_IO_FDS,
    RegionIoFds.encode({ argsz: 16, index: 9 }),
    Errno.EINVAL,
  ],
  [
    "GET_REGION_IO_FDS flags",
    Command.DEVICE_GET_REGION_IO_FDS,
    RegionIoFds.encode({ argsz: 16, flags: 1 }),
    Errno.EINVAL,
  ],
  ["GET_REGION_IO_FDS argsz", Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds.encode({ argsz: 15 }), Errno.EINVAL],
  ["GET_IRQ_INFO index", Command.DEVICE_GET_IRQ_INFO, IrqInfo.encode({ argsz: 16, index: 5 }), Errno.EINVAL],
  ["GET_IRQ_INFO argsz", Command.DEVICE_GET_IRQ_INFO, IrqInfo.encode({ argsz: 12 }), Errno.EINVAL],

  ["SET_IRQS too short", Command.DEVICE_SET_IRQS, irqs().subarray(1), Errno.EINVAL],
  ["SET_IRQS argsz", Command.DEVICE_SET_IRQS, irqs({ argsz: 19 }), Errno.EINVAL],
  ["SET_IRQS without data type", Command.DEVICE_SET_IRQS, irqs({ flags: 0x20 }), Errno.EINVAL],
  ["SET_IRQS with two data types", Command.DEVICE_SET_IRQS, irqs({ flags: 0x23 }), Errno.EINVAL],
  ["SET_IRQS without action", Command.DEVICE_SET_IRQS, irqs({ flags: 1 }), Errno.EINVAL],
  ["SET_IRQS with two actions", Command.DEVICE_SET_IRQS, irqs({ flags: 0x31 }), Errno.EINVAL],
  ["SET_IRQS with an unknown flag", Command.DEVICE_SET_IRQS, irqs({ flags: 0x80000021 }), Errno.EINVAL],
  ["SET_IRQS index", Command.DEVICE_SET_IRQS, irqs({ index: 5 }), Errno.EINVAL],
  ["SET_IRQS of an index without vectors", Command.DEVICE_SET_IRQS, irqs({ index: Irq.MSI, count: 0 }), Errno.EINVAL],
  ["SET_IRQS start", Command.DEVICE_SET_IRQS, irqs({ start: 300 }), Errno.EINVAL],
  ["SET_IRQS count", Command.DEVICE_SET_IRQS, irqs({ count: 301 }), Errno.EINVAL],
  ["SET_IRQS start + count", Command.DEVICE_SET_IRQS, irqs({ start: 299, count: 2 }), Errno.EINVAL],
  ["SET_IRQS start + count past 2^32", Command.DEVICE_SET_IRQS, irqs({ start: 2, count: 0xffffffff }), Errno.EINVAL],
  ["SET_IRQS mask of ERR", Command.DEVICE_SET_IRQS, irqs({ index: Irq.ERR, flags: 9 }), Errno.EINVAL],
  ["SET_IRQS of none, from 1", Command.DEVICE_SET_IRQS, irqs({ start: 1, count: 0 }), Errno.EINVAL],
  ["SET_IRQS mask of none", Command.DEVICE_SET_IRQS, irqs({ count: 0, flags: 9 }), Errno.EINVAL],
  ["SET_IRQS booleans missing", Command.DEVICE_SET_IRQS, irqs({ flags: 0x22, count: 2 }, 1), Errno.EINVAL],
  ["SET_IRQS booleans too many", Command.DEVICE_SET_IRQS, irqs({ flags: 0x22, count: 2 }, 3), Errno.EINVAL],
  ["SET_IRQS data for DATA_NONE", Command.DEVICE_SET_IRQS, irqs({}, 4), Errno.EINVAL],
  ["SET_IRQS fd for DATA_NONE", Command.DEVICE_SET_IRQS, irqs(), Errno.EINVAL, () => [eventfd(0)]],
  ["SET_IRQS too few fds", Command.DEVICE_SET_IRQS, irqs({ flags: 0x24, count: 2 }), Errno.EINVAL, () => [eventfd(0)]],
  [
    "SET_IRQS too many fds",
    Command.DEVICE_SET_IRQS,
    irqs({ flags: 0x24 }),
    Errno.EINVAL,
    () => [eventfd(0), eventfd(0)],
  ],
  [
    "SET_IRQS with an fd that is no eventfd",
    Command.DEVICE_SET_IRQS,
    irqs({ flags: 0x24, count: 2 }),
    Errno.EINVAL,
    () => [eventfd(0), sealed(0x1000)],
  ],

  ["REGION_READ too short", Command.REGION_READ, Buffer.alloc(15), Errno.EINVAL],
  ["REGION_READ too long", Command.REGION_READ, access(0, 0, 4, 4), Errno.EINVAL],
  ["REGION_READ of no region", Command.REGION_READ, access(0, 9, 1), Errno.EINVAL],
  ["REGION_READ of region 2^32-1", Command.REGION_READ, access(0, 0xffffffff, 1), Errno.EINVAL],
  ["REGION_READ of an empty region", Command.REGION_READ, access(0, 1, 1), Errno.EINVAL],
  ["REGION_READ past the end", Command.REGION_READ, access(0x1ffd, 0, 4), Errno.EINVAL],
  ["REGION_READ far past the end", Command.REGION_READ, access(2 ** 53 - 1, 0, 4), Errno.EINVAL],
  ["REGION_READ around the end", Command.REGION_READ, withU64(access(0, 0, 4), 0, 2n ** 64n - 2n), Errno.EINVAL],
  ["REGION_READ of too much", Command.REGION_READ, access(0, 0, MAX_DATA_XFER_SIZE + 1), Errno.EINVAL],
  ["REGION_READ of 2^32-1", Command.REGION_READ, access(0, 0, 0xffffffff), Errno.EINVAL],
  ["REGION_WRITE too short", Command.REGION_WRITE, Buffer.alloc(15), Errno.EINVAL],
  ["REGION_WRITE with less than said", Command.REGION_WRITE, access(0, 0, 4, 3), Errno.EINVAL],
  ["REGION_WRITE with more than said", Command.REGION_WRITE, access(0, 0, 4, 5), Errno.EINVAL],
  ["REGION_WRITE past the end", Command.REGION_WRITE, access(0x1ffd, 0, 4, 4), Errno.EINVAL],
  ["REGION_WRITE to no region", Command.REGION_WRITE, access(0, 9, 4, 4), Errno.EINVAL],
  ["DEVICE_RESET with a body", Command.DEVICE_RESET, Buffer.alloc(1), Errno.EINVAL],

  ["REGION_WRITE_MULTI of none", Command.REGION_WRITE_MULTI, multi(0), Errno.EINVAL],
  ["REGION_WRITE_MULTI with too few", Command.REGION_WRITE_MULTI, multi(2, {}), Errno.EINVAL],
  ["REGION_WRITE_MULTI with too many", Command.REGION_WRITE_MULTI, multi(1, {}, {}), Errno.EINVAL],
  ["REGION_WRITE_MULTI of 2^63", Command.REGION_WRITE_MULTI, withU64(multi(1, {}), 0, 2n ** 63n), Errno.EINVAL],
  ["REGION_WRITE_MULTI of 9 bytes", Command.REGION_WRITE_MULTI, multi(1, { count: 9 }), Errno.EINVAL],
  ["REGION_WRITE_MULTI past the end", Command.REGION_WRITE_MULTI, multi(2, {}, { offset: 0x1ffd }), Errno.EINVAL],
  ["REGION_WRITE_MULTI to no region", Command.REGION_WRITE_MULTI, multi(2, {}, { region: 9 }), Errno.EINVAL],

  ["DEVICE_FEATURE too short", Command.DEVICE_FEATURE, Buffer.alloc(4), Errno.EINVAL],
  ["DEVICE_FEATURE argsz", Command.DEVICE_FEATURE, DeviceFeature.encode({ argsz: 7 }), Errno.EINVAL],
  ["MIG_DATA_READ of too much", Command.MIG_DATA_READ, MigData.encode({ argsz: 2 ** 31, size: 2 ** 30 }), Errno.EINVAL],
  ["MIG_DATA_READ argsz", Command.MIG_DATA_READ, MigData.encode({ argsz: 15, size: 8 }), Errno.EINVAL],
  [
    "MIG_DATA_WRITE with less than said",
    Command.MIG_DATA_WRITE,
    Buffer.concat([MigData.encode({ argsz: 16, size: 8 }), Buffer.alloc(7)]),
    Errno.EINVAL,
  ],
];

for (const [name, command, body, errno, makeFds] of BAD_REQUESTS) {
  test(`refused: ${name}`, async (t) => {
    const fixture = new Fixture(t);
    const raw = await fixture.negotiatedRaw();
    await raw.exchange(message(Command.DMA_MAP, map({ address: 0x8000 })));
    const fds = makeFds?.() ?? [];
    const reply = await raw.exchange(message(command, body, { id: 0xbad1 }), fds);
    t.true(isError(reply, errno), `errno ${reply.errno}`);
    t.like(reply, { id: 0xbad1, command });
    t.is(fixture.backend.commands.length, 0, "the device saw nothing");
    t.is(fixture.backend.irqs.length, 0);
    t.is(fixture.server.stats.maps, 1);
    t.true(await usable(raw));
    for (const fd of fds) {
      t.is(copies(fd), 1, "the server closed what it got");
      closeSync(fd);
    }
  });
}

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

test("memory that can shrink, and read-only memory, is reached by messages", async (t) => {
  for (const [seal, flags, trustUnsealedMemory, mapped] of [
    [false, 3, false, false],
    [false, 3, true, true],
    [true, 3, false, true],
    [true, DmaMapFlags.READ, true, false],
    [true, DmaMapFlags.WRITE, false, true],
  ] as const) {
    const fixture = new Fixture(t, { trustUnsealedMemory });
    const raw = await fixture.negotiatedRaw();
    const fd = seal ? sealed(0x1000) : createMemory("open", 0x1000, false);
    const reply = await raw.exchange(message(Command.DMA_MAP, map({ flags })), [fd]);
    closeSync(fd);
    t.is(reply.flags, HeaderFlags.TYPE_REPLY);
    t.is(fixture.backend.maps[0].fd !== -1, mapped, `seal ${seal} flags ${flags} trust ${trustUnsealedMemory}`);
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
  t.deepEqual(fds.map(copies), [2, 1, 2, 1]);
  t.deepEqual(events.map(copies), [2, 2]);
  // An fd with a message that never becomes whole, and one with a command that waits.
  fixture.backend.onCommand = () => {};
  raw.send(READ_1);
  raw.send(message(Command.DMA_MAP, map({ address: 0x9000 })), [fds[1]]);
  raw.send(message(Command.DMA_MAP, map({ address: 0xa000 })).subarray(0, 20), [fds[3]]);
  await until(() => copies(fds[3]) === 2);
  t.deepEqual(fds.map(copies), [2, 2, 2, 2]);
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

test("a device that does not answer: reads give all ones, the rest ETIMEDOUT, and late replies are dropped", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 80 });
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
  const fixture = new Fixture(t, { replyDeadlineMs: 40 });
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

test("a map that comes too late is taken away again; one under way can be neither mapped nor unmapped", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 80 });
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
  t.true(isError(await raw.exchange(message(Command.DMA_UNMAP, unmap({ address: 0x10000 }))), Errno.EBUSY));
  t.is(fixture.server.stats.maps, 1);
  finish();
  await until(() => fixture.server.stats.maps === 0);
  t.is(backend.maps.length, 0);
  backend.onMap = undefined;
  t.is((await raw.exchange(message(Command.DMA_MAP, map()))).flags, HeaderFlags.TYPE_REPLY);
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

test("a device that went away: reads give all ones, the rest ENODEV", async (t) => {
  const fixture = new Fixture(t);
  const raw = await fixture.negotiatedRaw();
  const { device } = fixture.backend;
  fixture.backend.device = undefined;
  t.deepEqual([...(await raw.exchange(READ_1)).body.subarray(16)], [0xff]);
  t.true(isError(await raw.exchange(message(Command.REGION_READ, access(0, 0, 0xffffffff))), Errno.EINVAL));
  t.true(isError(await raw.exchange(message(Command.REGION_WRITE, access(0, 0, 1, 1))), Errno.ENODEV));
  const fd = eventfd(0);
  t.true(isError(await raw.exchange(message(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24 })), [fd]), Errno.ENODEV));
  closeSync(fd);
  t.is((await raw.exchange(message(Command.DMA_MAP, map()))).flags, HeaderFlags.TYPE_REPLY);
  fixture.backend.device = device;
  t.true(await usable(raw));
});

test("a second client waits until the first is gone and let go", async (t) => {
  const fixture = new Fixture(t);
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
  const second = fixture.connectRaw();
  second.send(message(Command.VERSION, versionBody()));
  t.true(await usable(first));
  t.is(backend.connects, 1);
  first.close();
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
  const fixture = new Fixture(t, { replyDeadlineMs: 60 });
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
  backend.onCommand = (command) => {
    const target = new Uint8Array(2);
    void backend.memory?.read(0x1001, target).then(() => {
      const { count } = RegionAccess.view(command.data, command.offset);
      command.reserve(RegionAccess.size + count);
      const { bytes, offset, replyBytes, replyOffset } = command;
      replyBytes.set(bytes.subarray(offset, offset + RegionAccess.size), replyOffset);
      replyBytes.set(target, replyOffset + RegionAccess.size);
      command.reply(RegionAccess.size + count);
    });
  };
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
