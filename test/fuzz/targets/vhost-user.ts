/**
 * The bridge's vhost-user back-end against a front-end that sends its messages in any order, with bad memory tables,
 * ring addresses and fds, rewrites the rings, and answers the back-end's requests as it likes. The probe (bridge.ts):
 * the other session goes on, all fds are closed, and stock QEMU's play finds the attacked session in order.
 */

import { setTimeout as delay } from "node:timers/promises";
import { helloSize } from "../../../host/bridge/link/bodies.js";
import { connect, eventfdWrite, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import { ABI_VERSION, Hello, LinkCommand } from "../../../shared/spec/link.js";
import {
  DmaMap,
  NUM_PCI_REGIONS,
  Command as VfioCommand,
  Header as VfioHeader,
  HeaderFlags as VfioHeaderFlags,
} from "../../../shared/spec/vfio-user.js";
import {
  DeviceConfig,
  Features,
  Header,
  HeaderFlags,
  MemoryRegion,
  MemTable,
  Request,
  ShmemMap,
  U64,
  VRING_NO_FD,
  VringAddr,
  VringState,
} from "../../../shared/spec/vhost-user.js";
import { Descriptor } from "../../../shared/spec/virtio.js";
import { TestRing } from "../../fakes/front-end-ring.js";
import { FuzzedBridge } from "../bridge.js";
import type { Choices } from "../choices.js";
import { FdPool } from "../fds.js";
import { bend, cut, disorder, type Layout, type Message, oddNumber, spoil } from "../mutate.js";
import { Peer } from "../peer.js";
import type { Context, Instance } from "../target.js";
import { pack, version } from "../vfio-user-messages.js";

const RAM_SIZE = 0x20_0000;
const RAM_ADDRESS = 0x10_0000;
const USER_ADDRESS = 0x7f00_0000_0000;
const RING_SIZE = 16;
const QUEUES = 6;
/** Where the buffers of the first ring and those of the second are. */
const BUFFERS = 0x10000;
const MESSAGES = 0x80000;
const BUFFER_SIZE = 0x1000;
/** How long the back-end gets to deal with what was sent, before its front-end hangs up. */
const PATIENCE_MS = 40;
/** Both requests that the back-end has are of this size. */
const CHANNEL_MESSAGE_SIZE = Header.size + ShmemMap.size;
/** What stock QEMU agrees to: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, SHMEM. */
const PROTOCOL_FEATURES = (1n << 0n) | (1n << 3n) | (1n << 5n) | (1n << 9n) | (1n << 10n) | (1n << 22n);
const VIRTIO_FEATURES = (1n << 32n) | (1n << 30n);

interface Step extends Message {
  readonly layout: Layout | undefined;
}

/** One device VM: its memory, rings in it, and its eventfds. */
class Machine {
  readonly ram: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly rings: TestRing[];
  readonly kicks: number[];
  /** Our end of the backend request channel, and theirs. */
  readonly channel: [number, number];
  #bufferSlot = 0;
  #messageSlot = 0;

  constructor(
    readonly random: Choices,
    readonly fds: FdPool,
    /** Percent of all messages with a mistake of a kind. */
    readonly mistakes: number,
  ) {
    this.ram = fds.memory(random, RAM_SIZE);
    this.bytes = new Uint8Array(mapFile(this.ram, 0, RAM_SIZE, PROT_READ | PROT_WRITE));
    this.rings = Array.from(
      { length: QUEUES },
      (_, n) => new TestRing(this.bytes.buffer, RAM_ADDRESS, 0x1000 * (n + 1), RING_SIZE),
    );
    this.kicks = this.rings.map(() => fds.eventfd());
    this.channel = fds.sockets();
  }

  /** An empty buffer for the bridge's messages. */
  #offerBuffer(): number {
    const slot = this.#bufferSlot;
    this.#bufferSlot = (slot + 1) % RING_SIZE;
    const at = BUFFERS + slot * BUFFER_SIZE;
    this.rings[0].add(slot, { address: RAM_ADDRESS + at, length: BUFFER_SIZE, writable: true });
    return slot;
  }

  /** A message to the bridge, in one buffer or in two. */
  #say(message: Uint8Array): void {
    const { random } = this;
    const ring = this.rings[1];
    const slot = this.#messageSlot;
    this.#messageSlot = (slot + 2) % RING_SIZE;
    const at = MESSAGES + slot * BUFFER_SIZE;
    this.bytes.set(message.subarray(0, BUFFER_SIZE), at);
    const first = random.chance(80) ? message.length : random.between(0, message.length);
    const buffers = [
      { address: RAM_ADDRESS + at, length: first },
      { address: RAM_ADDRESS + at + first, length: message.length - first },
    ];
    ring.add(slot, ...(first === message.length ? buffers.slice(0, 1) : buffers));
    if (random.chance(4)) spoil(random, this.bytes, Descriptor, ring.descriptors + slot * Descriptor.size);
  }

  /** Buffers, and a device process that says HELLO. */
  prepare(): void {
    for (let n = 0; n < 8; n++) this.#offerBuffer();
    if (this.random.chance(85)) this.#say(this.#hello(this.random.chance(10)));
  }

  /** Does something to a ring. */
  disturb(): void {
    const { random } = this;
    const ring = random.pick(this.rings);
    switch (random.below(5)) {
      case 0:
        this.#offerBuffer();
        break;
      case 1:
        ring.setAvailableIndex(oddNumber(random, 2));
        break;
      case 2:
        random.fill(this.bytes.subarray(ring.available, ring.end));
        break;
      case 3:
        spoil(random, this.bytes, Descriptor, ring.descriptors + random.below(RING_SIZE) * Descriptor.size);
        break;
      default:
        this.#say(this.#message());
    }
  }

  /** Answers what the bridge asks of the device process. */
  answer(): void {
    const { random } = this;
    for (let used = this.rings[0].take(); used; used = this.rings[0].take()) {
      const at = BUFFERS + (used.id % RING_SIZE) * BUFFER_SIZE;
      const { id, command, flags } = VfioHeader.view(new DataView(this.bytes.buffer, at));
      this.#offerBuffer();
      if ((flags & VfioHeaderFlags.TYPE_MASK) !== VfioHeaderFlags.TYPE_COMMAND) continue;
      const reply = pack(id, command, VfioHeaderFlags.TYPE_REPLY, new Uint8Array(0));
      if (random.chance(5)) spoil(random, reply, VfioHeader);
      this.#say(reply);
    }
    for (const kick of this.kicks.slice(0, 2)) eventfdWrite(kick);
  }

  #hello(bad: boolean): Uint8Array {
    const regions = NUM_PCI_REGIONS + this.random.pick([0, 1, 23]);
    const hello = new Uint8Array(helloSize(regions));
    hello.set(Hello.encode({ abiVersion: ABI_VERSION, postedRegions: 1, regions }));
    hello[Hello.size + 1] = 0x40;
    if (bad) spoil(this.random, hello, Hello);
    return pack(1, LinkCommand.HELLO, 0, hello);
  }

  #message(): Uint8Array {
    const { random } = this;
    const command = random.pick([LinkCommand.QUIESCE, VfioCommand.DMA_READ, LinkCommand.CLIENT_CONNECTED]);
    const message = random.chance(20)
      ? this.#hello(random.chance(50))
      : pack(random.below(4), command, random.below(2), new Uint8Array(random.pick([0, 16])));
    if (random.chance(10)) spoil(random, message, VfioHeader);
    return message;
  }

  /** The messages of a device VM from its start to its end, as QEMU sends them. */
  script(): Step[] {
    const steps: Step[] = [];
    const add = (request: number, body: Uint8Array = new Uint8Array(0), layout?: Layout, fds: number[] = []) => {
      const flags = HeaderFlags.VERSION | (this.random.chance(60) ? HeaderFlags.NEED_REPLY : 0);
      const header = Header.encode({ request, flags, size: body.length });
      steps.push({ bytes: Buffer.concat([header, body]), fds, layout });
    };
    const state = (request: number, index: number, num: number) =>
      add(request, VringState.encode({ index, num }), VringState);
    const eventfd = (request: number, index: number, fd = this.fds.eventfd()) =>
      this.random.chance(98)
        ? add(request, U64.encode({ value: index }), U64, [fd])
        : add(request, U64.encode({ value: index | VRING_NO_FD }), U64);
    const rings = this.rings.map((ring, index) => ({ ring, index }));

    add(Request.GET_FEATURES);
    add(Request.GET_PROTOCOL_FEATURES);
    add(Request.SET_PROTOCOL_FEATURES, Features.encode({ value: PROTOCOL_FEATURES }), Features);
    add(Request.GET_QUEUE_NUM);
    add(Request.SET_BACKEND_REQ_FD, undefined, undefined, [this.channel[1]]);
    add(Request.SET_OWNER);
    for (const { index } of rings) {
      eventfd(Request.SET_VRING_CALL, index);
      eventfd(Request.SET_VRING_ERR, index);
    }
    add(Request.GET_SHMEM_CONFIG);
    for (let starts = this.random.between(1, 2); starts > 0; starts--) {
      add(Request.SET_FEATURES, Features.encode({ value: VIRTIO_FEATURES }), Features);
      this.#addMemTable(add);
      for (const { ring, index } of rings) {
        state(Request.SET_VRING_NUM, index, RING_SIZE);
        state(Request.SET_VRING_BASE, index, 0);
        const [descriptors, available, used] = [ring.descriptors, ring.available, ring.used].map(
          (at) => USER_ADDRESS + at,
        );
        add(Request.SET_VRING_ADDR, VringAddr.encode({ index, descriptors, available, used }), VringAddr);
        eventfd(Request.SET_VRING_KICK, index, this.kicks[index]);
        eventfd(Request.SET_VRING_CALL, index);
      }
      for (const { index } of rings) state(Request.SET_VRING_ENABLE, index, 1);
      for (let n = this.random.below(6); n > 0; n--) {
        add(Request.GET_CONFIG, Buffer.concat([DeviceConfig.encode({ size: 80 }), Buffer.alloc(80)]), DeviceConfig);
        add(Request.SET_CONFIG, Buffer.concat([DeviceConfig.encode({ size: 80 }), Buffer.alloc(80)]), DeviceConfig);
        this.#addMemTable(add);
      }
      if (this.random.chance(50)) continue;
      for (const { index } of rings) state(Request.SET_VRING_ENABLE, index, 0);
      for (const { index } of rings) state(Request.GET_VRING_BASE, index, 0);
    }
    return steps;
  }

  #addMemTable(add: (request: number, body: Uint8Array, layout: Layout, fds: number[]) => void): void {
    const { random } = this;
    const regions = [
      { guestAddress: RAM_ADDRESS, size: RAM_SIZE, userAddress: USER_ADDRESS, mmapOffset: 0, fd: this.ram },
    ];
    for (let n = random.chance(70) ? 0 : random.below(8); n > 0; n--) {
      const size = 0x1000 * random.between(1, 16);
      const fd = random.chance(this.mistakes) ? this.fds.any(random) : this.fds.memory(random, size);
      const guestAddress = 0x4000_0000 * n;
      regions.push({ guestAddress, size, userAddress: USER_ADDRESS + guestAddress, mmapOffset: 0, fd });
    }
    const body = Buffer.concat([
      MemTable.encode({ regions: regions.length }),
      ...regions.map(({ fd: _, ...region }) => MemoryRegion.encode(region)),
    ]);
    if (random.chance(this.mistakes))
      spoil(random, body, MemoryRegion, MemTable.size + MemoryRegion.size * random.below(regions.length));
    const fds = regions.map(({ fd }) => fd);
    add(Request.SET_MEM_TABLE, body, MemTable, fds);
  }
}

