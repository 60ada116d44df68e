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
import { Errno, PeerGone, ProtocolError } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { ClientConnected, ClientGone, IoEvent, LinkCommand } from "../../shared/spec/link.js";
import { Command, IrqSetFlags } from "../../shared/spec/vfio-user.js";
import type {
  Backend,
  ClientMemory,
  ClientVersion,
  DeviceSummary,
  DirtyRequest,
  IrqSetRequest,
  MemoryMap,
  PendingCommand,
} from "../../shared/vfio-user/backend.js";
import { IrqEventfds } from "../../shared/vfio-user/irq-eventfds.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { answerWithoutDevice, isPostedWrite, replyToWrite } from "./answers.js";
import { doorbellBody, mapBody, plainIrqBody } from "./bodies.js";
import { ClientIrqs } from "./client-irqs.js";
import { ConfigSpace } from "./config.js";
import { Places } from "./places.js";
import { DeviceProcess, type State } from "./process.js";
import { Serial } from "./serial.js";
import { Sharing } from "./sharing.js";
import { allDirty, Unmapping } from "./unmapping.js";

interface Client {
  readonly version: ClientVersion;
  readonly memory: ClientMemory;
  readonly generation: number;
  readonly maps: Set<MemoryMap>;
  readonly irqs: ClientIrqs;
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
}

export class VirtioLink implements Backend {
  readonly sharing: Sharing;
  readonly process: DeviceProcess;
  readonly #log: Log;
  readonly #serial: Serial;
  readonly #places: Places;
  readonly #config: ConfigSpace;
  readonly #unmapping: Unmapping;
  /** Eventfds by which the client masks and unmasks; those that it waits on are the process's doorbells. */
  readonly #irqEventfds = new IrqEventfds((request) =>
    this.setIrqs(request).catch((error) => this.#log.warn(error.message)),
  );
  #client: Client | undefined;
  /** The client that the device process was told of. */
  #told: Client | undefined;
  #generation = 0;
  #commands = 0;
  #postedWrites = 0;
  /** Posted writes that are queued, and whose sessions are held back until the device process has taken some. */
  readonly #heldBack: PendingCommand[] = [];
  /** Commands that came while the device process was being told of their client. */
  readonly #early: PendingCommand[] = [];

