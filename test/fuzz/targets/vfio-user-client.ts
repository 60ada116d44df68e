/**
 * The vfio-user client against a server that answers anything, asks for any memory, and hangs up at any time. Every
 * call has to end, with a result or with one of the two errors that callers are told of. The probe is an honest server.
 */
import assert from "node:assert/strict";
import { closeSync } from "node:fs";
import { socketPair } from "../../../native/index.js";
import { PeerGone, ProtocolError } from "../../../shared/errors.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  DmaAccess,
  DmaUnmap,
  Header,
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
  WriteMulti,
} from "../../../shared/spec/vfio-user.js";
import { Client, type ClientOptions } from "../../../shared/vfio-user/client/client.js";
import type { Choices } from "../choices.js";
import { FdPool } from "../fds.js";
import { bend, cut, type Layout, type Message, spoil } from "../mutate.js";
import { Peer, turn } from "../peer.js";
import { CANARY, type Context, checkCanary, type Instance } from "../target.js";
import { GOOD_VERSION, pack, version } from "../vfio-user-messages.js";

const MEMORY = { address: 0x1_0000, from: 0x1000, to: 0x3000, size: 0x4000 };

interface Answer {
  readonly layout: Layout | undefined;
  readonly body: Uint8Array;
  readonly fds: readonly number[];
}

const LAYOUTS: Readonly<Record<number, Layout>> = {
  [Command.DMA_UNMAP]: DmaUnmap,
  [Command.REGION_READ]: RegionAccess,
  [Command.REGION_WRITE]: RegionAccess,
  [Command.REGION_WRITE_MULTI]: WriteMulti,
  [Command.DEVICE_FEATURE]: DeviceFeature,
};

/** A region that can be mapped in part: capabilities, and the fd. */
function regionInfo(random: Choices, body: Buffer, fds: FdPool): Answer {
  const { argsz, index } = RegionInfo.view(new DataView(body.buffer, body.byteOffset, RegionInfo.size));
  const areas = random.below(4);
  const next = RegionInfo.size + RegionCapHeader.size + RegionType.size;
  const type = random.chance(50)
    ? [RegionCapHeader.encode({ id: RegionCap.TYPE, version: 1, next }), RegionType.encode({ type: 1, subtype: 2 })]
    : [];
  const caps = Buffer.concat([
    ...type,
    RegionCapHeader.encode({ id: RegionCap.SPARSE_MMAP, version: 1, next: 0 }),
    SparseMmap.encode({ areas }),
    ...Array.from({ length: areas }, (_, n) => SparseMmapArea.encode({ offset: n * 0x2000, size: 0x1000 })),
  ]);
  if (random.chance(30)) spoil(random, caps, RegionCapHeader);
  if (random.chance(30)) spoil(random, caps, SparseMmap, RegionCapHeader.size);
  const needed = RegionInfo.size + caps.length;
  const flags = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;
  const fixed = RegionInfo.encode({ argsz: needed, flags, index, capOffset: RegionInfo.size, size: 0x10000 });
  if (argsz < needed) return { layout: RegionInfo, body: fixed, fds: [] };
  return { layout: RegionInfo, body: Buffer.concat([fixed, caps]), fds: [fds.memory(random, 0x10000)] };
}

/** What an honest server says. */
function honest(random: Choices, command: number, body: Buffer, fds: FdPool): Answer {
  const answer = (bytes: Uint8Array, layout: Layout | undefined = LAYOUTS[command]) => ({
    layout,
    body: bytes,
    fds: [],
  });
  switch (command) {
    case Command.DEVICE_GET_INFO:
      return answer(DeviceInfo.encode({ argsz: 16, flags: 3, numRegions: 9, numIrqs: 5 }), DeviceInfo);
    case Command.DEVICE_GET_REGION_INFO:
      return regionInfo(random, body, fds);
    case Command.DEVICE_GET_IRQ_INFO:
      return answer(IrqInfo.encode({ argsz: 16, flags: 1, index: body.readUInt32LE(8), count: 4 }), IrqInfo);
    case Command.DMA_UNMAP:
      return answer(body);
    case Command.REGION_READ:
      return answer(Buffer.concat([body, random.bytes(body.readUInt32LE(12))]));
    case Command.REGION_WRITE:
      return answer(body.subarray(0, RegionAccess.size));
    case Command.REGION_WRITE_MULTI:
      return answer(body.subarray(0, WriteMulti.size));
    case Command.DEVICE_FEATURE:
      return answer(body);
    case Command.MIG_DATA_READ: {
      const size = random.below(body.readUInt32LE(4) + 1);
      return answer(Buffer.concat([MigData.encode({ argsz: 8 + size, size }), random.bytes(size)]), MigData);
    }
    default:
      return answer(new Uint8Array(0));
  }
}

