/** Framing, order, fds and back-pressure of a connection, without a socket. */
import { setImmediate } from "node:timers/promises";
import test from "ava";
import { POLL_DISCONNECT, POLL_READABLE, POLL_WRITABLE } from "../../../../native/index.js";
import type { PeerGone } from "../../../../shared/errors.js";
import { KiB, MAX_MESSAGE_FDS, MAX_MESSAGE_SIZE, MAX_PENDING_COMMANDS } from "../../../../shared/limits.js";
import { FdShare } from "../../../../shared/peer-fds.js";
import { Command, Header, HeaderFlags } from "../../../../shared/spec/vfio-user.js";
import { Share } from "../../../../shared/turn.js";
import { Pending } from "../../../../shared/vfio-user/pending.js";
import { SessionStats } from "../../../../shared/vfio-user/session-stats.js";
import {
  Connection,
  type ConnectionOptions,
  type Frame,
  putHeader,
} from "../../../../shared/vfio-user/socket/connection.js";
import { LOST } from "../../../../shared/vfio-user/socket/receive-buffer.js";
import { message } from "../raw-client.js";
import { FakeSocket, systemError } from "./fake-socket.js";

const FD = 500;
/** Of all peers here: none is to rest for another. */
const SHARE = new Share();
const REPLY = HeaderFlags.TYPE_REPLY;

interface Seen {
  kind: "command" | "reply";
  id: number;
  body: string;
  fds: number[];
}

/** Notes down what a connection hands over, and finishes commands at once unless told otherwise. */
class Peer {
  readonly socket = new FakeSocket();
  readonly seen: Seen[] = [];
  readonly gone: PeerGone[] = [];
  readonly connection: Connection;
  autoFinish = true;
  frame: Frame | undefined;
  onReply: (() => void) | undefined;

  constructor(options: ConnectionOptions = {}) {
    this.connection = new Connection(
      FD,
      {
        command: (frame) => {
          this.#note("command", frame);
          this.frame = frame;
          if (this.autoFinish) this.connection.finish();
        },
        reply: (frame) => {
          this.#note("reply", frame);
          this.onReply?.();
        },
        gone: (reason) => this.gone.push(reason),
      },
      { syscalls: this.socket.syscalls, share: SHARE, ...options },
    );
  }

  readable(): void {
    for (let turns = 0; this.socket.arrivals.length > 0 && this.socket.events & POLL_READABLE; turns++) {
      if (turns > 100_000) throw new Error("it does not read");
      this.socket.emit(POLL_READABLE);
    }
  }

  arrive(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.socket.arrive(bytes, fds);
    this.readable();
  }

  /** Lets the event loop turn until nothing more is handed over. */
  async settled(): Promise<void> {
    for (let before = -1; before !== this.seen.length; ) {
      before = this.seen.length;
      await setImmediate();
    }
  }

  ids(): number[] {
    return this.seen.map(({ id }) => id);
  }

  #note(kind: "command" | "reply", frame: Frame): void {
    const body = Buffer.from(frame.bytes.subarray(frame.offset, frame.offset + frame.length)).toString();
    this.seen.push({ kind, id: frame.id, body, fds: [...frame.fds] });
  }
}

const command = (id: number, body = "") => message(Command.REGION_WRITE, Buffer.from(body), { id });
const reply = (id: number, body = "") => message(Command.DMA_READ, Buffer.from(body), { id, flags: REPLY });

test("several messages in one read, commands and replies in order", (t) => {
  const peer = new Peer();
  peer.arrive(Buffer.concat([command(1, "one"), reply(2, "two"), command(3)]));
  t.deepEqual(peer.seen, [
    { kind: "command", id: 1, body: "one", fds: [] },
    { kind: "reply", id: 2, body: "two", fds: [] },
    { kind: "command", id: 3, body: "", fds: [] },
  ]);
});

test("three messages split at every byte, fds included", (t) => {
  const parts = [command(1, "first body"), command(2, "2"), command(3, "third")];
  const stream = Buffer.concat(parts);
  for (let cut = 1; cut < stream.length; cut++) {
    const peer = new Peer();
    peer.arrive(stream.subarray(0, cut));
    peer.arrive(stream.subarray(cut));
    t.deepEqual(
      peer.seen.map(({ id, body }) => `${id} ${body}`),
      ["1 first body", "2 2", "3 third"],
      `cut at ${cut}`,
    );
  }
  const bytewise = new Peer();
  for (const byte of stream) bytewise.arrive(Uint8Array.of(byte));
  t.deepEqual(bytewise.ids(), [1, 2, 3]);
});

