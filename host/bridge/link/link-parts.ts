/** What the bridge's half of a link is made of, and how the parts know each other. */
import type { Log } from "../../../shared/log.js";
import type { FdShare } from "../../../shared/peer-fds.js";
import type { Share } from "../../../shared/turn.js";
import { AccessPath } from "../../../shared/vfio-user/socket/access-path.js";
import type { ControlState } from "../state/control-state.js";
import type { StateMemory } from "../state/state-memory.js";
import type { DeviceVmMemory } from "../vhost-user/memory.js";
import type { Window } from "../vhost-user/window.js";
import { Changes } from "./changes.js";
import { CommandRelay } from "./command-relay.js";
import { ConfigSpace } from "./config-space.js";
import { Copies } from "./copies.js";
import { DeviceProcess } from "./device-process.js";
import { DeviceState } from "./device-state.js";
import { ClientMaps } from "./dma-maps.js";
import { DmaRelay } from "./dma-relay.js";
import { Doorbells } from "./doorbells.js";
import { ClientInterrupts } from "./interrupts.js";
import { RequestChannel } from "./request-channel.js";
import { Sharing } from "./sharing.js";
import { WindowAllocation } from "./window-allocation.js";

export interface LinkOptions {
  readonly window: Window;
  readonly memory: DeviceVmMemory;
  readonly log: Log;
  /** 16 bytes, and a short text: they identify the session in the device's config space. */
  readonly uuid: Uint8Array;
  readonly name: string;
  /** What the device process has of the event loop, with others of its session. */
  readonly share: Share;
  /** Where descriptors are counted that are made for the client. */
  readonly fds: FdShare;
  readonly state: StateMemory;
}

export class LinkParts {
  readonly window: Window;
  readonly memory: DeviceVmMemory;
  readonly log: Log;
  readonly control: ControlState;
  readonly path: AccessPath;
  readonly state = new DeviceState();
  readonly changes: Changes;
  readonly requests: RequestChannel;
  readonly allocation: WindowAllocation;
  readonly maps: ClientMaps;
  readonly doorbells: Doorbells;
  readonly interrupts: ClientInterrupts;
  readonly sharing: Sharing;
  readonly copies: Copies;
  readonly dma: DmaRelay;
  readonly process: DeviceProcess;
  readonly relay: CommandRelay;
  readonly config: ConfigSpace;

  constructor({ window, memory, log, uuid, name, share, fds, state: stateMemory }: LinkOptions) {
    const { state } = this;
    this.window = window;
    this.memory = memory;
    this.log = log;
    this.control = stateMemory.control;
    this.config = new ConfigSpace(window.size, uuid, name);
    this.changes = new Changes(state, log);
    this.path = new AccessPath(share, stateMemory.path);
    this.requests = new RequestChannel(state, share, this.path, stateMemory.pendingIds);
    this.allocation = new WindowAllocation(window, log, this.control);
    this.maps = new ClientMaps(state, this.changes, this.requests, this.allocation, stateMemory, log);
    this.sharing = new Sharing(this.allocation, this.requests, stateMemory);
    this.dma = new DmaRelay(this.requests.channel, stateMemory.transfers);
    this.doorbells = new Doorbells(fds, stateMemory.fds);
    this.interrupts = new ClientInterrupts(state, this.changes, this.requests, this.doorbells, stateMemory, log);
    this.process = new DeviceProcess(this);
    this.relay = new CommandRelay(state, this.requests, this.process, this.path);
    this.copies = new Copies(this.maps.placement.copied, share, state);
    const { maps, sharing } = this;
    window.onSettled = (request, offset, isDone) => {
      const isOne = maps.placement.settled(request, offset, isDone);
      return sharing.memories.settled(request, offset, isDone) || isOne;
    };
    state.observe(() => this.control.touch());
  }
}
