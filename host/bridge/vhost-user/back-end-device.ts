/** What stands behind a vhost-user back-end, and what it is made with. */
import { startDeadline } from "../../../shared/deadline.js";
import type { Log } from "../../../shared/log.js";
import type { FdShare } from "../../../shared/peer-fds.js";
import { LinkFeature } from "../../../shared/spec/link.js";
import { F_PROTOCOL_FEATURES, ProtocolFeature } from "../../../shared/spec/vhost-user.js";
import { Feature } from "../../../shared/spec/virtio.js";
import type { Share } from "../../../shared/turn.js";
import type { StateMemory } from "../state/state-memory.js";
import type { DeviceVmMemory } from "./memory.js";
import type { SavedVrings } from "./vrings.js";
import type { Window } from "./window.js";

/** What a back-end offers. */
const { VERSION_1, RING_EVENT_IDX, ACCESS_PLATFORM } = Feature;
export const FEATURES = VERSION_1 | RING_EVENT_IDX | ACCESS_PLATFORM | LinkFeature.INSPECT | F_PROTOCOL_FEATURES;
export const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.BACKEND_SEND_FD |
  ProtocolFeature.SHMEM;

/** What a back-end is of; nothing here may throw. */
export interface BackEndDevice {
  /** The device's config space as it is now, MAX_CONFIG_SIZE bytes. */
  config(): Uint8Array;
  /** Queue `index` was enabled. Its ring runs if the driver set one up; its kick is `kickFd(index)`. */
  enabled(index: number): void;
  /**
   * Called before the first queue of a running device stops: `resumed`, `failed` or `reset` follow, or nothing does.
   */
  pausing(): void;
  /** All queues that ran go on where they were, with other kicks. */
  resumed(): void;
  /**
   * The front-end wanted to start the queues again, and did not get there. It takes requests for the window all the
   * same.
   */
  failed(reason: string): void;
  /** Memory of the device VM's has come or gone: chains that waited for it may be there now. */
  memoryChanged(): void;
  /** The device was reset, or the front-end is gone: nothing of before goes on. */
  reset(reason: string): void;
}

export interface BackEndOptions {
  readonly window: Window;
  /** Outlives front-ends: its address space is made once. */
  readonly memory: DeviceVmMemory;
  readonly device: BackEndDevice;
  /** The front-end is gone; everything of it is closed. */
  readonly gone: (reason: string) => void;
  readonly log: Log;
  /** What the front-end has of the event loop, with others of its session. */
  readonly share?: Share;
  /** Where the front-end's fds are counted. */
  readonly fds?: FdShare;
  readonly state?: StateMemory;
  /** It goes on where another bridge was, after `restore` and `goOn`. */
  readonly resumes?: boolean;
}

/**
 * How long after SET_FEATURES a front-end that starts the device may take to send its memory table, which follows it at
 * once.
 */
const TABLE_DEADLINE_MS = 500;

/** The memory table of a start. */
export class AwaitedTable {
  #stop: (() => void) | undefined;
  readonly #changed: () => void;

  constructor(changed: () => void) {
    this.#changed = changed;
  }

  get isAwaited(): boolean {
    return this.#stop !== undefined;
  }

  /** Calls `late` when it does not come in time. */
  wait(late: () => void): void {
    this.came();
    this.#stop = startDeadline(TABLE_DEADLINE_MS, () => {
      this.came();
      late();
    });
  }

  came(): void {
    this.#stop?.();
    this.#stop = undefined;
    this.#changed();
  }
}

/** A front-end as the state keeps it. */
export interface SavedBackEnd {
  /** The number of its socket's descriptor. */
  readonly socket: number;
  readonly started: boolean;
  readonly replyAck: boolean;
  readonly features: string;
  /** It began to start the device, and has not sent its memory table. */
  readonly awaitsTable: boolean;
  readonly vrings: SavedVrings;
}
