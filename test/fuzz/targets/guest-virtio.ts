/**
 * The guest library's virtio link against a bridge that sends anything, writes anything into the rings, and describes
 * itself wrongly. A link may get lost that way, but it has to say so, and the process lives on. The probe is an honest
 * bridge.
 */
import assert from "node:assert/strict";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import type { VirtioLink } from "../../../guest/link/virtio/virtio.js";
import { UserError } from "../../../shared/errors.js";
import {
  AllocateEvents,
  AllocateMemory,
  ClientConnected,
  ClientGone,
  CopyStatus,
  IoEvent,
  LinkCommand,
  MemoryAllocated,
  MemoryArea,
  NO_DOORBELL,
  Queue,
} from "../../../shared/spec/link.js";
import {
  Command,
  DmaAccess,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  Header,
  HeaderFlags,
  Irq,
  IrqSet,
  IrqSetFlags,
  Region,
  RegionAccess,
} from "../../../shared/spec/vfio-user.js";
import { type DeviceQueue, QueueBroken } from "../../../shared/virtqueue/device.js";
import type { Choices } from "../choices.js";
import { FuzzDevice } from "../device.js";
import { FdPool } from "../fds.js";
import { HostilePci, WINDOW_SIZE } from "../hostile-pci.js";
import { bend, oddNumber, spoil } from "../mutate.js";
import { turn } from "../peer.js";
import type { Context, Instance } from "../target.js";
import { hostileCommand as clientCommand, dmaReply, pack } from "../vfio-user-messages.js";

/** The handle of the first ioeventfd. */
const FIRST_EVENT = 100;
const MAX_MESSAGE = 0x10_1000;
/** Turns of the event loop in which an honest exchange is over. */
const PATIENCE_TURNS = 2000;

/** The bridge's end: sends and takes messages over the device side of the rings. */
class Bridge {
  /** Whole messages of the device process's. */
  readonly received: Buffer[] = [];
  /** A ring was corrupted from this side: what the driver does with it is no longer to be understood from here. */
  corrupted = false;
  readonly #in = new Uint8Array(MAX_MESSAGE);
  #have = 0;

  constructor(readonly pci: HostilePci) {}

  /**
   * Writes a message into the buffers that are offered; false when there are too few. `lie` changes what is said of a
   * buffer.
   */
  send(bytes: Uint8Array, lie: (length: number) => number = (length) => length): boolean {
    const queue = this.pci.queue(Queue.TO_DEVICE);
    let sent = 0;
    while (queue && sent < bytes.length && this.#next(queue)) {
      const count = Math.min(bytes.length - sent, queue.writable);
      queue.write(0, bytes, sent, count);
      queue.complete(lie(count));
      sent += count;
    }
    this.pci.raise();
    return sent === bytes.length;
  }

