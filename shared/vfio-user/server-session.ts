/**
 * One client's connection to a server, from VERSION to the end: checks each command, answers those that are about
 * the transport, and passes the rest on to the backend. Whatever the backend does, each command is answered in time: a
 * read with all ones, as from a dead PCI device, anything else with ETIMEDOUT.
 */
import { startDeadline, TICKS_PER_DEADLINE } from "../deadline.js";
import { Errno, isSystemError, PeerGone, ProtocolError } from "../errors.js";
import { MAX_MESSAGE_FDS } from "../limits.js";
import { Command, HeaderFlags, RegionAccess } from "../spec/vfio-user.js";
import { answerWithoutDevice, copyAccess, replyAllOnes } from "./absent-device.js";
import {
  type Backend,
  type ClientMemory,
  type DirectAccesses,
  isPosted,
  type MemoryMap,
  type PendingCommand,
} from "./backend.js";
import { checkBody, checkRequest } from "./checks.js";
import type { DeviceAccess } from "./device-access.js";
import { ClientDma, type ClientSocketOptions } from "./dma/client-dma.js";
import { DmaMaps, replyUnmapped } from "./dma/dma-maps.js";
import { parseIrqSet } from "./irqs/irq-set.js";
import { type RestoredClient, type SavedClient, streamOptions } from "./kept-client.js";
import { Pending } from "./pending.js";
import type { RegisterMemory } from "./register-memory.js";
import type { SessionStats } from "./session-stats.js";
import type { AccessPath } from "./socket/access-path.js";
import { Connection, type ConnectionHandler, type Frame } from "./socket/connection.js";
import { LOST } from "./socket/receive-buffer.js";
import type { Arrival } from "./socket/stream-memory.js";
import { encodeVersionReply, parseVersion } from "./version.js";

interface ServerSessionOptions extends ClientSocketOptions {
  readonly backend: Backend;
  readonly stats: SessionStats;
  readonly trustUnsealedMemory: boolean;
  readonly deviceWaitMs: number;
  readonly versionWaitMs: number;
}

const access = RegionAccess.view();

export class ServerSession implements ConnectionHandler, DirectAccesses {
  /** Resolves when the client is gone, the backend has released everything, and all fds are closed. */
  readonly ended: Promise<void>;
  readonly #connection: Connection;
  readonly #maps: DmaMaps;
  #pending: Pending;
  #path: AccessPath | undefined;
  #device: DeviceAccess | undefined;
  readonly #dma: ClientDma;
  #state: "new" | "connecting" | "ready" | "gone" = "new";
  readonly fd: number;
  #now = 0;
  /** Ends the wait for VERSION, and then for a device. */
  #stopWaiting: () => void;
  #end!: () => void;
  readonly #options: ServerSessionOptions;

