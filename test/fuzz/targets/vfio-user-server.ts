/**
 * The vfio-user server (framing, VERSION, every body, fds) with a real device behind it by the local link: so also the
 * DMA table, the window, SET_IRQS, the device's endpoint and PCI config space. The probe is a client that does all of
 * that right.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import {
  addSeals,
  close,
  connect,
  createMemory,
  eventfd,
  eventfdRead,
  F_SEAL_SHRINK,
  fileStatus,
  mapFile,
  PROT_READ,
  PROT_WRITE,
} from "../../../native/index.js";
import { MAX_MESSAGE_SIZE, MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { Command, Header, HeaderFlags, Irq, NUM_PCI_REGIONS, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { Commands, Registers, Statuses } from "../../fakes/copy-device.js";
import type { Choices } from "../choices.js";
import { FuzzDevice } from "../device.js";
import { FdPool } from "../fds.js";
import { cut, disorder, type Message } from "../mutate.js";
import { Peer } from "../peer.js";
import type { Context, Instance } from "../target.js";
import { dmaReply, hostileCommand, version } from "../vfio-user-messages.js";

const WINDOW = 64 * MiB;
const MAX_ERRNO = 4095;

export async function createTarget({ trace, log }: Context): Promise<Instance> {
  const directory = mkdtempSync(join(tmpdir(), "fuzz-"));
  const socket = join(directory, "device.sock");
  const link = new LocalLink({ socket, log, windowSize: WINDOW });
  const endpoint = new DeviceEndpoint(new FuzzDevice(), link, log);
  await endpoint.start();
  await link.open(endpoint);
  const fds = new FdPool();
  const memory = createMemory("fuzz-probe", MiB, false);
  addSeals(memory, F_SEAL_SHRINK);
  const bytes = new Uint8Array(mapFile(memory, 0, MiB, PROT_READ | PROT_WRITE));
  const doorbell = eventfd(0);
  let probes = 0;

  return {
    async round(random) {
      const peer = new Peer(connect(socket));
      const peers = [peer];
      const replies = random.fork();
      // The server's own commands come over this socket, or over a twin of it.
      const listen = (to: Peer) => {
        to.onBytes = (received) => checkReplies(received, (request) => answers.push([to, dmaReply(replies, request)]));
      };
      const answers: [Peer, Message][] = [];
      listen(peer);
      peer.onFd = (fd) => {
        // Memory and ioeventfds of the device's.
        if (fileStatus(fd).kind !== "socket") return close(fd);
        const twin = new Peer(fd);
        peers.push(twin);
        listen(twin);
      };
      const reads = random.chance(90);
      for (const piece of attack(random, fds)) {
        trace.note("send", piece.bytes, piece.fds);
        if (!(await peer.send(piece))) break;
        if (reads && random.chance(40)) await peer.linger(1);
        if (random.chance(3)) fds.shrink(random);
        const twin = peers.at(1);
        twin?.drain();
        if (twin && random.chance(2)) answers.push([twin, hostileCommand(random, 1, fds)]);
        if (random.chance(1)) twin?.close();
        for (const [to, answer] of answers.splice(0)) await to.send(answer);
      }
      if (reads) await peer.linger(random.below(6));
      assert.ok(peers.length <= 2, "no reply but one carries a socket");
      for (const each of peers) each.close();
      fds.endRound();
    },
    async probe() {
      probes++;
      const client = await Client.connect(socket);
      try {
        await probe(client, memory, bytes, doorbell, probes);
      } finally {
        client.close();
      }
    },
    async close() {
      await link.close();
      await endpoint.close();
      fds.close();
      close(memory);
      close(doorbell);
      rmSync(directory, { recursive: true });
    },
  };
}

function attack(random: Choices, fds: FdPool): Message[] {
  if (random.chance(3)) return cut(random, [{ bytes: random.bytes(random.below(4096)), fds: [] }]);
  const messages: Message[] = random.chance(95) ? [version(random, 0)] : [];
  const count = random.pick([0, 1, 4, 16, 40, 300]);
  for (let id = 1; id <= count; id++) messages.push(hostileCommand(random, id, fds));
  const sent = random.chance(25) ? disorder(random, messages) : messages;
  const pieces = cut(random, sent);
  // Hanging up in the middle of a message.
  const last = pieces.at(-1);
  if (last && random.chance(15)) {
    pieces[pieces.length - 1] = { ...last, bytes: last.bytes.subarray(0, random.below(last.bytes.length)) };
  }
  return pieces.filter((piece) => piece.bytes.length > 0);
}

/**
 * Whole messages in `received` are well-formed; hands over the server's own commands. Returns how many bytes were
 * looked at.
 */
