/**
 * Many commands at once, cut anywhere, with DMA by message in between: the whole way from the client to the device and
 * back.
 */
import type { ExecutionContext } from "ava";
import { close, eventfd, eventfdWrite } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { CommandBits, Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, DmaAccess, HeaderFlags, Irq, Region } from "../../../shared/spec/vfio-user.js";
import { Commands, Registers, Statuses } from "../../fakes/copy-device.js";
import { isError, message, RawClient, type RawMessage, versionBody } from "../../shared/vfio-user/raw-client.js";
import { access, irqs, map, sealed, unmap } from "../../shared/vfio-user/raw-requests.js";
import { Random } from "../devices/nvme/random.js";
import { both, type Machine } from "./machine.js";

const BASE = 0x1_0000_0000;
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** In place of the machine's client, one without manners. */
async function rawClient(t: ExecutionContext, { client, socket }: Machine): Promise<RawClient> {
  client.close();
  const raw = new RawClient(socket);
  t.teardown(() => raw.close());
  await raw.exchange(message(Command.VERSION, versionBody('{"capabilities":{"max_msg_fds":16}}')));
  return raw;
}

interface Exchange {
  readonly bytes: Buffer;
  readonly fds?: readonly number[];
  /** What its reply must be like. */
  readonly fits: (reply: RawMessage) => boolean;
}

const fine = ({ flags }: RawMessage) => flags === HeaderFlags.TYPE_REPLY;

/** Commands of all kinds, whose replies show their order; few ids, used again and again. */
function exchanges(memory: number, signal: number): Exchange[] {
  const all: Exchange[] = [];
  const add = (command: number, body: Uint8Array, fits: Exchange["fits"] = fine, fds?: readonly number[]) => {
    const id = all.length % 3;
    const bytes = message(command, body, { id });
    const fitsAll = (reply: RawMessage) => reply.id === id && reply.command === command && fits(reply);
    all.push({ bytes, fits: fitsAll, ...(fds && { fds }) });
  };
  for (let n = 1; n <= 12; n++) {
    add(Command.REGION_WRITE, Buffer.concat([access(Registers.SCRATCH, Region.BAR0, 1), Buffer.of(n)]));
    add(Command.REGION_READ, access(Registers.SCRATCH, Region.BAR0, 1), (reply) => reply.body.at(-1) === n);
    add(Command.DMA_MAP, map({ address: n * MiB, size: PAGE_SIZE }), fine, [memory]);
    add(Command.REGION_READ, access(0, Region.CONFIG, 64), (reply) => reply.body.readUInt16LE(16) === 0xfff4);
    add(Command.DEVICE_SET_IRQS, irqs({ flags: 0x24, index: Irq.MSIX, start: 1, count: 2 }), fine, [signal, signal]);
    add(Command.REGION_READ, access(0xfff, Region.BAR0, 2), (reply) => isError(reply, Errno.EINVAL));
    add(Command.DMA_MAP, map({ address: n * MiB, size: PAGE_SIZE }), (reply) => isError(reply, Errno.EEXIST), [memory]);
    add(Command.DMA_UNMAP, unmap({ address: n * MiB, size: PAGE_SIZE }), (reply) => reply.body.length === 24);
    add(99, Buffer.alloc(8), (reply) => isError(reply, Errno.EINVAL));
  }
  return all;
}

/** Sends pieces, each in one call where the socket takes it; gives the others a turn in between. */
async function sendPieces(raw: RawClient, pieces: readonly { bytes: Uint8Array; fds?: readonly number[] }[]) {
  for (const { bytes, fds } of pieces) {
    await raw.sendAll(bytes, fds);
    await turn();
  }
}

async function checkReplies(t: ExecutionContext, raw: RawClient, all: readonly Exchange[]): Promise<void> {
  for (const [n, { fits }] of all.entries()) {
    const reply = await raw.receive();
    t.true(fits(reply), `reply ${n}: ${JSON.stringify(reply)}`);
  }
}

both(
  "commands of all kinds in one burst: each is answered, in order",
  async (t, machine) => {
    const raw = await rawClient(t, machine);
    const [memory, signal] = [sealed(PAGE_SIZE), eventfd(0)];
    const all = exchanges(memory, signal);
    // One send call has the fds of one message: the bytes of those behind it follow.
    for (const { bytes, fds } of all) raw.send(bytes, fds);
    await checkReplies(t, raw, all);
    eventfdWrite(signal);
    for (const fd of [memory, signal]) close(fd);
  },
  { withFlags: true },
);

both(
  "every byte by itself, the fds with the last one of their message",
  async (t, machine) => {
    const raw = await rawClient(t, machine);
    const [memory, signal] = [sealed(PAGE_SIZE), eventfd(0)];
    const all = exchanges(memory, signal).slice(0, 18);
    const pieces = all.flatMap(({ bytes, fds }) =>
      Array.from(bytes, (_, at) => ({
        bytes: bytes.subarray(at, at + 1),
        ...(fds && at === bytes.length - 1 && { fds }),
      })),
    );
    await sendPieces(raw, pieces);
    await checkReplies(t, raw, all);
    for (const fd of [memory, signal]) close(fd);
  },
  { withFlags: true },
);