  constructor({ window, log, uuid, name }: LinkOptions) {
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
        left: () => this.#left(),
        drained: () => this.#releaseHeldBack(),
        takeBack: () => this.#takeBackAll(),
      },
      window,
      sharing: this.sharing,
      serial: this.#serial,
      log,
    });
    this.#unmapping = new Unmapping(this.process.conversation, log, (reason) => this.process.break(reason));
  }

  get stats(): LinkStats {
    return { hellos: this.process.hellos, commands: this.#commands, postedWrites: this.#postedWrites };
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

  get state(): State {
    return this.process.state;
  }

  /** Ends everything; `disconnect` is not waited for. */
  close(): void {
    this.stopped("the bridge closes");
    this.#client?.introduced?.reject(new PeerGone("the bridge closes"));
    this.process.doorbells.close();
    this.sharing.close();
  }

  // The client's side: Backend.

  get device(): DeviceSummary | undefined {
    const { state, summary } = this.process;
    return state === "connected" || state === "ready" ? summary : undefined;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.process.summary?.irqCounts;
  }

  connect(version: ClientVersion, memory: ClientMemory): Promise<void> {
    const generation = ++this.#generation;
    const maps = new Set<MemoryMap>();
    const irqs = new ClientIrqs();
    return new Promise((resolve, reject) => {
      this.#client = { version, memory, generation, maps, irqs, introduced: { resolve, reject } };
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
    this.#early.length = 0;
    if (this.process.state === "connected") this.process.state = "ready";
    this.process.dma.drop();
    await this.#serial.run(async () => {
      // Before anything is waited for: a device that is told late must not ring doorbells of a client that is gone.
      this.process.doorbells.clear();
      this.#irqEventfds.clear();
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
    if (!wasTold && !hadMemory) return;
    const body = ClientGone.encode({ generation });
    await this.process.conversation
      .request(LinkCommand.CLIENT_GONE, body)
      .catch((error) => this.#log.warn(error.message));
  }

  map(map: MemoryMap): Promise<void> {
    return this.#serial.run(async () => {
      const client = this.#client;
      if (!client) throw new PeerGone("no client is connected");
      client.maps.add(map);
      if (this.process.state !== "connected") return;
      try {
        await this.#show(map);
      } catch (error) {
        // When the device process is gone, the map is for the next one.
        if (error instanceof PeerGone) return;
        client.maps.delete(map);
        throw error;
      }
    });
  }

  unmap(map: MemoryMap, dirty?: DirtyRequest): Promise<void> {
    return this.#serial.run(async () => {
      const isTold = this.process.state === "connected";
      if (!isTold) allDirty(map, dirty);
      const isFree = !isTold || (await this.#unmapping.letGo(map, dirty));
      this.#client?.maps.delete(map);
      await this.#places.takeBack([map], !isFree);
    });
  }

  /** Without a device process it is kept for the next one. */
  setIrqs(request: IrqSetRequest): Promise<void> {
    return this.#serial.run(async () => {
      const client = this.#client;
      const { flags, index, start, count, eventfds } = request;
      const isTrigger = (flags & IrqSetFlags.ACTION_TRIGGER) !== 0;
      if (!client) {
        for (const fd of eventfds ?? []) if (fd >= 0) close(fd);
        throw new PeerGone("no client is connected");
      }
      if (eventfds && !isTrigger) {
        this.#irqEventfds.set(request);
        return;
      }
      if (eventfds) {
        this.process.doorbells.bind(index, start, eventfds);
      } else if (isTrigger && count === 0) {
        this.process.doorbells.unbindAll(index);
        this.#irqEventfds.clearIndex(index);
      }
      if (this.process.state === "connected") {
        const body = eventfds
          ? doorbellBody(flags, index, start, count, this.process.doorbells)
          : plainIrqBody(request);
        try {
          await this.process.conversation.request(Command.DEVICE_SET_IRQS, body);
        } catch (error) {
          if (!(error instanceof PeerGone)) {
            if (eventfds) this.process.doorbells.bind(index, start, new Array(count).fill(-1));
            throw error;
          }
        }
      }
      client.irqs.note(request);
    });
  }

  handle(command: PendingCommand): void {
    const { state, summary, conversation } = this.process;
    // A device process that was just started again: what the driver VM asks meanwhile waits the moment that this takes.
    if (state === "ready") {
      this.#early.push(command);
      return;
    }
    if (state !== "connected" || !summary) {
      answerWithoutDevice(command);
      return;
    }
    const posted = isPostedWrite(command, summary);
    if (!conversation.relay(command, posted)) {
      command.fail(Errno.EBUSY);
      this.process.break("the device process answers nothing");
      return;
    }
    this.#commands++;
    if (!posted) return;
    this.#postedWrites++;
    if (conversation.channel.congested) this.#heldBack.push(command);
    else replyToWrite(command);
  }

  // What the device process is shown.

  /** Shows the client, its maps and its interrupts to a device process that is ready, when there are both. */
  #introduce(): void {
    this.#serial.background(async () => {
      const client = this.#client;
      if (!client || this.process.state !== "ready") return;
      const { generation, version } = client;
      const { major, minor, maxDataXferSize, maxMessageFds } = version;
      if (this.sharing.stale) await this.#tellGone(generation - 1, false);
      this.#told = client;
      try {
        await this.process.conversation.request(
          LinkCommand.CLIENT_CONNECTED,
          ClientConnected.encode({ generation, major, minor, maxDataXferSize, maxMessageFds }),
        );
        this.#places.releaseKept();
        for (const map of client.maps) {
          if (this.#client === client) await this.#show(map);
        }
        if (!this.process.doorbells.rebind())
          this.#log.warn("the device has fewer doorbells than the client has vectors");
        for (const body of client.irqs.bodies(this.process.doorbells, this.irqCounts ?? [])) {
          await this.process.conversation.request(Command.DEVICE_SET_IRQS, body);
        }
      } catch (error) {
        this.#log.warn({ reason: (error as Error).message }, "the device did not take the client");
        if (error instanceof ProtocolError) this.process.break("the device refused the client");
        return;
      }
      if (this.#client !== client || this.process.state !== "ready") return;
      this.process.state = "connected";
      this.sharing.start();
      this.#log.info({ generation, maps: client.maps.size }, "the device has the client");
      client.introduced?.resolve();
      client.introduced = undefined;
      for (const command of this.#early.splice(0)) this.handle(command);
    });
  }

  /** Puts a map into the window where that is possible, and tells the device process of it. */
  async #show(map: MemoryMap): Promise<void> {
    await this.#places.put(map);
    try {
      await this.process.conversation.request(Command.DMA_MAP, mapBody(map));
    } catch (error) {
      await this.#places.takeBack([map]);
      throw error;
    }
  }

  /** The device process no longer answers: what waits for it is answered as by a device that is not there. */
  #left(): void {
    this.#told = undefined;
    this.#releaseHeldBack();
    for (const command of this.#early.splice(0)) answerWithoutDevice(command);
  }

  #releaseHeldBack(): void {
    for (const command of this.#heldBack.splice(0)) replyToWrite(command);
  }

  /** Out of the window with all that the client has to do with. */
  async #takeBackAll(): Promise<void> {
    await this.#places.takeBack(this.#client?.maps ?? []);
    await this.sharing.takeBack(this.#client !== undefined);
  }
}
