/** BAR memory that the client maps, and ioeventfds, over both links. Serial, as fds of this process are counted. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as delay, setImmediate } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import {
  close,
  eventfdWrite,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  fileStatus,
  isEventfd,
  mapFile,
  memoryStatus,
  PROT_READ,
  PROT_WRITE,
} from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import {
  Command,
  IoEventFd,
  Region,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
} from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import {
  EVENTS,
  Events,
  FIRST,
  PREPARED,
  Registers,
  SECOND,
  SharingDevice,
  WHOLE,
} from "../../fakes/sharing-device.js";
import { connectDevice } from "./machine.js";

function sealsOf(fd: number): number {
  const status = new Float64Array(6);
  memoryStatus(fd, status);
  return status[2];
}

type Machine = Awaited<ReturnType<typeof connectDevice<SharingDevice>>>;
const RW = RegionInfoFlags.READ | RegionInfoFlags.WRITE;
const refusal = (errno: number) => ({ message: new RegExp(`errno ${errno}`) });

/** What this process has open of what is shared. */
function sharedMemories(): Set<number> {
  const inodes = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const isOurs = readlinkSync(`/proc/self/fd/${fd}`).includes("memfd:vfio-user-region");
      return isOurs ? [fileStatus(Number(fd)).inode] : [];
    } catch {
      return []; // closed since, as the directory's own is
    }
  });
  return new Set(inodes);
}

/** The count of an eventfd, which stays. */
function countOf(fd: number): number {
  const count = /^eventfd-count:\s*([0-9a-f]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"));
  return Number.parseInt(count?.[1] ?? "", 16);
}

const PATIENCE_MS = 60_000;

/**
 * How many stay open of those that were opened since `before`. Other test files, which run in this process as well,
 * open such memory, too, each for as long as a test takes.
 */
async function leftOpen(before: ReadonlySet<number>): Promise<number> {
  const found = new Set([...sharedMemories()].filter((inode) => !before.has(inode)));
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const now = sharedMemories();
    for (const inode of found) if (!now.has(inode)) found.delete(inode);
    if (found.size === 0 || Date.now() > end) return found.size;
    await delay(20);
  }
}

/** Each test runs over both links, and leaves no memory of the device's open. */
function both(title: string, run: (t: ExecutionContext, machine: Machine) => Promise<void>): void {
  for (const kind of ["local", "virtio"] as const) {
    test.serial(`${kind}: ${title}`, async (t) => {
      const before = sharedMemories();
      const machine = await connectDevice(kind, new SharingDevice());
      try {
        await run(t, machine);
      } finally {
        for (const fd of held.splice(0)) close(fd);
        t.deepEqual(await machine.end(), []);
      }
      t.is(await leftOpen(before), 0);
    });
  }
}

/** What a VMM does with a region: asks, maps all areas. */
async function mapRegion(client: Client, index: number) {
  const { areas, fd, offset, flags, size } = await client.getRegionInfo(index);
  try {
    const { inode } = fileStatus(fd);
    const mapped = (areas.length > 0 ? areas : [{ offset: 0, size }]).map(
      (area) => new Uint8Array(mapFile(fd, offset + area.offset, area.size, PROT_READ | PROT_WRITE)),
    );
    return { areas, flags, mapped, inode };
  } finally {
    close(fd);
  }
}

/** Closed at the test's end. */
const held: number[] = [];

async function ioFds(client: Client, index: number) {
  const described = await client.getRegionIoFds(index);
  held.push(...described.fds);
  return described;
}

const bytes = (...values: number[]) => Uint8Array.from(values);
const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);

