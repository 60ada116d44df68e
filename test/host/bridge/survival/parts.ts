/**
 * What the peers of a bridge do, in parts that each change another kind of state; every one of them ends with nothing
 * in flight. All that a part waits for has to come, however often the bridge dies meanwhile.
 */
import { setTimeout as delay } from "node:timers/promises";
import * as native from "../../../../native/index.js";
import { MiB, PAGE_SIZE } from "../../../../shared/limits.js";
import {
  CopyFlags,
  IoEvent,
  LinkCommand,
  NO_DOORBELL,
  Queue,
  RegisterMemoryHead,
} from "../../../../shared/spec/link.js";
import { Command, DmaAccess, DmaMap, HeaderFlags, Irq, IrqSet, Region } from "../../../../shared/spec/vfio-user.js";
import type { LinkMessage } from "../../../fakes/front-end-device.js";
import { BASE, copier } from "../link/copier.js";
import { doorbellsOf, pattern } from "../set-up.js";
import { check, checkEqual, FIRST_REGISTER, type Peers } from "./peers.js";

export interface Part {
  readonly name: string;
  /** The client has a twin socket. */
  readonly twin?: boolean;
  readonly isolated?: boolean;
  /** Counted from where the front-end connects, and not from where the client is served. */
  readonly fromStart?: boolean;
  /** It is about what clients ask for, and not about who comes and goes. */
  readonly isOfCommands?: boolean;
  run(peers: Peers): Promise<void>;
}

const bytesOf = (...values: number[]) => Uint8Array.from(values);
const REGISTER = FIRST_REGISTER;
/** A register by its number. */
const at = (n: number) => REGISTER + 4 * n;
const HIGH = 0x1000_0000;
const BY_MESSAGES = 0x2000_0000;
const equal = (a: Uint8Array, b: Uint8Array) => Buffer.from(a).equals(b);

const commandsOf = (peers: Peers, command: number, after = 0): LinkMessage[] =>
  peers.device.received.slice(after).filter((each) => each.command === command);

async function accesses(peers: Peers): Promise<void> {
  await peers.write(at(0), bytesOf(1, 2, 3, 4));
  checkEqual(await peers.read(at(0), 4), "01020304", "a register that was written");
  // A region whose writes wait for the device process.
  await peers.write(0x40, bytesOf(9, 9), Region.CONFIG);
  checkEqual(await peers.read(0x40, 2, Region.CONFIG), "0909", "config space that was written");
  await peers.write(at(1), bytesOf(5, 6, 7, 8), Region.BAR0, true);
  await peers.writeMulti([at(2), bytesOf(1)], [at(3), bytesOf(2, 2)], [at(4), bytesOf(3, 3, 3, 3)]);
  // Pipelined: what follows is in the bridge's buffers when it dies.
  const answers = [
    peers.read(at(1), 4),
    peers.write(at(5), bytesOf(10)),
    peers.write(at(5), bytesOf(11)),
    peers.read(at(5), 1),
    peers.write(at(5), bytesOf(12), Region.BAR0, true),
    peers.read(at(5), 1),
    peers.writeMulti([at(6), bytesOf(13)], [at(6), bytesOf(14)]),
    peers.read(at(6), 1),
  ];
  const values = await Promise.all(answers);
  checkEqual(
    values,
    ["05060708", null, null, "0b", null, "0c", null, "0e"].map((value) => value ?? undefined),
    "reads",
  );
  // Larger than a buffer of the ring.
  const large = pattern(0x1800);
  await peers.write(0x3000 - large.length, large, Region.BAR0);
  checkEqual(await peers.read(0x3000 - 8, 8), Buffer.from(large.subarray(-8)).toString("hex"), "a large write");
  checkEqual((await peers.client.getInfo()).numRegions, 9, "regions");
  checkEqual((await peers.client.getIrqInfo(Irq.MSIX)).count, 4, "vectors");
  await peers.client.reset();
  await refused(peers.client.request(0x7f), "a command that nobody knows");
}

