/** The twin socket: agreed on, used for DMA by message, and what happens when it is not what it should be. */
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { eventfd, listen, socketPair } from "../../../../native/index.js";
import { Errno, PeerGone, ProtocolError } from "../../../../shared/errors.js";
import { Command, DmaAccess, HeaderFlags } from "../../../../shared/spec/vfio-user.js";
import type { ClientMemory } from "../../../../shared/vfio-user/backend.js";
import { Client } from "../../../../shared/vfio-user/client/client.js";
import { readThroughDma } from "../fake-backend.js";
import { copies, Fixture, until } from "../fixture.js";
import { isError, message, RawClient, versionBody } from "../raw-client.js";
import { usable } from "../raw-requests.js";

const O_PATH = 0o10000000;
const OFFER = versionBody('{"capabilities":{"max_msg_fds":1,"twin_socket":{"supported":true}}}');
const json = (body: Buffer) => JSON.parse(body.subarray(4, -1).toString()).capabilities.twin_socket;

/** A client without manners that has a twin socket. */
async function twins(t: ExecutionContext, fixture: Fixture) {
  const raw = fixture.connectRaw();
  const reply = await raw.exchange(message(Command.VERSION, OFFER));
  t.deepEqual(json(reply.body), { supported: true, fd_index: 0 });
  t.is(reply.fds.length, 1);
  const twin = new RawClient(reply.fds[0]);
  t.teardown(() => twin.close());
  return { raw, twin };
}

/** To fstat it is a socket; it can neither be polled nor read. */
function pathOfSocket(): number {
  const directory = mkdtempSync(join(tmpdir(), "twin-"));
  const path = join(directory, "socket");
  const listener = listen(path, 1);
  const fd = openSync(path, O_PATH);
  closeSync(listener);
  rmSync(directory, { recursive: true });
  return fd;
}

function memoryOf(fixture: Fixture): ClientMemory {
  const { memory } = fixture.backend;
  if (memory === undefined) throw new Error("not connected");
  return memory;
}

/** Refuses the DMA_READ of 2^32 bytes that asks for the layout. */
async function answerProbe(twin: RawClient): Promise<void> {
  const { id, command } = await twin.receive();
  twin.send(message(command, undefined, { id, flags: 0x21, errno: Errno.EINVAL }));
}

for (const dmaLayout of ["specification", "qemu"] as const) {
  test(`DMA goes over the twin socket, as ${dmaLayout} lays it out`, async (t) => {
    const fixture = new Fixture(t);
    const client = await fixture.connect({ dmaLayout, capabilities: { twinSocket: true, maxDataXferSize: 0x1000 } });
    t.true(client.hasTwinSocket);
    const bytes = new Uint8Array(0x3000);
    client.registerMemory(0x8000, bytes);
    const source = Uint8Array.from({ length: 0x2800 }, (_, index) => index % 251);
    await memoryOf(fixture).write(0x8010, source);
    t.deepEqual(bytes.slice(0x10, 0x2810), source);
    const target = new Uint8Array(0x2800);
    await memoryOf(fixture).read(0x8010, target);
    t.deepEqual(target, source);
    t.like(await t.throwsAsync(memoryOf(fixture).read(0x7fff, target)), { errno: Errno.EFAULT });
  });
}

test("commands that need DMA, more of them than wait on one socket", async (t) => {
  const fixture = new Fixture(t);
  const client = await fixture.connect({ capabilities: { twinSocket: true } });
  client.registerMemory(0x1000, Uint8Array.of(7, 8, 9, 10));
  fixture.backend.onCommand = (command) => readThroughDma(fixture.backend, command, 0x1001);
  const reads = Array.from({ length: 1000 }, (_, index) => client.regionRead(0, index, 2));
  for (const read of reads) t.deepEqual(await read, Uint8Array.of(8, 9));
});

test("no DMA command comes over the first socket", async (t) => {
  const fixture = new Fixture(t);
  const { raw, twin } = await twins(t, fixture);
  const target = new Uint8Array(4);
  const read = memoryOf(fixture).read(0x1000, target);
  await answerProbe(twin);
  const request = await twin.receive();
  t.is(request.command, Command.DMA_READ);
  t.true(await usable(raw), "whose reply is the next message");
  const body = Buffer.concat([DmaAccess.encode({ address: 0x1000, count: 4 }), Buffer.from("twin")]);
  twin.send(message(Command.DMA_READ, body, { id: request.id, flags: HeaderFlags.TYPE_REPLY }));
  await read;
  t.is(Buffer.from(target).toString(), "twin");
});

