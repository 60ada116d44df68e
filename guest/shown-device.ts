/** The device of this process, as the control socket and metrics show it. */
import type { ShownSession } from "../shared/control/sessions.js";
import type { DeviceEndpoint } from "./function/endpoint.js";
import type { Link } from "./link/link.js";

const NO_COMMANDS = new Float64Array(0);

/** `sockets`: how the driver VM comes to it. */
export function showDevice(name: string, endpoint: DeviceEndpoint, link: Link, sockets: string[]): ShownSession {
  const { server } = link;
  return {
    name,
    overview() {
      const { mapCount, mappedBytes, mapsInWindow } = endpoint.dma.inspect();
      return {
        client: server?.stats.connected ?? endpoint.isServing,
        device: server === undefined ? "linked" : "local",
        draining: server?.isDraining ?? false,
        maps: mapCount,
        mappedBytes,
        windowMaps: mapsInWindow,
        sockets,
      };
    },
    maps: () => {
      const { maps } = endpoint.dma.inspect();
      return maps.map(({ address, size, readable, writable, windowOffset }) => {
        return { address, size, readable, writable, windowOffset };
      });
    },
    counts: () => ({ ...countsOf(link), ...endpoint.statistics() }),
    commands: () => server?.commands ?? NO_COMMANDS,
    measure: (latencies) => server?.measure(latencies),
    inspect: async () => endpoint.inspect(),
    ...(server === undefined
      ? {}
      : {
          disconnect: () => server.disconnect("disconnected by the operator"),
          drain: (isDraining: boolean) => {
            server.isDraining = isDraining;
          },
        }),
  };
}

/** What the server of a local link did; behind a bridge that is the bridge's. */
function countsOf({ server }: Link): Readonly<Record<string, number>> {
  if (server === undefined) return {};
  const { clients, reads, readsFromMemory, writes, errors, timeouts } = server.stats;
  return { clients, reads, readsFromMemory, writes, errors, timeouts };
}
