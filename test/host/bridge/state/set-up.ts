/** A state with something in every part of it, and the descriptors that belong to it. */
import type { ExecutionContext } from "ava";
import { describeFd, type FdDescription } from "../../../../host/bridge/state/fd-kinds.js";
import { Call, FD_KIND, LAYOUT, MAP_FLAG, RING_POSITIONS_SIZE } from "../../../../host/bridge/state/layout.js";
import { readState } from "../../../../host/bridge/state/read-state.js";
import { callAt, type SessionIdentity, StateMemory } from "../../../../host/bridge/state/state-memory.js";
import { createMemory, eventfd, listen } from "../../../../native/index.js";
import { folder, owned, pair } from "../../../native/helpers.js";

export const IDENTITY: SessionIdentity = {
  sockets: ["/run/a", "/run/b"],
  windowSize: 2 ** 30,
};
export const UUID = Uint8Array.from({ length: 16 }, (_, i) => i);
export const NUMBER = 4;

/** Numbers of the descriptors. */
export const FD = { LISTENER: 1, CLIENT: 2, MEMORY: 3, IRQ: 4, KICK: 5, COMING: 6 } as const;

export interface Filled {
  readonly state: StateMemory;
  readonly kept: Map<string, FdDescription>;
  read(): ReturnType<typeof readState>;
}

export function filledState(t: ExecutionContext): Filled {
  const state = StateMemory.create(NUMBER, IDENTITY, UUID);
  t.teardown(() => state.close());
  const kept = new Map<string, FdDescription>();
  const fds = new Map<number, number>([
    [FD.LISTENER, owned(t, listen(`${folder(t)}/socket`, 1))],
    [FD.CLIENT, pair(t)[0]],
    [FD.MEMORY, owned(t, createMemory("ram", 1 << 20, false))],
    [FD.IRQ, owned(t, eventfd(0))],
    [FD.KICK, owned(t, eventfd(0))],
  ]);
  for (const [id, fd] of fds) {
    kept.set(String(id), describeFd(fd));
    state.slots("fds").add({ id, ...describeFd(fd) });
  }
  state.slots("fds").add({ id: FD.COMING, kind: FD_KIND.EVENTFD }, "pending");

  const maps = state.slots("maps");
  const { READ, WRITE, IN_WINDOW } = MAP_FLAG;
  maps.add({ address: 0, size: 0x10000, fd: FD.MEMORY, flags: READ | WRITE | IN_WINDOW, windowOffset: 0x2000 });
  const gone = maps.add({ address: 0x10000, size: 0x1000, flags: READ }) ?? 0;
  maps.add({ address: -4096, size: 4096, fd: 0, flags: READ | WRITE });
  maps.remove(gone);
  state.slots("commands").add({ id: 12, clientId: 5, command: 9, region: 0, offset: 0x1000, count: 4 });
  state.pair("windowRequests").write({ sent: 9, sentOffset: 4096, sentSize: 4096 });
  state.pair("windowRequests").write({ sent: 10, sentOffset: 8192, sentSize: 4096 });
  state.pair("unmapped").write({ position: 3, size: 4096 });
  state.control.begin(() => ({ some: "text", n: 5 }));
  state.control.commit();
  state.control.touch();
  state.control.commit();
  // Near the end of the ring, and of 32 bits; two bytes wait, three are not sent.
  const received = 2 ** 32 - 1;
  state.pair("clientStream").write({ received, handled: received - 2, queued: 10, sent: 7 });
  const { bytes } = state;
  new Uint8Array(bytes.buffer, LAYOUT.received.client + 2 ** 21 - 3, 3).set([1, 2, 3]);
  new Uint8Array(bytes.buffer, LAYOUT.received.client, 2).set([4, 5]);
  new Uint8Array(bytes.buffer, LAYOUT.unsent.client + 7, 3).set([6, 7, 8]);
  // A call that the kernel completed, and whose result nobody took; the other one was not made since.
  bytes.setWord(callAt("client", "receive"), 1);
  bytes.store(callAt("client", "receive") + Call.offsets.result, 3);
  bytes.setWord(callAt("client", "send"), 0);
  bytes.store(callAt("client", "send") + Call.offsets.result, 2);
  bytes.setWord(LAYOUT.rings + RING_POSITIONS_SIZE, 17);
  bytes.setWord(LAYOUT.rings + RING_POSITIONS_SIZE + 8, 16);
  state.countAttempt();
  return { state, kept, read: () => readState(bytes, LAYOUT.size, NUMBER, IDENTITY, kept) };
}
