/** A session of the bridge, as the control socket and metrics show it. */
import type { ShownSession } from "../../shared/control/sessions.js";
import { UserError } from "../../shared/errors.js";
import type { BridgeLink } from "./link/bridge-link.js";
import type { Session } from "./session.js";

/** `sockets`: how the session is reached, as the command line has it. */
export function showSession(name: string, session: Session, sockets: object): ShownSession {
  const { server, link, window } = session.parts;
  return {
    name,
    overview() {
      const { state, client } = link.inspect();
      return {
        client: server.stats.connected,
        device: state,
        draining: server.isDraining,
        maps: client?.maps ?? 0,
        mappedBytes: client?.mappedBytes ?? 0,
        windowMaps: client?.mapsInWindow ?? 0,
        sockets: Object.values(sockets).map(String),
      };
    },
    maps: () => link.inspect().client?.firstMaps ?? [],
    counts: () => session.statistics(),
    commands: () => server.commands,
    measure: (latencies) => session.measure(latencies),
    inspect: async () => ({ ...sockets, ...session.inspect(), inDeviceVm: await inspectDevice(link) }),
    disconnect: () => server.disconnect("disconnected by the operator"),
    drain: (isDraining) => {
      server.isDraining = isDraining;
    },
    doorbells: () => link.inspect().doorbells,
    rings: () => ({ window: window.inspect(), frontEnd: session.parts.backEnd?.inspect() ?? null }),
  };
}

/** Or why it is not known. */
async function inspectDevice(link: BridgeLink): Promise<unknown> {
  try {
    return await link.inspectDevice();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    return { unknown: error.message };
  }
}