function spoiled(random: Choices, fds: FdPool, mistakes: number, { bytes, fds: sent, layout }: Step): Message {
  let out: Uint8Array = new Uint8Array(bytes);
  if (layout && random.chance(mistakes)) spoil(random, out, layout, Header.size, random.between(1, 2));
  if (random.chance(mistakes / 4)) spoil(random, out, Header);
  if (random.chance(mistakes / 8)) out = bend(random, out);
  const others = () => Array.from({ length: random.pick([0, 1, 1, 2, 9]) }, () => fds.any(random));
  return { bytes: out, fds: random.chance(mistakes) ? others() : sent };
}

/** A client on the same session, whose maps make the bridge ask the front-end for changes of the window. */
async function sendClient(random: Choices, fds: FdPool, peer: Peer): Promise<void> {
  const messages = [version(random, 0)];
  for (let id = 1; id < 6; id++) {
    const body = DmaMap.encode({ argsz: DmaMap.size, flags: 3, address: id * 0x10_0000, size: 0x1000 });
    messages.push({ bytes: pack(id, VfioCommand.DMA_MAP, 0, body), fds: [fds.memory(random, 0x1000)] });
  }
  for (const message of messages) await peer.send(message);
}

/** Answers on the backend request channel to requests, and to none. */
function channelReplies(random: Choices, received: Buffer): Message[] {
  const requests: number[] = [];
  for (let at = 0; at + CHANNEL_MESSAGE_SIZE <= received.length; at += CHANNEL_MESSAGE_SIZE) {
    requests.push(received.readUInt32LE(at));
  }
  if (random.chance(3)) requests.push(random.pick([2, 9, 10]));
  return requests.map((request) => {
    const body = U64.encode({ value: random.chance(80) ? 0 : 1 });
    const flags = HeaderFlags.VERSION | HeaderFlags.REPLY;
    const bytes = Buffer.concat([Header.encode({ request, flags, size: body.length }), body]);
    if (random.chance(8)) spoil(random, bytes, Header);
    return { bytes, fds: [] };
  });
}

