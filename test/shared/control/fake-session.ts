/** A session that shows what a test says. */
import type { ShownSession } from "../../../shared/control/sessions.js";
import type { Latencies } from "../../../shared/histogram.js";
import { Command } from "../../../shared/spec/vfio-user.js";

export const MIB = 1024 * 1024;

/** A session whose state is what the test says. */
export function fakeSession(name: string) {
  const commands = new Float64Array(32);
  commands[Command.REGION_READ] = 3;
  let latencies: Latencies | undefined;
  const state = { client: true, draining: false };
  const session: ShownSession = {
    name,
    overview: () => ({ ...state, device: "connected", maps: 1, mappedBytes: MIB, windowMaps: 1, sockets: ["/x"] }),
    maps: () => [{ address: "0x1000", size: MIB, readable: true, writable: false, windowOffset: -1 }],
    counts: () => ({ reads: 3 }),
    commands: () => commands,
    measure: (to) => {
      latencies = to;
    },
    inspect: async () => ({ big: 2n ** 60n, name }),
    disconnect: () => {
      const was = state.client;
      state.client = false;
      return was;
    },
    drain: (isDraining) => {
      state.draining = isDraining;
    },
    doorbells: () => ({ free: 3 }),
    rings: () => [],
  };
  return { session, record: (us: number) => latencies?.record(Command.REGION_READ, us / 1000), state };
}