function hostileReply(random: Choices, request: Buffer, fds: FdPool): Message {
  const { id, command } = Header.view(new DataView(request.buffer, request.byteOffset, Header.size));
  if (command === Command.VERSION) {
    const twin = random.chance(80) ? fds.sockets()[0] : fds.any(random);
    return { ...version(random, id, HeaderFlags.TYPE_REPLY), fds: random.chance(40) ? [twin] : [] };
  }
  const { layout, body, fds: honestFds } = honest(random, command, request.subarray(Header.size), fds);
  let bytes: Uint8Array = new Uint8Array(body);
  let sent = honestFds;
  if (random.chance(20) && layout) spoil(random, bytes, layout);
  if (random.chance(8)) bytes = bend(random, bytes);
  if (random.chance(10)) sent = Array.from({ length: random.below(4) }, () => fds.any(random));
  const failed = random.chance(10);
  const flags = HeaderFlags.TYPE_REPLY | (failed ? HeaderFlags.ERROR : 0);
  const message = pack(id, command, flags, failed && random.chance(80) ? new Uint8Array(0) : bytes, failed ? 22 : 0);
  if (random.chance(5)) spoil(random, message, Header);
  return { bytes: message, fds: sent };
}

/** DMA_READ, DMA_WRITE, and what no server sends. */
function hostileCommand(random: Choices, fds: FdPool): Message {
  const isRead = random.chance(50);
  const count = random.below(0x100);
  const address = MEMORY.address + random.below(MEMORY.to - MEMORY.from - count);
  const fixed = DmaAccess.encode({ address, count });
  if (random.chance(40)) spoil(random, fixed, DmaAccess);
  const body = isRead ? fixed : Buffer.concat([fixed, random.bytes(count)]);
  const command = random.chance(90) ? (isRead ? Command.DMA_READ : Command.DMA_WRITE) : random.below(20);
  const bytes = pack(random.below(0x10000), command, random.chance(10) ? HeaderFlags.NO_REPLY : 0, body);
  return { bytes: random.chance(5) ? bend(random, bytes) : bytes, fds: random.chance(5) ? [fds.any(random)] : [] };
}

/** One call, whose result is of no interest. */
async function call(random: Choices, client: Client): Promise<void> {
  const length = random.pick([0, 1, 4, 8, 4096, 70_000]);
  const fd = random.below(3);
  switch (random.below(11)) {
    case 0:
      return void (await client.getInfo());
    case 1: {
      const region = await client.getRegionInfo(random.below(9));
      if (region.fd !== -1) closeSync(region.fd);
      return;
    }
    case 2:
      return void (await client.getIrqInfo(random.below(5)));
    case 3:
      return client.mapMemory({ address: 0x1000, size: 0x1000, ...(random.chance(50) ? { fd } : {}) });
    case 4:
      return void (await (random.chance(80) ? client.unmapMemory(0x1000, 0x1000) : client.unmapAll()));
    case 5:
      return void (await client.regionRead(0, 16, length));
    case 6:
      return client.regionWrite(0, 16, new Uint8Array(length), random.chance(20));
    case 7:
      return void (await client.writeMulti([{ region: 0, offset: 0, bytes: new Uint8Array(4) }]));
    case 8:
      return void (await client.deviceFeature(0x10001));
    case 9:
      return void (await client.migDataRead(length));
    default:
      return client.reset();
  }
}

/** Errors that the client's callers are told of. */
function expected(error: unknown): void {
  if (!(error instanceof ProtocolError || error instanceof PeerGone)) throw error;
}