test("fds belong to the last message that begins in what came with them", (t) => {
  const [first, second] = [command(1, "first"), command(2, "second")];
  const both = Buffer.concat([first, second]);
  // The kernel ends a read behind the fds' part, so [.., cut) with fds is all that can be seen.
  for (let cut = 1; cut <= both.length; cut++) {
    const peer = new Peer();
    peer.arrive(both.subarray(0, cut), [10, 11]);
    if (cut < both.length) peer.arrive(both.subarray(cut));
    const owner = cut <= first.length ? 1 : 2;
    for (const { id, fds } of peer.seen) t.deepEqual(fds, id === owner ? [10, 11] : [], `cut at ${cut}, message ${id}`);
    t.deepEqual(peer.socket.closed, [10, 11], "nobody took them");
  }
});

test("fds on any part of a message in progress are the message's", (t) => {
  const peer = new Peer();
  const bytes = command(1, "a body in four parts");
  peer.arrive(bytes.subarray(0, 5), [10]);
  peer.arrive(bytes.subarray(5, 16));
  peer.arrive(bytes.subarray(16, 20), [11, 12]);
  peer.arrive(bytes.subarray(20), [13]);
  t.deepEqual(peer.seen[0].fds, [10, 11, 12, 13]);
});

test("a message whose fds found no room says so, whatever part of it they came with, and goes on", (t) => {
  const seen: boolean[] = [];
  const closed: number[] = [];
  const bytes = command(1, "body");
  const next = (parts: readonly [Uint8Array, number[]][]) => {
    const peer = new Peer({ fds: new FdShare(() => 3) });
    peer.autoFinish = false;
    for (const [part, fds] of parts) peer.arrive(part, fds);
    seen.push(peer.frame?.fds === LOST);
    peer.connection.finish();
    peer.arrive(command(2));
    t.is(peer.frame?.id, 2, "it goes on");
    closed.push(...peer.socket.closed);
  };
  next([[bytes, [10, 11, 12, 13]]]);
  next([
    [bytes.subarray(0, 5), [10, 11]],
    [bytes.subarray(5, 9), [12, 13]],
    [bytes.subarray(9), []],
  ]);
  next([
    [bytes.subarray(0, 5), [20, 21, 22, 23]],
    [bytes.subarray(5), [24]],
  ]);
  next([[bytes, [30, 31, 32]]]);
  t.deepEqual(seen, [true, true, true, false]);
  t.deepEqual(closed, [10, 11, 24, 30, 31, 32]);
});

test("an fd that was taken is not closed", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(command(1), [10, 11]);
  t.is(peer.frame?.fds[0], 10);
  if (peer.frame) peer.frame.fds[0] = -1;
  peer.connection.finish();
  t.deepEqual(peer.socket.closed, [11]);
});

test("commands wait for the one under way; replies do not", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(Buffer.concat([command(1, "kept"), command(2, "queued"), reply(3), command(4), reply(5)]));
  t.deepEqual(peer.ids(), [1, 3, 5]);
  const first = peer.frame;
  t.is(first && Buffer.from(first.bytes.subarray(first.offset, first.offset + first.length)).toString(), "kept");
  peer.connection.finish();
  t.deepEqual(peer.ids(), [1, 3, 5, 2]);
  t.is(peer.seen[3].body, "queued");
  peer.connection.finish();
  peer.connection.finish();
  t.deepEqual(peer.ids(), [1, 3, 5, 2, 4]);
});

test("a reply that finishes the command under way lets the next one in, in order", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.onReply = () => peer.connection.finish();
  peer.arrive(Buffer.concat([command(1), command(2), reply(3), command(4)]));
  t.deepEqual(peer.ids(), [1, 3, 2]);
  peer.connection.finish();
  t.deepEqual(peer.ids(), [1, 3, 2, 4]);
});

test("queued fds stay with their commands, and are closed when the connection ends", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(command(1), [10]);
  peer.arrive(Buffer.concat([command(2), command(3)]), [11]);
  peer.arrive(command(4), [12]);
  peer.arrive(command(5).subarray(0, 10), [13]);
  peer.connection.finish();
  peer.connection.finish();
  t.deepEqual(
    peer.seen.map(({ id, fds }) => [id, ...fds]),
    [[1, 10], [2], [3, 11]],
  );
  peer.connection.close();
  t.deepEqual(
    peer.socket.closed.toSorted((a, b) => a - b),
    [10, 11, 12, 13, FD],
  );
  t.is(peer.gone.length, 1);
});