function checkReplies(received: Buffer, command: (message: Buffer) => void): number {
  let at = 0;
  while (received.length - at >= Header.size) {
    const header = Header.view(new DataView(received.buffer, received.byteOffset + at, Header.size));
    const { size, flags, errno } = header;
    assert.ok(size >= Header.size && size <= MAX_MESSAGE_SIZE, `the server sent a message of ${size} bytes`);
    if (received.length - at < size) break;
    const type = flags & HeaderFlags.TYPE_MASK;
    if (type === HeaderFlags.TYPE_COMMAND) {
      assert.ok(header.command === Command.DMA_READ || header.command === Command.DMA_WRITE);
      command(received.subarray(at, at + size));
    } else {
      assert.equal(type, HeaderFlags.TYPE_REPLY);
      const failed = (flags & HeaderFlags.ERROR) !== 0;
      assert.ok(failed ? size === Header.size && errno > 0 && errno <= MAX_ERRNO : errno === 0, `errno ${errno}`);
    }
    at += size;
  }
  return at;
}

async function probe(client: Client, memory: number, bytes: Uint8Array, doorbell: number, n: number): Promise<void> {
  const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  const write = (offset: number, value: number) => client.regionWrite(Region.BAR0, offset, u32(value));
  assert.deepEqual(await client.getInfo(), { flags: 3, numRegions: NUM_PCI_REGIONS + 3, numIrqs: 5 });
  const config = Buffer.from(await client.regionRead(Region.CONFIG, 0, 64));
  assert.equal(config.readUInt32LE(0), 0x0003_fff4);
  assert.equal(config.readUInt16LE(4), 0, "the command register was reset when the last client left");
  await client.regionWrite(Region.CONFIG, 4, Uint8Array.of(6, 0));
  await client.mapMemory({ address: 0x10_0000, size: MiB / 2, fd: memory });
  await client.mapMemory({ address: 0x20_0000, size: PAGE_SIZE, fd: memory, fdOffset: MiB / 2 });
  await client.setIrqs({ index: Irq.MSIX, eventfds: [doorbell, doorbell] });
  bytes.fill(n & 0xff, 0x100, 0x200);
  await write(Registers.SOURCE, 0x10_0100);
  await write(Registers.SOURCE + 4, 0);
  await write(Registers.TARGET, 0x20_0000);
  await write(Registers.TARGET + 4, 0);
  await write(Registers.LENGTH, 0x100);
  await write(Registers.COMMAND, Commands.COPY);
  let status: number;
  do status = Buffer.from(await client.regionRead(Region.BAR0, Registers.STATUS, 4)).readUInt32LE(0);
  while (status === Statuses.IDLE);
  assert.equal(status, Statuses.DONE);
  assert.equal(Buffer.compare(bytes.subarray(MiB / 2, MiB / 2 + 0x100), bytes.subarray(0x100, 0x200)), 0, "the copy");
  assert.ok(eventfdRead(doorbell) >= 1, "no interrupt");
  await client.unmapMemory(0x20_0000, PAGE_SIZE);
  await client.unmapMemory(0x10_0000, MiB / 2);
}