export async function createTarget({ trace }: Context): Promise<Instance> {
  const bridge = await FuzzedBridge.start(trace);
  const fds = new FdPool();
  return {
    async round(random) {
      const mistakes = random.pick([0, 0.5, 2, 8]);
      const machine = new Machine(random, fds, mistakes);
      const peer = new Peer(connect(bridge.path("vhost-user", 0)));
      const client = random.chance(50) ? new Peer(connect(bridge.path("vfio-user", 0))) : undefined;
      if (client) await sendClient(random, fds, client);
      const script = random.chance(5 * mistakes)
        ? disorder(random, disorder(random, machine.script()))
        : machine.script();
      const messages = script.map((step) => spoiled(random, fds, mistakes, step));
      const pieces = random.chance(60) ? messages : cut(random, messages);
      const channel = new Peer(machine.channel[0]);
      const answers = random.fork();
      channel.onBytes = (received) => {
        for (const reply of channelReplies(answers, received)) {
          trace.note("channel", reply.bytes);
          void channel.send(reply);
        }
        return received.length - (received.length % CHANNEL_MESSAGE_SIZE);
      };
      const act = () => {
        channel.drain();
        machine.answer();
      };
      machine.prepare();
      for (const piece of pieces) {
        if (piece.bytes.length === 0) continue;
        trace.note("send", piece.bytes, piece.fds);
        if (!(await peer.send(piece))) break;
        if (random.chance(20)) await peer.linger(2);
        if (random.chance(mistakes)) machine.disturb();
        if (random.chance(mistakes)) fds.shrink(random);
        act();
      }
      // Whoever hangs up before it is answered ends it all; most stay until everything has been dealt with.
      const hasty = random.chance(20);
      for (let n = random.below(PATIENCE_MS); n > 0 && !hasty && !peer.ended; n--) {
        await delay(1);
        peer.drain();
        act();
        if (mistakes > 0 && random.chance(10)) machine.disturb();
      }
      peer.close();
      client?.close();
      fds.endRound();
    },
    probe: () => bridge.probe(),
    fds: () => bridge.fds(),
    memory: () => bridge.memory(),
    async close() {
      await bridge.stop();
      fds.close();
    },
  };
}
