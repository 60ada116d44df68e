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
 * - command-relay.ts: the client's commands; device-process.ts, inspection.ts, dma-relay.ts: the device process's.
 * - dma-maps.ts, window-allocation.ts: the client's memory; copies.ts, copy-threads.ts: what of it is copied.
 * - interrupts.ts, doorbells.ts: the client's interrupts. config-space.ts: the device's, as the device VM sees it.
 * - sharing.ts, region-memory.ts, io-events.ts, handle-table.ts: the device's memory and eventfds that the client has.
 */
import { startDeadline } from "../../../shared/deadline.js";
import { isSystemError } from "../../../shared/errors.js";
import { PAUSE_GRACE_MS, RETRY_MS } from "../../../shared/limits.js";
import { Queue } from "../../../shared/spec/link.js";
import { Command } from "../../../shared/spec/vfio-user.js";
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
import type { AccessPath } from "../../../shared/vfio-user/socket/access-path.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { BackEndDevice } from "../vhost-user/back-end-device.js";
import type { Change } from "./device-state.js";
import { Introduction } from "./introduction.js";
import { type LinkOptions, LinkParts } from "./link-parts.js";
import {
  hasDoorbells,
  type RestoredClient,
  repairWindow,
  restoreLink,
  type SavedLink,
  saveLink,
  signalAll,
} from "./saved-link.js";

export class BridgeLink implements Backend, BackEndDevice {
  readonly #parts: LinkParts;
  readonly #introduction: Introduction;
  /** What the device process says of itself. Rejects with UserError. */
  readonly inspectDevice = () => this.#parts.process.inspection.ask(this.#backEnd?.features ?? 0n);
  #backEnd: BackEnd | undefined;
  #stopGrace = () => {};
  #settled: (() => void) | undefined;
  #retry: NodeJS.Timeout | undefined;

