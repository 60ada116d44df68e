/** The control state of a session: all that is in it, and what of its maps the next bridge makes. */
import type { MemoryMap } from "../../shared/vfio-user/backend.js";
import type { RestoredEntry } from "../../shared/vfio-user/dma/dma-maps.js";
import { windowPart } from "../../shared/vfio-user/dma/dma-ranges.js";
import type { ClientKeeper, SavedClient } from "../../shared/vfio-user/kept-client.js";
import type { SavedLink } from "./link/saved-link.js";
import type { FdKeeper } from "./state/fd-keeper.js";
import { FD_KIND, MAP_FLAG } from "./state/layout.js";
import type { SavedState } from "./state/read-state.js";
import { StateError } from "./state/state-bytes.js";
import type { StateMemory } from "./state/state-memory.js";
import type { SavedBackEnd } from "./vhost-user/back-end-device.js";
import type { SavedRegion } from "./vhost-user/memory.js";
import type { SavedWindow } from "./vhost-user/window-request.js";

/** Of the form below: a bridge of another one does not go on. */
export const CONTROL_VERSION = 1;

export interface SavedSession {
  readonly version: typeof CONTROL_VERSION;
  /** Numbers of the sockets that listen, vfio-user's and vhost-user's. */
  readonly listeners: readonly [vfioUser: number, vhostUser: number];
  readonly server: SavedClient | null;
  readonly frontEnd: SavedBackEnd | null;
  readonly memory: readonly SavedRegion[];
  readonly window: SavedWindow;
  readonly link: SavedLink;
}

/** Undefined for a session that never began. @throws StateError for what another build wrote */
export function savedSession(control: unknown): SavedSession | undefined {
  if (control === undefined) return undefined;
  const saved = control as SavedSession;
  if (typeof saved !== "object" || saved?.version !== CONTROL_VERSION) {
    throw new StateError("its control state is of another version");
  }
  return saved;
}

/** What a server keeps of its client. */
export function clientKeeper(state: StateMemory): ClientKeeper {
  const { fds, control } = state;
  return {
    client: state.stream("client"),
    twin: state.stream("twin"),
    commit: () => control.commit(),
    accepted: (fd) => state.accepted("client", fd),
    known: () => state.known("client"),
    keep: (fd) => fds.keep(fd),
    take: (id) => fds.take(id, FD_KIND.SOCKET),
    touch: () => control.touch(),
  };
}

/** Maps that were noted; `isThere`: the client has not given them up. @throws StateError */
export function restoredMaps({ slots }: SavedState, fds: FdKeeper) {
  return slots.maps.map(({ slot, values }) => {
    const { flags, address, size, fd, fdOffset, pageSize, backed, position } = values;
    const isThere = (flags & MAP_FLAG.UNRELEASED) === 0;
    const entry: RestoredEntry = {
      ...{ address, size, fdOffset, pageSize, backed, position },
      readable: (flags & MAP_FLAG.READ) !== 0,
      writable: (flags & MAP_FLAG.WRITE) !== 0,
      isShareable: (flags & MAP_FLAG.SHAREABLE) !== 0,
      fd: fd === 0 ? -1 : fds.take(fd, FD_KIND.MEMORY),
    };
    return { entry, isThere, record: { slot, values } };
  });
}

/** One that its client gave up. */
export function releasedMap(entry: RestoredEntry): MemoryMap {
  const { fdOffset, backed, pageSize } = entry;
  return {
    ...entry,
    ...{ isMemory: false, device: 0, inode: 0, isHeld: false, windowOffset: -1 },
    windowPart: windowPart(fdOffset, backed, pageSize),
  };
}