  /** Takes what the device process sent, which is always well-formed. */
  take(): void {
    const queue = this.pci.queue(Queue.FROM_DEVICE);
    while (queue && this.#next(queue)) {
      queue.read(0, this.#in, this.#have, queue.readable);
      this.#have += queue.readable;
      queue.complete(0);
      const { size } = Header.view(new DataView(this.#in.buffer));
      if (this.#have < Header.size || size < Header.size || size > MAX_MESSAGE || this.#have > size) {
        assert.ok(this.corrupted, `a message of ${size} bytes in ${this.#have}`);
        this.#have = 0;
        continue;
      }
      if (this.#have < size) continue;
      this.received.push(Buffer.from(this.#in.subarray(0, size)));
      this.#have = 0;
    }
  }

  /** Answers requests of the copy queue, of which a few get what they should not. */
  copy(random: Choices): void {
    const queue = this.pci.queue(Queue.COPY);
    while (queue && !random.chance(3) && this.#next(queue)) {
      const { writable } = queue;
      const errno = random.chance(90) ? 0 : oddNumber(random, 4);
      if (writable >= CopyStatus.size) queue.write(0, CopyStatus.encode({ errno }), 0, CopyStatus.size);
      const used = errno === 0 ? writable : CopyStatus.size;
      queue.complete(random.chance(99.5) ? used : oddNumber(random, 4));
    }
    this.pci.raise();
  }

  #next(queue: DeviceQueue): boolean {
    try {
      return queue.next();
    } catch (error) {
      if (!this.corrupted || !(error instanceof QueueBroken)) throw error;
      return false;
    }
  }
}

const headerOf = (message: Buffer) => Header.view(new DataView(message.buffer, message.byteOffset, Header.size));
const isCommand = (message: Buffer) => (headerOf(message).flags & HeaderFlags.TYPE_MASK) === HeaderFlags.TYPE_COMMAND;

/** An honest bridge's answer to a command of the device process's. */
function honestReply(message: Buffer): Uint8Array {
  const { id, command } = headerOf(message);
  if (command === LinkCommand.ALLOCATE_MEMORY) {
    const body = MemoryAllocated.encode({ handle: id + 1 });
    const areas = message.readUInt32LE(Header.size + AllocateMemory.offsets.areas);
    const places = Buffer.alloc(8 * areas);
    for (let n = 0; n < areas; n++) places.writeUInt32LE(0x1000 * (id + n), 8 * n);
    return pack(id, command, HeaderFlags.TYPE_REPLY, Buffer.concat([body, places]));
  }
  if (command === LinkCommand.ALLOCATE_EVENTS) {
    const count = message.readUInt32LE(Header.size + AllocateEvents.offsets.count);
    const handles = Uint32Array.from({ length: count }, (_, n) => FIRST_EVENT + n);
    return pack(id, command, HeaderFlags.TYPE_REPLY, new Uint8Array(handles.buffer));
  }
  if (command !== Command.DMA_READ && command !== Command.DMA_WRITE) {
    return pack(id, command, HeaderFlags.TYPE_REPLY, new Uint8Array(0));
  }
  const fixed = message.subarray(Header.size, Header.size + DmaAccess.size);
  const count = command === Command.DMA_READ ? fixed.readUInt32LE(DmaAccess.offsets.count) : 0;
  return pack(id, command, HeaderFlags.TYPE_REPLY, Buffer.concat([fixed, Buffer.alloc(count, 7)]));
}

function hostileReply(random: Choices, message: Buffer): Uint8Array {
  const { command } = headerOf(message);
  const isDma = command === Command.DMA_READ || command === Command.DMA_WRITE;
  if (isDma && random.chance(50)) return dmaReply(random, message).bytes;
  const reply = honestReply(message);
  const places = Header.size + MemoryAllocated.size;
  if (command === LinkCommand.ALLOCATE_MEMORY && random.chance(20)) spoil(random, reply, MemoryArea, places - 8);
  if (random.chance(10)) spoil(random, reply, Header);
  return random.chance(3) ? bend(random, reply) : reply;
}

/** A command as a bridge sends it, with a mistake now and then. */
function hostileMessage(random: Choices, id: number, fds: FdPool): Uint8Array {
  const address = 0x1_0000 * random.below(32);
  const size = 0x1000 * random.between(1, 16);
  const make = random.weighted<() => [number, { size: number; offsets: Record<string, number> }, Uint8Array]>([
    [
      3,
      () => {
        const flags = random.between(1, 3) | random.pick([0, DmaMapFlags.MMAP, DmaMapFlags.MMAP, DmaMapFlags.FILE_IO]);
        const offset = 0x1000 * random.below((WINDOW_SIZE - size) / 0x1000 + 1);
        return [Command.DMA_MAP, DmaMap, DmaMap.encode({ argsz: DmaMap.size, flags, offset, address, size })];
      },
    ],
    [2, () => [Command.DMA_UNMAP, DmaUnmap, DmaUnmap.encode({ argsz: DmaUnmap.size, address, size })]],
    [
      2,
      () => {
        const count = random.between(0, 8);
        const bells = Array.from({ length: count }, () => random.pick([0, 1, 8, 9, NO_DOORBELL]));
        const flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER;
        const fixed = IrqSet.encode({ argsz: IrqSet.size + 4 * count, flags, index: Irq.MSIX, count });
        return [Command.DEVICE_SET_IRQS, IrqSet, Buffer.concat([fixed, Buffer.from(Uint32Array.from(bells).buffer)])];
      },
    ],
    [
      1,
      () => [
        LinkCommand.CLIENT_CONNECTED,
        ClientConnected,
        ClientConnected.encode({ generation: id, maxDataXferSize: random.pick([1, 4096, 0x10_0000]) }),
      ],
    ],
    [2, () => [LinkCommand.IO_EVENT, IoEvent, IoEvent.encode({ handle: FIRST_EVENT + random.below(4) })]],
    [1, () => [LinkCommand.CLIENT_GONE, ClientGone, ClientGone.encode({ generation: id })]],
  ]);
  if (random.chance(60)) return clientCommand(random, id, fds).bytes;
  const [command, layout, body] = make();
  if (random.chance(25)) spoil(random, body, layout);
  const message = pack(
    id,
    command,
    random.chance(5) ? HeaderFlags.NO_REPLY : 0,
    random.chance(5) ? bend(random, body) : body,
  );
  if (random.chance(2)) spoil(random, message, Header);
  return random.chance(1) ? bend(random, message) : message;
}

export function createTarget({ trace, log }: Context): Instance {
  const fds = new FdPool();

  /** A link that is open as far as the bridge lets it; undefined when the library refused the device. */
  async function open(pci: HostilePci, bridge: Bridge, answer: (message: Buffer) => Uint8Array, isolated = false) {
    const refused = (error: unknown) => {
      if (!(error instanceof UserError)) throw error;
      return undefined;
    };
    const link = await createVirtioLink(pci, log, isolated).catch(refused);
    if (!link) return undefined;
    const endpoint = new DeviceEndpoint(new FuzzDevice(), link, log);
    let opening = true;
    let refusal: unknown;
    const opened = endpoint
      .start()
      .then(() => link.open(endpoint))
      .then(
        () => true,
        (error) => {
          refusal = error;
          return false;
        },
      )
      .finally(() => {
        opening = false;
      });
    for (let n = 0; n < 80 && opening; n++) {
      await turn();
      bridge.take();
      for (const message of bridge.received.splice(0)) if (isCommand(message)) bridge.send(answer(message));
    }
    return { link, endpoint, opened, refusal: () => refusal };
  }

  /** Closes the link; whatever it asks is answered. */
  async function close(pci: HostilePci, bridge: Bridge, link: VirtioLink, answers: boolean): Promise<void> {
    let closing = true;
    const closed = link.close().finally(() => {
      closing = false;
    });
    while (closing) {
      await turn();
      if (!answers) break;
      bridge.take();
      for (const message of bridge.received.splice(0)) if (isCommand(message)) bridge.send(honestReply(message));
    }
    await closed;
    pci.close();
  }

  return {
    async round(random) {
      const pci = new HostilePci(random, random.chance(25));
      const bridge = new Bridge(pci);
      const answers = random.fork();
      const opened = await open(pci, bridge, (message) => hostileReply(answers, message), random.chance(50));
      if (!opened) return;
      const { link, endpoint } = opened;
      let lost = false;
      void link.closed.then(() => {
        lost = true;
      });
      if (random.chance(90)) {
        const body = ClientConnected.encode({ generation: 1, maxDataXferSize: 4096 });
        bridge.send(pack(1, LinkCommand.CLIENT_CONNECTED, 0, body));
      }
      for (let id = 2 + random.pick([4, 30, 150]); id > 1 && !lost; id--) {
        const message = hostileMessage(random, id, fds);
        trace.note("send", message);
        const lies = random.chance(1);
        bridge.send(message, lies ? (length) => length + random.between(-2, 2) : undefined);
        if (random.chance(1)) {
          const index = random.below(3);
          trace.note("corrupt used ring", index);
          bridge.corrupted = true;
          pci.corruptUsedRing(random, index);
          pci.raise();
        }
        if (random.chance(40)) await turn();
        bridge.take();
        if (random.chance(70)) bridge.copy(answers);
        for (const received of bridge.received.splice(0)) {
          if (!isCommand(received) || answers.chance(5)) continue;
          const reply = hostileReply(answers, received);
          trace.note("reply", reply);
          bridge.send(reply);
        }
      }
      // What is still asked has its answer now, unless the link is lost: no call stays open.
      if (!lost) {
        for (let n = 0; n < 2; n++) {
          await turn();
          bridge.take();
          bridge.received.length = 0;
        }
        // A message of an unknown type loses any link, when there is a buffer to put it into.
        trace.note("break");
        bridge.send(pack(0, 0, 0xf, new Uint8Array(0)));
      }
      trace.note("close");
      await close(pci, bridge, link, true);
      if (!(await opened.opened)) assert.ok(opened.refusal() instanceof UserError, String(opened.refusal()));
      await endpoint.close();
      fds.endRound();
    },
    async probe() {
      const { Choices } = await import("../choices.js");
      const pci = new HostilePci(new Choices(1), false);
      const bridge = new Bridge(pci);
      const opened = await open(pci, bridge, honestReply);
      assert.ok(opened && (await opened.opened), "an honest bridge was refused");
      const exchange = async (command: number, body: Uint8Array): Promise<Buffer> => {
        assert.ok(bridge.send(pack(77, command, 0, body)));
        for (let n = 0; n < PATIENCE_TURNS; n++) {
          bridge.take();
          for (const message of bridge.received.splice(0)) {
            if (!isCommand(message)) return message;
            bridge.send(honestReply(message));
          }
          await turn();
        }
        throw new Error(`no reply to command ${command}`);
      };
      const body = ClientConnected.encode({ generation: 1, maxDataXferSize: 4096 });
      assert.equal(headerOf(await exchange(LinkCommand.CLIENT_CONNECTED, body)).flags, HeaderFlags.TYPE_REPLY);
      const read = RegionAccess.encode({ offset: 0, region: Region.CONFIG, count: 4 });
      const reply = await exchange(Command.REGION_READ, read);
      assert.equal(reply.readUInt32LE(Header.size + RegionAccess.size), 0x0003_fff4);
      await close(pci, bridge, opened.link, true);
      await opened.endpoint.close();
    },
    close: () => fds.close(),
  };
}