  constructor(options: LinkOptions) {
    const parts = new LinkParts(options);
    this.#parts = parts;
    this.#introduction = new Introduction(parts);
    const { memory, path, state } = parts;
    memory.onChange = () => path.native.memory(memory.pieces.addresses, memory.pieces.bytes);
    state.observe((change) => this.#changed(change));
  }

  get answersWrites(): boolean {
    return true;
  }

  /** After a take-over: calls back when the client's commands may come: the device process is sure of it, or left. */
  onceSettled(settled: () => void): void {
    this.#settled = settled;
    this.#checkSettled();
  }

  #checkSettled(): void {
    if (this.#parts.state.name === "ready" && this.#introduction.client) return;
    this.#settled?.();
    this.#settled = undefined;
  }

  get path(): AccessPath {
    return this.#parts.path;
  }

  save(): SavedLink {
    return saveLink(this.#parts, this.#introduction);
  }

  /** Goes on where another bridge was; the back-end and the client are there if they were. @throws StateError */
  restore(saved: SavedLink, backEnd: BackEnd | undefined, client: RestoredClient): void {
    this.#backEnd = backEnd;
    const isOpen = backEnd?.runs(Queue.TO_DEVICE) && backEnd.runs(Queue.FROM_DEVICE);
    if (hasDoorbells(saved.state.name)) this.#attachDoorbells();
    restoreLink(this.#parts, this.#introduction, saved, client);
    const { state } = this.#parts;
    if (backEnd && isOpen) this.#parts.requests.resume(backEnd);
    client.ends?.accesses.passBy(this.#parts.path);
    this.#parts.dma.restore(client.ends?.memory);
    if (state.isPaused) {
      this.#parts.requests.channel.halt();
      this.#waitForGrace();
    } else if (backEnd) {
      this.#startRings();
      signalAll(backEnd);
    }
    this.#parts.changes.background(() => repairWindow(this.#parts));
    if (state.cause === "violated") this.#demandReset("the bridge was started again");
    else if (state.cause !== undefined) this.#introduction.gaveUp(state.cause, "the bridge was started again");
    this.#introduction.update();
  }

  /** For diagnostics. */
  inspect() {
    const { client, isAnnounced } = this.#introduction;
    return {
      state: this.#parts.state.name,
      isolated: this.#parts.maps.placement.isolated,
      device: this.#parts.process.summary,
      announced: isAnnounced,
      client: client && { generation: client.generation, ...client.version, ...this.#parts.maps.inspect() },
      doorbells: this.#parts.doorbells.inspect(),
    };
  }

  get statistics() {
    return {
      hellos: this.#parts.process.hellos,
      ...this.#parts.relay.statistics,
      doorbells: this.#parts.doorbells.relayed,
      ioEvents: this.#parts.sharing.events.forwarded,
      ...this.#parts.requests.channel.statistics,
      dmaMessages: this.#parts.dma.transfers,
      copies: this.#parts.copies.copies,
      copiedBytes: this.#parts.copies.bytes,
    };
  }

  config(): Uint8Array {
    this.#parts.config.doorbells = this.#doorbellQueues;
    return this.#parts.config.bytes;
  }

  attach(backEnd: BackEnd): void {
    this.#backEnd = backEnd;
  }

  detach(): void {
    this.#backEnd = undefined;
  }

  enabled(index: number): void {
    // While rings go on after a pause, nothing begins.
    if (index < Queue.FIRST_DOORBELL && !this.#parts.state.isPaused) this.#startRings();
  }

  pausing(): void {
    this.#parts.state.raise("pause");
  }

  resumed(): void {
    this.#parts.state.raise("resume");
  }

  failed(reason: string): void {
    this.#parts.state.raise("violated", reason);
  }

  reset(reason: string): void {
    this.#parts.state.raise("reset", reason);
  }

  memoryChanged(): void {
    this.#parts.relay.memoryChanged();
    this.#parts.requests.channel.poll();
    this.#parts.copies.memoryChanged();
  }

  /** Ends everything; `disconnect` is not waited for. */
  close(): void {
    this.reset("the bridge closes");
    this.#introduction.close();
    this.#parts.doorbells.close();
    this.#parts.sharing.close();
    this.#parts.maps.close();
  }

  // The client's side: Backend.

  get device(): DeviceSummary | undefined {
    return this.#parts.state.command === "without the device" ? undefined : this.#parts.process.summary;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.#parts.process.summary?.irqCounts;
  }

  connect(version: ClientVersion, memory: ClientMemory, accesses: DirectAccesses): Promise<void> {
    this.#parts.maps.connect(memory);
    this.#parts.interrupts.connect();
    this.#parts.sharing.connect();
    const { generation, served } = this.#introduction.connect(version, memory, accesses);
    this.#parts.config.clientConnected(generation);
    return served;
  }

  disconnect(): Promise<void> {
    if (this.#introduction.client === undefined) return Promise.resolve();
    this.#parts.config.clientGone();
    this.#parts.relay.clientGone();
    this.#parts.dma.drop();
    this.#parts.state.raise("clientGone");
    // Before anything is waited for: a device process that hears of it late must not ring doorbells of that client.
    this.#parts.interrupts.disconnect();
    this.#parts.sharing.disconnect();
    this.#introduction.disconnect();
    return this.#parts.maps.disconnect();
  }

  map(map: MemoryMap): Promise<void> {
    return this.#parts.maps.map(map);
  }

  unmap(request: UnmapRequest): Promise<void> {
    return this.#parts.maps.unmap(request);
  }

  setIrqs(request: IrqSetRequest): Promise<void> {
    return this.#parts.interrupts.set(request);
  }

  handle(command: PendingCommand): void {
    if (command.command === Command.DEVICE_RESET) {
      this.#parts.doorbells.forgetPending();
      // What was not sent yet would come after the reply.
      this.#introduction.client?.memory.abandon();
    }
    this.#parts.relay.handle(command);
  }

  receiving(now: boolean): void {
    this.#parts.requests.channel.hold(now);
  }

  /** What follows from a transition. */
  #changed(change: Change): void {
    queueMicrotask(() => this.#checkSettled());
    if (change.to !== "connected") this.#parts.relay.stopPath();
    if (change.from === "paused" && change.to !== "paused") this.#stopGrace();
    switch (change.event) {
      case "hello":
        this.#parts.window.permit();
        this.#attachDoorbells();
        this.#parts.log.info({ doorbells: this.#doorbellQueues }, "the device process is ready");
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
        this.#parts.relay.graceOver();
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
    const { channel } = this.#parts.requests;
    if (!backEnd) return;
    try {
      if (channel.open) {
        if (channel.halted) channel.goOn();
      } else if (backEnd.queue(Queue.TO_DEVICE)?.running && backEnd.queue(Queue.FROM_DEVICE)?.running) {
        this.#parts.state.raise("start");
        channel.start(backEnd);
      }
      if (!this.#parts.copies.running && this.#parts.state.cause !== "violated") this.#parts.copies.start(backEnd);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#parts.log.error({ err: error }, "the device process's rings cannot be polled: raise LimitNOFILE");
      this.#retry = setTimeout(() => this.#startRings(), RETRY_MS);
    }
  }

  /** The rings are about to stand still, and may go on. */
  #pause(): void {
    clearTimeout(this.#retry);
    this.#parts.doorbells.halt();
    this.#parts.copies.stop();
    this.#parts.requests.channel.halt();
    this.#parts.log.info("the device VM is paused, or the device was reset");
    this.#waitForGrace();
    this.#parts.sharing.events.stop();
    this.#parts.changes.paused();
  }

  #waitForGrace(): void {
    this.#stopGrace = startDeadline(PAUSE_GRACE_MS, () => this.#parts.state.raise("graceOver"));
  }

  /** Interrupts of the time before a start may be lost. */
  #callDevice(backEnd: BackEnd): void {
    for (const queue of [Queue.TO_DEVICE, Queue.FROM_DEVICE, Queue.COPY]) backEnd.call(queue);
  }

  /** The rings go on where they were. */
  #resume({ to }: Change): void {
    this.#parts.log.info({ state: to }, "the device VM goes on");
    const backEnd = this.#backEnd;
    if (!backEnd || !this.#parts.requests.channel.open) return;
    this.#startRings();
    this.#callDevice(backEnd);
    try {
      this.#parts.doorbells.goOn();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#parts.log.error({ err: error }, "the device's interrupts cannot be relayed");
      this.#parts.state.raise("failed", error.message);
    }
    this.#introduction.update();
  }

  /**
   * The device process is not waited for any more. After "silent" and "failed" it may be there all the same: it has no
   * driver-VM memory until it has released the client, and what it was not given yet it is not asked any more.
   */
  #leave({ event, from, to, reason }: Change): void {
    const isThere = event === "silent" || event === "failed";
    if (event === "violated") this.#parts.log.warn({ reason }, "the device process broke the link");
    const isNews = !isThere || this.#introduction.gaveUp(event, reason);
    if (isNews && (from === "ready" || from === "connected" || from === "paused"))
      this.#parts.log.info({ reason, state: to }, "the device process left");
    this.#parts.dma.drop();
    this.#parts.doorbells.detach();
    this.#parts.relay.processLeft();
    if (isThere) {
      this.#parts.sharing.events.stop();
      this.#parts.requests.abandon(reason);
      return;
    }
    this.#introduction.processGone();
    this.#parts.sharing.processGone();
    // After QUIESCE the channel stays.
    this.#parts.requests.drop(reason, event === "quiesce");
    if (event === "quiesce") return;
    clearTimeout(this.#retry);
    this.#parts.requests.channel.stop();
    this.#parts.copies.stop();
    if (event === "reset") {
      // QEMU dropped all that was mapped.
      this.#parts.config.needsReset = false;
      this.#parts.maps.forget();
      this.#parts.sharing.forget();
    } else if (from !== "quiesced") {
      // After QUIESCE's reply it resets the device by itself, and nothing may be in flight to QEMU.
      this.#demandReset(reason);
    }
  }

  /** The device process broke the rules: it has no driver-VM memory, and is to reset the device. */
  #demandReset(reason: string): void {
    this.#parts.window.permit();
    this.#parts.changes.background(async () => {
      await this.#parts.process.clearWindow();
      if (this.#parts.state.cause !== "violated") return;
      // Last of all: when it hears of this it resets the device, and then nothing may be in flight to QEMU.
      this.#parts.config.needsReset = true;
      await this.#parts.window.configChanged();
      this.#parts.window.forbid(reason);
    });
  }

  /** Doorbell queues of the device. */
  get #doorbellQueues(): number {
    return Math.max(0, (this.#backEnd?.queues ?? 0) - Queue.FIRST_DOORBELL);
  }

  #attachDoorbells(): void {
    this.#parts.doorbells.attach(this.#doorbellQueues, (queue) => this.#backEnd?.kickFd(queue) ?? -1);
  }
}