/** Hands over whole messages; the client's own are well-formed. */
function messages(received: Buffer, handle: (message: Buffer) => void): number {
  let at = 0;
  while (received.length - at >= Header.size) {
    const size = received.readUInt32LE(at + Header.offsets.size);
    assert.ok(size >= Header.size, `the client sent a message of ${size} bytes`);
    if (received.length - at < size) break;
    handle(received.subarray(at, at + size));
    at += size;
  }
  return at;
}

export function createTarget({ trace }: Context): Instance {
  const fds = new FdPool();

  async function connected(
    peer: Peer,
    theirs: number,
    replies: Message[],
    options: ClientOptions,
  ): Promise<Client | undefined> {
    let client: Client | undefined;
    let settled = false;
    const connecting = Client.connect(theirs, { timeoutMs: 0, ...options })
      .then((result) => {
        client = result;
      }, expected)
      .finally(() => {
        settled = true;
      });
    for (let n = 0; n < 50 && !settled; n++) {
      await turn();
      peer.drain();
      for (const reply of replies.splice(0)) {
        trace.note("reply", reply.bytes, reply.fds);
        await peer.send(reply);
      }
    }
    if (!settled) peer.close();
    await connecting;
    return client;
  }

  return {
    async round(random) {
      const [ours, theirs] = socketPair();
      const peer = new Peer(ours);
      const answers = random.fork();
      const replies: Message[] = [];
      peer.onBytes = (received) =>
        messages(received, (request) => {
          const type = request.readUInt32LE(Header.offsets.flags) & HeaderFlags.TYPE_MASK;
          if (type === HeaderFlags.TYPE_COMMAND && answers.chance(95))
            replies.push(hostileReply(answers, request, fds));
        });
      const client = await connected(peer, theirs, replies, {
        dmaLayout: random.pick(["specification", "qemu"]),
        capabilities: { twinSocket: random.chance(50) },
      });
      if (client) {
        const memory = new Uint8Array(MEMORY.size).fill(CANARY);
        client.registerMemory(MEMORY.address, memory.subarray(MEMORY.from, MEMORY.to));
        const calls: Promise<void>[] = [];
        for (let n = random.pick([4, 20, 60]); n > 0 && !peer.ended; n--) {
          if (random.chance(70)) calls.push(call(random, client).catch(expected));
          const batch = replies.splice(0);
          if (random.chance(15)) batch.push(hostileCommand(random, fds));
          for (const piece of cut(answers, batch)) {
            trace.note("send", piece.bytes, piece.fds);
            if (!(await peer.send(piece))) break;
          }
          await peer.linger(1);
        }
        if (random.chance(50)) client.close();
        peer.close();
        await Promise.all(calls);
        assert.ok((await client.closed) instanceof PeerGone);
        client.close();
        checkCanary(memory, 0, MEMORY.from, "memory in front of what was registered");
        checkCanary(memory, MEMORY.to, MEMORY.size, "memory behind what was registered");
      }
      peer.close();
      fds.endRound();
    },
    async probe() {
      const [ours, theirs] = socketPair();
      const peer = new Peer(ours);
      const replies: Message[] = [];
      peer.onBytes = (received) =>
        messages(received, (request) => {
          const { id, command } = Header.view(new DataView(request.buffer, request.byteOffset, Header.size));
          let body: Uint8Array = Buffer.concat([Uint8Array.of(0, 0, 2, 0), Buffer.from(`${GOOD_VERSION}\0`)]);
          if (command === Command.REGION_READ)
            body = Buffer.concat([request.subarray(Header.size), Uint8Array.of(1, 2, 3)]);
          replies.push({ bytes: pack(id, command, HeaderFlags.TYPE_REPLY, body), fds: [] });
        });
      const client = await connected(peer, theirs, replies, {});
      assert.ok(client, "no connection to an honest server");
      let read: Uint8Array | undefined;
      const reading = client.regionRead(7, 64, 3).then((bytes) => {
        read = bytes;
      });
      for (let n = 0; n < 50 && !read; n++) {
        await turn();
        peer.drain();
        for (const reply of replies.splice(0)) await peer.send(reply);
      }
      await reading;
      assert.deepEqual([...(read ?? [])], [1, 2, 3]);
      client.close();
      peer.close();
    },
    close: () => fds.close(),
  };
}