async function refused(promise: Promise<unknown>, what: string): Promise<void> {
  const isRefused = await promise.then(
    () => false,
    () => true,
  );
  check(isRefused, `${what} was not refused`);
}

async function maps(peers: Peers): Promise<void> {
  const { client, memory, device, frontEnd } = peers;
  const { fd, bytes } = memory;
  await Promise.all([
    client.mapMemory({ address: 0, size: MiB, fd }),
    client.mapMemory({ address: HIGH, size: MiB, fd, fdOffset: MiB }),
    client.mapMemory({ address: BY_MESSAGES, size: PAGE_SIZE }),
  ]);
  const announced = commandsOf(peers, Command.DMA_MAP).map(({ data }) => DmaMap.view(data));
  checkEqual(
    announced.map(({ address }) => address),
    [0, HIGH, BY_MESSAGES],
    "maps that were announced",
  );
  const offset = announced[1].offset;
  bytes[MiB + 5] = 77;
  checkEqual(peers.window[offset + 5], 77, "memory in the window");
  peers.window[announced[0].offset + 6] = 78;
  checkEqual(bytes[6], 78, "memory of the client's");
  frontEnd.memoryChanged();
  await refused(client.mapMemory({ address: HIGH, size: PAGE_SIZE, fd }), "a map twice");
  checkEqual(await client.unmapMemory(HIGH, MiB), MiB, "bytes that were unmapped");
  checkEqual(peers.window[offset + 5], 0, "the window where nothing is mapped");
  await client.mapMemory({ address: HIGH, size: MiB, fd, fdOffset: 2 * MiB, writable: false });
  await Promise.all([
    client.unmapMemory(0, MiB),
    client.mapMemory({ address: 2 * HIGH + PAGE_SIZE, size: PAGE_SIZE, fd, fdOffset: 3 * MiB }),
  ]);
  checkEqual(frontEnd.maps.length >= 3, true, "maps of the window");
  await client.unmapAll();
  checkEqual(commandsOf(peers, Command.DMA_MAP).length, 5, "maps that were announced");
  await device.waitFor(Command.DMA_UNMAP);
}

async function messages(peers: Peers): Promise<void> {
  const { client, device } = peers;
  await client.mapMemory({ address: BY_MESSAGES, size: 64 * 1024 });
  const bytes = pattern(64 * 1024);
  client.registerMemory(BY_MESSAGES, bytes);
  const access = (offset: number, count: number) => DmaAccess.encode({ address: BY_MESSAGES + offset, count });
  const read = await device.request(Command.DMA_READ, access(0, 40_000));
  check(equal(read.body.subarray(DmaAccess.size), pattern(40_000)), "other bytes by DMA_READ");
  const write = await device.request(Command.DMA_WRITE, Uint8Array.from([...access(16, 5), 9, 8, 7, 6, 5]));
  checkEqual([...bytes.subarray(16, 21)], [9, 8, 7, 6, 5], "bytes by DMA_WRITE");
  checkEqual(write.errno, 0, "DMA_WRITE");
  const many = await Promise.all([
    ...Array.from({ length: 4 }, (_, n) => device.request(Command.DMA_READ, access(100 * n, 8))),
    peers.read(at(0), 4).then(() => undefined),
    device.request(Command.DMA_WRITE, Uint8Array.from([...access(1000, 1), 42])),
  ]);
  check(
    many.slice(0, 4).every((reply) => reply?.flags === HeaderFlags.TYPE_REPLY),
    "a DMA_READ failed",
  );
  many.slice(1, 4).forEach((reply, n) => {
    const expected = pattern(64 * 1024).subarray(100 * (n + 1), 100 * (n + 1) + 8);
    check(reply !== undefined && equal(reply.body.subarray(DmaAccess.size), expected), "other bytes by DMA_READ");
  });
  checkEqual(bytes[1000], 42, "a byte by DMA_WRITE");
}

