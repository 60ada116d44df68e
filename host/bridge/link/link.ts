/**
 * The bridge's half of the virtio link: the `Backend` behind a vfio-user session whose device lives in a device VM
 * (docs/virtio-vfio-user.md).
 *
 * What belongs to the client (its DMA maps, its eventfds) is kept as plain data here, beside what of it the device
 * process has been told. `#update` makes the two the same: when a process says HELLO, when it was given up for a time,
 * and after a pause of its VM, during which the client is answered at once. So the driver VM lives on whatever becomes
 * of the device process. What belongs to the process is in process.ts. Changes of the maps and interrupts are made one
 * after the other (serial.ts); each step waits for the device process, and every wait ends when the process answers, is
 * reset, or lets its deadline pass.
 */
import { isSystemError, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { RETRY_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import { ClientGone, IoEvent, LinkCommand } from "../../../shared/spec/link.js";
import { Command } from "../../../shared/spec/vfio-user.js";
import { Share } from "../../../shared/turn.js";
import type {
  Backend,
  ClientMemory,
  ClientVersion,
  DeviceSummary,
  IrqSetRequest,
  MemoryMap,
  PendingCommand,
  RegisterReads,
  UnmapRequest,
} from "../../../shared/vfio-user/backend.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { ClientIrqs } from "./client-irqs.js";
import { ConfigSpace } from "./config.js";
import type { Cause } from "./device-state.js";
import { IrqSetUp } from "./irq-set-up.js";
import { Places } from "./places.js";
import { DeviceProcess } from "./process.js";
import { CommandRelay } from "./relay.js";
import { Serial } from "./serial.js";
import { Sharing } from "./sharing.js";
import { Showing, type ShownClient } from "./showing.js";
import { allDirty, Unmapping } from "./unmapping.js";

/** A client may have many thousands. */
const MAX_MAPS_SHOWN = 64;

class Client implements ShownClient {
  readonly maps = new Set<MemoryMap>();
  readonly irqs = new ClientIrqs();
  readonly shownMaps = new Set<MemoryMap>();
  readonly changedIrqs = new Set<number>();
  /** Resolves `connect`; undefined when that was done. */
  introduced: { resolve(): void; reject(error: Error): void } | undefined;

  constructor(
    readonly version: ClientVersion,
    readonly memory: ClientMemory,
    readonly reads: RegisterReads,
    readonly generation: number,
  ) {}
}

/** What the link did so far. */
export interface LinkStats {
  readonly hellos: number;
  readonly commands: number;
  readonly postedWrites: number;
}

export interface LinkOptions {
  readonly window: Window;
  readonly log: Log;
  /** 16 bytes, and a short text: they identify the session in the device's config space. */
  readonly uuid: Uint8Array;
  readonly name: string;
  /** What the device process has of the event loop, with others of its session. */
  readonly share?: Share;
}

export class VirtioLink implements Backend {
  readonly sharing: Sharing;
  readonly process: DeviceProcess;
  readonly #log: Log;
  readonly #serial: Serial;
  readonly #places: Places;
  readonly #config: ConfigSpace;
  readonly #showing: Showing;
  readonly #unmapping: Unmapping;
  readonly #irqs: IrqSetUp;
  readonly #relay: CommandRelay;
  #client: Client | undefined;
  /** The client that the device process was told of. */
  #told: Client | undefined;
  /** The device process is to let go of that client, even if it is there still, and to be told anew. */
  #isStale = false;
  /** Maps that their client gave up while the device VM was paused: they are still in the window. */
  readonly #orphans = new Set<MemoryMap>();
  /** Those who wait for the device process, and do not wait for the end of a pause. */
  readonly #impatient = new Set<() => void>();
  #retry: NodeJS.Timeout | undefined;
  /** Why the last attempt to give the device process its client failed. */
  #failure: string | undefined;
  #generation = 0;

  constructor({ window, log, uuid, name, share = new Share() }: LinkOptions) {
    this.#log = log;
    this.#serial = new Serial(log);
    this.#places = new Places(window, log);
    this.sharing = new Sharing(window, this.#places, (handle) =>
      this.process.conversation.request(LinkCommand.IO_EVENT, IoEvent.encode({ handle })),
    );
    this.#config = new ConfigSpace(window.size, uuid, name);
    const client = () => this.#client;
    this.process = new DeviceProcess({
      owner: {
        get client() {
          return client();
        },
        ready: () => this.#update(),
        left: () => {
          const { cause } = this.process.state;
          if (cause === undefined || cause === "violated") this.#told = undefined;
          this.#client?.reads.from(undefined);
          this.#relay.processLeft();
        },
        paused: () => {
          this.sharing.stop();
          for (const answer of this.#impatient) answer();
          this.#impatient.clear();
        },
        pausedLong: () => this.#relay.pausedLong(),
        gaveUp: (cause) => this.#gaveUp(cause),
        needsReset: (needsReset) => {
          this.#config.needsReset = needsReset;
        },
        drained: () => this.#relay.drained(),
        takeBack: () => this.#takeBackAll(),
      },
      window,
      copied: this.#places.copied,
      sharing: this.sharing,
      serial: this.#serial,
      log,
      share,
    });
    this.#relay = new CommandRelay(this.process, () => {
      this.#isStale = true;
      this.#client?.reads.from(undefined);
    });
    this.#irqs = new IrqSetUp(this.process, (request) =>
      this.setIrqs(request).catch((error) => log.warn({ reason: error.message }, "interrupts were not set up again")),
    );
    this.#showing = new Showing(this.process, this.#places, log);
    this.#unmapping = new Unmapping(
      this.process.conversation,
      log,
      (reason) => this.process.break(reason),
      () => this.#isPaused,
    );
  }

  /** For people; of many maps the first ones. */
  inspect(): object {
    const { state, isolated, summary, doorbells } = this.process;
    const client = this.#client;
    const maps = [...(client?.maps ?? [])];
    return {
      state: state.name,
      isolated,
      device: summary,
      announced: client !== undefined && this.#told === client,
      client: client && {
        generation: client.generation,
        ...client.version,
        maps: maps.length,
        mapsInWindow: maps.filter(({ windowOffset }) => windowOffset >= 0).length,
        firstMaps: maps.slice(0, MAX_MAPS_SHOWN).map(({ address, size, readable, writable, windowOffset }) => {
          return { address: `0x${address.toString(16)}`, size, readable, writable, windowOffset };
        }),
      },
      doorbells: doorbells.inspect(),
    };
  }

  get stats(): LinkStats {
    const { commands, postedWrites } = this.#relay;
    return { hellos: this.process.hellos, commands, postedWrites };
  }

  /** See Backend. */
  receiving(now: boolean): void {
    this.process.conversation.channel.hold(now);
  }

  // The device VM's side: what the session calls as the vhost-user back-end reports it.

  /** The device's config space as it is now. */
  config(): Uint8Array {
    this.#config.doorbells = this.process.doorbellQueues;
    return this.#config.bytes;
  }

  attach(backEnd: BackEnd): void {
    this.process.attach(backEnd);
  }

  /** A queue of the device was enabled. */
  enabled(index: number): void {
    this.process.enabled(index);
  }

  /** The device VM is paused, or the device was reset: which of them, `resumed` or `stopped` says. */
  paused(): void {
    this.process.pause();
  }

  /** The device VM goes on. */
  resumed(): void {
    this.process.resume();
  }

  /** The front-end wanted to start the device again, and could not. */
  startFailed(reason: string): void {
    this.process.break(reason);
  }

  /** The device was reset, or its front-end is gone; QEMU dropped all that was mapped. */
  stopped(reason: string): void {
    this.process.reset(reason);
    this.#told = undefined;
    this.#isStale = false;
    clearTimeout(this.#retry);
    this.#places.forgetAll(this.#clientMaps);
    this.#orphans.clear();
    this.sharing.forget(this.#client !== undefined);
  }

  detach(): void {
    this.process.detach();
  }

  /** Ends everything; `disconnect` is not waited for. */
  close(): void {
    this.stopped("the bridge closes");
    this.#client?.introduced?.reject(new PeerGone("the bridge closes"));
    this.process.doorbells.close();
    this.sharing.close();
    this.#places.close();
  }

  // The client's side: Backend.

  get device(): DeviceSummary | undefined {
    const { state, summary } = this.process;
    return state.command === "without the device" ? undefined : summary;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.process.summary?.irqCounts;
  }

  connect(version: ClientVersion, memory: ClientMemory, reads: RegisterReads): Promise<void> {
    const client = new Client(version, memory, reads, ++this.#generation);
    return new Promise((resolve, reject) => {
      client.introduced = { resolve, reject };
      this.#client = client;
      this.#config.clientConnected(client.generation);
      this.#update();
    });
  }

  disconnect(): Promise<void> {
    const client = this.#client;
    if (!client) return Promise.resolve();
    this.#client = undefined;
    this.#config.clientGone();
    client.introduced?.reject(new PeerGone("the client is gone"));
    client.introduced = undefined;
    this.#relay.clientGone();
    this.process.clientGone();
    // Before anything is waited for: a device that is told late must not ring doorbells of a client that is gone.
    this.#irqs.clear();
    this.sharing.clientGone();
    for (const map of client.maps) this.#orphan(map);
    client.maps.clear();
    this.#update();
    const released = this.#serial.once(this.#release);
    return this.#isPaused ? Promise.resolve() : this.#orPaused(released);
  }

  map(map: MemoryMap): Promise<void> {
    const client = this.#client;
    if (!client) return Promise.reject(new PeerGone("no client is connected"));
    client.maps.add(map);
    if (this.#isPaused) return Promise.resolve();
    let isAnswered = false;
    const work = this.#serial.run(async () => {
      // When the device process is not there, or is told later, the map is for then.
      if (!this.#isServed(client) || !client.maps.has(map) || client.shownMaps.has(map)) return;
      try {
        await this.#showing.map(client, map);
      } catch (error) {
        // When the device process is gone, the map is for the next one.
        if (error instanceof PeerGone) return;
        if (!isAnswered) client.maps.delete(map);
        throw error;
      }
    });
    return this.#orPaused(work, () => {
      isAnswered = true;
    });
  }

  unmap(request: UnmapRequest): Promise<void> {
    const client = this.#client;
    const { maps } = request;
    if (this.#isPaused) {
      for (const map of maps) {
        client?.maps.delete(map);
        this.#orphan(map);
      }
      allDirty(request);
      return Promise.resolve();
    }
    const work = this.#serial.run(async () => {
      const isTold = client !== undefined && this.#isServed(client);
      if (!isTold) allDirty(request);
      const isFree = !isTold || (await this.#unmapping.letGo(request));
      // What the device process gave up is not sent to the client any more.
      client?.memory.abandon(request.address, request.size);
      for (const map of maps) {
        client?.maps.delete(map);
        client?.shownMaps.delete(map);
      }
      await this.#places.takeBack(maps, !isFree);
    });
    return this.#orPaused(work, () => allDirty(request));
  }

  /** Without a device process it is kept for the next one. */
  setIrqs(request: IrqSetRequest): Promise<void> {
    const client = this.#client;
    const apply = async () => {
      if (!client || this.#client !== client) {
        for (const fd of request.eventfds ?? []) if (fd >= 0) closePeerFd(fd);
        throw new PeerGone("no client is connected");
      }
      const isForDevice = await this.#irqs.apply(request);
      if (!isForDevice) return;
      client.irqs.note(request);
      if (!this.#isServed(client)) client.changedIrqs.add(request.index);
    };
    return this.#isPaused ? apply() : this.#orPaused(this.#serial.run(apply));
  }

  handle(command: PendingCommand): void {
    if (command.command === Command.DEVICE_RESET) {
      this.process.doorbells.forgetPending();
      // What was not sent yet would come after the reply.
      this.#client?.memory.abandon();
    }
    this.#relay.handle(command);
  }

  // What the device process is told.

  get #isPaused(): boolean {
    return this.process.state.name === "paused";
  }

  /** Whether the device process knows that client, and is told of each change. */
  #isServed(client: Client): boolean {
    return this.process.state.name === "connected" && this.#told === client;
  }

  /**
   * Resolves as `work` does, or at once when the device VM is paused: then `work` goes on when it does, and `answered`
   * says what the client is told now.
   */
  #orPaused(work: Promise<void>, answered = () => {}): Promise<void> {
    return new Promise((resolve, reject) => {
      const early = () => {
        answered();
        resolve();
      };
      const settle = () => this.#impatient.delete(early);
      work.then(
        () => {
          settle();
          resolve();
        },
        (error) => {
          // The client was told that it is done.
          if (!settle()) this.#failed(error);
          reject(error);
        },
      );
      if (this.#isPaused) early();
      else this.#impatient.add(early);
    });
  }

  /** Makes what the device process knows of the client, and has of its memory, what it is to be, in its turn. */
  #update(): void {
    void this.#serial.once(this.#bring);
  }

  readonly #bring = async (): Promise<void> => {
    try {
      await this.#bringUpToDate();
    } catch (error) {
      this.#failed(error);
    }
  };

  async #bringUpToDate(): Promise<void> {
    const isReady = () => this.process.state.name === "ready";
    if (!isReady()) return;
    const told = this.#told;
    const client = this.#client;
    if (told && (told !== client || this.#isStale)) {
      // After a pause the client's memory is no more the device's, whatever it does when it is told.
      if (this.#isStale) await this.#places.takeBack(told.maps, true);
      await this.#tellGone(told.generation);
    } else {
      // Given up during a pause: out of reach first, since the client goes on already.
      await this.#releaseOrphans(true);
      if (this.sharing.stale) await this.#tellGone(this.#generation - (client ? 1 : 0));
    }
    if (!client || this.#client !== client || !isReady()) return;
    const isNew = this.#told !== client;
    this.#told = client;
    if (isNew) await this.#showing.client(client);
    await this.#showing.changes(client, () => this.#client === client);
    if (this.#client !== client || !isReady()) return;
    this.process.introduced();
    this.#failure = undefined;
    if (isNew) this.process.registers?.begin();
    this.sharing.start();
    client.reads.from(this.process.registers);
    this.#log.info({ generation: client.generation, maps: client.maps.size }, "the device has the client");
    client.introduced?.resolve();
    client.introduced = undefined;
    this.#relay.connected();
  }

  /**
   * A change was not made, or not all of them: the device process lets go of the client, and is told anew after a
   * while.
   */
  #failed(error: unknown): void {
    // The device process left, or the client: nothing has failed.
    if (error instanceof PeerGone) return;
    const reason = error instanceof Error ? error.message : String(error);
    if (reason !== this.#failure) {
      if (error instanceof ProtocolError) this.#log.warn({ reason }, "the device did not take the client");
      else if (isSystemError(error)) this.#log.error({ err: error }, "the device cannot be given the client");
      else this.#log.error({ err: error }, "unexpected");
    }
    this.#failure = reason;
    this.process.giveUp("failed", reason);
  }

  /** All that may be in the window of clients. */
  get #clientMaps(): readonly MemoryMap[] {
    return [...(this.#client?.maps ?? []), ...this.#orphans];
  }

  /**
   * The device process is asked to let go of the client, for as long as it takes. Meanwhile the client's memory is
   * taken from it. When it has, it is given the client again.
   */
  #gaveUp(cause: Cause): void {
    this.#isStale = true;
    this.#serial.background(() => this.#places.takeBack(this.#clientMaps, true));
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#askToLetGo(), cause === "failed" ? RETRY_MS : 0);
  }

  async #askToLetGo(): Promise<void> {
    const generation = this.#told?.generation ?? this.#generation;
    try {
      await this.process.conversation.send(LinkCommand.CLIENT_GONE, ClientGone.encode({ generation }));
    } catch (error) {
      if (!(error instanceof ProtocolError)) return;
      this.#log.warn({ reason: error.message }, "the device did not let go of its client in time");
    }
    this.#told = undefined;
    this.#isStale = false;
    this.process.letGo();
  }

  /**
   * Tells the device process that a client is gone. Memory that the client had is recreated before, since the device
   * prepares it for the next client when it hears of it.
   */
  async #tellGone(generation: number): Promise<void> {
    if (this.sharing.stale) await this.#renew();
    await this.#showing.gone(generation);
    this.#told = undefined;
    this.#isStale = false;
  }

  async #renew(): Promise<void> {
    try {
      await this.sharing.renew();
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.process.break(`its memory cannot be recreated: ${error.message}`);
      throw new PeerGone(error.message);
    }
  }

  /** Its client has given it up, and it is to be taken out of the window. */
  #orphan(map: MemoryMap): void {
    this.#places.copied.remove(map);
    if (map.windowOffset >= 0 || this.#told?.shownMaps.has(map)) this.#orphans.add(map);
  }

  readonly #release = (): Promise<void> => this.#releaseOrphans(false);

  /**
   * Takes memory of clients that gave it up out of the window. The device process is asked to let go of what `isShown`
   * to it.
   */
  async #releaseOrphans(isShown: boolean): Promise<void> {
    const maps = [...this.#orphans];
    await this.#places.takeBack(maps, isShown);
    for (const map of maps) {
      this.#orphans.delete(map);
      if (!isShown || !this.#told?.shownMaps.delete(map)) continue;
      await this.#unmapping.letGo({ address: map.address, size: map.size, maps: [map] });
    }
  }

  /** Out of the window with all that the client has to do with. */
  async #takeBackAll(): Promise<void> {
    await this.#places.takeBack(this.#clientMaps);
    await this.sharing.takeBack(this.#client !== undefined);
  }
}
