/**
 * The bridge's end of the virtio link against a hostile device process: any message, any reply, broken rings,
 * doorbells. Its QEMU is honest and must live, the driver VM's client is honest and each of its requests must be
 * answered, whatever the device process says. The probe is the bridge's (bridge.ts).
 */
import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { addSeals, close, createMemory, eventfd, F_SEAL_SHRINK } from "../../../native/index.js";
import { PeerGone, ProtocolError } from "../../../shared/errors.js";
import {
  AllocateEvents,
  AllocateMemory,
  Hello,
  LinkCommand,
  MemoryArea,
  Queue,
  RegisterArea,
  ShareRegisters,
} from "../../../shared/spec/link.js";
import {
  Command,
  DmaAccess,
  Header,
  HeaderFlags,
  IoEventFd,
  Irq,
  Region,
  RegionAccess,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionIoFds,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../../../shared/spec/vfio-user.js";
import { Descriptor } from "../../../shared/spec/virtio.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BAR_SIZE, type LinkMessage, message, TestDevice } from "../../fakes/front-end-device.js";
import {
  ioFds,
  memoryBody,
  PARTS,
  regionInfo,
  regionInfoWith,
  registersBody,
  tooMany,
} from "../../host/bridge/link/sharing-set-up.js";
import { FuzzedBridge, inTime } from "../bridge.js";
import type { Choices } from "../choices.js";
import { HostileCopies } from "../copies.js";
import { FdPool } from "../fds.js";
import { bend, oddNumber, spoil } from "../mutate.js";
import { turn } from "../peer.js";
import { CANARY, type Context, checkCanary, type Instance } from "../target.js";
import { hostileCommand } from "../vfio-user-messages.js";

/** Capabilities of a region of the device's own. */
const TYPE = { id: RegionCap.TYPE, body: RegionType.encode({ type: 1, subtype: 2 }) };
const SPARSE = {
  id: RegionCap.SPARSE_MMAP,
  body: Buffer.concat([
    SparseMmap.encode({ areas: PARTS.length }),
    ...PARTS.map((part) => SparseMmapArea.encode(part)),
  ]),
};

/** What the client answers DMA messages from. */
const MEMORY = { address: 0x100_0000, from: 0x1000, to: 0x5000, size: 0x8000 };
const MAP_SIZE = 0x1_0000;

/**
 * A message of the device process's own, mostly of those that it may send. Gentle ones are refused at most: the others
 * mostly end the link at once.
 */
function hostileMessage(random: Choices, device: TestDevice, fds: FdPool, gentle: boolean): Uint8Array {
  const id = random.below(0x100);
  const kind = random.below(gentle ? 7 : 13);
  let bytes: Uint8Array;
  if (kind < 7) {
    const count = random.pick([0, 4, 64, 4096, 0x10000]);
    const address = MEMORY.address + random.below(MEMORY.to - MEMORY.from);
    const isRead = random.chance(50);
    const fixed = DmaAccess.encode({ address, count });
    // A count that does not fit a write's data ends the link.
    if (random.chance(20) && (isRead || !gentle)) spoil(random, fixed, DmaAccess);
    const body = Buffer.concat([fixed, isRead ? new Uint8Array(0) : random.bytes(count)]);
    const flags = random.chance(10) ? HeaderFlags.NO_REPLY : 0;
    bytes = message(id, isRead ? Command.DMA_READ : Command.DMA_WRITE, flags, new Uint8Array(body));
  } else if (kind === 7) {
    const hello = device.hello();
    if (random.chance(60)) spoil(random, hello, Hello);
    bytes = message(id, LinkCommand.HELLO, 0, random.chance(20) ? bend(random, hello) : hello);
  } else if (kind === 12) {
    const parts = random.chance(80) ? PARTS : tooMany;
    const [command, body, fixed, entry] = random.pick([
      () => [LinkCommand.ALLOCATE_MEMORY, memoryBody(random.below(12), parts), AllocateMemory, MemoryArea] as const,
      () =>
        [
          LinkCommand.SHARE_REGISTERS,
          registersBody(random.below(64) * 0x1000, random.below(12)),
          ShareRegisters,
          RegisterArea,
        ] as const,
      () => {
        const events = AllocateEvents.encode({ region: random.below(12), count: random.below(70) });
        return [LinkCommand.ALLOCATE_EVENTS, events, AllocateEvents, undefined] as const;
      },
    ])();
    if (random.chance(40)) spoil(random, body, fixed);
    if (random.chance(20) && entry !== undefined) spoil(random, body, entry, fixed.size);
    bytes = message(id, command, 0, random.chance(10) ? bend(random, body) : body);
  } else if (kind === 8) {
    bytes = message(id, random.pick([LinkCommand.QUIESCE, LinkCommand.CLIENT_GONE, 0, 99]), random.below(2));
  } else {
    bytes = hostileCommand(random, id, fds).bytes;
    if (bytes.length === 0) bytes = Uint8Array.of(0);
  }
  if (gentle) return bytes;
  const copy = new Uint8Array(bytes);
  if (random.chance(8)) spoil(random, copy, Header);
  const sent = random.chance(3) ? bend(random, copy) : copy;
  return sent.length === 0 ? Uint8Array.of(0) : sent;
}

/** The reply to a command of the bridge's: what an honest device process says, now and then with a mistake. */
function reply(random: Choices, device: TestDevice, to: LinkMessage, gentle: boolean): Uint8Array | undefined {
  const { id, command, body } = to;
  if (random.chance(3)) return undefined;
  if (random.chance(8))
    return message(id, command, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, new Uint8Array(0), oddNumber(random, 4));
  let data: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  const isInfo = command === Command.DEVICE_GET_REGION_INFO;
  if ((isInfo || command === Command.DEVICE_GET_REGION_IO_FDS) && random.chance(70)) {
    // Handles are small numbers, of which some exist.
    const given = isInfo
      ? random.chance(50)
        ? regionInfo(PARTS)
        : regionInfoWith(random.chance(50) ? [TYPE] : [TYPE, SPARSE])
      : ioFds([
          { gpaOffset: 16, size: 4 },
          { size: 4, fdIndex: 1 },
        ]);
    given.writeUInt32LE(body.length >= 12 ? to.data.getUint32(8, true) : 0, 8);
    if (random.chance(30)) spoil(random, given, isInfo ? RegionInfo : RegionIoFds);
    if (random.chance(20)) spoil(random, given, isInfo ? RegionCapHeader : IoEventFd, isInfo ? 32 : 16);
    const handles = Array.from({ length: isInfo ? random.below(2) : 2 }, () => random.below(8));
    const tail = new Uint8Array(Uint32Array.from(handles).buffer);
    const count = random.chance(90) ? handles.length : oddNumber(random, 4);
    return message(id, command, HeaderFlags.TYPE_REPLY, Buffer.concat([given, tail]), count);
  }
  if (command === Command.REGION_READ) {
    const { offset, count } = RegionAccess.view(to.data);
    data = Uint8Array.from([...body.slice(0, RegionAccess.size), ...device.bar.slice(offset, offset + count)]);
  } else if (
    command < 0x100 &&
    command !== Command.DMA_MAP &&
    command !== Command.DMA_UNMAP &&
    command !== Command.DEVICE_SET_IRQS
  ) {
    data = body.slice(0, command === Command.REGION_WRITE ? RegionAccess.size : 32);
  }
  if (gentle && random.chance(95)) return message(id, command, HeaderFlags.TYPE_REPLY, data);
  if (random.chance(8) && data.length >= RegionAccess.size) spoil(random, data, RegionAccess);
  if (random.chance(4)) data = bend(random, data);
  const bytes = new Uint8Array(message(id, command, HeaderFlags.TYPE_REPLY, data));
  if (random.chance(2)) spoil(random, bytes, Header);
  return bytes;
}

/** One request of the driver VM's. */
async function call(random: Choices, client: Client, memory: number, doorbell: number): Promise<void> {
  const address = MAP_SIZE * random.below(8);
  switch (random.below(8)) {
    case 0:
      return void (await client.getInfo());
    case 1:
      return client.mapMemory({
        address,
        size: MAP_SIZE,
        ...(random.chance(70) ? { fd: memory, writable: random.chance(80) } : {}),
      });
    case 2:
      return void (await (random.chance(80)
        ? client.unmapMemory(address, MAP_SIZE * random.between(1, 4))
        : client.unmapAll()));
    case 3: {
      const eventfds = Array.from({ length: random.between(1, 4) }, () => doorbell);
      return client.setIrqs(random.chance(70) ? { index: Irq.MSIX, eventfds } : { index: Irq.MSIX });
    }
    case 4:
      return client.regionWrite(Region.BAR0, random.below(64), new Uint8Array(random.pick([1, 4, 100])));
    case 5: {
      if (random.chance(50)) {
        for (const fd of (await client.getRegionIoFds(random.below(12))).fds) close(fd);
        return;
      }
      const { fd } = await client.getRegionInfo(random.below(12));
      if (fd >= 0) close(fd);
      return;
    }
    case 6:
      return random.chance(30) ? client.reset() : void (await client.getIrqInfo(random.below(5)));
    default:
      return void (await client.regionRead(Region.BAR0, random.below(64), random.pick([1, 4, 100])));
  }
}

/** Refusals are answers. */
function isAnswer(error: unknown): void {
  if (!(error instanceof ProtocolError)) throw error;
}

/** The same, for requests that were under way when the client hung up. */
function isEnd(error: unknown): void {
  if (!(error instanceof ProtocolError || error instanceof PeerGone)) throw error;
}

export async function createTarget({ trace }: Context): Promise<Instance> {
  const bridge = await FuzzedBridge.start(trace);
  const fds = new FdPool();
  const shared = createMemory("fuzz-driver-vm", MAP_SIZE, false);
  addSeals(shared, F_SEAL_SHRINK);
  const doorbell = eventfd(0);

  /** Rewrites what is the driver's to write, of the queue from the device or of the copy queue. */
  function damage(random: Choices, device: TestDevice): void {
    const index = random.pick([Queue.FROM_DEVICE, Queue.FROM_DEVICE, Queue.COPY]);
    const ring = device.rings[index];
    if (random.chance(70)) {
      const at = ring.descriptors + random.below(ring.size) * Descriptor.size;
      spoil(random, new Uint8Array(ring.buffer), Descriptor, at);
    } else if (random.chance(50)) ring.setUsedEvent(oddNumber(random, 2, ring.usedIndex));
    else ring.setAvailableIndex(oddNumber(random, 2));
    device.notify(index);
  }

  return {
    async round(random) {
      const frontEnd = new FrontEnd(bridge.path("vhost-user", 0));
      const ownRegions = new Array(random.pick([0, 2, 23])).fill(BAR_SIZE);
      const isolated = random.chance(50);
      const device = new TestDevice(frontEnd, { ownRegions, isolated, eventIndex: random.chance(60) });
      const answers = random.fork();
      const gentle = random.chance(60);
      let hostile = false;
      device.onCommand = (command) => {
        if (!hostile) return false;
        const bytes = reply(answers, device, command, gentle);
        if (bytes && !(command.flags & HeaderFlags.NO_REPLY)) {
          trace.note("reply", bytes);
          device.sendRaw(bytes);
        }
        return true;
      };
      let client: Client | undefined;
      if (random.chance(85)) {
        device.start();
        if (random.chance(40)) {
          const parts = new Uint8Array(memoryBody(Region.BAR0, PARTS));
          await inTime("ALLOCATE_MEMORY", device.request(LinkCommand.ALLOCATE_MEMORY, parts));
          const events = AllocateEvents.encode({ region: Region.BAR0, count: 3 });
          await inTime("ALLOCATE_EVENTS", device.request(LinkCommand.ALLOCATE_EVENTS, events));
          const registers = new Uint8Array(registersBody(device.pci.allocate(0x1000).address, Region.BAR0));
          await inTime("SHARE_REGISTERS", device.request(LinkCommand.SHARE_REGISTERS, registers));
        }
        await inTime("HELLO", device.request(LinkCommand.HELLO, device.hello()));
        client = await inTime("VERSION", Client.connect(bridge.path("vfio-user", 0), { timeoutMs: 0 }));
      } else {
        device.start();
      }
      hostile = true;
      const copies = new HostileCopies(device, MAP_SIZE);
      const memory = new Uint8Array(MEMORY.size).fill(CANARY);
      client?.registerMemory(MEMORY.address, memory.subarray(MEMORY.from, MEMORY.to));
      const calls: Promise<void>[] = [];
      let leaving = false;
      let closed = false;
      for (let n = random.pick([4, 20, 60]); n > 0; n--) {
        if (client && random.chance(50)) {
          const made = call(random, client, shared, doorbell);
          calls.push(made.catch((error) => (leaving ? isEnd(error) : isAnswer(error))));
        }
        if (random.chance(35)) {
          const bytes = hostileMessage(random, device, fds, gentle);
          trace.note("send", bytes);
          device.sendRaw(
            bytes,
            random.chance(80) ? undefined : random.between(Math.ceil(bytes.length / 32), bytes.length),
          );
        }
        if (!gentle && random.chance(2)) {
          trace.note("damage");
          damage(random, device);
        }
        if (random.chance(20)) {
          const address = MAP_SIZE * random.below(8);
          trace.note("copies", address.toString(16));
          copies.ask(random, address, gentle);
        }
        if (random.chance(10)) device.ring(random.below(5));
        // Now and then the bridge, which is another process, gets time to act.
        if (random.chance(30)) await delay(1);
        else await turn();
      }
      // In either order: what waits for the device process is answered when its VM ends, at the latest.
      if (random.chance(30)) {
        leaving = true;
        closed = true;
        client?.close();
      }
      assert.equal(frontEnd.fatal, undefined, "stock QEMU is dead");
      frontEnd.quit();
      await inTime("the answers to the client", Promise.all(calls));
      leaving = true;
      if (client && !closed) {
        const rest = await inTime("a read without a device", client.regionRead(Region.BAR0, 0, 4).catch(isAnswer));
        if (rest) assert.equal(rest.length, 4);
      }
      client?.close();
      checkCanary(memory, 0, MEMORY.from, "memory in front of what was registered");
      checkCanary(memory, MEMORY.to, MEMORY.size, "memory behind what was registered");
      fds.endRound();
    },
    probe: () => bridge.probe(),
    fds: () => bridge.fds(),
    memory: () => bridge.memory(),
    async close() {
      await bridge.stop();
      fds.close();
      close(shared);
      close(doorbell);
    },
  };
}