/** The doorbell that a vector has by what the device process was told last. */
function doorbellOf(peers: Peers, index: number, vector: number): number {
  let found = NO_DOORBELL;
  for (const { body, data } of commandsOf(peers, Command.DEVICE_SET_IRQS)) {
    const set = IrqSet.view(data);
    const doorbell = doorbellsOf(body)[vector - set.start];
    if (set.index === index && doorbell !== undefined && body.length > IrqSet.size) found = doorbell;
  }
  return found;
}

async function rings(peers: Peers, vector: number, signal = vector, index: number = Irq.MSIX): Promise<void> {
  const before = peers.signals[signal].count;
  const doorbell = doorbellOf(peers, index, vector);
  check(doorbell !== NO_DOORBELL, `vector ${vector} has no doorbell`);
  peers.device.ring(doorbell);
  await peers.signals[signal].after(before);
}

async function interrupts(peers: Peers): Promise<void> {
  const { client, signals } = peers;
  const [a, b, c] = signals.map(({ fd }) => fd);
  await client.setIrqs({ index: Irq.MSIX, count: 1, eventfds: [] });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [a, b, c] });
  for (const vector of [0, 1, 2]) await rings(peers, vector);
  // As a guest does for a new affinity: masked, bound anew, unmasked.
  await client.setIrqs({ index: Irq.MSIX, start: 1, count: 1, action: "mask" });
  await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [c] });
  await client.setIrqs({ index: Irq.MSIX, start: 1, count: 1, action: "unmask" });
  await rings(peers, 1, 2);
  await client.setIrqs({ index: Irq.MSIX, count: 0 });
  await client.setIrqs({ index: Irq.INTX, eventfds: [a] });
  await client.setIrqs({ index: Irq.INTX, action: "unmask", eventfds: [b] });
  await rings(peers, 0, 0, Irq.INTX);
  native.eventfdWrite(b);
  await client.setIrqs({ index: Irq.ERR, eventfds: [c] });
  await rings(peers, 0, 2, Irq.ERR);
  await Promise.all([
    client.setIrqs({ index: Irq.INTX, count: 0 }),
    client.setIrqs({ index: Irq.ERR, count: 0 }),
    client.setIrqs({ index: Irq.MSIX, start: 2, eventfds: [a, b] }),
  ]);
  await rings(peers, 3, 1);
}

async function sharing(peers: Peers): Promise<void> {
  const { client, shared, device } = peers;
  const { bar, shadow, head, registers, events } = shared;
  const { fd, areas } = await client.getRegionInfo(Region.BAR0);
  const views = areas.map(
    ({ offset, size }) => new Uint8Array(native.mapFile(fd, offset, size, native.PROT_READ | native.PROT_WRITE)),
  );
  native.close(fd);
  views[0][3] = 1;
  bar.views[1][5] = 3;
  checkEqual([bar.views[0][3], views[1][5]], [1, 3], "memory that is shared");
  const io = await client.getRegionIoFds(Region.BAR0);
  try {
    const page = new Uint8Array(native.mapFile(io.fds[2], 0, PAGE_SIZE, native.PROT_READ | native.PROT_WRITE));
    page[8] = 77;
    checkEqual(shadow.views[0][8], 77, "shadow memory");
    for (const n of [0, 1, 0]) {
      const after = device.received.length;
      native.eventfdWrite(io.fds[io.events[n].fd]);
      await device.waitFor(
        ({ command, data }) => command === LinkCommand.IO_EVENT && IoEvent.view(data).handle === events[n],
        after,
      );
    }
  } finally {
    for (const each of io.fds) native.close(each);
  }
  registers.setUint8(RegisterMemoryHead.size, 0x5a);
  device.bar[0] = 0x5a;
  const value = async () => (await client.regionRead(Region.BAR0, 0, 1))[0];
  checkEqual(await value(), 0x5a, "a register in memory");
  await peers.write(at(0), bytesOf(1));
  checkEqual(await value(), 0x5a, "a register in memory after a write");
  await peers.read(at(0), 1);
  checkEqual([head.writesSent, head.writesDone], [1, 1], "writes by register memory's counts");
  checkEqual(await value(), 0x5a, "a register in memory");
}