test("a body under way does not move, however much comes behind it", async (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(command(1, "x".repeat(1000)));
  const frame = peer.frame;
  if (!frame) return t.fail();
  const { bytes, offset } = frame;
  const count = MAX_PENDING_COMMANDS;
  for (let id = 2; id < 2 + count; id++) {
    peer.arrive(command(id, `${id}`.padEnd(1024, ".")));
    peer.arrive(reply(10_000 + id, "r".repeat(3 * KiB)));
  }
  while (peer.seen.filter(({ kind }) => kind === "reply").length < count) {
    await peer.settled();
    peer.readable();
  }
  t.is(Buffer.from(bytes.subarray(offset, offset + 1000)).toString(), "x".repeat(1000));
  peer.autoFinish = true;
  peer.connection.finish();
  await peer.settled();
  const commands = peer.seen.filter(({ kind }) => kind === "command").slice(1);
  t.deepEqual(
    commands.map(({ id, body }) => `${id} ${body}`),
    Array.from({ length: count }, (_, index) => `${index + 2} ${`${index + 2}`.padEnd(1024, ".")}`),
  );
});

test("reading stops at too many waiting commands, and goes on later", async (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  const total = MAX_PENDING_COMMANDS + 40;
  for (let id = 1; id <= total; id++) peer.socket.arrive(command(id));
  peer.readable();
  t.is(peer.socket.events & POLL_READABLE, 0);
  t.is(peer.socket.arrivals.length, total - MAX_PENDING_COMMANDS - 2, "one under way, the queue, and one behind");
  peer.autoFinish = true;
  peer.connection.finish();
  while (peer.seen.length < total) {
    await peer.settled();
    peer.readable();
  }
  t.deepEqual(
    peer.ids(),
    Array.from({ length: total }, (_, index) => index + 1),
  );
});

test("a flood is dealt with in turns, and nothing is received meanwhile", async (t) => {
  const peer = new Peer();
  const count = 4000;
  peer.socket.arrive(Buffer.concat(Array.from({ length: count }, (_, index) => command(index + 1))));
  peer.socket.emit(POLL_READABLE);
  t.true(peer.seen.length > 0 && peer.seen.length <= 128, `${peer.seen.length} at once`);
  t.is(peer.socket.events, POLL_DISCONNECT);
  let turns = 1;
  for (let before = 0; peer.seen.length < count; turns++) {
    t.true(peer.seen.length - before <= 128);
    before = peer.seen.length;
    await setImmediate();
  }
  t.true(turns >= count / 128);
  t.deepEqual(
    peer.ids(),
    Array.from({ length: count }, (_, index) => index + 1),
  );
  await peer.settled();
  t.is(peer.socket.events, POLL_DISCONNECT | POLL_READABLE);
});

test("a connection that is closed between two turns hands over nothing more", async (t) => {
  const peer = new Peer();
  peer.socket.arrive(Buffer.concat(Array.from({ length: 1000 }, (_, index) => command(index))));
  peer.socket.emit(POLL_READABLE);
  peer.connection.close();
  const { length } = peer.seen;
  await peer.settled();
  t.is(peer.seen.length, length);
});

test("reading stops at too many waiting fds", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(command(1));
  const fds = Array.from({ length: MAX_MESSAGE_FDS }, (_, index) => 1000 + index);
  for (let id = 2; id < 6; id++) peer.socket.arrive(command(id), fds);
  peer.readable();
  t.is(peer.socket.events & POLL_READABLE, 0);
  t.is(peer.socket.arrivals.length, 2);
});

test("reading stops at too many waiting bytes, and a peer that hangs up then is gone", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  for (let id = 1; id < 10; id++) peer.socket.arrive(command(id, "b".repeat(MAX_MESSAGE_SIZE - Header.size)));
  peer.readable();
  t.is(peer.socket.events, POLL_DISCONNECT);
  t.true(peer.socket.arrivals.length >= 5);
  peer.socket.emit(POLL_DISCONNECT);
  t.is(peer.gone.length, 1);
});

