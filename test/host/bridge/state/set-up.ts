/** A state with something in every part of it, and the descriptors that belong to it. */
import fs from "node:fs";
import type { ExecutionContext } from "ava";
import { describeFd, type FdDescription } from "../../../../host/bridge/state/fd-kinds.js";
import {
  Call,
  FD_KIND,
  fdName,
  IRQ_FLAG,
  LAYOUT,
  MAP_FLAG,
  RING_POSITIONS_SIZE,
  STATE_NAME,
  sessionAt,
  VRING_FLAG,
} from "../../../../host/bridge/state/layout.js";
import { readState } from "../../../../host/bridge/state/read-state.js";
import { callAt, type SessionIdentity, StateMemory } from "../../../../host/bridge/state/state-memory.js";
import { createMemory, eventfd, listen } from "../../../../native/index.js";
import { folder, owned, pair } from "../../../native/helpers.js";

export const IDENTITY: SessionIdentity = {
  socketPath: "/run/a",
  vhostUserSocketPath: "/run/b",
  windowSize: 2 ** 30,
  uuid: Uint8Array.from({ length: 16 }, (_, i) => i),
};

/** Numbers of the descriptors. */
export const FD = { LISTENER: 1, CLIENT: 2, MEMORY: 3, IRQ: 4, KICK: 5, COMING: 6 } as const;

export interface Filled {
  readonly state: StateMemory;
  readonly kept: Map<string, FdDescription>;
  read(): ReturnType<typeof readState>;
}

export function filledState(t: ExecutionContext): Filled {
  const state = StateMemory.create([IDENTITY]);
  owned(t, state.fd);
  const kept = new Map([[STATE_NAME, describeFd(state.fd)]]);
  const [session] = state.sessions;
  const fds = new Map<number, number>([
    [FD.LISTENER, owned(t, listen(`${folder(t)}/socket`, 1))],
    [FD.CLIENT, pair(t)[0]],
    [FD.MEMORY, owned(t, createMemory("ram", 1 << 20, false))],
    [FD.IRQ, owned(t, eventfd(0))],
    [FD.KICK, owned(t, eventfd(0))],
  ]);
  for (const [id, fd] of fds) {
    kept.set(fdName(0, id), describeFd(fd));
    session.slots("fds").add({ id, ...describeFd(fd) });
  }
  session.slots("fds").add({ id: FD.COMING, kind: FD_KIND.EVENTFD }, "pending");

  const maps = session.slots("maps");
  const { READ, WRITE, IN_WINDOW } = MAP_FLAG;
  maps.add({ address: 0, size: 0x10000, fd: FD.MEMORY, flags: READ | WRITE | IN_WINDOW, windowOffset: 0x2000 });
  const gone = maps.add({ address: 0x10000, size: 0x1000, flags: READ }) ?? 0;
  maps.add({ address: -4096, size: 4096, fd: 0, flags: READ | WRITE });
  maps.remove(gone);
  session.slots("irqs").add({ index: 2, vector: 7, fd: FD.IRQ, flags: IRQ_FLAG.MASKED });
  session.slots("commands").add({ id: 12, clientId: 5, command: 9, region: 0, offset: 0x1000, count: 4 });
  const vring = { index: 1, size: 64, flags: VRING_FLAG.STARTED, descriptors: 4096, kick: FD.KICK };
  const vrings = session.slots("vrings");
  vrings.replace(vrings.add({ ...vring, flags: 0 }) ?? 0, vring);
  session.slots("memory").add({ guestAddress: 0, userAddress: 2 ** 46, size: 1 << 20, fd: FD.MEMORY });

  session.pair("client").write({ socket: 0 });
  session.pair("client").write({ socket: FD.CLIENT, generation: 3, major: 0, minor: 1, pageSizes: 4096 });
  session.pair("device").write({ generation: 2, state: 4, features: 0x1_0000_0001n });
  // Near the end of the ring, and of 32 bits; two bytes wait, three are not sent.
  const received = 2 ** 32 - 1;
  session.pair("clientStream").write({ received, handled: received - 2, queued: 10, sent: 7 });
  const { bytes } = state;
  const at = sessionAt(0);
  new Uint8Array(bytes.buffer, at + LAYOUT.received.client + 2 ** 21 - 3, 3).set([1, 2, 3]);
  new Uint8Array(bytes.buffer, at + LAYOUT.received.client, 2).set([4, 5]);
  new Uint8Array(bytes.buffer, at + LAYOUT.unsent.client + 7, 3).set([6, 7, 8]);
  // A call that the kernel completed, and whose result nobody took; the other one was not made since.
  bytes.setWord(callAt(0, "client", "receive"), 1);
  bytes.store(callAt(0, "client", "receive") + Call.offsets.result, 3);
  bytes.setWord(callAt(0, "client", "send"), 0);
  bytes.store(callAt(0, "client", "send") + Call.offsets.result, 2);
  bytes.setWord(at + LAYOUT.rings + RING_POSITIONS_SIZE, 17);
  bytes.setWord(at + LAYOUT.rings + RING_POSITIONS_SIZE + 8, 16);
  state.countAttempt();
  return { state, kept, read: () => readState(bytes, fs.fstatSync(state.fd).size, [IDENTITY], kept) };
}