async function deviceAgain(peers: Peers): Promise<void> {
  const { client, memory, device, frontEnd, signals } = peers;
  const { fd, bytes } = memory;
  await client.mapMemory({ address: 0, size: MiB, fd });
  await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [signals[1].fd] });
  for (const dies of [false, true]) {
    if (!dies) {
      checkEqual((await device.request(LinkCommand.QUIESCE)).errno, 0, "QUIESCE");
      const read = await client.regionRead(Region.CONFIG, 0, 4);
      check(
        read.every((byte) => byte === 0xff),
        "a device that is gone reads as all ones",
      );
    }
    frontEnd.reset();
    const after = device.received.length;
    await peers.share();
    await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
    const map = await device.waitFor(Command.DMA_MAP, after);
    await device.waitFor(Command.DEVICE_SET_IRQS, after);
    while ((await client.getInfo().catch(() => undefined)) === undefined) await delay(1);
    checkEqual(commandsOf(peers, LinkCommand.CLIENT_CONNECTED, after).length, 1, "CLIENT_CONNECTED");
    checkEqual(commandsOf(peers, Command.DMA_MAP, after).length, 1, "maps that were announced");
    bytes[9] += 1;
    checkEqual(peers.window[DmaMap.view(map.data).offset + 9], bytes[9], "memory in the window");
    await rings(peers, 1);
    checkEqual(await peers.read(at(20), 4), "00000000", "a register");
  }
}

async function pauses(peers: Peers): Promise<void> {
  const { client, frontEnd, memory, signals } = peers;
  await client.mapMemory({ address: 0, size: MiB, fd: memory.fd });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [signals[0].fd] });
  const before = peers.write(at(0), bytesOf(1, 2));
  frontEnd.pause();
  const read = peers.read(at(0), 2);
  const write = peers.write(at(1), bytesOf(3));
  frontEnd.resume();
  await Promise.all([before, write]);
  checkEqual(await read, "0102", "a read across a pause");
  await rings(peers, 0);
  frontEnd.setDecoding(false);
  frontEnd.setDecoding(true);
  checkEqual(frontEnd.readDeviceConfig(0, 4), 0x75667676, "config space");
  frontEnd.pause();
  frontEnd.resume();
  checkEqual(await peers.read(at(1), 1), "03", "a read after a pause");
  await client.mapMemory({ address: HIGH, size: MiB, fd: memory.fd });
}

async function clients(peers: Peers): Promise<void> {
  const { memory, signals, device } = peers;
  for (const twin of [true, false]) {
    const { client } = peers;
    await client.mapMemory({ address: 0, size: MiB, fd: memory.fd });
    await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [signals[0].fd] });
    await peers.write(at(0), bytesOf(7));
    await peers.read(at(0), 1);
    const after = device.received.length;
    await peers.disconnect();
    await peers.connect(twin);
    await device.waitFor(LinkCommand.CLIENT_CONNECTED, after);
    checkEqual(await peers.read(at(0), 1), "07", "a register for the next client");
    checkEqual(commandsOf(peers, LinkCommand.CLIENT_GONE, after).length, 1, "CLIENT_GONE");
    checkEqual(commandsOf(peers, LinkCommand.CLIENT_CONNECTED, after).length, 1, "CLIENT_CONNECTED");
    checkEqual(peers.frontEnd.maps.length, 3, "maps of what is shared");
  }
}

