/**
 * The bridge's half of the virtio link: the `Backend` behind a vfio-user session whose device lives in a device VM
 * (docs/virtio-vfio-user.md).
 *
 * What belongs to the client (its DMA maps, its eventfds) is kept as plain data here, and shown to the device process again
 * whenever one says HELLO: the driver VM lives on when the device process restarts. What belongs to the device process is
 * in process.ts. Changes of the maps and interrupts are made one after the other (serial.ts); each step waits for the
 * device process, and every wait ends when the process answers, stops, or lets its deadline pass.
 */
import { close } from "../../native/index.js";
import { PeerGone, ProtocolError } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { IoEvent, LinkCommand } from "../../shared/spec/link.js";
import { Command } from "../../shared/spec/vfio-user.js";
import { Share } from "../../shared/turn.js";
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
} from "../../shared/vfio-user/backend.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { ClientIrqs } from "./client-irqs.js";
import { ConfigSpace } from "./config.js";
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

interface Client extends ShownClient {
  readonly memory: ClientMemory;
  readonly reads: RegisterReads;
  readonly maps: Set<MemoryMap>;
  /** Resolves `connect`; undefined when that was done. */
  introduced: { resolve(): void; reject(error: Error): void } | undefined;
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
        ready: () => this.#introduce(),
        left: () => {
          this.#told = undefined;
          this.#client?.reads.from(undefined);
          this.#relay.processLeft();
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
    this.#relay = new CommandRelay(this.process);
    this.#irqs = new IrqSetUp(this.process, (request) =>
      this.setIrqs(request).catch((error) => log.warn({ reason: error.message }, "interrupts were not set up again")),
    );
    this.#showing = new Showing(this.process, this.#places, log);
    this.#unmapping = new Unmapping(this.process.conversation, log, (reason) => this.process.break(reason));
  }

  /** For people; of many maps the first ones. */
  inspect(): object {
    const { state, isolated, summary, doorbells } = this.process;
    const client = this.#client;
    const maps = [...(client?.maps ?? [])];
    return {
      state,
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

  /** The device stops; QEMU drops all that is mapped. */
  stopped(reason: string): void {
    this.process.stop(reason);
    this.#places.forgetAll(this.#client?.maps ?? []);
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
    return state === "connected" || state === "ready" ? summary : undefined;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.process.summary?.irqCounts;
  }

  connect(version: ClientVersion, memory: ClientMemory, reads: RegisterReads): Promise<void> {
    const generation = ++this.#generation;
    const maps = new Set<MemoryMap>();
    const irqs = new ClientIrqs();
    return new Promise((resolve, reject) => {
      this.#client = { version, memory, reads, generation, maps, irqs, introduced: { resolve, reject } };
      this.#config.clientConnected(generation);
      this.#introduce();
    });
  }

  async disconnect(): Promise<void> {
    const client = this.#client;
    if (!client) return;
    this.#client = undefined;
    this.#config.clientGone();
    client.introduced?.reject(new PeerGone("the client is gone"));
    client.introduced = undefined;
    this.#relay.clientGone();
    if (this.process.state === "connected") this.process.state = "ready";
    this.process.dma.drop();
    await this.#serial.run(async () => {
      // Before anything is waited for: a device that is told late must not ring doorbells of a client that is gone.
      this.#irqs.clear();
      this.sharing.clientGone();
      const wasTold = this.#told === client;
      this.#told = undefined;
      if (this.process.state === "ready") await this.#tellGone(client.generation, wasTold);
      await this.#places.takeBack(client.maps);
    });
  }

  /**
   * Tells the device process that a client is gone, if it knew of that client, or has memory that the client had. The memory
   * is made anew before, since the device prepares it for the next client when it hears of it.
   */
  async #tellGone(generation: number, wasTold: boolean): Promise<void> {
    const hadMemory = this.sharing.stale;
    if (hadMemory) {
      try {
        await this.sharing.renew();
      } catch (error) {
        if (!(error instanceof PeerGone))
          this.process.break(`its memory cannot be made anew: ${(error as Error).message}`);
        return;
      }
    }
    if (wasTold || hadMemory) await this.#showing.gone(generation);
  }

  map(map: MemoryMap): Promise<void> {
    return this.#serial.run(async () => {
      const client = this.#client;
      if (!client) throw new PeerGone("no client is connected");
      client.maps.add(map);
      if (this.process.state !== "connected") return;
      try {
        await this.#showing.map(map);
      } catch (error) {
        // When the device process is gone, the map is for the next one.
        if (error instanceof PeerGone) return;
        client.maps.delete(map);
        throw error;
      }
    });
  }

  unmap(request: UnmapRequest): Promise<void> {
    return this.#serial.run(async () => {
      const { maps } = request;
      const isTold = this.process.state === "connected";
      if (!isTold) allDirty(request);
      const isFree = !isTold || (await this.#unmapping.letGo(request));
      for (const map of maps) this.#client?.maps.delete(map);
      await this.#places.takeBack(maps, !isFree);
    });
  }

  /** Without a device process it is kept for the next one. */
  setIrqs(request: IrqSetRequest): Promise<void> {
    return this.#serial.run(async () => {
      const client = this.#client;
      if (!client) {
        for (const fd of request.eventfds ?? []) if (fd >= 0) close(fd);
        throw new PeerGone("no client is connected");
      }
      if (await this.#irqs.apply(request)) client.irqs.note(request);
    });
  }

  handle(command: PendingCommand): void {
    if (command.command === Command.DEVICE_RESET) this.process.doorbells.forgetPending();
    this.#relay.handle(command);
  }

  // What the device process is shown.

  /** Shows the client, its maps and its interrupts to a device process that is ready, when there are both. */
  #introduce(): void {
    this.#serial.background(async () => {
      const client = this.#client;
      if (!client || this.process.state !== "ready") return;
      const { generation, maps } = client;
      if (this.sharing.stale) await this.#tellGone(generation - 1, false);
      this.#told = client;
      try {
        await this.#showing.client(client, () => this.#client === client);
      } catch (error) {
        this.#log.warn({ reason: (error as Error).message }, "the device did not take the client");
        if (error instanceof ProtocolError) this.process.break("the device refused the client");
        return;
      }
      if (this.#client !== client || this.process.state !== "ready") return;
      this.process.state = "connected";
      this.sharing.start();
      this.process.registers?.begin();
      client.reads.from(this.process.registers);
      this.#log.info({ generation, maps: maps.size }, "the device has the client");
      client.introduced?.resolve();
      client.introduced = undefined;
      this.#relay.connected();
    });
  }

  /** Out of the window with all that the client has to do with. */
  async #takeBackAll(): Promise<void> {
    await this.#places.takeBack(this.#client?.maps ?? []);
    await this.sharing.takeBack(this.#client !== undefined);
  }
}
