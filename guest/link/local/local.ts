/**
 * The link straight on a vfio-user socket: the device runs in the same process as the server, as it would with
 * libvfio-user. The client's memory is mapped into a window of this process (window.ts), its eventfds are written to
 * directly, and what the device shares with it is made here (sharing.ts).
 */
import { eventfdWrite } from "../../../native/index.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import type { DirectTrigger } from "../../../shared/lane-access.js";
import { DRIVER_VM_MEMORY_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import type { Area } from "../../../shared/memory-file.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import { closePeerFd, FdShare, openFileLimit, peerFds } from "../../../shared/peer-fds.js";
import { IrqSetFlags } from "../../../shared/spec/vfio-user.js";
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
import { DeviceAccess } from "../../../shared/vfio-user/device-access.js";
import { IrqEventfds } from "../../../shared/vfio-user/irqs/irq-eventfds.js";
import { UntakenSignals } from "../../../shared/vfio-user/irqs/untaken-signals.js";
import { isWrite, type RegisterArea, RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import { Server } from "../../../shared/vfio-user/server.js";
import { DeadlineExceeded, type Endpoint, type IoEvents, type Link, type SharedMemory, type Window } from "../link.js";
import { LocalSharing } from "./sharing.js";
import { LocalWindow } from "./window.js";

interface LocalLinkOptions {
  /** Where to listen: a path, or a listening AF_UNIX socket. */
  readonly socket: string | number;
  readonly log: Log;
  /** The most of the client's memory that is mapped at once; a multiple of the page size. */
  readonly windowSize?: number;
  /** Map also files that are not memory, access to which may take forever. */
  readonly trustUnsealedMemory?: boolean;
}

const UNBOUND = -1;

export class LocalLink implements Link, Backend {
  /** Never resolves: a socket of one's own does not get lost. */
  readonly closed = new Promise<void>(() => {});
  doorbellsRung = 0;
  readonly server: Server;
  readonly #window: LocalWindow;
  readonly #sharing: LocalSharing;
  /** By interrupt index, the eventfd of each vector, or UNBOUND. */
  #eventfds: readonly Int32Array[] = [];
  readonly #untaken = new UntakenSignals();
  /** Those by which the client masks and unmasks. */
  readonly #irqEventfds = new IrqEventfds(async ({ flags, index, start, count }) => {
    this.#open().setIrqs({ flags, index, start, count });
  });
  #endpoint: Endpoint | undefined;
  #registers: RegisterMemory | undefined;
  #accesses: DeviceAccess | undefined;
  #memory: ClientMemory | undefined;

  /** @throws UserError when there is no address space */
  constructor(options: LocalLinkOptions) {
    const { socket, log, windowSize = DRIVER_VM_MEMORY_SIZE, trustUnsealedMemory = false } = options;
    this.#window = new LocalWindow(windowSize, log);
    this.#sharing = new LocalSharing(this.#window, log);
    const most = peerFds(openFileLimit(), 1);
    this.server = new Server({
      backend: this,
      socket,
      log,
      trustUnsealedMemory,
      fds: new FdShare(() => most),
    });
  }

  get window(): Window {
    return this.#window;
  }

  async allocateMemory(_region: number, areas: readonly Area[]): Promise<SharedMemory> {
    return this.#sharing.allocateMemory(areas);
  }

  async allocateEvents(_region: number, count: number, signalled: (index: number) => void): Promise<IoEvents> {
    return this.#sharing.allocateEvents(count, signalled);
  }

  async shareRegisters(size: number, areas: readonly RegisterArea[]): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(new ArrayBuffer(size));
    this.#registers = new RegisterMemory(bytes, areas);
    return bytes;
  }

  /** @throws UserError when the socket cannot be had */
  async open(endpoint: Endpoint): Promise<void> {
    this.#endpoint = endpoint;
    this.#accesses = new DeviceAccess(endpoint.words, endpoint.summary, true);
    this.#accesses.shareRegisters(this.#registers, false);
    this.#eventfds = endpoint.summary.irqCounts.map((count) => new Int32Array(count).fill(UNBOUND));
    this.server.open();
  }

  async close(): Promise<void> {
    await this.server.close();
    this.#sharing.close();
    this.#window.close();
  }

  trigger(index: number, vector: number): void {
    const eventfd = this.#eventfds[index][vector];
    if (eventfd === UNBOUND) return;
    this.doorbellsRung++;
    eventfdWrite(eventfd);
  }

  directTrigger(index: number, vector: number): DirectTrigger | undefined {
    const eventfd = this.#eventfds[index][vector];
    return eventfd === UNBOUND ? undefined : { eventfd };
  }

  readMemory(address: number, target: Uint8Array, isCopied: boolean): Promise<void> {
    if (isCopied) return this.#window.copy(address, target, false);
    return this.#memory?.read(address, target) ?? Promise.reject(new PeerGone("the client is gone"));
  }

  writeMemory(address: number, source: Uint8Array, isCopied: boolean): Promise<void> {
    if (isCopied) return this.#window.copy(address, source, true);
    return this.#memory?.write(address, source) ?? Promise.reject(new PeerGone("the client is gone"));
  }

  abandonMessages(address?: number, length?: number): void {
    this.#memory?.abandon(address, length);
  }

  allocate(length: number): Uint8Array<ArrayBuffer> {
    return pageAligned(length);
  }

  get device(): DeviceSummary | undefined {
    return this.#endpoint?.summary;
  }

  get irqCounts(): readonly number[] | undefined {
    return this.device?.irqCounts;
  }

  async connect(version: ClientVersion, memory: ClientMemory, accesses: DirectAccesses): Promise<void> {
    this.#memory = memory;
    await this.#open().connected(version.maxDataXferSize, version.maxMessageFds);
    this.#registers?.begin();
    accesses.readFrom(this.#registers);
    if (this.#accesses !== undefined) accesses.answerBy(this.#accesses);
  }

  async disconnect(): Promise<void> {
    // Before the device's reset, which may prepare the memory for the next client.
    this.#sharing.renew();
    // No other client is served before the device is done; until then it has zeros.
    await this.#open().disconnected().catch(ignoreDeadline);
    this.#memory = undefined;
    this.#window.releaseAll();
    for (const index of this.#eventfds.keys()) this.#unbind(index);
    this.#irqEventfds.clear();
    this.#untaken.clear();
  }

  map(map: MemoryMap): undefined {
    const endpoint = this.#open();
    try {
      for (const part of this.#window.put(map)) endpoint.map(part);
    } catch (error) {
      // Nothing has used it yet, so there is nothing to wait for.
      endpoint.unmap(map.address, map.size)?.catch(ignoreDeadline);
      this.#window.release([map]);
      throw error;
    }
  }

  unmap({ address, size, maps, dirty }: UnmapRequest): Promise<void> | undefined {
    const unmapped = this.#open().unmap(address, size, dirty);
    if (unmapped !== undefined) return this.#unmapLater(maps, unmapped);
    this.#window.release(maps);
    return undefined;
  }

  async #unmapLater(maps: readonly MemoryMap[], unmapped: Promise<void>): Promise<void> {
    try {
      await unmapped;
    } catch (error) {
      if (!(error instanceof DeadlineExceeded)) throw error;
      this.#window.releaseByForce(maps, error.finished);
      return;
    }
    this.#window.release(maps);
  }

  async setIrqs(request: IrqSetRequest): Promise<void> {
    const { flags, index, start, count, eventfds, bools } = request;
    const endpoint = this.#open();
    const isTrigger = (flags & IrqSetFlags.ACTION_TRIGGER) !== 0;
    if (eventfds !== undefined && !isTrigger) {
      this.#irqEventfds.set(request);
      return;
    }
    if (eventfds !== undefined) {
      this.#bind(request, eventfds);
      endpoint.setIrqs({ flags, index, start, count, bound: eventfds.map((fd) => fd !== UNBOUND) });
      return;
    }
    endpoint.setIrqs(bools === undefined ? { flags, index, start, count } : { flags, index, start, count, bools });
    if (count !== 0 || !isTrigger) return;
    this.#unbind(index);
    this.#irqEventfds.clearIndex(index);
  }

  functionReset(): void {
    this.#untaken.clear();
  }

  handle(command: PendingCommand): void {
    if (isWrite(command.command)) this.#registers?.writeSent();
    this.#open().handle(command);
  }

  #open(): Endpoint {
    if (this.#endpoint === undefined) throw new ProtocolError("no device", Errno.ENODEV);
    return this.#endpoint;
  }

  /** Takes the eventfds over. */
  #bind({ index, start }: IrqSetRequest, eventfds: readonly number[]): void {
    const vectors = this.#eventfds[index];
    for (const [n, fd] of eventfds.entries()) {
      const old = vectors[start + n];
      vectors[start + n] = fd;
      this.#untaken.replace(index, start + n, old, fd);
      if (old !== UNBOUND) closePeerFd(old);
    }
  }

  #unbind(index: number): void {
    const vectors = this.#eventfds[index];
    for (const [vector, fd] of vectors.entries()) {
      if (fd === UNBOUND) continue;
      this.#untaken.replace(index, vector, fd, UNBOUND);
      closePeerFd(fd);
    }
    vectors.fill(UNBOUND);
  }
}

function ignoreDeadline(error: unknown): void {
  if (!(error instanceof DeadlineExceeded)) throw error;
}