async function copies(peers: Peers): Promise<void> {
  const { client, memory, frontEnd, device } = peers;
  await client.mapMemory({ address: BASE, size: 4 * MiB, fd: memory.fd });
  const { data, add, kick, done } = copier(frontEnd, device);
  memory.bytes.set(pattern(0x8000), 5);
  add(3, { address: BASE + 5, length: 0x8000 });
  kick();
  checkEqual(await done(), { slot: 3, status: 0, length: 4 + 0x8000 }, "a copy");
  check(equal(data.subarray(0, 0x8000), pattern(0x8000)), "other bytes by a copy");
  data.set(pattern(1000, 9));
  for (const slot of [0, 1, 2]) add(slot, { address: BASE + slot * MiB, length: 1000, flags: CopyFlags.WRITE });
  add(4, { address: 0x5000, length: 16 });
  kick();
  const results: Awaited<ReturnType<typeof done>>[] = [];
  for (let n = 0; n < 4; n++) results.push(await done());
  checkEqual(
    results.map(({ slot, status }) => [slot, status === 0]),
    [
      [0, true],
      [1, true],
      [2, true],
      [4, false],
    ],
    "copies",
  );
  for (const slot of [0, 1, 2]) {
    check(equal(memory.bytes.subarray(slot * MiB, slot * MiB + 1000), pattern(1000, 9)), "other bytes by a copy");
  }
  checkEqual(device.rings[Queue.COPY].take(), undefined, "copies that nobody asked for");
}

/** Much of everything at once: what is received, sent, relayed and asked for in the middle of what else is. */
async function everything(peers: Peers): Promise<void> {
  const { client, device, shared, signals, memory } = peers;
  const size = 50_000;
  const wanted = pattern(size);
  await client.mapMemory({ address: BY_MESSAGES, size: MiB });
  const bytes = pattern(MiB);
  client.registerMemory(BY_MESSAGES, bytes);
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [signals[0].fd, signals[1].fd] });
  const io = await client.getRegionIoFds(Region.BAR0);
  const work: Promise<unknown>[] = [];
  for (let n = 0; n < 60; n++) {
    const value = Uint8Array.of(n, n >> 8, 1, 2);
    work.push(peers.write(at(n % 8), value, Region.BAR0, n % 3 === 0));
    work.push(peers.read(at(n % 8), 4).then((read) => checkEqual(read, Buffer.from(value).toString("hex"), "a read")));
    if (n % 10 === 0)
      work.push(peers.write(0x1800, pattern(0x1800, n)), peers.writeMulti([at(9), value], [at(9), value]));
    if (n % 16 === 0) {
      const address = HIGH + n * MiB;
      work.push(client.mapMemory({ address, size: MiB, fd: memory.fd }), client.unmapMemory(address, MiB));
    }
    if (n % 20 === 0) {
      const access = DmaAccess.encode({ address: BY_MESSAGES, count: size });
      const read = device.request(Command.DMA_READ, access);
      work.push(
        read.then(({ body, errno }) => {
          const difference = body.subarray(DmaAccess.size).findIndex((byte, at) => byte !== wanted[at]);
          checkEqual([errno, body.length - DmaAccess.size, difference], [0, size, -1], "a DMA_READ");
        }),
      );
      work.push(device.request(Command.DMA_WRITE, Uint8Array.from([...access, ...pattern(size)])));
    }
    if (n % 5 === 0) work.push(rings(peers, (n / 5) % 2));
    if (n % 7 === 0) native.eventfdWrite(io.fds[io.events[0].fd]);
  }
  await Promise.all(work);
  for (const fd of io.fds) native.close(fd);
  await device.waitFor(LinkCommand.IO_EVENT);
  checkEqual(shared.head.writesSent, shared.head.writesDone, "writes by register memory's counts");
}

/** Too long for every place in turn. */
export const EVERYTHING: Part = { name: "everything at once", run: everything };

export const PARTS: readonly Part[] = [
  {
    name: "a front-end, a device process and a client come and go",
    fromStart: true,
    twin: true,
    run: async (peers) => {
      await peers.read(at(0), 4);
    },
  },
  { name: "register accesses", isOfCommands: true, run: accesses },
  { name: "DMA maps", isOfCommands: true, run: maps },
  { name: "DMA by messages", isOfCommands: true, run: messages },
  { name: "DMA by messages over the twin socket", isOfCommands: true, twin: true, run: messages },
  { name: "interrupts", isOfCommands: true, run: interrupts },
  { name: "shared memory, registers and eventfds", run: sharing },
  { name: "a device process again", run: deviceAgain },
  { name: "pauses", run: pauses },
  { name: "clients", run: clients },
  { name: "copies", isolated: true, run: copies },
];