test("the largest message arrives, one byte more is refused with an error reply", async (t) => {
  const peer = new Peer();
  const large = "l".repeat(MAX_MESSAGE_SIZE - Header.size);
  peer.arrive(Buffer.concat([command(1, large), command(2)]));
  await peer.settled();
  t.deepEqual(peer.ids(), [1, 2]);
  t.is(peer.seen[0].body, large);
  peer.arrive(message(Command.DMA_MAP, Buffer.alloc(0), { id: 77, size: MAX_MESSAGE_SIZE + 1 }));
  const expected = Buffer.alloc(16);
  putHeader(new DataView(expected.buffer, expected.byteOffset), 0, 77, Command.DMA_MAP, 16, 0x21, 22);
  t.deepEqual(Buffer.from(peer.socket.sent), expected);
  t.regex(peer.gone[0].message, /1052673 bytes/);
  t.deepEqual(peer.socket.closed, [FD]);
});

for (const size of [0, 15]) {
  test(`a message of ${size} bytes is refused with an error reply`, (t) => {
    const peer = new Peer();
    peer.arrive(message(Command.DMA_MAP, Buffer.alloc(0), { id: 0xbad1, size }));
    t.is(peer.socket.sent.length, 16);
    t.is(peer.gone.length, 1);
    t.deepEqual(peer.seen, []);
  });
}

test("a message of an unknown type ends the connection, its fds are closed", (t) => {
  const peer = new Peer();
  peer.arrive(message(Command.DMA_MAP, Buffer.alloc(0), { flags: 2 }), [10]);
  t.deepEqual(peer.socket.sent, []);
  t.is(peer.gone.length, 1);
  t.deepEqual(peer.socket.closed, [FD, 10]);
});

test("more fds than a message can have, spread over its bytes, end the connection", (t) => {
  const peer = new Peer();
  const fds = Array.from({ length: 200 }, (_, index) => 1000 + index);
  peer.arrive(command(1).subarray(0, 4), fds);
  peer.arrive(
    command(1).subarray(4, 8),
    fds.map((fd) => fd + 500),
  );
  t.is(peer.gone.length, 1);
  t.is(peer.socket.closed.length, 401);
});

test("the end of the stream, an error, and an end in the middle are all the end", (t) => {
  for (const last of ["end", systemError("ECONNRESET", 104, "recvmsg")] as const) {
    const peer = new Peer();
    peer.arrive(command(1).subarray(0, 9));
    peer.socket.arrivals.push(last);
    peer.socket.emit(POLL_READABLE);
    t.regex(peer.gone[0].message, last === "end" ? /middle of a message/ : /ECONNRESET/);
    t.true(peer.connection.closed);
    t.is(peer.socket.events, 0);
    peer.connection.close();
    t.is(peer.gone.length, 1);
  }
});

test("what the socket does not take waits, with duplicates of its fds, until it is writable", (t) => {
  const peer = new Peer();
  const { socket, connection } = peer;
  socket.takes.push(6, 4, -1);
  const first = command(1, "first");
  connection.send(first, 0, first.length, [10]);
  t.deepEqual(socket.sentFds, [10], "with the first byte");
  t.is(socket.events & POLL_WRITABLE, POLL_WRITABLE);
  const second = command(2, "second");
  connection.send(second, 0, second.length, [11]);
  second.fill(0);
  t.deepEqual(socket.duplicated, [1011]);
  socket.emit(POLL_WRITABLE);
  socket.emit(POLL_WRITABLE);
  t.is(socket.sent.length, 10);
  t.is(socket.events & POLL_WRITABLE, POLL_WRITABLE);
  socket.emit(POLL_WRITABLE);
  t.deepEqual(Buffer.from(socket.sent), Buffer.concat([first, command(2, "second")]));
  t.deepEqual(socket.sentFds, [10, 1011]);
  t.deepEqual(socket.closed, [1011]);
  t.is(socket.events & POLL_WRITABLE, 0);
});

test("many short messages that wait go by few calls, and fds with the message that they are of", (t) => {
  const peer = new Peer();
  const { socket, connection } = peer;
  socket.takes.push(-1);
  const messages: Buffer[] = [];
  for (let id = 0; id < 100; id++) {
    const bytes = command(id, "short");
    messages.push(bytes);
    connection.send(bytes, 0, bytes.length, id === 50 ? [10] : undefined);
  }
  const half = 50 * messages[0].length;
  socket.takes.push(half, half, -1);
  socket.emit(POLL_WRITABLE);
  t.deepEqual(Buffer.from(socket.sent), Buffer.concat(messages));
  t.deepEqual(socket.sentFds, [1010]);
  t.is(socket.events & POLL_WRITABLE, 0);
});

