/**
 * The link over the virtio-vfio-user device (docs/virtio-vfio-user.md): the device process in a device VM, the bridge
 * behind the virtio device, the driver VM behind the bridge. The bridge is checked as any peer is: when it breaks a rule
 * the link is lost (`closed` resolves) and the process lives on.
 */
import { inBounds } from "../../shared/bits.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../shared/errors.js";
import { MAX_DIRTY_BITMAP_SIZE, MAX_DMA_MAPS, MAX_MESSAGE_FDS, MAX_PENDING_COMMANDS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { ABI_VERSION, ClientConnected, Hello, IoEvent, LinkCommand, Queue } from "../../shared/spec/link.js";
import {
  Bitmap,
  Command,
  DmaAccess,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  Header,
  HeaderFlags,
  Irq,
  IrqSet,
  IrqSetFlags,
  NUM_PCI_IRQS,
} from "../../shared/spec/vfio-user.js";
import { Status } from "../../shared/spec/virtio.js";
import { setU64 } from "../../shared/struct/struct.js";
import type { DeviceSummary } from "../../shared/vfio-user/backend.js";
import { bitmapSize } from "../../shared/vfio-user/bitmap.js";
import type { PciFunction } from "../vfio/pci-function.js";
import type { VirtioPci } from "../virtio-pci/transport.js";
import { LinkPendingCommand } from "./command.js";
import { Doorbells, UNBOUND } from "./doorbells.js";
import type { Area, Endpoint, IoEvents, IrqChange, Link, SharedMemory, Window } from "./link.js";
import { emptyQueues, type Messages } from "./messages.js";
import { Requests } from "./requests.js";
import { VirtioSharing } from "./virtio-sharing.js";

/** How often the device is asked whether it wants a reset, beside its interrupt. */
const STATUS_POLL_MS = 1000;

export class VirtioLink implements Link {
  readonly window: Window;
  readonly closed: Promise<void>;
  doorbellsRung = 0;
  readonly #pci: PciFunction;
  readonly #transport: VirtioPci;
  readonly #messages: Messages;
  readonly #requests: Requests;
  readonly #sharing: VirtioSharing;
  readonly #log: Log;
  readonly #command: LinkPendingCommand;
  /** Copies of commands that came while one was under way. */
  readonly #backlog: Uint8Array<ArrayBuffer>[] = [];
  #doorbells: Doorbells;
  #endpoint: Endpoint | undefined;
  #maps = 0;
  #statusPoll: NodeJS.Timeout | undefined;
  #state: "new" | "open" | "broken" | "closed" = "new";
  #pollAgain: NodeJS.Immediate | undefined;
  #running = false;
  #resolveClosed: () => void = () => {};

  readonly #dmaMap = DmaMap.view();
  readonly #dmaUnmap = DmaUnmap.view();
  readonly #irqSet = IrqSet.view();
  readonly #ioEvent = IoEvent.view();
  readonly #header = Header.view();
  readonly #receiver = this.#receive.bind(this);
  readonly #ready = () => this.#backlog.length < MAX_PENDING_COMMANDS;

  constructor(
    pci: PciFunction,
    transport: VirtioPci,
    messages: Messages,
    window: Window,
    numDoorbells: number,
    log: Log,
  ) {
    this.#pci = pci;
    this.#transport = transport;
    this.#messages = messages;
    messages.onBroken = (error) => this.#break(error);
    this.#requests = new Requests(messages);
    this.#sharing = new VirtioSharing(this.#requests, window);
    this.#command = new LinkPendingCommand(messages, () => this.#next());
    this.#doorbells = new Doorbells([], numDoorbells);
    this.#log = log;
    this.window = window;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  allocateMemory(region: number, areas: readonly Area[]): Promise<SharedMemory> {
    this.#bringUp();
    return this.#sharing.allocateMemory(region, areas);
  }

  allocateEvents(region: number, count: number, signalled: (index: number) => void): Promise<IoEvents> {
    this.#bringUp();
    return this.#sharing.allocateEvents(region, count, signalled);
  }

  /** @throws UserError when the device does not come up, or the bridge does not answer */
  async open(endpoint: Endpoint): Promise<void> {
    const { summary } = endpoint;
    this.#endpoint = endpoint;
    this.#doorbells = new Doorbells(summary.irqCounts, this.#doorbells.count);
    this.#bringUp();
    await this.#hello(summary);
    // INTx, MSI and MSI-X are used one at a time; errors and requests beside them.
    const { irqCounts } = summary;
    const needed = Math.max(...irqCounts.slice(Irq.INTX, Irq.ERR)) + irqCounts[Irq.ERR] + irqCounts[Irq.REQ];
    if (needed > this.#doorbells.count) {
      this.#log.warn({ vectors: needed, doorbells: this.#doorbells.count }, "fewer doorbells than interrupt vectors");
    }
    this.#log.info({ doorbells: this.#doorbells.count, windowSize: this.window.size }, "the bridge is there");
  }

  /** The virtio device's set-up, to DRIVER_OK; once. */
  #bringUp(): void {
    if (this.#state !== "new") return;
    const transport = this.#transport;
    this.#messages.enable();
    for (const [n, queue] of emptyQueues(this.#pci, transport.numQueues - Queue.COPY).entries()) {
      transport.enableQueue(Queue.COPY + n, queue, false);
    }
    transport.enableConfigInterrupt();
    this.#pci.interrupt(() => this.#interrupt());
    this.#state = "open";
    transport.addStatus(Status.DRIVER_OK);
    this.#messages.offer();
    this.#statusPoll = setInterval(() => this.#checkStatus(), STATUS_POLL_MS).unref();
  }

  async #hello(summary: DeviceSummary): Promise<void> {
    try {
      await this.#requests.send(LinkCommand.HELLO, encodeHello(summary));
    } catch (error) {
      throw new UserError(`the bridge does not take the device: ${error instanceof Error ? error.message : error}`);
    }
  }

  trigger(index: number, vector: number): void {
    const doorbell = this.#doorbells.of(index, vector);
    if (doorbell === UNBOUND) return;
    this.doorbellsRung++;
    this.#transport.notify(Queue.FIRST_DOORBELL + doorbell);
  }

  readMemory(address: number, target: Uint8Array): Promise<void> {
    if (this.#state !== "open") return Promise.reject(new PeerGone("the link is closed"));
    return this.#requests.read(address, target);
  }

  writeMemory(address: number, source: Uint8Array): Promise<void> {
    if (this.#state !== "open") return Promise.reject(new PeerGone("the link is closed"));
    return this.#requests.write(address, source);
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

  #interrupt(): void {
    if (this.#state !== "open") return;
    if (this.#messages.poll(this.#receiver, this.#ready)) this.#schedulePoll();
  }

  #schedulePoll(): void {
    this.#pollAgain ??= setImmediate(() => {
      this.#pollAgain = undefined;
      this.#interrupt();
    });
  }

  #checkStatus(): void {
    if ((this.#transport.status & Status.DEVICE_NEEDS_RESET) !== 0)
      this.#break(new PeerGone("the device needs a reset"));
  }

  /** The bridge broke a rule, or is gone: there is no way back but a reset of the device. */
  #break(error: unknown): void {
    if (this.#state !== "open") return;
    this.#state = "broken";
    this.#log.error({ err: error }, "the link to the bridge is lost");
    this.#stop(error instanceof Error ? error : new PeerGone("the link is lost"));
    const letGo = this.#endpoint?.disconnected() ?? Promise.resolve();
    letGo.catch((late) => this.#log.warn({ err: late }, "closing all the same")).finally(() => this.#resolveClosed());
  }

  #stop(error: Error): void {
    clearInterval(this.#statusPoll);
    clearImmediate(this.#pollAgain);
    this.#requests.abandon(error);
    this.#command.abandon();
    this.#backlog.length = 0;
    this.#doorbells.unbindAll();
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
      this.#dispatch(command);
    } catch (error) {
      this.#fail(error);
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

  #fail(error: unknown): void {
    if (!(error instanceof ProtocolError)) this.#log.error({ err: error }, "a command of the bridge's failed");
    this.#command.fail(error instanceof ProtocolError ? error.errno : Errno.EIO);
  }

  #dispatch(command: LinkPendingCommand): void {
    const endpoint = this.#endpoint;
    if (endpoint === undefined) throw new ProtocolError("no device", Errno.ENODEV);
    switch (command.command) {
      case Command.DMA_MAP:
        this.#map(endpoint, command);
        break;
      case Command.DMA_UNMAP:
        this.#unmap(endpoint, command);
        break;
      case Command.DEVICE_SET_IRQS:
        this.#setIrqs(endpoint, command);
        break;
      case LinkCommand.CLIENT_CONNECTED:
        this.#clientConnected(endpoint, command);
        break;
      case LinkCommand.CLIENT_GONE:
        this.#clientGone(endpoint);
        break;
      case LinkCommand.IO_EVENT:
        needLength(command, IoEvent.size);
        this.#sharing.signalled(this.#ioEvent.at(command.data, command.offset).handle);
        command.reply(0);
        break;
      default:
        endpoint.handle(command);
    }
  }

  #map(endpoint: Endpoint, command: LinkPendingCommand): void {
    needLength(command, DmaMap.size);
    const { flags, offset, address, size } = this.#dmaMap.at(command.data, command.offset);
    const inWindow = (flags & DmaMapFlags.MMAP) !== 0;
    if (inWindow && !inBounds(offset, size, this.window.size)) {
      throw new ProtocolError(`a map of ${size} bytes at window offset ${offset}`, Errno.EINVAL, Command.DMA_MAP);
    }
    if (this.#maps >= MAX_DMA_MAPS) throw new ProtocolError("too many DMA maps", Errno.ENOSPC, Command.DMA_MAP);
    endpoint.map({
      address,
      size,
      readable: (flags & DmaMapFlags.READ) !== 0,
      writable: (flags & DmaMapFlags.WRITE) !== 0,
      windowOffset: inWindow ? offset : -1,
    });
    this.#maps++;
    command.reply(0);
  }

  #unmap(endpoint: Endpoint, command: LinkPendingCommand): void {
    needLength(command, DmaUnmap.size);
    const { address, size, flags } = this.#dmaUnmap.at(command.data, command.offset);
    if (flags === DmaUnmapFlags.GET_DIRTY_BITMAP) {
      this.#unmapDirty(endpoint, command, address, size);
      return;
    }
    this.#answer(
      endpoint.unmap(address, size).then(() => {
        this.#maps--;
      }),
    );
  }

  /** The reply is the request and the bitmap behind it. */
  #unmapDirty(endpoint: Endpoint, command: LinkPendingCommand, address: number, size: number): void {
    needLength(command, DmaUnmap.size + Bitmap.size);
    const { pageSize } = Bitmap.view(command.data, command.offset + DmaUnmap.size);
    const length = bitmapSize(address, size, pageSize);
    const bitmapOffset = DmaUnmap.size + Bitmap.size;
    if (length < 0 || length > MAX_DIRTY_BITMAP_SIZE)
      throw new ProtocolError(`a bitmap for pages of ${pageSize} bytes`);
    const bitmap = new Uint8Array(length);
    endpoint
      .unmap(address, size, { pageSize, bitmap })
      .then(() => {
        this.#maps--;
        if (!command.active) return;
        command.reserve(bitmapOffset + length);
        const request = command.bytes.subarray(command.offset, command.offset + bitmapOffset);
        command.replyBytes.set(request, command.replyOffset);
        command.replyBytes.set(bitmap, command.replyOffset + bitmapOffset);
        command.reply(bitmapOffset + length);
      })
      .catch((error) => this.#fail(error));
  }

  #clientConnected(endpoint: Endpoint, command: LinkPendingCommand): void {
    needLength(command, ClientConnected.size);
    const connected = ClientConnected.view(command.data, command.offset);
    const { generation, major, minor, maxDataXferSize, maxMessageFds } = connected;
    const most = this.#messages.maxMessageSize - Header.size - DmaAccess.size;
    if (maxDataXferSize === 0) throw new ProtocolError("a client without DMA messages", Errno.EINVAL);
    this.#log.info({ generation, version: `${major}.${minor}`, maxDataXferSize }, "client connected");
    const fds = Math.min(maxMessageFds, MAX_MESSAGE_FDS);
    this.#answer(endpoint.connected(Math.min(maxDataXferSize, most), fds));
  }

  #clientGone(endpoint: Endpoint): void {
    this.#log.info("client gone");
    this.#doorbells.unbindAll();
    this.#maps = 0;
    this.#requests.abandonDma(new PeerGone("the client is gone"));
    this.#answer(endpoint.disconnected());
  }

  #setIrqs(endpoint: Endpoint, command: LinkPendingCommand): void {
    needLength(command, IrqSet.size);
    const { flags, index, start, count } = this.#irqSet.at(command.data, command.offset);
    if (!this.#doorbells.has(index, start, count)) {
      throw new ProtocolError(`no vectors ${start}+${count} of interrupt ${index}`);
    }
    const data = flags & IrqSetFlags.DATA_MASK;
    const at = command.offset + IrqSet.size;
    let change: IrqChange = { flags, index, start, count };
    if (data === IrqSetFlags.DATA_BOOL) {
      needLength(command, IrqSet.size + count);
      change = { ...change, bools: command.bytes.slice(at, at + count) };
    } else if (data === IrqSetFlags.DATA_EVENTFD) {
      // Eventfds that mask or unmask stay with the bridge.
      if ((flags & IrqSetFlags.ACTION_TRIGGER) === 0) throw new ProtocolError("a doorbell that is not for a trigger");
      needLength(command, IrqSet.size + count * 4);
      change = { ...change, bound: this.#doorbells.bind(change, command.data, at) };
    } else if (count === 0 && (flags & IrqSetFlags.ACTION_TRIGGER) !== 0) {
      this.#doorbells.unbind(index);
    }
    endpoint.setIrqs(change);
    command.reply(0);
  }

  /** Replies, without a body, when `work` is done. */
  #answer(work: Promise<void>): void {
    work.then(
      () => this.#command.reply(0),
      (error) => this.#fail(error),
    );
  }
}

/** @throws ProtocolError when the body is shorter than `length` */
function needLength(command: LinkPendingCommand, length: number): void {
  if (command.length < length)
    throw new ProtocolError(`a body of ${command.length} bytes`, Errno.EINVAL, command.command);
}

function encodeHello(summary: DeviceSummary): Uint8Array {
  const { regionSizes, irqCounts, postedRegions } = summary;
  const body = new Uint8Array(Hello.size + regionSizes.length * 8 + NUM_PCI_IRQS * 4);
  const data = new DataView(body.buffer);
  Object.assign(Hello.view(data), { abiVersion: ABI_VERSION, postedRegions, regions: regionSizes.length });
  for (const [n, size] of regionSizes.entries()) setU64(data, Hello.size + n * 8, size);
  const irqs = Hello.size + regionSizes.length * 8;
  for (let n = 0; n < NUM_PCI_IRQS; n++) data.setUint32(irqs + n * 4, irqCounts[n] ?? 0, true);
  return body;
}
