/**
 * The link through the bridge: the virtio-vfio-user device that the device process drives (docs/virtio-vfio-user.md).
 * Here is its life, from the set-up over what is received at a turn of the event loop to its loss and, where the bridge
 * asks for it, another beginning. To read on:
 *
 * - open.ts: checks that it is such a device. device-set-up.ts: what is asked of the bridge before clients come.
 * - messages.ts, buffers.ts: what goes over the rings, and the memory for it. device-path.ts: the same in C++.
 * - client-commands.ts, pending-command.ts: what the bridge commands. requests.ts, copies.ts: what is
 *   asked of it.
 */
import { setTimeout as delay } from "node:timers/promises";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_PENDING_COMMANDS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import type { Area } from "../../../shared/memory-file.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import { Config, ConfigStatus, LinkCommand, Queue } from "../../../shared/spec/link.js";
import { Header, HeaderFlags, Irq } from "../../../shared/spec/vfio-user.js";
import { Status } from "../../../shared/spec/virtio.js";
import { type RegisterArea, RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import type { PciFunction } from "../../vfio/pci-function.js";
import type { VirtioPci } from "../../virtio-pci/transport.js";
import type { Endpoint, IoEvents, Link, SharedMemory, Window } from "../link.js";
import { type DmaBuffers, SmallMemory } from "./buffers.js";
import { ClientCommands, Doorbells, UNBOUND } from "./client-commands.js";
import type { Copies } from "./copies.js";
import { DevicePath, type LinkPolling, Stop } from "./device-path.js";
import { DeviceSetUp } from "./device-set-up.js";
import type { Messages } from "./messages.js";
import { LinkPendingCommand } from "./pending-command.js";
import { BridgeRequests } from "./requests.js";

/** How often the device is asked whether it wants a reset, beside its interrupts that bring no message. */
const STATUS_POLL_MS = 1000;
/** Pauses before a lost link is set up again: the first one, and what it grows to while that is of no use. */
const RESTART_MS = 100;
const MAX_RESTART_MS = 5000;
/** Restarts that follow one another faster are of no use. */
const OFTEN_MS = 30_000;

/** What a link is made of (open.ts). */
interface VirtioLinkParts {
  readonly pci: PciFunction;
  readonly transport: VirtioPci;
  /** Those that were negotiated. */
  readonly features: bigint;
  readonly messages: Messages;
  readonly copies: Copies;
  readonly buffers: DmaBuffers;
  readonly window: Window;
  /** Doorbells that the device has. */
  readonly doorbells: number;
  /** No driver-VM memory is wanted in the window. */
  readonly isolated: boolean;
  readonly polling: LinkPolling;
  readonly log: Log;
}

export class VirtioLink implements Link {
  readonly window: Window;
  readonly closed: Promise<void>;
  doorbellsRung = 0;
  readonly #pci: PciFunction;
  readonly #transport: VirtioPci;
  readonly #features: bigint;
  readonly #messages: Messages;
  readonly #copies: Copies;
  readonly #buffers: DmaBuffers;
  readonly #isolated: boolean;
  readonly #path: DevicePath;
  readonly #requests: BridgeRequests;
  readonly #setUp: DeviceSetUp;
  readonly #log: Log;
  /** Another one for each life of the link: what comes late is for the one that it was made for. */
  #command: LinkPendingCommand;
  /** Copies of commands that came while one was in flight. */
  readonly #backlog: Uint8Array<ArrayBuffer>[] = [];
  /** Undefined before `open`. */
  #commands: ClientCommands | undefined;
  #endpoint: Endpoint | undefined;
  #registers: RegisterMemory | undefined;
  /** Undefined before `#bringUp`. */
  #small: SmallMemory | undefined;
  #configGeneration = 0;
  #restartMs = RESTART_MS;
  #restartedAt = Number.NEGATIVE_INFINITY;
  readonly #numDoorbells: number;
  #statusPoll: NodeJS.Timeout | undefined;
  #state: "new" | "open" | "broken" | "closed" = "new";
  #pollAgain: NodeJS.Immediate | undefined;
  #running = false;
  #resolveClosed: () => void = () => {};

  readonly #header = Header.view();
  readonly #receiver = this.#receive.bind(this);
  readonly #ready = () => this.#backlog.length < MAX_PENDING_COMMANDS;

  constructor(parts: VirtioLinkParts) {
    const { pci, transport, features, messages, copies, buffers, window, doorbells, isolated, polling, log } = parts;
    this.#path = new DevicePath(messages.state, polling);
    this.#pci = pci;
    this.#transport = transport;
    this.#features = features;
    this.#messages = messages;
    this.#copies = copies;
    this.#buffers = buffers;
    this.#isolated = isolated;
    messages.onBroken = (error) => this.#break(error);
    messages.onDrained = () => this.#schedulePoll();
    copies.onLate = (error) => this.#break(error);
    this.#requests = new BridgeRequests(messages);
    this.#setUp = new DeviceSetUp(this.#requests, window, isolated, log);
    this.#command = this.#newCommand();
    this.#numDoorbells = doorbells;
    this.#log = log;
    this.window = window;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  allocateMemory(region: number, areas: readonly Area[]): Promise<SharedMemory> {
    this.#bringUp();
    return this.#setUp.allocateMemory(region, areas);
  }

  allocateEvents(region: number, count: number, signalled: (index: number) => void): Promise<IoEvents> {
    this.#bringUp();
    return this.#setUp.allocateEvents(region, count, signalled);
  }

  async shareRegisters(size: number, areas: readonly RegisterArea[]): Promise<Uint8Array<ArrayBuffer> | undefined> {
    this.#bringUp();
    if (this.#small === undefined) return undefined;
    const memory = await this.#setUp.shareRegisters(this.#small, size, areas);
    if (memory !== undefined) this.#registers = new RegisterMemory(memory, areas);
    return memory;
  }

  /** @throws UserError when the device does not come up, or the bridge does not answer */
  async open(endpoint: Endpoint): Promise<void> {
    const { summary } = endpoint;
    this.#endpoint = endpoint;
    this.#commands = new ClientCommands({
      endpoint,
      window: this.window,
      doorbells: new Doorbells(summary.irqCounts, this.#numDoorbells),
      requests: this.#requests,
      setUp: this.#setUp,
      maxMessageSize: this.#messages.maxMessageSize,
      log: this.#log,
      fail: (command, error) => this.#fail(command, error),
    });
    this.#path.serve(endpoint, this.#registers);
    this.#bringUp();
    await this.#setUp.hello(summary);
    // INTx, MSI and MSI-X are used one at a time; errors and requests beside them.
    const { irqCounts } = summary;
    const needed = Math.max(...irqCounts.slice(Irq.INTX, Irq.ERR)) + irqCounts[Irq.ERR] + irqCounts[Irq.REQ];
    if (needed > this.#numDoorbells) {
      this.#log.warn(
        { vectors: needed, doorbells: this.#numDoorbells },
        `fewer doorbells than interrupt vectors: start the device VM with num_vqs=${Queue.FIRST_DOORBELL + needed}`,
      );
    }
    this.#log.info({ doorbells: this.#numDoorbells, windowSize: this.window.size }, "the bridge is there");
  }

  /** The virtio device's set-up, to DRIVER_OK; once. */
  #bringUp(): void {
    if (this.#state !== "new") return;
    const transport = this.#transport;
    this.#messages.enable();
    transport.enableQueue(Queue.COPY, this.#copies.queue, true);
    const doorbells = transport.numQueues - Queue.FIRST_DOORBELL;
    if (this.#small === undefined) {
      this.#small = new SmallMemory(this.#pci, doorbells);
      this.#pci.interrupt(() => {
        // There is one interrupt for everything: when nothing came it may be the device's configuration or status.
        if (!this.#turn()) this.#checkStatus();
      }, this.#path.native);
    }
    for (const [n, queue] of this.#small.queues.entries()) {
      transport.enableQueue(Queue.FIRST_DOORBELL + n, queue, false);
    }
    transport.enableConfigInterrupt();
    this.#configGeneration = transport.configGeneration;
    this.#state = "open";
    transport.addStatus(Status.DRIVER_OK);
    this.#messages.offer();
    this.#messages.enablePath(this.#path, this.#copies.queue);
    this.#statusPoll = setInterval(() => this.#checkStatus(), STATUS_POLL_MS).unref();
  }

  trigger(index: number, vector: number): void {
    const doorbell = this.#commands?.doorbells.of(index, vector) ?? UNBOUND;
    if (doorbell === UNBOUND) return;
    this.doorbellsRung++;
    this.#transport.notify(Queue.FIRST_DOORBELL + doorbell);
  }

  readMemory(address: number, target: Uint8Array, isCopied: boolean): Promise<void> {
    if (this.#state !== "open") return Promise.reject(new PeerGone("the link is closed"));
    return isCopied ? this.#copies.read(address, target) : this.#requests.read(address, target);
  }

  writeMemory(address: number, source: Uint8Array, isCopied: boolean): Promise<void> {
    if (this.#state !== "open") return Promise.reject(new PeerGone("the link is closed"));
    return isCopied ? this.#copies.write(address, source) : this.#requests.write(address, source);
  }

  abandonMessages(address?: number, length?: number): void {
    this.#requests.abandonDma(new ProtocolError("a DMA was given up", Errno.ECANCELED), address, length);
  }

  /** Where the window is used hardly anything is copied, and huge pages are few. */
  allocate(length: number): Uint8Array<ArrayBuffer> {
    return this.#isolated ? this.#buffers.allocate(length) : pageAligned(length);
  }

  /** Asks the bridge to change nothing any more, without which a reset could kill the device VM, then resets. */
  async close(): Promise<void> {
    if (this.#state === "closed") return;
    const wasOpen = this.#state === "open";
    try {
      if (wasOpen) await this.#requests.send(LinkCommand.QUIESCE, new Uint8Array(0));
    } catch (error) {
      this.#log.warn({ err: error }, "the bridge did not quiesce");
    }
    this.#state = "closed";
    this.#stop(new PeerGone("the link is closed"));
    try {
      await this.#transport.reset();
    } catch (error) {
      this.#log.warn({ err: error }, "the device was not reset");
    }
    this.#pci.close();
  }

  /** Deals with what the bridge has done, and polls again or sleeps. Whether it was anything. */
  #turn(): boolean {
    if (this.#state !== "open") return false;
    const { received } = this.#messages.state;
    let copied: boolean;
    try {
      copied = this.#copies.poll();
    } catch (error) {
      this.#break(error);
      return true;
    }
    this.#path.native.run();
    let isMore = this.#messages.poll(this.#receiver, this.#ready, false);
    const found = this.#messages.state.received !== received;
    // Nothing may be missed between the last poll and sleep: that is what the second one is for.
    if (!isMore && !this.#path.native.continues(found)) isMore = this.#messages.poll(this.#receiver, this.#ready, true);
    else isMore = true;
    if (isMore) this.#schedulePoll();
    return found || copied;
  }

  #schedulePoll(): void {
    this.#pollAgain ??= setImmediate(() => {
      this.#pollAgain = undefined;
      this.#turn();
    });
  }

  #checkStatus(): void {
    if (this.#state !== "open") return;
    const { status } = this.#transport;
    if ((status & Status.DEVICE_NEEDS_RESET) !== 0) this.#break(new PeerGone("the device needs a reset"));
    else if (this.#isToldToReset()) this.#restart();
  }

  /** The bridge broke a rule, or is gone: there is no way back but a reset of the device. */
  #break(error: unknown): void {
    if (this.#state !== "open") return;
    this.#log.error({ err: error }, "the link to the bridge is lost");
    void this.#lose(error instanceof Error ? error : new PeerGone("the link is lost")).then(() =>
      this.#resolveClosed(),
    );
  }

  /** Resolves when the device has released the client's memory, or is late. */
  async #lose(error: Error): Promise<void> {
    this.#state = "broken";
    this.#stop(error);
    try {
      await this.#endpoint?.disconnected();
    } catch (late) {
      this.#log.warn({ err: late }, "the device does not release its client's memory");
    }
  }

  /**
   * The configuration is read only after it was announced: of a bridge that is gone it cannot be, and the device VM
   * dies of that.
   */
  #isToldToReset(): boolean {
    const generation = this.#transport.configGeneration;
    if (generation === this.#configGeneration) return false;
    this.#configGeneration = generation;
    const config = Config.view(new DataView(this.#transport.readConfig(Config.size).buffer));
    return (config.status & ConfigStatus.NEEDS_RESET) !== 0;
  }

  /** The bridge gave the link up, and is there: everything begins again, with the same device. */
  #restart(): void {
    this.#log.error("the bridge gave the link up: it is set up again");
    const now = performance.now();
    const isOften = now - this.#restartedAt < OFTEN_MS;
    this.#restartMs = isOften ? Math.min(2 * this.#restartMs, MAX_RESTART_MS) : RESTART_MS;
    this.#restartedAt = now;
    this.#lose(new PeerGone("the bridge gave the link up"))
      .then(() => delay(this.#restartMs))
      .then(() => this.#beginAgain())
      .catch((error) => {
        if (this.#state === "closed") return;
        this.#log.error({ err: error }, "the link cannot be set up again");
        this.#resolveClosed();
      });
  }

  async #beginAgain(): Promise<void> {
    if (this.#endpoint === undefined) throw new PeerGone("the device was not ready yet");
    if (this.#state !== "broken") return;
    await this.#transport.reset();
    if (this.#state !== "broken") return;
    this.#transport.negotiate(this.#features);
    this.#messages.restart();
    this.#copies.restart();
    for (const queue of this.#small?.queues ?? []) queue.reset();
    this.#requests.restart();
    this.#command = this.#newCommand();
    this.#state = "new";
    this.#bringUp();
    await this.#setUp.repeat(this.#endpoint.summary);
    this.#log.info("the link to the bridge is set up again");
  }

  #newCommand(): LinkPendingCommand {
    return new LinkPendingCommand(this.#messages, () => this.#next());
  }

  #stop(error: Error): void {
    this.#messages.state.stop(Stop.LINK);
    clearInterval(this.#statusPoll);
    clearImmediate(this.#pollAgain);
    this.#requests.abandon(error);
    this.#copies.stop(error);
    this.#command.abandon();
    this.#backlog.length = 0;
    this.#commands?.doorbells.unbindAll();
  }

  #receive(bytes: Uint8Array<ArrayBuffer>, data: DataView<ArrayBuffer>, size: number): void {
    const type = this.#header.at(data).flags & HeaderFlags.TYPE_MASK;
    if (type === HeaderFlags.TYPE_REPLY) {
      this.#requests.reply(bytes, data, size);
    } else if (type !== HeaderFlags.TYPE_COMMAND) {
      throw new PeerGone(`a message of type ${type}`);
    } else if (this.#command.active) {
      // Replies overtake commands: what the device waits for may be one. Commands keep their order.
      this.#backlog.push(bytes.slice(0, size));
    } else {
      this.#run(bytes, data, size);
      if (this.#command.active) this.#messages.keepReceived();
    }
  }

  #run(bytes: Uint8Array<ArrayBuffer>, data: DataView<ArrayBuffer>, size: number): void {
    const command = this.#command;
    command.begin(bytes, data, size);
    this.#running = true;
    try {
      if (this.#commands === undefined) throw new ProtocolError("no device", Errno.ENODEV);
      this.#commands.handle(command);
    } catch (error) {
      this.#fail(command, error);
    } finally {
      this.#running = false;
    }
  }

  /** After a command that took longer: the ones that came meanwhile, and what was not received because of it. */
  #next(): void {
    if (this.#running || this.#state !== "open") return;
    while (!this.#command.active) {
      const bytes = this.#backlog.shift();
      if (bytes === undefined) break;
      this.#run(bytes, new DataView(bytes.buffer), bytes.length);
    }
    this.#schedulePoll();
  }

  #fail(command: LinkPendingCommand, error: unknown): void {
    if (!(error instanceof ProtocolError)) this.#log.error({ err: error }, "a command of the bridge's failed");
    command.fail(error instanceof ProtocolError ? error.errno : Errno.EIO);
  }
}
