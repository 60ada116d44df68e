/**
 * The bridge's half of the link between a driver VM's client and the device process in a device VM
 * (docs/virtio-vfio-user.md): the `Backend` behind a vfio-user server, and what a vhost-user back-end reports to.
 *
 * This folder, in the order in which to read it:
 * - device-state.ts: the state of the device side. Whoever sees something happen raises an event; `#changed` below is
 *   where each transition's consequences are.
 * - introduction.ts: clients and device processes come and go, and each device process is made to know of the client,
 *   one step after the other (changes.ts). So the driver VM lives on whatever becomes of the device process.
 * - channel.ts, request-channel.ts: rings, messages, commands and replies. bodies.ts and replies.ts: what is in them.
 * - command-relay.ts: the client's commands. device-process.ts, inspection.ts: the device process's. dma-relay.ts: its
 *   DMA by messages.
 * - dma-maps.ts, window-allocation.ts: the client's memory. copies.ts, copy-threads.ts: what of it is copied.
 * - interrupts.ts, doorbells.ts: the client's interrupts.
 * - sharing.ts, region-memory.ts, io-events.ts, handle-table.ts: the device's memory and eventfds that the client has.
 * - config-space.ts: the device's config space, as the device VM sees it.
 */
import { startDeadline } from "../../../shared/deadline.js";
import { isSystemError } from "../../../shared/errors.js";
import { PAUSE_GRACE_MS, RETRY_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import type { FdShare } from "../../../shared/peer-fds.js";
import { Queue } from "../../../shared/spec/link.js";
import { Command } from "../../../shared/spec/vfio-user.js";
import type { Share } from "../../../shared/turn.js";
import type {
  Backend,
  ClientMemory,
  ClientVersion,
  DeviceSummary,
  DirectAccesses,
  IrqSetRequest,
  MemoryMap,
  PendingCommand,
  UnmapRequest,
} from "../../../shared/vfio-user/backend.js";
import { AccessPath } from "../../../shared/vfio-user/socket/access-path.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { BackEndDevice } from "../vhost-user/back-end-device.js";
import type { DeviceVmMemory } from "../vhost-user/memory.js";
import type { Window } from "../vhost-user/window.js";
import { Changes } from "./changes.js";
import { CommandRelay } from "./command-relay.js";
import { ConfigSpace } from "./config-space.js";
import { Copies } from "./copies.js";
import { DeviceProcess } from "./device-process.js";
import { type Change, DeviceState } from "./device-state.js";
import { ClientMaps } from "./dma-maps.js";
import { DmaRelay } from "./dma-relay.js";
import { Doorbells } from "./doorbells.js";
import { ClientInterrupts } from "./interrupts.js";
import { Introduction } from "./introduction.js";
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
}

export class BridgeLink implements Backend, BackEndDevice {
  readonly #window: Window;
  readonly #log: Log;
  readonly #state = new DeviceState();
  readonly #changes: Changes;
  readonly #requests: RequestChannel;
  readonly #maps: ClientMaps;
  readonly #doorbells: Doorbells;
  readonly #interrupts: ClientInterrupts;
  readonly #sharing: Sharing;
  readonly #copies: Copies;
  readonly #dma: DmaRelay;
  readonly #process: DeviceProcess;
  readonly #relay: CommandRelay;
  readonly #introduction: Introduction;
  readonly #config: ConfigSpace;
  readonly path: AccessPath;
  /** What the device process says of itself. Rejects with UserError. */
  readonly inspectDevice = () => this.#process.inspection.ask(this.#backEnd?.features ?? 0n);
  #backEnd: BackEnd | undefined;
  #stopGrace = () => {};
  #retry: NodeJS.Timeout | undefined;