both(
  "cut and joined at random, with fds on any part of their message",
  async (t, machine) => {
    const random = new Random();
    t.log(`SEED=${random.seed}`);
    const raw = await rawClient(t, machine);
    const [memory, signal] = [sealed(PAGE_SIZE), eventfd(0)];
    const all = exchanges(memory, signal);
    const pieces: { bytes: Uint8Array; fds?: readonly number[] }[] = [];
    for (const { bytes, fds } of all) {
      const cuts = [0, ...Array.from({ length: random.below(4) }, () => random.below(bytes.length)), bytes.length];
      const parts = [...new Set(cuts)].sort((a, b) => a - b);
      const withFds = random.below(parts.length - 1);
      for (let n = 0; n + 1 < parts.length; n++) {
        const part = { bytes: bytes.subarray(parts[n], parts[n + 1]), ...(fds && n === withFds && { fds }) };
        const last = pieces.at(-1);
        // Behind fds nothing is joined on: they would be taken for those of the message that begins there.
        if (last === undefined || last.fds !== undefined || random.below(2) === 0) pieces.push(part);
        else pieces.splice(-1, 1, { ...part, bytes: Buffer.concat([last.bytes, part.bytes]) });
      }
    }
    await sendPieces(raw, pieces);
    await checkReplies(t, raw, all);
    for (const fd of [memory, signal]) close(fd);
  },
  { withFlags: true },
);

for (const dmaLayout of ["specification", "qemu"] as const) {
  for (const twinSocket of [false, true]) {
    const sockets = twinSocket ? "two sockets" : "one socket";
    both(
      `a reset and an unmap that wait for DMA by message, others behind them: ${dmaLayout}, ${sockets}`,
      async (t, { client, enable, bind, write32, read32, device }) => {
        const bytes = Uint8Array.from({ length: MiB }, (_, n) => n * 7 + (n >> 9));
        client.registerMemory(BASE, bytes);
        await client.mapMemory({ address: BASE, size: MiB });
        await client.mapMemory({ address: 2 * BASE, size: PAGE_SIZE });
        await enable();
        await bind();
        t.is(client.hasTwinSocket, twinSocket);
        const half = MiB / 2;
        for (const wait of ["unmap", "reset"] as const) {
          const expected = bytes.slice(0, half);
          bytes.fill(0, half);
          await client.regionWrite(Region.BAR0, Registers.SOURCE, Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0));
          await client.regionWrite(Region.BAR0, Registers.TARGET, Uint8Array.of(0, 0, 8, 0, 1, 0, 0, 0));
          await write32(Registers.LENGTH, half);
          const order: string[] = [];
          let atReply = new Uint8Array(0);
          const work = [
            write32(Registers.COMMAND, Commands.COPY),
            (wait === "reset" ? client.reset() : client.unmapMemory(2 * BASE, PAGE_SIZE)).then(() => {
              order.push(wait);
              atReply = bytes.slice(half);
            }),
          ];
          const reads = Array.from({ length: 64 }, () => read32(Registers.STATUS));
          void reads[0].then(() => order.push("read"));
          await Promise.all(work);
          const statuses = await Promise.all(reads);
          t.deepEqual(bytes.slice(half), wait === "reset" ? atReply : expected, "nothing was done after the reply");
          t.deepEqual(order, [wait, "read"]);
          t.deepEqual(new Set(statuses), new Set([wait === "reset" ? Statuses.IDLE : Statuses.DONE]));
          await enable();
        }
        t.true(device.events.includes("quiesce"));
      },
      // The client is in this process, which may be slow.
      { client: { dmaLayout, capabilities: { twinSocket } }, withFlags: true, dmaAnswerMs: 1500 },
    );
  }
}

both(
  "a client that does not answer a DMA while it waits for an unmap: the unmap is done, and all goes on",
  async (t, machine) => {
    const raw = await rawClient(t, machine);
    const request = async (command: number, body: Uint8Array) => {
      raw.send(message(command, body, { id: 7 }));
      for (;;) {
        const reply = await raw.receive();
        if (reply.flags !== HeaderFlags.TYPE_COMMAND) return reply;
        dmas.push(reply);
      }
    };
    const dmas: RawMessage[] = [];
    const write = (offset: number, ...bytes: number[]) =>
      request(Command.REGION_WRITE, Buffer.concat([access(offset, Region.BAR0, bytes.length), Uint8Array.from(bytes)]));
    const enable = Buffer.of(CommandBits.MEMORY | CommandBits.BUS_MASTER);
    await request(Command.REGION_WRITE, Buffer.concat([access(ConfigHeader.COMMAND, Region.CONFIG, 1), enable]));
    await request(Command.DMA_MAP, map({ address: MiB, size: PAGE_SIZE }));
    await write(Registers.SOURCE, 0, 0, 0x10, 0);
    await write(Registers.TARGET, 0, 0, 0x10, 0);
    await write(Registers.LENGTH, 16, 0, 0, 0);
    await write(Registers.COMMAND, Commands.COPY, 0, 0, 0);
    while (dmas.length === 0) await request(Command.REGION_READ, access(Registers.STATUS, Region.BAR0, 4));
    t.is((await request(Command.DMA_UNMAP, unmap({ address: MiB, size: PAGE_SIZE }))).flags, HeaderFlags.TYPE_REPLY);
    // Late: what asks for the layout. The read itself is given up, since its map is gone.
    const [probe] = dmas;
    t.is(DmaAccess.view(new DataView(probe.body.buffer, probe.body.byteOffset)).count, 2 ** 32);
    const { id, command } = probe;
    raw.send(message(command, undefined, { id, flags: 0x21, errno: Errno.EINVAL }));
    let status = 0;
    while (status === Statuses.IDLE) {
      status = (await request(Command.REGION_READ, access(Registers.STATUS, Region.BAR0, 4))).body.at(-4) ?? 0;
    }
    t.is(status, Statuses.DMA_ERROR);
    t.is(dmas.length, 1);
  },
  { quiesceDeadlineMs: 80 },
);