test("a peer that does not read is gone when too much waits; what waited is closed", (t) => {
  const peer = new Peer({ maxSendBacklog: 100 });
  peer.socket.takes.push(-1);
  const bytes = command(1, "x".repeat(34));
  peer.connection.send(bytes, 0, bytes.length, [10]);
  peer.connection.send(bytes, 0, bytes.length);
  t.is(peer.gone.length, 0);
  peer.connection.send(bytes, 0, bytes.length);
  t.is(peer.gone.length, 1);
  t.deepEqual(peer.socket.closed, [1010, FD]);
});

test("a send that fails ends the connection and throws nothing", (t) => {
  const peer = new Peer();
  peer.socket.takes.push(systemError("EPIPE", 32, "sendmsg"));
  peer.connection.sendError(1, 2, 3);
  t.regex(peer.gone[0].message, /EPIPE/);
  peer.connection.sendError(1, 2, 3);
  t.is(peer.gone.length, 1);
});

test("a connection that ends within a command hands over nothing more", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(Buffer.concat([command(1), command(2)]));
  peer.connection.close();
  peer.connection.finish();
  t.deepEqual(peer.ids(), [1]);
});

test("a body that is left alone is not overwritten by what follows", (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  peer.arrive(Buffer.concat([command(1, "left alone"), command(2, "next"), command(3, "partial").subarray(0, 20)]));
  if (!peer.frame) return t.fail();
  const left = new Pending(peer.connection, new SessionStats());
  left.begin(peer.frame, 0);
  left.keepBody();
  peer.autoFinish = true;
  peer.connection.finish();
  peer.arrive(command(3, "partial").subarray(20));
  for (let id = 4; id < 100; id++) peer.arrive(command(id, "o".repeat(1024)));
  const { bytes, data, offset, length } = left;
  t.is(Buffer.from(bytes.subarray(offset, offset + length)).toString(), "left alone");
  t.is(data.getUint8(offset), bytes[offset]);
  t.deepEqual(
    peer.seen.slice(0, 3).map(({ body }) => body),
    ["left alone", "next", "partial"],
  );
});

test("fds stay with their message when it waits before it is looked at", async (t) => {
  const peer = new Peer();
  peer.autoFinish = false;
  const full = Array.from({ length: MAX_PENDING_COMMANDS + 1 }, (_, index) => command(index + 1));
  peer.arrive(Buffer.concat([...full, command(1000, "waits"), command(1001, "has fds")]), [10, 11]);
  peer.autoFinish = true;
  peer.connection.finish();
  await peer.settled();
  t.deepEqual(peer.seen.at(-2), { kind: "command", id: 1000, body: "waits", fds: [] });
  t.deepEqual(peer.seen.at(-1), { kind: "command", id: 1001, body: "has fds", fds: [10, 11] });
});

test("random streams, cuts and finish times give every message once, in order", async (t) => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  t.log(`SEED=${seed}`);
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * below);
  };
  for (let round = 0; round < 30; round++) {
    const peer = new Peer();
    peer.autoFinish = false;
    const expected: string[] = [];
    const parts: Buffer[] = [];
    for (let id = 1; id <= 150; id++) {
      const body = `${id}:`.padEnd(random(random(8) === 0 ? 90_000 : 300), "#");
      const isReply = random(3) === 0;
      parts.push(isReply ? reply(id, body) : command(id, body));
      expected.push(`${isReply ? "reply" : "command"} ${id} ${body}`);
    }
    const stream = Buffer.concat(parts);
    for (let at = 0; at < stream.length; ) {
      const length = 1 + random(random(4) === 0 ? 100_000 : 700);
      peer.socket.arrive(stream.subarray(at, at + length));
      at += length;
    }
    for (let turns = 0; peer.seen.length < expected.length && turns < 100_000; turns++) {
      if (peer.socket.events & POLL_READABLE && random(2) === 0) peer.socket.emit(POLL_READABLE);
      else peer.connection.finish();
      if (turns % 16 === 0) await setImmediate();
    }
    const seen = peer.seen.map(({ kind, id, body }) => `${kind} ${id} ${body}`);
    for (const kind of ["command", "reply"]) {
      const of = (all: string[]) => all.filter((one) => one.startsWith(kind));
      t.deepEqual(of(seen), of(expected));
    }
  }
});
