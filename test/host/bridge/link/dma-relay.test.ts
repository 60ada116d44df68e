/** DMA by message at the bridge: how much of it is kept for a client that does not answer. */
import test from "ava";
import type { Channel } from "../../../../host/bridge/link/channel.js";
import { DmaRelay } from "../../../../host/bridge/link/dma-relay.js";
import { TRANSFERS_SIZE, Transfers } from "../../../../host/bridge/state/transfers.js";
import { Errno } from "../../../../shared/errors.js";
import { Command, DmaAccess, HeaderFlags } from "../../../../shared/spec/vfio-user.js";
import type { ClientMemory } from "../../../../shared/vfio-user/backend.js";
import { message } from "../../../fakes/front-end-device.js";

test("transfers of before a reset count as long as the client has not answered them", async (t) => {
  let isPaused = false;
  const errnos: number[] = [];
  const channel = {
    congested: false,
    backlog: 0,
    queuedCount: 0,
    onDrained: () => {},
    pause: () => {
      isPaused = true;
    },
    resume: () => {
      isPaused = false;
    },
    send: (_id: number, _command: number, flags: number, errno: number) => {
      if (flags & HeaderFlags.ERROR) errnos.push(errno);
    },
  };
  const unanswered: (() => void)[] = [];
  const never = () => new Promise<void>((resolve) => unanswered.push(resolve));
  const memory: ClientMemory = { read: never, write: never, abandon: () => {}, settled: never };
  const relay = new DmaRelay(channel as unknown as Channel);
  const bytes = message(1, Command.DMA_READ, 0, DmaAccess.encode({ address: 0x1000, count: 64 }));
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const ask = () => relay.relay(1, Command.DMA_READ, 0, bytes, data, bytes.length, memory, 4096);
  while (!isPaused) ask();
  const most = unanswered.length;
  // The device is reset: the channel starts again and pauses for nobody.
  for (let reset = 0; reset < 3; reset++) {
    relay.drop();
    isPaused = false;
    for (let n = 0; n < 10; n++) ask();
  }
  t.is(unanswered.length, most, "nothing more is kept");
  t.deepEqual(errnos, new Array(30).fill(Errno.EAGAIN));
  for (const answer of unanswered) answer();
  await new Promise((resolve) => setImmediate(resolve));
  ask();
  t.is(unanswered.length, most + 1);
});

test("what was in flight goes on in another process: reads again, writes once, replies once", async (t) => {
  const state = new Uint8Array(TRANSFERS_SIZE);
  const replies: [id: number, errno: number, length: number][] = [];
  const channel = { congested: false, backlog: 0, queuedCount: 7, open: true };
  const rest = { onDrained: () => {}, pause: () => {}, resume: () => {} };
  const send = (id: number, _command: number, _flags: number, errno: number, body: Uint8Array) => {
    replies.push([id, errno, body.length]);
    return true;
  };
  const asChannel = { ...channel, ...rest, send } as unknown as Channel;
  const never = () => new Promise<void>(() => {});
  const ask = (
    relay: DmaRelay,
    id: number,
    command: number,
    address: number,
    data: Uint8Array,
    memory: ClientMemory,
  ) => {
    const body = Buffer.concat([
      DmaAccess.encode({ address, count: command === Command.DMA_READ ? 4 : data.length }),
      data,
    ]);
    const bytes = message(id, command, 0, body);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    relay.relay(id, command, 0, bytes, view, bytes.length, memory, 4096);
  };
  const nothing = new Uint8Array(0);
  const sends: ClientMemory = {
    read: never,
    settled: never,
    abandon: () => {},
    write: (address, _source, sent) => {
      if (address === 0x2000) sent?.();
      return never();
    },
  };
  const before = new DmaRelay(asChannel, new Transfers(state));
  ask(before, 1, Command.DMA_READ, 0x1000, nothing, sends);
  ask(before, 2, Command.DMA_WRITE, 0x2000, Uint8Array.of(1, 2), sends);
  ask(before, 3, Command.DMA_WRITE, 0x3000, Uint8Array.of(3, 4, 5), sends);
  // A reply that was given to the ring, and one that was not.
  const table = new Transfers(state);
  table.load();
  table.answering(table.begin(4, Command.DMA_READ, 0, 0x4000, 4), 7);
  table.answering(table.begin(5, Command.DMA_READ, 0, 0x5000, 4), 8);

  const asked: string[] = [];
  const note = async (what: string) => void asked.push(what);
  const memory: ClientMemory = {
    read: (address) => note(`read ${address.toString(16)}`),
    write: (address, source) => note(`write ${address.toString(16)} ${source.join()}`),
    settled: () => note("settled"),
    abandon: () => {},
  };
  const after = new DmaRelay(asChannel, new Transfers(state));
  after.restore(memory);
  // The last message may come again.
  ask(after, 3, Command.DMA_WRITE, 0x3000, Uint8Array.of(3, 4, 5), memory);
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(asked, ["read 1000", "settled", "write 3000 3,4,5", "read 5000"]);
  t.deepEqual(replies, [
    [1, 0, 20],
    [2, 0, 16],
    [3, 0, 16],
    [5, 0, 20],
  ]);
  t.deepEqual(new Transfers(state).load(), [], "nothing is in flight any more");
  new Transfers(state).begin(6, Command.DMA_READ, 0, 0, 4);
  state[8]++;
  t.throws(() => new DmaRelay(asChannel, new Transfers(state)).restore(memory), { message: /damaged/ });
});
