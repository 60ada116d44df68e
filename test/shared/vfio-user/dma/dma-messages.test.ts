/** DMA by message with clients that answer late, in another order, wrongly, or slowly; over one socket and over two. */
import test, { type ExecutionContext } from "ava";
import { Errno, ProtocolError } from "../../../../shared/errors.js";
import { KiB, MAX_PENDING_COMMANDS, MiB } from "../../../../shared/limits.js";
import { Command, DmaAccess, Header, HeaderFlags, RegionAccess } from "../../../../shared/spec/vfio-user.js";
import type { ClientMemory } from "../../../../shared/vfio-user/backend.js";
import { DmaMessages } from "../../../../shared/vfio-user/dma/dma-messages.js";
import type { ServerOptions } from "../../../../shared/vfio-user/server.js";
import type { Connection } from "../../../../shared/vfio-user/socket/connection.js";
import { readThroughDma } from "../fake-backend.js";
import { Fixture } from "../fixture.js";
import { message, RawClient, type RawMessage, versionBody } from "../raw-client.js";
import { access, usable } from "../raw-requests.js";

const REPLY = { flags: HeaderFlags.TYPE_REPLY };

interface Setting {
  readonly fixture: Fixture;
  readonly raw: RawClient;
  /** Where DMA goes: the twin socket, or the only one. */
  readonly dma: RawClient;
  readonly memory: ClientMemory;
}

/** A client without manners that refused the DMA_READ of 2^32 bytes which asks for the layout. */
async function setUp(t: ExecutionContext, twin: boolean, options: Partial<ServerOptions> = {}): Promise<Setting> {
  const fixture = new Fixture(t, options);
  const raw = fixture.connectRaw();
  const capabilities = { max_msg_fds: 1, twin_socket: { supported: twin } };
  const { fds } = await raw.exchange(message(Command.VERSION, versionBody(JSON.stringify({ capabilities }))));
  const dma = twin ? new RawClient(fds[0]) : raw;
  t.teardown(() => dma.close());
  const { memory } = fixture.backend;
  if (memory === undefined) throw new Error("not connected");
  const first = memory.read(0, new Uint8Array(1));
  await refuse(dma, await dma.receive());
  const { id, body } = await dma.receive();
  dma.send(message(Command.DMA_READ, Buffer.concat([body, Buffer.alloc(1)]), { id, ...REPLY }));
  await first;
  return { fixture, raw, dma, memory };
}

async function refuse(dma: RawClient, { id, command }: RawMessage): Promise<void> {
  dma.send(message(command, undefined, { id, flags: HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno: Errno.EINVAL }));
}

/** Enough for what was sent to be dealt with. */
async function turns(): Promise<void> {
  for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
}

/** The reply to a DMA_READ, or to a DMA_WRITE. */
function answer({ id, command, body }: RawMessage, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return message(command, Buffer.concat([body.subarray(0, DmaAccess.size), data]), { id, ...REPLY });
}