both("region info: the fd comes with the capability, when there is room for it", async (t, { client }) => {
  const ask = (index: number, argsz: number) =>
    client.request(Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz, index }), { maxFds: 1 });
  const needed = RegionInfo.size + 16 + 2 * 16;
  for (const argsz of [RegionInfo.size, needed - 1]) {
    const { data, body, fds } = await ask(Region.BAR0, argsz);
    t.is(body.length, RegionInfo.size);
    t.deepEqual(fds, []);
    const info = RegionInfo.view(data);
    t.deepEqual([info.argsz, info.flags, info.capOffset, info.size], [needed, RW, 0, 0x8000]);
  }
  const region = await client.getRegionInfo(Region.BAR0);
  t.deepEqual(region.areas, [FIRST, SECOND]);
  t.is(region.flags, RW | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS);
  t.is(region.offset, 0);
  t.is(sealsOf(region.fd), F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  t.is(fileStatus(region.fd).size, FIRST.offset + FIRST.size);
  close(region.fd);

  const whole = await ask(Region.BAR2, RegionInfo.size);
  const info = RegionInfo.view(whole.data);
  t.deepEqual([info.argsz, info.flags, info.capOffset], [RegionInfo.size, RW | RegionInfoFlags.MMAP, 0]);
  t.is(whole.fds.length, 1);
  for (const fd of whole.fds) close(fd);
  const table = await ask(Region.BAR4, 0x1000);
  t.is(RegionInfo.view(table.data).flags, RW);
  t.deepEqual(table.fds, []);
  await t.throwsAsync(ask(Region.BAR0, RegionInfo.size - 1), refusal(Errno.EINVAL));
  await t.throwsAsync(ask(9, 0x1000), refusal(Errno.EINVAL));
});

both("client, device and messages see the same memory; the rest is registers", async (t, { client, device }) => {
  const { mapped } = await mapRegion(client, Region.BAR0);
  const [first, second] = mapped;
  t.is(second[0], PREPARED);
  first[5] = 1;
  first[FIRST.size - 1] = 2;
  t.is(device.shared(0)[5], 1);
  t.is(device.shared(0)[FIRST.size - 1], 2);
  t.is(device.shared(0).length, FIRST.size);
  device.shared(0, 1)[0x123] = 3;
  t.is(second[0x123], 3);
  t.deepEqual([...(await client.regionRead(Region.BAR0, FIRST.offset + 4, 3))], [0, 1, 0]);
  await client.regionWrite(Region.BAR0, SECOND.offset + 0x121, bytes(9, 8, 7, 6, 5));
  // A read is answered behind the writes before it.
  await client.regionRead(Region.BAR0, SECOND.offset, 4);
  t.deepEqual([...second.subarray(0x120, 0x127)], [0, 9, 8, 7, 6, 5, 0]);
  t.deepEqual([...device.shared(0, 1).subarray(0x120, 0x127)], [0, 9, 8, 7, 6, 5, 0]);
  t.deepEqual(device.accesses, []);
  // An access over the edge is both.
  await client.regionWrite(Region.BAR0, SECOND.offset - 2, bytes(1, 2, 3, 4));
  await client.regionRead(Region.BAR0, SECOND.offset + SECOND.size, 1);
  t.deepEqual([...second.subarray(0, 2)], [3, 4]);
  t.deepEqual(device.accesses, ["w2 0:ffe=201", "r1 0:2000"]);

  const whole = await mapRegion(client, Region.BAR2);
  whole.mapped[0][WHOLE - 1] = 4;
  t.is(device.shared(2)[WHOLE - 1], 4);
  t.throws(() => device.shared(0, 2), { instanceOf: RangeError });
  t.throws(() => device.shared(1), { instanceOf: RangeError });
});

both("a reset leaves the memory to the device", async (t, { client, device }) => {
  const { mapped } = await mapRegion(client, Region.BAR0);
  mapped[0][7] = 7;
  mapped[1][0] = 0;
  await client.reset();
  t.is(mapped[1][0], PREPARED, "the device prepares it, and the client sees it");
  t.is(mapped[0][7], 7);
  t.is(device.shared(0)[7], 7);
});

