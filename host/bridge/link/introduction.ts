/**
 * Makes the device process know of the client, its maps and its interrupts, or of its end, and of what changed while
 * the device VM was paused. Each step waits for the device process, and each attempt begins with what is the case by
 * then.
 */
import { PeerGone, ProtocolError } from "../../../shared/errors.js";
import { RETRY_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { ClientConnected, ClientGone, LinkCommand } from "../../../shared/spec/link.js";
import type { ClientMemory, ClientVersion, DirectAccesses } from "../../../shared/vfio-user/backend.js";
import type { ControlState } from "../state/control-state.js";
import type { Changes } from "./changes.js";
import type { CommandRelay } from "./command-relay.js";
import type { DeviceClient, DeviceProcess } from "./device-process.js";
import type { Cause, DeviceState } from "./device-state.js";
import type { ClientMaps } from "./dma-maps.js";
import type { ClientInterrupts } from "./interrupts.js";
import type { RequestChannel } from "./request-channel.js";
import type { Sharing } from "./sharing.js";
import type { WindowAllocation } from "./window-allocation.js";

/** What a client is reached by. */
export interface ClientEnds {
  readonly memory: ClientMemory;
  readonly accesses: DirectAccesses;
}

interface Client extends DeviceClient, ClientEnds {
  readonly generation: number;
  isServed: boolean;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** As the state keeps it: clients by their generation. */
export interface SavedIntroduction {
  readonly client: {
    readonly generation: number;
    readonly version: ClientVersion;
    readonly isServed: boolean;
  } | null;
  readonly announced: number | null;
  /** It is not known how much of that client the device process was told. */
  readonly isStale: boolean;
  readonly generation: number;
  /** See ClientMaps. */
  readonly announcement: number;
}

export interface IntroductionParts {
  readonly state: DeviceState;
  readonly changes: Changes;
  readonly requests: RequestChannel;
  readonly allocation: WindowAllocation;
  readonly maps: ClientMaps;
  readonly interrupts: ClientInterrupts;
  readonly sharing: Sharing;
  readonly process: DeviceProcess;
  readonly relay: CommandRelay;
  readonly control: ControlState;
  readonly log: Log;
}

export class Introduction {
  readonly #parts: IntroductionParts;
  readonly #state: DeviceState;
  readonly #requests: RequestChannel;
  readonly #log: Log;
  #client: Client | undefined;
  /** The client that the device process was told of. */
  #announced: Pick<Client, "generation"> | undefined;
  /** It knows that client's interrupts, too. */
  #isAnnouncedWhole = false;
  /** The device process is to release that client, even if it is there still, and to be told of it again. */
  #isStale = false;
  /** Why the device process was given up last; undefined once it has the client. */
  #gaveUpFor: string | undefined;
  #retry: NodeJS.Timeout | undefined;
  /** Counts clients. */
  #generation = 0;

  constructor(parts: IntroductionParts) {
    this.#parts = parts;
    this.#state = parts.state;
    this.#requests = parts.requests;
    this.#log = parts.log;
  }

  save(): SavedIntroduction {
    const client = this.#client;
    return {
      client: client ? { generation: client.generation, version: client.version, isServed: client.isServed } : null,
      announced: this.#announced?.generation ?? null,
      isStale: this.#isStale || (this.#announced !== undefined && !this.#isAnnouncedWhole),
      generation: this.#generation,
      announcement: this.#parts.maps.announcement,
    };
  }

  /** Goes on with the client of another bridge; `ends` are what it is reached by. */
  restore(saved: SavedIntroduction, ends: ClientEnds | undefined): void {
    this.#generation = saved.generation;
    this.#isStale = saved.isStale;
    this.#isAnnouncedWhole = true;
    if (saved.client && ends) {
      const { generation, version, isServed } = saved.client;
      this.#client = { ...ends, generation, version, isServed, resolve() {}, reject() {} };
      this.#parts.process.client = this.#client;
    }
    if (saved.announced === null) return;
    const isThere = this.#client?.generation === saved.announced;
    this.#announced = isThere ? this.#client : { generation: saved.announced };
  }

  get client(): Client | undefined {
    return this.#client;
  }

  /** Whether the device process was told of the client. */
  get isAnnounced(): boolean {
    return this.#client !== undefined && this.#announced === this.#client;
  }

  /** `served` resolves when a device process has the client. */
  connect(version: ClientVersion, memory: ClientMemory, accesses: DirectAccesses) {
    const generation = ++this.#generation;
    const served = new Promise<void>((resolve, reject) => {
      this.#client = { version, memory, accesses, generation, isServed: false, resolve, reject };
    });
    this.#parts.process.client = this.#client;
    this.#parts.control.touch();
    this.update();
    return { generation, served };
  }

  disconnect(): void {
    this.#client?.reject(new PeerGone("the client is gone"));
    this.#client = undefined;
    this.#parts.process.client = undefined;
    this.#parts.control.touch();
    this.update();
  }

  /** The bridge ends. */
  close(): void {
    this.#client?.reject(new PeerGone("the bridge closes"));
  }

  /**
   * The client was told that the device is reset: the device process is made to reset it by being told of the client
   * again.
   */
  owesReset(): void {
    this.#isStale = true;
    this.#parts.control.touch();
    this.#client?.accesses.readFrom(undefined);
  }

  /** The device process is not there any more. */
  processGone(): void {
    clearTimeout(this.#retry);
    this.#client?.accesses.readFrom(undefined);
    this.#parts.process.registers = undefined;
    this.#parts.process.left();
    this.#forgetAnnounced();
  }

  /**
   * The device process was given up, and is asked to release the client; meanwhile the client's memory is taken from
   * it. Whether that is news.
   */
  gaveUp(cause: Cause, reason: string): boolean {
    const isNews = reason !== this.#gaveUpFor;
    this.#gaveUpFor = reason;
    if (isNews) this.#log.warn({ reason }, "gave up on the device process until it has released the client");
    const { changes, maps } = this.#parts;
    this.#client?.accesses.readFrom(undefined);
    this.#isStale = true;
    this.#parts.control.touch();
    changes.background(() => maps.takeOutAll(true));
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#askToRelease(), cause === "failed" ? RETRY_MS : 0);
    return isNews;
  }

  /** Has the device process told what it does not know, in its turn. */
  update(): void {
    void this.#parts.changes.once(this.#attempt);
  }

  readonly #attempt = async (): Promise<void> => {
    try {
      await this.#introduce();
    } catch (error) {
      this.#parts.changes.failed(error);
    }
  };

  async #introduce(): Promise<void> {
    const { maps, interrupts, sharing, process, changes, relay } = this.#parts;
    const isReady = () => this.#state.name === "ready";
    if (!isReady()) return;
    const announced = this.#announced;
    const client = this.#client;
    if (announced && (announced !== client || this.#isStale)) {
      // After a pause the client's memory is no more the device's, whatever it does when it is told.
      if (this.#isStale) await maps.takeOutAll(true);
      await this.#announceGone(announced.generation);
    } else {
      await maps.release();
      if (sharing.memories.stale) await this.#announceGone(this.#generation - (client ? 1 : 0));
    }
    if (!client || this.#client !== client || !isReady()) return;
    const isNew = this.#announced !== client;
    const irqCounts = process.summary?.irqCounts ?? [];
    if (isNew) {
      this.#announced = client;
      this.#isAnnouncedWhole = false;
      this.#parts.control.touch();
      await this.#announceClient(client);
      await interrupts.introduce(irqCounts);
      this.#isAnnouncedWhole = true;
      this.#parts.control.touch();
    }
    await maps.announce();
    await interrupts.announce(irqCounts);
    if (this.#client !== client || !isReady()) return;
    this.#state.raise("introduced");
    changes.succeeded();
    this.#gaveUpFor = undefined;
    if (isNew) process.registers?.begin();
    sharing.events.start();
    if (!process.registers?.held) client.accesses.readFrom(process.registers);
    this.#log.info({ generation: client.generation, maps: maps.size }, "the device has the client");
    client.isServed = true;
    this.#parts.control.touch();
    client.resolve();
    relay.introduced(client.accesses);
  }

  /** That a client is there; the device process knows nothing of it yet. */
  async #announceClient({ version, generation }: Client): Promise<void> {
    const { major, minor, maxDataXferSize, maxMessageFds } = version;
    await this.#requests.request(
      LinkCommand.CLIENT_CONNECTED,
      ClientConnected.encode({ generation, major, minor, maxDataXferSize, maxMessageFds }),
    );
    this.#parts.allocation.releaseKept();
  }

  /**
   * That a client is gone. Memory that the client had is recreated before, since the device process prepares it for the
   * next client when it hears of that.
   */
  async #announceGone(generation: number): Promise<void> {
    if (this.#parts.sharing.memories.stale) await this.#renewShared();
    try {
      await this.#requests.request(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation }));
    } catch (error) {
      // A device process that is going has no client to release any more.
      if (error instanceof PeerGone) this.#log.debug(error.message);
      else this.#log.warn({ reason: (error as Error).message }, "the device process did not release a client");
    }
    this.#forgetAnnounced();
  }

  async #renewShared(): Promise<void> {
    try {
      await this.#parts.sharing.memories.renew();
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#state.raise("violated", `its memory cannot be recreated: ${error.message}`);
      throw new PeerGone(error.message);
    }
  }

  /** For as long as it takes; then the device process is given the client again. */
  async #askToRelease(): Promise<void> {
    const generation = this.#announced?.generation ?? this.#generation;
    try {
      await this.#requests.send(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation }));
    } catch (error) {
      if (!(error instanceof ProtocolError)) return;
      this.#log.warn({ reason: error.message }, "the device process did not release its client in time");
    }
    this.#forgetAnnounced();
    this.#state.raise("released");
  }

  /** The device process knows of no client. */
  #forgetAnnounced(): void {
    this.#announced = undefined;
    this.#isStale = false;
    this.#parts.maps.forgetAnnounced();
    this.#parts.control.touch();
  }
}
