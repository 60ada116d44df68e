/**
 * The bridge's half of the virtio link: the `Backend` behind a vfio-user session whose device lives in a device VM
 * (docs/virtio-vfio-user.md; the states below are the table at its end).
 *
 * What belongs to the client (its DMA maps, its eventfds) is kept as plain data here, and shown to the device process again
 * whenever one says HELLO: the driver VM lives on when the device process restarts. What belongs to the device process is
 * dropped when it stops. Changes of the maps and interrupts are made one after the other (`#exclusive`); each step
 * waits for the device process, and every wait ends when the process answers, stops, or lets its deadline pass.
 */
import { close } from "../../native/index.js";
import { startDeadline } from "../../shared/deadline.js";
import { Errno, isSystemError, PeerGone, ProtocolError } from "../../shared/errors.js";
import { MAX_DATA_XFER_SIZE, REPLY_DEADLINE_MS, UNMAP_DEADLINE_MS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { ClientConnected, ClientGone, IoEvent, LinkCommand, Queue } from "../../shared/spec/link.js";
import { Command, Header, HeaderFlags, IrqSetFlags } from "../../shared/spec/vfio-user.js";
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
import { setBits } from "../../shared/vfio-user/bitmap.js";
import { IrqEventfds } from "../../shared/vfio-user/irq-eventfds.js";
import { copyBytes } from "../../shared/virtqueue/memory.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { answerWithoutDevice, isPostedWrite, replyToWrite } from "./answers.js";
import { doorbellBody, handlesAt, mapBody, plainIrqBody, unmapBody } from "./bodies.js";
import { Channel } from "./channel.js";
import { checkReply, parseHello } from "./checks.js";
import { ClientIrqs } from "./client-irqs.js";
import { ConfigSpace } from "./config.js";
import { DmaRelay } from "./dma.js";
import { Doorbells } from "./doorbells.js";
import { HandleTable, takesHandles } from "./handles.js";
import { Places } from "./places.js";
import { Requests } from "./requests.js";
import { Sharing } from "./sharing.js";

/** The device process, as the specification's table of states has it. "broken" is "absent until it resets". */
type State = "absent" | "preparing" | "ready" | "connected" | "quiesced" | "broken";

interface Client {
  readonly version: ClientVersion;
  readonly memory: ClientMemory;
  readonly generation: number;
  readonly maps: Set<MemoryMap>;
  readonly irqs: ClientIrqs;
  /** Resolves `connect`; undefined when that was done. */
  introduced: { resolve(): void; reject(error: Error): void } | undefined;
}

export interface LinkStats {
  hellos: number;
  commands: number;
  postedWrites: number;
}

export interface LinkOptions {
  readonly window: Window;
  readonly log: Log;
  /** 16 bytes, and a short text: they identify the session in the device's config space. */
  readonly uuid: Uint8Array;
  readonly name: string;
}

const ERRNO_MAX = 4095;
const NOTHING = new Uint8Array(0);

export class VirtioLink implements Backend {
  readonly stats: LinkStats = { hellos: 0, commands: 0, postedWrites: 0 };
  readonly doorbells = new Doorbells();
  readonly channel: Channel;
  readonly dma: DmaRelay;
  readonly sharing: Sharing;

  readonly #log: Log;
  readonly #window: Window;
  readonly #places: Places;
  readonly #config: ConfigSpace;
  readonly #requests = new Requests();
  /** Eventfds by which the client masks and unmasks; those that it waits on are `doorbells`. */
  readonly #irqEventfds = new IrqEventfds((request) =>
    this.setIrqs(request).catch((error) => this.#log.warn(error.message)),
  );
  readonly #inHeader = Header.view();
  #backEnd: BackEnd | undefined;
  #state: State = "absent";
  #summary: DeviceSummary | undefined;
  #client: Client | undefined;
  /** The client that the device process was told of. */
  #told: Client | undefined;
  #generation = 0;
  /** Changes when the device process does. */
  #era = 0;
  /** An ALLOCATE_* of the device process is under way. */
  #allocating = false;
  /** Posted writes that are queued, and whose sessions are held back until the device process has taken some. */
  readonly #heldBack: PendingCommand[] = [];
  /** Commands that came while the device process was being told of their client. */
  readonly #early: PendingCommand[] = [];
  /** Unmaps that the device process has not answered, and that are done all the same. */
  #lateUnmaps = 0;
  #tail: Promise<unknown> = Promise.resolve();

  constructor(options: LinkOptions) {
    this.#log = options.log;
    this.#window = options.window;
    this.#places = new Places(options.window, options.log);
    this.sharing = new Sharing(options.window, this.#places, (handle) =>
      this.#request(LinkCommand.IO_EVENT, IoEvent.encode({ handle })),
    );
    this.#config = new ConfigSpace(options.window.size, options.uuid, options.name);
    this.channel = new Channel({
      message: (bytes, data, length) => this.#message(bytes, data, length),
      drained: () => this.#drained(),
      broken: (reason) => this.#break(reason),
    });
    this.dma = new DmaRelay(this.channel);
  }

  // The device VM's side: what the session calls as the vhost-user back-end reports it.

  /** The device's config space as it is now. */
  config(): Uint8Array {
    this.#config.doorbells = Math.max(0, (this.#backEnd?.queues ?? 0) - Queue.FIRST_DOORBELL);
    return this.#config.bytes;
  }

  attach(backEnd: BackEnd): void {
    this.#backEnd = backEnd;
  }

  /** A queue of the device was enabled. */
  enabled(index: number): void {
    const backEnd = this.#backEnd;
    if (!backEnd || this.channel.open || index >= Queue.COPY) return;
    if (!backEnd.queue(Queue.TO_DEVICE)?.running || !backEnd.queue(Queue.FROM_DEVICE)?.running) return;
    this.#state = "absent";
    this.channel.start(backEnd);
  }

  /** The device stops; QEMU drops all that is mapped. */
  stopped(reason: string): void {
    this.#leave("absent", reason);
    this.channel.stop();
    this.#places.forgetAll(this.#client?.maps ?? []);
    this.sharing.forget(this.#client !== undefined);
  }

  detach(): void {
    this.#backEnd = undefined;
  }

  get state(): State {
    return this.#state;
  }

  /** Ends everything; `disconnect` is not waited for. */
  close(): void {
    this.stopped("the bridge closes");
    this.#client?.introduced?.reject(new PeerGone("the bridge closes"));
    this.doorbells.close();
    this.sharing.close();
  }

  // The client's side: Backend.

  get device(): DeviceSummary | undefined {
    return this.#state === "connected" || this.#state === "ready" ? this.#summary : undefined;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.#summary?.irqCounts;
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
    if (this.#state === "connected") this.#state = "ready";
    this.dma.drop();
    await this.#exclusive(async () => {
      // Before anything is waited for: a device that is told late must not ring doorbells of a client that is gone.
      this.doorbells.clear();
      this.#irqEventfds.clear();
      this.sharing.clientGone();
      const wasTold = this.#told === client;
      this.#told = undefined;
      if (this.#state === "ready") await this.#tellGone(client.generation, wasTold);
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
        if (!(error instanceof PeerGone)) this.#break(`its memory cannot be made anew: ${(error as Error).message}`);
        return;
      }
    }
    if (!wasTold && !hadMemory) return;
    const body = ClientGone.encode({ generation });
    await this.#request(LinkCommand.CLIENT_GONE, body).catch((error) => this.#log.warn(error.message));
  }

  map(map: MemoryMap): Promise<void> {
    return this.#exclusive(async () => {
      const client = this.#client;
      if (!client) throw new PeerGone("no client is connected");
      client.maps.add(map);
      if (this.#state !== "connected") return;
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
    return this.#exclusive(async () => {
      const isFree = await this.#letGo(map, dirty);
      this.#client?.maps.delete(map);
      await this.#places.takeBack([map], !isFree);
    });
  }

  /**
   * Asks the device process to let go of a map. False when it does not say so in time: the map is then taken by force. What
   * is not known to be unwritten is told as written.
   * @throws ProtocolError when the device process cannot give the bitmap that is wanted; it then keeps the map
   */
  async #letGo(map: MemoryMap, dirty: DirtyRequest | undefined): Promise<boolean> {
    if (this.#state !== "connected") {
      allDirty(map, dirty);
      return true;
    }
    const body = unmapBody(map, dirty);
    const answer = this.#send(Command.DMA_UNMAP, body);
    const { address, size } = map;
    let stop = () => {};
    const late = new Promise<never>((_, reject) => {
      // One that is late already is not waited for again: the client's deadline is for all of its unmaps together.
      const deadline = this.#lateUnmaps > 0 ? 0 : UNMAP_DEADLINE_MS;
      stop = startDeadline(deadline, () => {
        this.#lateUnmaps++;
        const answered = () => this.#lateUnmaps--;
        answer.then(answered, answered);
        reject(new ProtocolError("the device process does not answer", Errno.ETIMEDOUT));
      });
    });
    try {
      const reply = await Promise.race([answer, late]);
      if (dirty) this.#takeBitmap(reply, body.length, dirty);
      return true;
    } catch (error) {
      if (dirty && error instanceof ProtocolError && error.errno !== Errno.ETIMEDOUT) throw error;
      const reason = (error as Error).message;
      this.#log.warn({ address, size, reason }, "the device did not let go of memory: it is taken by force");
      allDirty(map, dirty);
      return false;
    } finally {
      stop();
    }
  }

  /** The bitmap follows the request's body in the reply. @throws PeerGone, the link broken, when it is of another length */
  #takeBitmap(reply: Uint8Array, offset: number, { bitmap }: DirtyRequest): void {
    if (reply.length !== offset + bitmap.length) {
      this.#break(`a reply of ${reply.length} bytes to DMA_UNMAP with a bitmap`);
      throw new PeerGone("the device process broke the link");
    }
    bitmap.set(reply.subarray(offset));
  }

  /** Without a device process it is kept for the next one. */
  setIrqs(request: IrqSetRequest): Promise<void> {
    return this.#exclusive(async () => {
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
        this.doorbells.bind(index, start, eventfds);
      } else if (isTrigger && count === 0) {
        this.doorbells.unbindAll(index);
        this.#irqEventfds.clearIndex(index);
      }
      if (this.#state === "connected") {
        const body = eventfds ? doorbellBody(flags, index, start, count, this.doorbells) : plainIrqBody(request);
        try {
          await this.#request(Command.DEVICE_SET_IRQS, body);
        } catch (error) {
          if (!(error instanceof PeerGone)) {
            if (eventfds) this.doorbells.bind(index, start, new Array(count).fill(-1));
            throw error;
          }
        }
      }
      client.irqs.note(request);
    });
  }

  handle(command: PendingCommand): void {
    // A device process that was just started again: what the driver VM asks meanwhile waits the moment that this takes.
    if (this.#state === "ready") {
      this.#early.push(command);
      return;
    }
    if (this.#state !== "connected" || !this.#summary) {
      answerWithoutDevice(command);
      return;
    }
    const posted = isPostedWrite(command, this.#summary);
    const id = posted ? 0 : this.#requests.take(command.command, command, undefined);
    if (id < 0) {
      command.fail(Errno.EBUSY);
      this.#break("the device process answers nothing");
      return;
    }
    const flags = HeaderFlags.TYPE_COMMAND | (posted ? HeaderFlags.NO_REPLY : 0);
    this.stats.commands++;
    this.channel.send(id, command.command, flags, 0, command.bytes, command.offset, command.length);
    if (!posted) return;
    this.stats.postedWrites++;
    if (this.channel.congested) this.#heldBack.push(command);
    else replyToWrite(command);
  }

  // Messages from the device process.

  #message(bytes: Uint8Array, data: DataView, length: number): void {
    const { id, command, flags, errno } = this.#inHeader.at(data);
    const type = flags & HeaderFlags.TYPE_MASK;
    try {
      if (type === HeaderFlags.TYPE_REPLY) this.#reply(id, command, flags, errno, bytes, data, length);
      else if (type === HeaderFlags.TYPE_COMMAND) this.#command(id, command, flags, bytes, data, length);
      else throw new ProtocolError(`a message of type ${type}`);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#break(error.message);
    }
  }

  #reply(id: number, number: number, flags: number, errno: number, bytes: Uint8Array, data: DataView, length: number) {
    if (!this.#requests.waitsFor(id, number)) throw new ProtocolError(`a reply to nothing: ${number}, id ${id}`);
    const own = this.#requests.own(id);
    const relayed = this.#requests.relayed(id);
    const failed = (flags & HeaderFlags.ERROR) !== 0;
    const code = errno > 0 && errno <= ERRNO_MAX ? errno : Errno.EIO;
    if (own) {
      this.#requests.free(id);
      if (failed) own.reject(new ProtocolError(`the device refused command ${number}`, code, number));
      else own.resolve(bytes.slice(Header.size, length));
    } else if (relayed) {
      const handles = failed || !takesHandles(number) ? 0 : errno;
      const bodyEnd = length - 4 * handles;
      const body = failed ? 0 : checkReply(relayed, data, bodyEnd - Header.size, handles);
      if (body < 0) throw new ProtocolError(`a reply of ${length} bytes that does not fit command ${number}`);
      this.#requests.free(id);
      if (failed) {
        relayed.fail(code);
      } else if (HandleTable.concerns(number, body, handles)) {
        this.#replyWithFds(relayed, bytes.slice(Header.size, Header.size + body), handlesAt(data, bodyEnd, handles));
      } else {
        relayed.reserve(body);
        copyBytes(bytes, Header.size, relayed.replyBytes, relayed.replyOffset, body);
        relayed.reply(body);
      }
    }
  }

  /** Passes a reply on with the fds that its handles stand for. What is wrong with them costs the client an error only. */
  #replyWithFds(relayed: PendingCommand, body: Uint8Array<ArrayBuffer>, handles: readonly number[]): void {
    const most = this.#client?.version.maxMessageFds ?? 0;
    try {
      if (!this.#summary || handles.length > most) throw new ProtocolError(`${handles.length} fds for the client`);
      const fds = this.sharing.resolve(relayed.command, body, handles, this.#summary);
      relayed.reserve(body.length);
      copyBytes(body, 0, relayed.replyBytes, relayed.replyOffset, body.length);
      relayed.reply(body.length, fds.length > 0 ? fds : undefined);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#log.warn({ command: relayed.command, reason: error.message }, "refused a reply of the device process");
      relayed.fail(Errno.EIO);
    }
  }

  #command(id: number, command: number, flags: number, bytes: Uint8Array, data: DataView, length: number): void {
    if (command === LinkCommand.HELLO) {
      this.#hello(id, data, length);
    } else if (command === LinkCommand.ALLOCATE_MEMORY || command === LinkCommand.ALLOCATE_EVENTS) {
      this.#allocate(id, command, data, length);
    } else if (this.#state === "absent") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === LinkCommand.QUIESCE) {
      this.#quiesce(id);
    } else if (this.#state === "preparing") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === Command.DMA_READ || command === Command.DMA_WRITE) {
      const client = this.#client;
      const most = Math.min(MAX_DATA_XFER_SIZE, client?.version.maxDataXferSize ?? 0);
      this.dma.relay(id, command, flags, bytes, data, length, client?.memory, most);
    } else {
      throw new ProtocolError(`command ${command}, which is not one of a device process`);
    }
  }

  /** ALLOCATE_MEMORY and ALLOCATE_EVENTS; from the first of them on the window may be changed. */
  #allocate(id: number, command: number, data: DataView, length: number): void {
    if (this.#state === "ready" || this.#state === "connected") throw new ProtocolError("ALLOCATE_* after HELLO");
    if (this.#allocating) throw new ProtocolError("ALLOCATE_* before the reply to the one before");
    const allocation = this.sharing.parse(command, data, Header.size, length - Header.size);
    this.#state = "preparing";
    this.#allocating = true;
    const era = this.#era;
    this.#background(async () => {
      if (era !== this.#era) return;
      this.#window.permit();
      let body = NOTHING;
      let errno = 0;
      try {
        body = await allocation(this.#client !== undefined);
      } catch (error) {
        if (error instanceof PeerGone) return;
        if (!(error instanceof ProtocolError) && !isSystemError(error)) throw error;
        this.#log.warn({ reason: error.message }, "the device process does not get what it wants to share");
        errno = error.errno;
      }
      if (era !== this.#era) return;
      this.#allocating = false;
      const flags = HeaderFlags.TYPE_REPLY | (errno === 0 ? 0 : HeaderFlags.ERROR);
      this.channel.send(id, command, flags, errno, body);
    });
  }

  #hello(id: number, data: DataView, length: number): void {
    if (this.#state === "ready" || this.#state === "connected") throw new ProtocolError("a second HELLO");
    if (this.#allocating) throw new ProtocolError("HELLO before the reply to ALLOCATE_*");
    const reply = HeaderFlags.TYPE_REPLY;
    try {
      this.#summary = parseHello(data, Header.size, length - Header.size);
      this.sharing.checkAgainst(this.#summary);
    } catch (error) {
      const errno = (error as ProtocolError).errno;
      this.channel.send(id, LinkCommand.HELLO, reply | HeaderFlags.ERROR, errno, NOTHING);
      throw error;
    }
    const backEnd = this.#backEnd;
    if (!backEnd) return;
    this.#state = "ready";
    this.stats.hellos++;
    this.#window.permit();
    this.doorbells.attach(backEnd.queues - Queue.FIRST_DOORBELL, (queue) => backEnd.kickFd(queue));
    this.channel.send(id, LinkCommand.HELLO, reply, 0, NOTHING);
    this.#log.info({ doorbells: backEnd.queues - Queue.FIRST_DOORBELL }, "the device process is ready");
    this.#introduce();
  }

  #quiesce(id: number): void {
    this.#leave("quiesced", "the device process is about to reset the device");
    // After the reply it may reset the device, and then no request for the window may be on its way.
    this.#background(async () => {
      if (this.#state !== "quiesced") return;
      await this.#takeBackAll();
      await this.#window.idle();
      this.#window.forbid("the device process is about to reset the device");
      this.channel.send(id, LinkCommand.QUIESCE, HeaderFlags.TYPE_REPLY, 0, NOTHING);
    });
  }

  // State.

  /** Shows the client, its maps and its interrupts to a device process that is ready, when there are both. */
  #introduce(): void {
    this.#background(async () => {
      const client = this.#client;
      if (!client || this.#state !== "ready") return;
      const { generation, version } = client;
      const { major, minor, maxDataXferSize, maxMessageFds } = version;
      if (this.sharing.stale) await this.#tellGone(generation - 1, false);
      this.#told = client;
      try {
        await this.#request(
          LinkCommand.CLIENT_CONNECTED,
          ClientConnected.encode({ generation, major, minor, maxDataXferSize, maxMessageFds }),
        );
        this.#places.releaseKept();
        for (const map of client.maps) {
          if (this.#client === client) await this.#show(map);
        }
        if (!this.doorbells.rebind()) this.#log.warn("the device has fewer doorbells than the client has vectors");
        for (const body of client.irqs.bodies(this.doorbells, this.irqCounts ?? [])) {
          await this.#request(Command.DEVICE_SET_IRQS, body);
        }
      } catch (error) {
        this.#log.warn({ reason: (error as Error).message }, "the device did not take the client");
        if (error instanceof ProtocolError) this.#break("the device refused the client");
        return;
      }
      if (this.#client !== client || this.#state !== "ready") return;
      this.#state = "connected";
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
      await this.#request(Command.DMA_MAP, mapBody(map));
    } catch (error) {
      await this.#places.takeBack([map]);
      throw error;
    }
  }

  /** The device process no longer answers: what waits for it is answered as by a device that is not there. */
  #leave(state: State, reason: string): void {
    const was = this.#state;
    this.#state = state;
    this.#told = undefined;
    this.#era++;
    this.#allocating = false;
    this.dma.drop();
    this.doorbells.detach();
    this.sharing.left(this.#client !== undefined);
    // After QUIESCE the channel stays, and with it what the device process still answers.
    this.#requests.dropAll(reason, answerWithoutDevice, state === "quiesced");
    for (const command of this.#heldBack.splice(0)) replyToWrite(command);
    for (const command of this.#early.splice(0)) answerWithoutDevice(command);
    if (was === "ready" || was === "connected") this.#log.info({ reason, state }, "the device process left");
  }

  /** The device process broke the rules: it is absent until it resets the device, and has no driver-VM memory. */
  #break(reason: string): void {
    if (this.#state === "broken") return;
    this.#log.warn({ reason }, "the device process broke the link");
    this.#leave("broken", reason);
    this.channel.stop();
    this.#background(() => this.#takeBackAll());
  }

  /** Out of the window with all that the client has to do with. */
  async #takeBackAll(): Promise<void> {
    await this.#places.takeBack(this.#client?.maps ?? []);
    await this.sharing.takeBack(this.#client !== undefined);
  }

  #drained(): void {
    this.dma.resume();
    for (const command of this.#heldBack.splice(0)) replyToWrite(command);
  }

  /** Sends a command of the bridge's own; the link is broken if no reply comes in time. Rejects with ProtocolError or PeerGone. */
  async #request(command: number, body: Uint8Array): Promise<void> {
    const answered = startDeadline(REPLY_DEADLINE_MS, () => {
      this.#break(`the device process did not answer command ${command} in time`);
    });
    try {
      await this.#send(command, body);
    } finally {
      answered();
    }
  }

  /** The same, with a reply that may take as long as it likes; resolves with its body. */
  #send(command: number, body: Uint8Array): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (!this.channel.open) return reject(new PeerGone("the device process is not there"));
      const id = this.#requests.take(command, undefined, { resolve, reject });
      if (id < 0) {
        reject(new PeerGone("the device process answers nothing"));
        this.#break("the device process answers nothing");
        return;
      }
      this.channel.send(id, command, HeaderFlags.TYPE_COMMAND, 0, body);
    });
  }

  /** Runs `work` when everything before it is done. */
  #exclusive(work: () => Promise<void>): Promise<void> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {});
    return done;
  }

  #background(work: () => Promise<void>): void {
    this.#exclusive(work).catch((error) => this.#log.error({ err: error }, "unexpected"));
  }
}

/** A device process that cannot be asked may have written everything. */
function allDirty(map: MemoryMap, dirty: DirtyRequest | undefined): void {
  if (dirty) setBits(dirty.bitmap, 0, Math.ceil(map.size / dirty.pageSize) - 1);
}