both("a client that left has no hold on what the next one gets", async (t, { client, device, socket }) => {
  const old = await mapRegion(client, Region.BAR0);
  const oldWhole = await mapRegion(client, Region.BAR2);
  const oldEvents = await ioFds(client, Region.BAR0);
  const view = device.shared(0);
  old.mapped[0][7] = 7;
  old.mapped[1][0] = 0;
  oldWhole.mapped[0][8] = 8;
  for (let round = 0; round < 3; round++) {
    client.close();
    client = await Client.connect(socket);
    t.is(device.shared(0)[7], 0);
    const now = await mapRegion(client, Region.BAR0);
    t.not(now.inode, old.inode);
    t.deepEqual([now.mapped[0][7], now.mapped[1][0]], [0, PREPARED], "fresh, then prepared by the device's reset");
    old.mapped[0][9] = 9;
    oldWhole.mapped[0][9] = 9;
    t.deepEqual([now.mapped[0][9], device.shared(0)[9], device.shared(2)[8], device.shared(2)[9]], [0, 0, 0, 0]);
    now.mapped[0][9] = 99;
    t.is(view[9], 99, "what the device got first is still the memory");
    t.is(old.mapped[0][9], 9);
    const events = await ioFds(client, Region.BAR0);
    const before = device.events.length;
    eventfdWrite(oldEvents.fds[0]);
    eventfdWrite(events.fds[oldEvents.events[1].fd]);
    await device.heard(before + 1);
    await client.getInfo();
    t.deepEqual(device.events.slice(before), [`0:${Events.SEVEN}=7`], "the old one is not heard");
  }
  client.close();
});

