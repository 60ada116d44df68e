/** DMA by message at the bridge: how much of it is kept for a client that does not answer. */
import test from "ava";
import type { Channel } from "../../../../host/bridge/link/channel.js";
import { DmaRelay } from "../../../../host/bridge/link/dma-relay.js";
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