for (const twin of [false, true]) {
  const over = twin ? "over a twin socket" : "over one socket";

  test(`${over}: a transfer of several messages is over when none of them touches its bytes any more`, async (t) => {
    const { dma, memory } = await setUp(t, twin);
    const target = new Uint8Array(64 * KiB);
    let isOver = false;
    const read = memory.read(0x1000, target).finally(() => {
      isOver = true;
    });
    const [first, second] = [await dma.receive(), await dma.receive()];
    await refuse(dma, first);
    await turns();
    t.false(isOver);
    dma.send(answer(second, Buffer.alloc(32 * KiB, 7)));
    await t.throwsAsync(read, { message: /refused/ });
    t.deepEqual([target[0], target[32 * KiB]], [0, 7]);
  });

  test(`${over}: replies in any order, and to nothing`, async (t) => {
    const { raw, dma, memory } = await setUp(t, twin);
    const targets = [1, 2, 3].map(() => new Uint8Array(4));
    const reads = targets.map((target, n) => memory.read(0x1000 * n, target));
    const requests = [await dma.receive(), await dma.receive(), await dma.receive()];
    t.is(new Set(requests.map(({ id }) => id)).size, 3);
    const [first, second, third] = requests;
    dma.send(answer(third, Buffer.from("3333")));
    // Another id, and the right one with another command: neither is a reply to anything.
    dma.send(answer({ ...first, id: 0xbeef }, Buffer.from("xxxx")));
    dma.send(answer({ ...first, command: Command.DMA_WRITE }, Buffer.from("xxxx")));
    dma.send(answer(first, Buffer.from("1111")));
    dma.send(answer(first, Buffer.from("xxxx")));
    dma.send(answer(second, Buffer.from("2222")));
    await Promise.all(reads);
    t.deepEqual(
      targets.map((target) => Buffer.from(target).toString()),
      ["1111", "2222", "3333"],
    );
    t.true(await usable(raw));
  });

  test(`${over}: a reply after the time-out changes nothing, and the next DMA works`, async (t) => {
    const { raw, dma, memory } = await setUp(t, twin, { replyDeadlineMs: 160 });
    const target = new Uint8Array(4);
    const late = memory.read(0x1000, target);
    const request = await dma.receive();
    t.like(await t.throwsAsync(late, { instanceOf: ProtocolError }), { errno: Errno.ETIMEDOUT });
    const next = memory.read(0x1000, target);
    const again = await dma.receive();
    t.not(again.id, request.id);
    dma.send(answer(request, Buffer.from("late")));
    t.true(await usable(raw));
    t.deepEqual(target, new Uint8Array(4));
    dma.send(answer(again, Buffer.from("next")));
    await next;
    t.is(Buffer.from(target).toString(), "next");
  });

  test(`${over}: many large writes to a client that takes its time`, async (t) => {
    // However slow this machine is: the deadline is not what is tested.
    const { raw, dma, memory } = await setUp(t, twin, { replyDeadlineMs: 600_000 });
    const source = Uint8Array.from({ length: MiB }, (_, n) => n % 253);
    const writes = Array.from({ length: 24 }, (_, n) => memory.write(n * MiB, source));
    for (let n = 0; n < writes.length; n++) {
      const request = await dma.receive();
      t.is(DmaAccess.view(new DataView(request.body.buffer, request.body.byteOffset)).address, n * MiB);
      t.true(request.body.subarray(DmaAccess.size).equals(source));
      dma.send(answer(request));
    }
    await Promise.all(writes);
    t.true(await usable(raw));
  });

  test(`${over}: a command that needs DMA, with as many behind it as may wait`, async (t) => {
    const { fixture, raw, dma } = await setUp(t, twin);
    fixture.backend.onCommand = (command) => readThroughDma(fixture.backend, command, 0x2000);
    const count = 1 + MAX_PENDING_COMMANDS;
    const body = access(0, 0, 1);
    raw.send(
      Buffer.concat(Array.from({ length: count }, (_, id) => message(Command.REGION_READ, body, { id: id % 3 }))),
    );
    for (let n = 0; n < count; n++) {
      dma.send(answer(await dma.receive(), Uint8Array.of(n)));
      const reply = await raw.receive();
      t.is(reply.id, n % 3);
      t.is(reply.body.at(-1), n & 0xff);
    }
  });
}

test("one socket, more commands than may wait behind one that needs DMA: it fails, the rest is served", async (t) => {
  const { fixture, raw } = await setUp(t, false, { replyDeadlineMs: 160 });
  const { backend } = fixture;
  backend.onCommand = (command) => {
    if (backend.commands.length > 1) {
      command.reserve(RegionAccess.size);
      command.reply(RegionAccess.size);
    } else readThroughDma(backend, command, 0x2000);
  };
  const count = 2 + MAX_PENDING_COMMANDS;
  const read = message(Command.REGION_READ, access(0, 0, 1));
  const write = message(Command.REGION_WRITE, access(0, 0, 1, 1));
  raw.send(Buffer.concat([read, ...new Array<Buffer>(count).fill(write)]));
  const request = await raw.receive();
  t.is(request.command, Command.DMA_READ);
  raw.send(answer(request, Uint8Array.of(1)));
  const reply = await raw.receive();
  t.deepEqual([reply.command, reply.body.at(-1)], [Command.REGION_READ, 0xff]);
  for (let n = 0; n < count; n++) t.is((await raw.receive()).command, Command.REGION_WRITE);
});