both("ioeventfds: as declared, with room and fds enough", async (t, { client, socket }) => {
  const { events, fds } = await ioFds(client, Region.BAR0);
  t.is(fds.length, EVENTS.length + 1);
  t.deepEqual(
    events.map(({ offset, size, datamatch }) => ({ offset, size, datamatch })),
    EVENTS.map(({ offset, size, ...rest }) => ({
      offset,
      size,
      datamatch: "datamatch" in rest ? rest.datamatch : undefined,
    })),
  );
  t.is(new Set(events.map(({ fd }) => fd)).size, EVENTS.length);
  for (const { fd } of events) t.true(isEventfd(fds[fd]));
  const { shadow } = events[Events.SHADOW];
  t.is(shadow?.offset, 0);
  t.is(sealsOf(fds[shadow?.fd ?? 0]), F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  t.is(events.filter((event) => event.shadow).length, 1);
  t.deepEqual((await client.getRegionIoFds(Region.BAR2)).events, []);

  client.close();
  for (const [maxMsgFds, expected] of [
    [0, 0],
    [1, 1],
    [4, 3], // the shadow one would take two
    [5, 4],
    [16, 5],
  ]) {
    const poorer = await Client.connect(socket, { capabilities: { maxMsgFds } });
    t.is((await ioFds(poorer, Region.BAR0)).events.length, expected, `${maxMsgFds} fds`);
    const region = await poorer.getRegionInfo(Region.BAR2);
    t.is(region.fd >= 0, maxMsgFds > 0);
    if (region.fd >= 0) close(region.fd);
    poorer.close();
  }
});

both("GET_REGION_IO_FDS: what is refused, and what is cut", async (t, { client }) => {
  const ask = (request: Parameters<typeof RegionIoFds.encode>[0]) =>
    client.request(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds.encode(request), { maxFds: 16 });
  const needed = RegionIoFds.size + EVENTS.length * IoEventFd.size;
  for (const argsz of [RegionIoFds.size, needed - 1]) {
    const { body, data, fds } = await ask({ argsz, index: 0 });
    t.is(body.length, RegionIoFds.size);
    const reply = RegionIoFds.view(data);
    t.deepEqual([reply.argsz, reply.flags, reply.index, reply.count], [needed, 0, 0, EVENTS.length]);
    t.deepEqual(fds, []);
  }
  const all = await ask({ argsz: needed, index: 0 });
  t.is(all.body.length, needed);
  // Where the specification has the value to match, and where libvfio-user has it.
  const seven = RegionIoFds.size + Events.SEVEN * IoEventFd.size;
  t.deepEqual([all.body[seven + 32], all.body[seven + 40]], [7, 7]);
  for (const fd of all.fds) close(fd);
  for (const request of [
    { argsz: RegionIoFds.size - 1, index: 0 },
    { argsz: 0x10_0001, index: 0 },
    { argsz: needed, index: 9 },
    { argsz: needed, index: 0xffffffff },
    { argsz: needed, index: Region.BAR1 },
    { argsz: needed, index: 0, flags: 1 },
    { argsz: needed, index: 0, count: 1 },
  ]) {
    await t.throwsAsync(ask(request), refusal(Errno.EINVAL), JSON.stringify(request));
  }
});

both("a signal is an event, and so is the write by message that it stands for", async (t, { client, device }) => {
  const { events, fds } = await ioFds(client, Region.BAR0);
  const signal = (index: number) => eventfdWrite(fds[events[index].fd]);
  const told = async (...expected: string[]) => {
    await device.heard(expected.length);
    t.deepEqual(device.events.splice(0), expected);
  };
  signal(Events.PLAIN);
  await told(`0:${Events.PLAIN}=undefined`);
  signal(Events.NINE);
  await told(`0:${Events.NINE}=9`);
  // Many, of which some come as one; after the last there is one.
  for (let n = 0; n < 100; n++) signal(Events.ANY_SIZE);
  await device.heard(1);
  signal(Events.PLAIN);
  while (!device.events.includes(`0:${Events.PLAIN}=undefined`)) await device.heard(device.events.length + 1);
  // Events of different eventfds are in no order: what is left of the many may come after it.
  while (countOf(fds[events[Events.ANY_SIZE].fd]) > 0) await setImmediate();
  await client.getInfo();
  t.true(device.events.length <= 101);
  device.events.length = 0;

  const { shadow } = events[Events.SHADOW];
  const memory = new DataView(mapFile(fds[shadow?.fd ?? 0], 0, 4096, PROT_READ | PROT_WRITE));
  memory.setUint32(shadow?.offset ?? 0, 0xcafe, true);
  memory.setUint32((shadow?.offset ?? 0) + 4, 0x12, true);
  signal(Events.SHADOW);
  await told(`0:${Events.SHADOW}=${0x12_0000_cafe}`);

  // The same by messages.
  const write = (offset: number, ...values: number[]) => client.regionWrite(Region.BAR0, offset, bytes(...values));
  await write(0x100, 1, 0, 0, 0);
  await write(0x104, 9, 0, 0, 0);
  await write(0x108, 5, 0, 0, 0, 1, 0, 0, 0);
  await write(0x110, 1);
  await write(0x110, 1, 2, 3);
  await told(
    `0:${Events.PLAIN}=undefined`,
    `0:${Events.NINE}=9`,
    `0:${Events.SHADOW}=${0x1_0000_0005}`,
    `0:${Events.ANY_SIZE}=undefined`,
    `0:${Events.ANY_SIZE}=undefined`,
  );
  t.is(memory.getUint32(0, true), 5);
  t.is(await client.writeMulti([{ region: 0, offset: 0x104, bytes: bytes(7, 0, 0, 0) }]), 1);
  await told(`0:${Events.SEVEN}=7`);
  t.deepEqual(device.accesses, []);
  // What matches none is an access like any other.
  await write(0x104, 8, 0, 0, 0);
  await write(0x104, 7, 0);
  await write(0x100, 1);
  await write(0x10c, 1);
  await client.getInfo();
  t.deepEqual(device.accesses, ["w4 0:104=8", "w2 0:104=7", "w1 0:100=1", "w1 0:10c=1"]);
  t.deepEqual(device.events, []);
});

both("a device that throws in its event goes on", async (t, { client, device }) => {
  const { events, fds } = await ioFds(client, Region.BAR0);
  device.onEvent = () => {
    throw new Error("a bug");
  };
  for (let n = 1; n <= 3; n++) {
    eventfdWrite(fds[events[Events.PLAIN].fd]);
    await device.heard(n);
  }
  await client.regionWrite(Region.BAR0, 0x40, u32(3));
  t.deepEqual([...(await client.regionRead(Region.BAR0, Registers.SCRATCH, 1))], [3]);
});