  /** `resumes`: it goes on where another process was, after `goOn`. */
  constructor(fd: number, options: ServerSessionOptions, resumes?: readonly Arrival[]) {
    this.#options = options;
    this.fd = fd;
    options.keeper?.keep(fd);
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#maps = new DmaMaps(options);
    this.#connection = new Connection(fd, this, {
      share: options.share,
      fds: options.fds,
      receiving: (now) => options.backend.receiving?.(now),
      ...streamOptions(options.streams.client, options.keeper, resumes),
    });
    this.#dma = new ClientDma(this.#connection, (frame) => this.reply(frame), options);
    this.#pending = new Pending(this.#connection, options.stats);
    // Nobody else is served while this one says nothing, or no more than the half of a message.
    this.#stopWaiting = startDeadline(options.versionWaitMs, () =>
      this.close("the client did not say VERSION in time"),
    );
  }

  /** What the next process has to know of the client; undefined when it has gone. */
  save(): SavedClient | undefined {
    const { keeper } = this.#options;
    if (this.#state === "gone" || keeper === undefined) return undefined;
    return { socket: keeper.keep(this.fd), isReady: this.#state === "ready", ...this.#dma.save() };
  }

  /** Goes on with a client that another process served, and gives its maps. @throws ProtocolError */
  restore(client: RestoredClient): MemoryMap[] {
    if (!client.isReady) return [];
    this.#stopWaiting();
    this.#options.stats.clients++;
    this.#state = "ready";
    this.#dma.restore(client);
    return this.#maps.restore(client.maps, client.unmapped);
  }

  goOn(): void {
    this.#connection.goOn();
  }

  get memory(): ClientMemory | undefined {
    return this.#dma.messages;
  }

  /** The client has closed its end, which is dealt with in a moment, or was. */
  get isEnding(): boolean {
    return this.#state === "gone" || this.#connection.isHungUp;
  }

  /** DMA maps that the client has now. */
  get mapCount(): number {
    return this.#maps.length;
  }

  /** Brings the statistics up to date. */
  count(): void {
    const served = this.#connection.takeServed();
    const { stats } = this.#options;
    if (served > 0) stats.countAccesses(0, served, 0, 0);
    if (this.#device !== undefined) {
      const { reads, readsFromMemory, writes, writesMulti } = this.#device.takeCounts();
      stats.countAccesses(reads, readsFromMemory, writes, writesMulti);
    }
    if (this.#path === undefined) return;
    const { reads, readsFromMemory, writes, sent } = this.#path.takeCounts();
    stats.countAccesses(reads, readsFromMemory, writes, sent - reads - writes);
  }

  close(reason: string): void {
    this.#connection.close(new PeerGone(reason));
  }

  /** Called TICKS_PER_DEADLINE times within the reply deadline. */
  tick(): void {
    this.#now++;
    this.count();
    this.#dma.messages?.tick();
    const pending = this.#pending;
    if (pending.active && this.#state === "ready" && this.#now - pending.startedAt >= TICKS_PER_DEADLINE) {
      this.#expire(pending);
    }
    if (this.#path?.tick()) this.#expireAccess();
  }

  /** See DirectAccesses. */
  readFrom(memory: RegisterMemory | undefined): void {
    this.#connection.readsFrom(memory);
  }

  /** See DirectAccesses. */
  answerBy(device: DeviceAccess): void {
    this.#device = device;
    device.takeCounts();
    this.latenciesChanged();
    this.#connection.answersBy(device);
  }

  /** Somebody looks at latencies, or nobody does any more: the statistics have it. */
  latenciesChanged(): void {
    this.#device?.measure(this.#options.stats.latencies);
  }

  /** See DirectAccesses. */
  passBy(path: AccessPath): void {
    this.#path = path;
    this.#connection.accessesBy(path);
  }

  /** See DirectAccesses. */
  take(): PendingCommand | undefined {
    const frame = this.#connection.takeAccess();
    if (frame === undefined) return undefined;
    const pending = new Pending(this.#connection, this.#options.stats);
    pending.begin(frame, this.#now);
    pending.leaveUnmeasured();
    return pending;
  }

  command(frame: Frame): void {
    const pending = this.#pending;
    this.#options.stats.count(frame.command);
    pending.begin(frame, this.#now);
    if (frame.fds === LOST) {
      this.#options.stats.errors++;
      this.#options.log.error(
        { used: this.#options.fds.used },
        "out of file descriptors for a client: raise LimitNOFILE",
      );
      pending.fail(Errno.EMFILE);
      return;
    }
    try {
      if (this.#state === "ready") this.#dispatch(frame, pending);
      else this.#version(frame, pending);
    } catch (error) {
      this.#failWith(pending, error);
      if (this.#state === "new") this.#connection.close(new PeerGone("the client and we do not agree on a version"));
    }
  }

  reply(frame: Frame): void {
    if (this.#dma.messages?.handleReply(frame)) return;
    this.#options.log.warn({ command: frame.command, id: frame.id }, "a reply to nothing");
  }

  gone(reason: PeerGone): void {
    this.#options.keeper?.touch();
    const connected = this.#state === "connecting" || this.#state === "ready";
    this.#state = "gone";
    this.count();
    this.#stopWaiting();
    // The next client's commands are going to be where this one's are.
    if (this.#pending.active) this.#pending.keepBody();
    this.#pending.active = false;
    this.#maps.end();
    this.#options.log.info({ reason: reason.message }, "client gone");
    this.#dma.close(reason);
    void this.#tearDown(connected);
  }

  async #tearDown(connected: boolean): Promise<void> {
    try {
      if (connected) await this.#options.backend.disconnect();
    } catch (error) {
      this.#options.log.error({ err: error }, "the device could not release a client");
    }
    this.#maps.clear();
    this.#end();
  }

  #version(frame: Frame, pending: Pending): void {
    if (frame.command !== Command.VERSION) {
      throw new ProtocolError(`the first command is ${frame.command}, not VERSION`, Errno.EINVAL, frame.command);
    }
    checkBody(frame.command, frame.length, frame.fds.length);
    const { backend, deviceWaitMs, log, stats } = this.#options;
    const client = parseVersion(frame.bytes, frame.offset, frame.length);
    const { maxDataXferSize, maxMsgFds } = client.capabilities;
    log.info({ version: `${client.major}.${client.minor}`, ...client.capabilities }, "client connected");
    stats.clients++;
    const memory = this.#dma.begin(client.capabilities, pending.wantsReply);
    this.#state = "connecting";
    this.#stopWaiting();
    this.#stopWaiting = startDeadline(deviceWaitMs, () => {
      this.#refuseClient(pending, new ProtocolError("no device is there", Errno.ETIMEDOUT, Command.VERSION));
    });
    const { major, minor } = client;
    const maxMessageFds = Math.min(maxMsgFds, MAX_MESSAGE_FDS);
    backend.connect({ major, minor, maxDataXferSize, maxMessageFds }, memory, this).then(
      () => {
        if (this.#state !== "connecting") return;
        this.#stopWaiting();
        this.#state = "ready";
        this.#options.keeper?.touch();
        const { twin } = this.#dma;
        if (twin === undefined) {
          pending.replyWith(encodeVersionReply(client));
        } else {
          pending.replyWith(encodeVersionReply(client, 0), [twin.clientEnd]);
          twin.handedOver();
        }
      },
      (error) => this.#refuseClient(pending, error),
    );
  }

  #refuseClient(pending: Pending, error: unknown): void {
    if (this.#state !== "connecting") return;
    // Not pending.fail: that would begin with the next command.
    if (pending.wantsReply)
      this.#connection.sendError(pending.id, pending.command, this.#errnoOf(error, pending.command));
    this.#connection.close(new PeerGone("no device for the client"));
  }

  #dispatch(frame: Frame, pending: Pending): void {
    const { command } = frame;
    if (command === Command.VERSION) throw new ProtocolError("a second VERSION", Errno.EINVAL, command);
    checkBody(command, frame.length, frame.fds.length);
    const { backend, stats } = this.#options;
    switch (command) {
      case Command.DMA_MAP:
        this.#answer(
          pending,
          this.#maps.map(frame, () => pending.active),
        );
        return;
      case Command.DMA_UNMAP:
        this.#unmap(frame, pending);
        return;
    }
    const { device, irqCounts } = backend;
    if (command === Command.DEVICE_SET_IRQS && irqCounts !== undefined) {
      this.#answer(pending, backend.setIrqs(parseIrqSet(frame, irqCounts)));
      return;
    }
    if (device === undefined) {
      answerWithoutDevice(pending);
      return;
    }
    checkRequest(frame, device);
    if (command === Command.REGION_READ) {
      stats.reads++;
    } else if (command === Command.REGION_WRITE) {
      stats.writes++;
      const { region } = access.at(frame.data, frame.offset);
      // A posted write: the client goes on while the device deals with it.
      if (isPosted(device, region) && !backend.answersWrites) {
        copyAccess(pending);
        pending.replyEarly(RegionAccess.size);
        if (!pending.active) return;
      }
    }
    backend.handle(pending);
  }

  #unmap(frame: Frame, pending: Pending): void {
    const unmapped = this.#maps.unmap(frame);
    if (!(unmapped instanceof Promise)) replyUnmapped(pending, unmapped);
    else
      unmapped.then(
        (done) => replyUnmapped(pending, done),
        (error) => this.#failWith(pending, error),
      );
  }

  /** Answers when the backend is done. */
  #answer(pending: Pending, work: Promise<void> | undefined): void {
    if (work === undefined) {
      pending.reply(0);
      return;
    }
    work.then(
      () => {
        if (pending.active) pending.reply(0);
      },
      (error) => this.#failWith(pending, error),
    );
  }

  /** The device did not answer an access of the path's in time. */
  #expireAccess(): void {
    const late = this.take();
    if (late === undefined) return;
    this.#noteLate(late.command);
    if (late.command === Command.REGION_READ) replyAllOnes(late);
    else late.fail(Errno.ETIMEDOUT);
  }

  #noteLate(command: number): void {
    this.#options.stats.timeouts++;
    this.#options.log.warn({ command }, "the device did not answer in time");
  }

  /** The backend did not answer in time. It keeps the pending object; the next command gets a fresh one. */
  #expire(late: Pending): void {
    this.#noteLate(late.command);
    const pending = new Pending(this.#connection, this.#options.stats);
    this.#pending = pending;
    const flags = late.wantsReply ? 0 : HeaderFlags.NO_REPLY;
    const { id, command, bytes, data, offset, length, position, isAgain } = late;
    const frame = { id, command, flags, errno: 0, bytes, data, offset, length, fds: [], position, isAgain };
    pending.begin(frame, this.#now);
    pending.leaveUnmeasured();
    late.active = false;
    late.keepBody();
    if (command === Command.REGION_READ) replyAllOnes(pending);
    else pending.fail(Errno.ETIMEDOUT);
  }

  #failWith(pending: Pending, error: unknown): void {
    pending.fail(this.#errnoOf(error, pending.command));
  }

  /** Logs what went wrong with a command, and tells the errno for the client. */
  #errnoOf(error: unknown, command: number): number {
    this.#options.stats.errors++;
    if (error instanceof ProtocolError || isSystemError(error)) {
      this.#options.log.warn({ command, reason: error.message }, "refused a command of the client");
      return error.errno;
    }
    if (!(error instanceof PeerGone)) this.#options.log.error({ err: error, command }, "unexpected");
    return Errno.EIO;
  }
}