test("a client that asks for much and reads nothing for now is slowed down, not cut off", async (t) => {
  const fixture = new Fixture(t);
  fixture.backend.device = { regionSizes: [MiB, 0, 0, 0, 0, 0, 0, 0, 0], postedRegions: 0, irqCounts: [] };
  const raw = await fixture.negotiatedRaw();
  const count = 40;
  for (let id = 0; id < count; id++) raw.send(message(Command.REGION_READ, access(0, 0, MiB), { id }));
  // DMA does not wait behind these replies for ever, either.
  const { memory } = fixture.backend;
  const dma = memory?.read(0, new Uint8Array(1));
  dma?.catch(() => {});
  let replies = 0;
  while (replies < count) {
    const next = await raw.receive();
    if (next.command === Command.DMA_READ) await refuse(raw, next);
    else t.is(next.id, replies++);
  }
  t.like(await t.throwsAsync(async () => dma, { instanceOf: ProtocolError }), { errno: Errno.EINVAL });
  t.is(fixture.backend.disconnects, 0);
});

test("a client that did not answer the question for its layout is asked again", async (t) => {
  const fixture = new Fixture(t, { replyDeadlineMs: 160 });
  const raw = await fixture.negotiatedRaw();
  const { memory } = fixture.backend;
  if (memory === undefined) return t.fail();
  const target = new Uint8Array(1);
  const first = t.throwsAsync(memory.read(0, target), { instanceOf: ProtocolError });
  const isProbe = ({ body }: RawMessage) => body.readUInt32LE(12) === 1;
  t.true(isProbe(await raw.receive()));
  t.false(isProbe(await raw.receive()), "the DMA itself");
  t.like(await first, { errno: Errno.ETIMEDOUT });
  const second = memory.read(0, target);
  second.catch(() => {});
  t.true(isProbe(await raw.receive()));
});

test("a process that goes on with a client has other ids, and a reply to the one before is nobody's", async (t) => {
  const sent: { id: number; command: number; body: Uint8Array }[] = [];
  const connection = {
    send(bytes: Uint8Array, offset: number, length: number) {
      const data = new DataView(bytes.buffer, bytes.byteOffset + offset, length);
      const { id, command } = Header.view(data);
      sent.push({ id, command, body: bytes.slice(offset + Header.size, offset + length) });
    },
  } as unknown as Connection;
  const reply = (id: number, flags: number = HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR) => {
    const bytes = new Uint8Array(0);
    const body = { bytes, data: new DataView(bytes.buffer), offset: 0, length: 0, fds: [] };
    return { id, command: Command.DMA_READ, flags, errno: Errno.EINVAL, position: 0, isAgain: false, ...body };
  };
  const ids = new Set<number>();
  for (const life of [0, 1, 2, 63]) {
    const messages = new DmaMessages(connection, MiB, life);
    const read = messages.read(0, new Uint8Array(1));
    const { id } = sent[sent.length - 1];
    t.false(ids.has(id), `id ${id} in life ${life}`);
    for (const other of ids) t.true(messages.handleReply(reply(other)), "a late reply");
    t.is(sent.length, ids.size + 1, "nothing follows from a late reply");
    ids.add(id);
    // The layout is known then, and a reply to nothing is still one.
    t.true(messages.handleReply(reply(id)));
    t.false(messages.handleReply(reply(id)));
    messages.close(new Error("over"));
    await t.throwsAsync(read, { message: "over" });
  }
});
