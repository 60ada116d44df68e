/** A state with something in every part of it, and the descriptors that belong to it. */
import type { ExecutionContext } from "ava";
import { describeFd, type FdDescription } from "../../../../host/bridge/state/fd-kinds.js";
import { FD_KIND, LAYOUT, MAP_FLAG } from "../../../../host/bridge/state/layout.js";
import { readState } from "../../../../host/bridge/state/read-state.js";
import { type SessionIdentity, StateMemory } from "../../../../host/bridge/state/state-memory.js";
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
  const { bytes } = state;
  state.countAttempt();
  return { state, kept, read: () => readState(bytes, LAYOUT.size, NUMBER, IDENTITY, kept) };
}