for (const [name, offer] of [
  ["that does not ask", versionBody('{"capabilities":{"max_msg_fds":16}}')],
  ["that says no", versionBody('{"capabilities":{"max_msg_fds":16,"twin_socket":{"supported":false}}}')],
  ["that takes no fds", versionBody('{"capabilities":{"max_msg_fds":0,"twin_socket":{"supported":true}}}')],
] as const) {
  test(`a client ${name} gets none`, async (t) => {
    const fixture = new Fixture(t);
    const raw = fixture.connectRaw();
    const reply = await raw.exchange(message(Command.VERSION, offer));
    t.is(json(reply.body), undefined);
    t.is(reply.fds.length, 0);
    t.true(await usable(raw));
  });
}

test("a server without it: the client goes on with one socket", async (t) => {
  const fixture = new Fixture(t, { twinSocket: false });
  const client = await fixture.connect({ capabilities: { twinSocket: true } });
  t.false(client.hasTwinSocket);
  client.registerMemory(0, Uint8Array.of(5));
  const target = new Uint8Array(1);
  await memoryOf(fixture).read(0, target);
  t.is(target[0], 5);
});

test("the client closes its end: DMA by message fails, waiting or new, and the session goes on", async (t) => {
  const fixture = new Fixture(t);
  const { raw, twin } = await twins(t, fixture);
  const memory = memoryOf(fixture);
  const target = new Uint8Array(4);
  const reads = [memory.read(0x1000, target), memory.read(0x2000, target)];
  for (const read of reads) read.catch(() => {});
  await answerProbe(twin);
  await twin.receive();
  twin.close();
  for (const read of [...reads, memory.write(0, target)]) {
    t.like(await t.throwsAsync(read, { instanceOf: ProtocolError }), { errno: Errno.ENOTCONN });
  }
  t.true(await usable(raw));
  t.is(fixture.backend.disconnects, 0);
});

test("nonsense on the twin socket ends it alone; a command there is refused", async (t) => {
  const fixture = new Fixture(t);
  const { raw, twin } = await twins(t, fixture);
  const body = DmaAccess.encode({ address: 0, count: 1 });
  t.true(isError(await twin.exchange(message(Command.REGION_READ, body, { id: 3 })), Errno.EINVAL));
  twin.send(message(Command.REGION_READ, body, { flags: HeaderFlags.NO_REPLY }));
  twin.send(message(Command.DMA_READ, body, { id: 9, flags: HeaderFlags.TYPE_REPLY }));
  t.true(isError(await twin.exchange(message(Command.VERSION, OFFER, { id: 4 })), Errno.EINVAL));
  twin.send(message(Command.DMA_READ, undefined, { size: 3, flags: HeaderFlags.TYPE_REPLY }));
  await twin.closedByServer();
  t.like(await t.throwsAsync(memoryOf(fixture).read(0, new Uint8Array(1))), { errno: Errno.ENOTCONN });
  t.true(await usable(raw));
});

test("it ends with the session, from either side", async (t) => {
  const fixture = new Fixture(t);
  const first = await twins(t, fixture);
  first.raw.close();
  await first.twin.closedByServer();
  const second = await twins(t, fixture);
  await fixture.server.close();
  await second.twin.closedByServer();
});

test("a VERSION that wants no reply gets no twin socket either", async (t) => {
  const fixture = new Fixture(t);
  const raw = fixture.connectRaw();
  raw.send(message(Command.VERSION, OFFER, { flags: HeaderFlags.NO_REPLY }));
  t.true(await usable(raw));
  const read = memoryOf(fixture).read(0, new Uint8Array(1));
  read.catch(() => {});
  t.is((await raw.receive()).command, Command.DMA_READ);
  raw.close();
  await t.throwsAsync(read, { instanceOf: PeerGone });
});

for (const [name, capability, makeFds] of [
  ["says that it has one and sends none", { supported: true, fd_index: 0 }, () => []],
  ["does not say which fd it is", { supported: true }, () => socketPair()],
  ["names an fd that is not there", { supported: true, fd_index: 1 }, () => [socketPair()[0]]],
  ["sends something that is no socket", { supported: true, fd_index: 0 }, () => [eventfd(0)]],
  ["sends a socket that is opened as a path only", { supported: true, fd_index: 0 }, () => [pathOfSocket()]],
] as const) {
  test(`the client ends the connection when the server ${name}`, async (t) => {
    const [near, far] = socketPair();
    const server = new RawClient(far);
    const connecting = t.throwsAsync(Client.connect(near, { capabilities: { twinSocket: true } }), {
      instanceOf: ProtocolError,
    });
    const { id, body } = await server.receive();
    t.deepEqual(json(body), { supported: true });
    const fds = [...makeFds()];
    const reply = versionBody(JSON.stringify({ capabilities: { twin_socket: capability } }));
    server.send(message(Command.VERSION, reply, { id, flags: HeaderFlags.TYPE_REPLY }), fds);
    t.like(await connecting, { errno: Errno.EPROTO });
    await server.closedByServer();
    server.close();
    await until(() => fds.every((fd) => copies(fd) === 1));
    for (const fd of fds) closeSync(fd);
    t.pass();
  });
}
