/**
 * Every request that is wrong gets its error and reaches no device; all fds are closed, and the same connection works
 * as before.
 */
import { closeSync, openSync } from "node:fs";
import test from "ava";
import { eventfd, socketPair } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { MAX_DATA_XFER_SIZE } from "../../../shared/limits.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  Irq,
  IrqInfo,
  MigData,
  RegionInfo,
  RegionIoFds,
} from "../../../shared/spec/vfio-user.js";
import { copies, Fixture } from "./fixture.js";
import { isError, message, versionBody } from "./raw-client.js";
import { access, dirtyUnmap, irqs, map, multi, sealed, unmap, usable, withU64 } from "./raw-requests.js";

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
  ["DMA_MAP around the end", Command.DMA_MAP, map({ address: -0x1000, size: 0x2000 }), Errno.EINVAL],
  ["DMA_MAP far from both ends", Command.DMA_MAP, withU64(map(), 16, 2n ** 60n), Errno.EINVAL],
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
  ["DMA_UNMAP of a part", Command.DMA_UNMAP, unmap({ size: 0x800 }), Errno.EINVAL],
  ["DMA_UNMAP of nothing", Command.DMA_UNMAP, unmap({ size: 0 }), Errno.EINVAL],
  ["DMA_UNMAP not on a page", Command.DMA_UNMAP, unmap({ address: 0x8800 }), Errno.EINVAL],
  ["DMA_UNMAP far up and not on a page", Command.DMA_UNMAP, withU64(unmap(), 8, 2n ** 60n + 1n), Errno.EINVAL],
  ["DMA_UNMAP past 2^64", Command.DMA_UNMAP, unmap({ address: -0x1000, size: 0x2000 }), Errno.EINVAL],
  ["DMA_UNMAP around 2^64", Command.DMA_UNMAP, withU64(unmap(), 16, 2n ** 64n - 0x1000n), Errno.EINVAL],
  ["DMA_UNMAP of all, with a size", Command.DMA_UNMAP, unmap({ flags: DmaUnmapFlags.ALL, address: 0 }), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap, without saying which", Command.DMA_UNMAP, unmap({ flags: 1, argsz: 48 }), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap, and flags", Command.DMA_UNMAP, dirtyUnmap({ flags: 3 }), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap, argsz", Command.DMA_UNMAP, dirtyUnmap({ argsz: 47 }), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap too small", Command.DMA_UNMAP, dirtyUnmap({}, 4096, 0), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap too large", Command.DMA_UNMAP, dirtyUnmap({ argsz: 0x10_0000 }, 4096, 16), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap of half pages", Command.DMA_UNMAP, dirtyUnmap({}, 2048), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap of pages of 0", Command.DMA_UNMAP, dirtyUnmap({}, 0), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap of odd pages", Command.DMA_UNMAP, dirtyUnmap({}, 0x1800), Errno.EINVAL],
  ["DMA_UNMAP with a bitmap of large pages", Command.DMA_UNMAP, dirtyUnmap({}, 8192), Errno.EINVAL],
  [
    "DMA_UNMAP with a bitmap of what is not mapped",
    Command.DMA_UNMAP,
    dirtyUnmap({ address: 0x9000 }, 4096, 0),
    Errno.EINVAL,
  ],
  [
    "DMA_UNMAP with a bitmap of 2^63 bytes",
    Command.DMA_UNMAP,
    withU64(dirtyUnmap(), DmaUnmap.size + 8, 2n ** 63n),
    Errno.EINVAL,
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