  constructor({ window, memory, log, uuid, name, share, fds }: LinkOptions) {
    this.#window = window;
    this.#log = log;
    this.#config = new ConfigSpace(window.size, uuid, name);
    const state = this.#state;
    const changes = new Changes(state, log);
    const path = new AccessPath(share);
    const requests = new RequestChannel(state, share, path);
    const allocation = new WindowAllocation(window, log);
    const maps = new ClientMaps(state, changes, requests, allocation, log);
    const sharing = new Sharing(allocation, requests);
    const dma = new DmaRelay(requests.channel);
    const doorbells = new Doorbells(fds);
    const interrupts = new ClientInterrupts(state, changes, requests, doorbells, log);
    const process = new DeviceProcess({ state, changes, requests, allocation, maps, sharing, dma, memory, log });
    const relay = new CommandRelay(state, requests, process, path);
    this.path = path;
    this.#changes = changes;
    this.#requests = requests;
    this.#maps = maps;
    this.#sharing = sharing;
    this.#dma = dma;
    this.#doorbells = doorbells;
    this.#interrupts = interrupts;
    this.#copies = new Copies(maps.copied, share, state);
    this.#process = process;
    this.#relay = relay;
    const parts = { state, changes, requests, allocation, maps, interrupts, sharing, process, relay, log };
    this.#introduction = new Introduction(parts);
    memory.onChange = () => path.native.memory(memory.pieces.addresses, memory.pieces.bytes);
    state.observe((change) => this.#changed(change));
  }

  /** For diagnostics. */
  inspect() {
    const { client, isAnnounced } = this.#introduction;
    return {
      state: this.#state.name,
      isolated: this.#maps.isolated,
      device: this.#process.summary,
      announced: isAnnounced,
      client: client && { generation: client.generation, ...client.version, ...this.#maps.inspect() },
      doorbells: this.#doorbells.inspect(),
    };
  }

  /** What the link did so far. */
  get statistics() {
    return {
      hellos: this.#process.hellos,
      ...this.#relay.statistics,
      doorbells: this.#doorbells.relayed,
      ioEvents: this.#sharing.events.forwarded,
      ...this.#requests.channel.statistics,
      dmaMessages: this.#dma.transfers,
      copies: this.#copies.copies,
      copiedBytes: this.#copies.bytes,
    };
  }

  // The device VM's side, as the vhost-user back-end reports it: BackEndDevice.

  config(): Uint8Array {
    this.#config.doorbells = this.#doorbellQueues;
    return this.#config.bytes;
  }

  attach(backEnd: BackEnd): void {
    this.#backEnd = backEnd;
  }

  detach(): void {
    this.#backEnd = undefined;
  }

  enabled(index: number): void {
    // While rings go on after a pause, nothing begins.
    if (index < Queue.FIRST_DOORBELL && !this.#state.isPaused) this.#startRings();
  }

  pausing(): void {
    this.#state.raise("pause");
  }

  resumed(): void {
    this.#state.raise("resume");
  }

  failed(reason: string): void {
    this.#state.raise("violated", reason);
  }

  reset(reason: string): void {
    this.#state.raise("reset", reason);
  }

  /** Ends everything; `disconnect` is not waited for. */
  close(): void {
    this.reset("the bridge closes");
    this.#introduction.close();
    this.#doorbells.close();
    this.#sharing.close();
    this.#maps.close();
  }

  // The client's side: Backend.

  get device(): DeviceSummary | undefined {
    return this.#state.command === "without the device" ? undefined : this.#process.summary;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.#process.summary?.irqCounts;
  }

  connect(version: ClientVersion, memory: ClientMemory, accesses: DirectAccesses): Promise<void> {
    this.#maps.connect(memory);
    this.#interrupts.connect();
    this.#sharing.connect();
    const { generation, served } = this.#introduction.connect(version, memory, accesses);
    this.#config.clientConnected(generation);
    return served;
  }

  disconnect(): Promise<void> {
    if (this.#introduction.client === undefined) return Promise.resolve();
    this.#config.clientGone();
    this.#relay.clientGone();
    this.#dma.drop();
    this.#state.raise("clientGone");
    // Before anything is waited for: a device process that hears of it late must not ring doorbells of that client.
    this.#interrupts.disconnect();
    this.#sharing.disconnect();
    this.#introduction.disconnect();
    return this.#maps.disconnect();
  }

  map(map: MemoryMap): Promise<void> {
    return this.#maps.map(map);
  }

  unmap(request: UnmapRequest): Promise<void> {
    return this.#maps.unmap(request);
  }

  setIrqs(request: IrqSetRequest): Promise<void> {
    return this.#interrupts.set(request);
  }

  handle(command: PendingCommand): void {
    if (command.command === Command.DEVICE_RESET) {
      this.#doorbells.forgetPending();
      // What was not sent yet would come after the reply.
      this.#introduction.client?.memory.abandon();
    }
    this.#relay.handle(command);
  }

  receiving(now: boolean): void {
    this.#requests.channel.hold(now);
  }

  // What follows from a transition.

  #changed(change: Change): void {
    if (change.to !== "connected") this.#relay.stopPath();
    if (change.from === "paused" && change.to !== "paused") this.#stopGrace();
    switch (change.event) {
      case "hello":
        this.#window.permit();
        this.#attachDoorbells();
        this.#log.info({ doorbells: this.#doorbellQueues }, "the device process is ready");
        this.#introduction.update();
        return;
      case "released":
        this.#attachDoorbells();
        this.#introduction.update();
        return;
      case "pause":
        this.#pause();
        return;
      case "graceOver":
        this.#relay.graceOver();
        return;
      case "resetOwed":
        this.#introduction.owesReset();
        return;
      case "resume":
        this.#resume(change);
        return;
      case "quiesce":
      case "reset":
      case "violated":
      case "silent":
      case "failed":
        this.#leave(change);
    }
  }

  /** Starts what can run of the message queues and the copy queue. */
  #startRings(): void {
    clearTimeout(this.#retry);
    const backEnd = this.#backEnd;
    const { channel } = this.#requests;
    if (!backEnd) return;
    try {
      if (channel.open) {
        if (channel.halted) channel.goOn();
      } else if (backEnd.queue(Queue.TO_DEVICE)?.running && backEnd.queue(Queue.FROM_DEVICE)?.running) {
        this.#state.raise("start");
        channel.start(backEnd);
      }
      if (!this.#copies.running && this.#state.cause !== "violated") this.#copies.start(backEnd);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ err: error }, "the device process's rings cannot be polled: raise LimitNOFILE");
      this.#retry = setTimeout(() => this.#startRings(), RETRY_MS);
    }
  }

  /** The rings are about to stand still, and may go on. */
  #pause(): void {
    clearTimeout(this.#retry);
    this.#doorbells.halt();
    this.#copies.stop();
    this.#requests.channel.halt();
    this.#log.info("the device VM is paused, or the device was reset");
    this.#stopGrace = startDeadline(PAUSE_GRACE_MS, () => this.#state.raise("graceOver"));
    this.#sharing.events.stop();
    this.#changes.paused();
  }

  /** The rings go on where they were. */
  #resume({ to }: Change): void {
    this.#log.info({ state: to }, "the device VM goes on");
    const backEnd = this.#backEnd;
    if (!backEnd || !this.#requests.channel.open) return;
    this.#startRings();
    // Interrupts of the time before the start may be lost.
    for (const queue of [Queue.TO_DEVICE, Queue.FROM_DEVICE, Queue.COPY]) backEnd.call(queue);
    try {
      this.#doorbells.goOn();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ err: error }, "the device's interrupts cannot be relayed");
      this.#state.raise("failed", error.message);
    }
    this.#introduction.update();
  }

  /**
   * The device process is not waited for any more. After "silent" and "failed" it may be there all the same: it has no
   * driver-VM memory until it has released the client, and what it was not given yet it is not asked any more.
   */
  #leave({ event, from, to, reason }: Change): void {
    const isThere = event === "silent" || event === "failed";
    if (event === "violated") this.#log.warn({ reason }, "the device process broke the link");
    const isNews = !isThere || this.#introduction.gaveUp(event, reason);
    if (isNews && (from === "ready" || from === "connected" || from === "paused"))
      this.#log.info({ reason, state: to }, "the device process left");
    this.#dma.drop();
    this.#doorbells.detach();
    this.#relay.processLeft();
    if (isThere) {
      this.#sharing.events.stop();
      this.#requests.abandon(reason);
      return;
    }
    this.#introduction.processGone();
    this.#sharing.processGone();
    // After QUIESCE the channel stays.
    this.#requests.drop(reason, event === "quiesce");
    if (event === "quiesce") return;
    clearTimeout(this.#retry);
    this.#requests.channel.stop();
    this.#copies.stop();
    if (event === "reset") {
      // QEMU dropped all that was mapped.
      this.#config.needsReset = false;
      this.#maps.forget();
      this.#sharing.forget();
    } else if (from !== "quiesced") {
      // After QUIESCE's reply it resets the device by itself, and nothing may be in flight to QEMU.
      this.#demandReset(reason);
    }
  }

  /** The device process broke the rules: it has no driver-VM memory, and is to reset the device. */
  #demandReset(reason: string): void {
    this.#window.permit();
    this.#changes.background(async () => {
      await this.#process.clearWindow();
      if (this.#state.cause !== "violated") return;
      // Last of all: when it hears of this it resets the device, and then nothing may be in flight to QEMU.
      this.#config.needsReset = true;
      await this.#window.configChanged();
      this.#window.forbid(reason);
    });
  }

  /** Doorbell queues of the device. */
  get #doorbellQueues(): number {
    return Math.max(0, (this.#backEnd?.queues ?? 0) - Queue.FIRST_DOORBELL);
  }

  #attachDoorbells(): void {
    this.#doorbells.attach(this.#doorbellQueues, (queue) => this.#backEnd?.kickFd(queue) ?? -1);
  }
}
