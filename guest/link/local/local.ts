/**
 * The link straight on a vfio-user socket: the device runs in the same process as the server, as it would with
 * libvfio-user. The client's memory is mapped into a window of this process, its eventfds are written to directly.
 */
import {
  close,
  eventfd,
  eventfdWrite,
  POLL_READABLE,
  Poll,
  PROT_READ,
  PROT_WRITE,
  type Reservation,
} from "../../../native/index.js";
import { formatAddress } from "../../../shared/address.js";
import { reserveAddressSpace } from "../../../shared/address-space.js";
import { isPowerOfTwo } from "../../../shared/bits.js";
import { CopiedMemory } from "../../../shared/copied-memory.js";
import { Errno, isSystemError, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { CHUNK_SIZE, type Chunk, FileChunks, type Run } from "../../../shared/file-chunks.js";
import { DRIVER_VM_MEMORY_SIZE, LARGE_PAGE_SIZE, PAGE_SIZE, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { isLost } from "../../../shared/lost-memory.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import { closePeerFd, FdShare, openFileLimit, peerFds } from "../../../shared/peer-fds.js";
import { Command, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
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
import { mapParts } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { IrqEventfds } from "../../../shared/vfio-user/irqs/irq-eventfds.js";
import { UntakenSignals } from "../../../shared/vfio-user/irqs/untaken-signals.js";
import { isWrite, type RegisterArea, RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import { Server } from "../../../shared/vfio-user/server.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import { WindowAllocator } from "../../../shared/window-allocator.js";
import {
  type Area,
  DeadlineExceeded,
  type Endpoint,
  type IoEvents,
  type Link,
  type SharedMemory,
  type Window,
} from "../link.js";
import { LocalSharing } from "./sharing.js";

export interface LocalLinkOptions {
  /** Where to listen: a path, or a listening AF_UNIX socket. */
  readonly socket: string | number;
  readonly log: Log;
  /** The most of the client's memory that is mapped at once; a multiple of the page size. */
  readonly windowSize?: number;
  /** Map also files that are not memory, access to which may take for ever. */
  readonly trustUnsealedMemory?: boolean;
}

const UNBOUND = -1;

/**
 * Maps that are in the window, of those that a client may have: each takes two of the mappings that Linux grants a
 * process (65530, vm.max_map_count), and one that has none left cannot go on.
 */
const MAX_MAPPED = 16 * 1024;
/** What is smaller shares the mapping of its file with others. */
const OWN_MAPPING_SIZE = LARGE_PAGE_SIZE;

export class LocalLink implements Link, Backend {
  readonly window: Window;
  /** Never resolves: a socket of one's own does not get lost. */
  readonly closed = new Promise<void>(() => {});
  doorbellsRung = 0;
  readonly #server: Server;
  readonly #log: Log;
  readonly #reservation: Reservation;
  /** Signalled when the device wrote to what it may only read. */
  readonly #stray = eventfd(0);
  readonly #strayPoll: Poll;
  #strays = 0;
  readonly #places: WindowAllocator;
  readonly #sharing: LocalSharing;
  /** With the chunk of its file in which a small one lies. */
  readonly #maps = new Map<MemoryMap, Chunk | undefined>();
  readonly #chunks: FileChunks;
  /** What the window cannot have. */
  readonly #copied: CopiedMemory;
  /** There was no room for the last map: it was logged. */
  #isFull = false;
  /** By interrupt index, the eventfd of each vector, or UNBOUND. */
  #eventfds: readonly Int32Array[] = [];
  readonly #untaken = new UntakenSignals();
  /** Those by which the client masks and unmasks. */
  readonly #irqEventfds = new IrqEventfds(async ({ flags, index, start, count }) => {
    this.#open().setIrqs({ flags, index, start, count });
  });
  #endpoint: Endpoint | undefined;
  #registers: RegisterMemory | undefined;
  #memory: ClientMemory | undefined;

  /** @throws UserError when there is no address space */
  constructor(options: LocalLinkOptions) {
    const { socket, log, windowSize = DRIVER_VM_MEMORY_SIZE, trustUnsealedMemory = false } = options;
    const reservation = reserveAddressSpace("the driver VM's memory", windowSize, this.#stray);
    this.#log = log;
    this.#reservation = reservation;
    this.#places = new WindowAllocator(windowSize, WINDOW_PIECE_SIZE);
    // The other half is for maps that are larger.
    this.#chunks = new FileChunks(reservation, this.#places, Math.floor(windowSize / CHUNK_SIZE / 2), log);
    this.#copied = new CopiedMemory(log);
    this.window = {
      size: windowSize,
      pieceSize: WINDOW_PIECE_SIZE,
      piece: (index) => reservation.piece(index),
    };
    this.#sharing = new LocalSharing(this.window, reservation, this.#places, log);
    const most = peerFds(openFileLimit(), 1);
    this.#server = new Server({
      backend: this,
      socket,
      log,
      trustUnsealedMemory,
      fds: new FdShare(() => most),
    });
    this.#strayPoll = new Poll(this.#stray, () => this.#undoStray(), "eventfd");
    this.#strayPoll.start(POLL_READABLE);
    this.#strayPoll.unref();
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
    this.#eventfds = endpoint.summary.irqCounts.map((count) => new Int32Array(count).fill(UNBOUND));
    this.#server.open();
  }

  async close(): Promise<void> {
    await this.#server.close();
    this.#sharing.close();
    this.#chunks.clear();
    this.#copied.close();
    this.#reservation.release();
    this.#strayPoll.close();
    close(this.#stray);
  }

  trigger(index: number, vector: number): void {
    const eventfd = this.#eventfds[index][vector];
    if (eventfd === UNBOUND) return;
    this.doorbellsRung++;
    eventfdWrite(eventfd);
  }

  readMemory(address: number, target: Uint8Array, isCopied: boolean): Promise<void> {
    if (isCopied) return this.#copy(address, target, false);
    return this.#memory?.read(address, target) ?? Promise.reject(new PeerGone("the client is gone"));
  }

  writeMemory(address: number, source: Uint8Array, isCopied: boolean): Promise<void> {
    if (isCopied) return this.#copy(address, source, true);
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

  async connect(version: ClientVersion, memory: ClientMemory, reads: RegisterReads): Promise<void> {
    this.#memory = memory;
    await this.#open().connected(version.maxDataXferSize, version.maxMessageFds);
    this.#registers?.begin();
    reads.from(this.#registers);
  }

  async disconnect(): Promise<void> {
    // Before the device's reset, which may prepare the memory for the next client.
    this.#sharing.renew();
    // No other client is served before the device is done; until then it has zeros.
    await this.#open().disconnected().catch(ignoreDeadline);
    this.#memory = undefined;
    for (const map of [...this.#maps.keys()]) this.#release(map);
    this.#chunks.dropIdle();
    this.#copied.dropIdle();
    for (const index of this.#eventfds.keys()) this.#unbind(index);
    this.#irqEventfds.clear();
    this.#untaken.clear();
  }

  map(map: MemoryMap): undefined {
    const endpoint = this.#open();
    const { begin, end } = map.windowPart;
    this.#maps.set(map, this.#place(map));
    try {
      if (map.windowOffset < 0 || end - begin < map.size) this.#copied.put(map);
      for (const part of mapParts(map, this.#copied.has(map))) endpoint.map(part);
    } catch (error) {
      // Nothing has used it yet, so there is nothing to wait for.
      endpoint.unmap(map.address, map.size)?.catch(ignoreDeadline);
      this.#release(map);
      throw error;
    }
  }

  unmap({ address, size, maps, dirty }: UnmapRequest): Promise<void> | undefined {
    const unmapped = this.#open().unmap(address, size, dirty);
    if (unmapped !== undefined) return this.#unmapLater(maps, unmapped);
    for (const map of maps) this.#release(map);
    return undefined;
  }

  async #unmapLater(maps: readonly MemoryMap[], unmapped: Promise<void>): Promise<void> {
    let kept: Promise<void> | undefined;
    try {
      await unmapped;
    } catch (error) {
      if (!(error instanceof DeadlineExceeded)) throw error;
      kept = error.finished;
    }
    const held = kept === undefined ? [] : new Set(maps.flatMap((map) => this.#maps.get(map) ?? []));
    for (const chunk of held) this.#chunks.hold(chunk, kept ?? unmapped);
    for (const map of maps) this.#release(map, kept);
    for (const chunk of held) this.#chunks.takeAway(chunk, this.#usedRuns(chunk));
  }

  /** The memory of the maps that lie in a chunk, in ascending order. */
  #usedRuns(chunk: Chunk): Run[] {
    const runs: Run[] = [];
    for (const [map, its] of this.#maps) {
      if (its === chunk) runs.push({ start: map.windowOffset, end: map.windowOffset + map.size });
    }
    return runs.sort((a, b) => a.start - b.start);
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

  handle(command: PendingCommand): void {
    if (isWrite(command.command)) this.#registers?.writeSent();
    if (command.command === Command.DEVICE_RESET) this.#untaken.clear();
    this.#open().handle(command);
  }

  #open(): Endpoint {
    if (this.#endpoint === undefined) throw new ProtocolError("no device", Errno.ENODEV);
    return this.#endpoint;
  }

  /**
   * Maps the memory into the window, as far as it can be; and sets its `windowOffset`. The chunk that it lies in, if
   * any.
   */
  #place(map: MemoryMap): Chunk | undefined {
    const { begin, end } = map.windowPart;
    if (map.fd === -1 || begin === end) return undefined;
    const chunk = this.#chunkFor(map);
    if (chunk !== undefined) {
      map.windowOffset = chunk.offset + (map.fdOffset - chunk.begin);
      map.isHeld = true;
      return chunk;
    }
    const offset =
      this.#places.count < MAX_MAPPED ? this.#places.allocate(end - begin, map.fdOffset + begin, map.pageSize) : -1;
    if (offset === -1) {
      if (!this.#isFull) this.#log.warn({ size: map.size }, "the window is full: DMA by copies");
      this.#isFull = true;
      return undefined;
    }
    try {
      this.#mapAt(offset, map);
    } catch (error) {
      this.#places.free(offset);
      if (!isSystemError(error)) throw error;
      if (!this.#isFull) this.#log.warn({ size: map.size, reason: error.message }, "not in the window: DMA by copies");
      this.#isFull = true;
      return undefined;
    }
    map.windowOffset = offset;
    return undefined;
  }

  /** Undefined for a map that is to have a mapping of its own: a large one, and others where there can be no chunk. */
  #chunkFor(map: MemoryMap): Chunk | undefined {
    const { fdOffset, size, pageSize } = map;
    const end = fdOffset + size;
    const isInOne = Math.floor(fdOffset / CHUNK_SIZE) === Math.floor((end - 1) / CHUNK_SIZE);
    if (size >= OWN_MAPPING_SIZE || pageSize !== PAGE_SIZE || !isInOne) return undefined;
    try {
      return this.#chunks.take(map, fdOffset, end);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.debug({ reason: error.message }, "a map that does not lie in a mapping of its file");
      return undefined;
    }
  }

  /** In this process read-only is what it says, and memory that its owner shrinks reads as zeros. */
  #mapAt(offset: number, { fd, fdOffset, writable, windowPart: { begin, end } }: MemoryMap): void {
    const protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    this.#reservation.map(offset, end - begin, fd, fdOffset + begin, protection);
  }

  /** Between what is mapped outside the window and the device's bytes. */
  async #copy(address: number, bytes: Uint8Array, isWrite: boolean): Promise<void> {
    const memory = this.#copied;
    if (!memory.reaches(address, bytes.length, isWrite)) {
      throw new ProtocolError(`no memory at ${formatAddress(address)} of ${bytes.length}`, Errno.EFAULT);
    }
    for (let done = 0; done < bytes.length; ) {
      const length = memory.locate(address + done, bytes.length - done);
      if (isWrite) copyBytes(bytes, done, memory.bytes, memory.offset, length);
      else copyBytes(memory.bytes, memory.offset, bytes, done, length);
      if (isLost(memory.bytes, memory.offset, length)) {
        throw new ProtocolError(`memory at ${formatAddress(address + done)} is gone`, Errno.EFAULT);
      }
      done += length;
    }
  }

  /**
   * The device's code wrote to a segment or view that it has for "read". That went to a copy, which is no longer the
   * driver VM's memory.
   */
  #undoStray(): void {
    this.#strays++;
    if (isPowerOfTwo(this.#strays)) {
      const message =
        "the device wrote to memory that the driver VM mapped read-only: the write is undone (a bug of the device's)";
      this.#log.error({ writes: this.#strays }, message);
    }
    try {
      this.#chunks.restoreReadOnly();
      for (const [map, chunk] of this.#maps) {
        if (chunk === undefined && !map.writable && map.windowOffset >= 0) this.#mapAt(map.windowOffset, map);
      }
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ reason: error.message }, "driver-VM memory is lost to the device");
    }
  }

  /**
   * Takes the memory out of reach; other memory may be at its place once `kept` has resolved. Nothing happens a second
   * time: a late answer may come when the client is gone.
   */
  #release(map: MemoryMap, kept?: Promise<void>): void {
    const chunk = this.#maps.get(map);
    if (!this.#maps.delete(map)) return;
    this.#copied.remove(map);
    const offset = map.windowOffset;
    if (offset < 0) return;
    map.windowOffset = -1;
    this.#isFull = false;
    if (chunk !== undefined) {
      map.isHeld = this.#chunks.leave(chunk);
      return;
    }
    const { begin, end } = map.windowPart;
    this.#reservation.unmap(offset, end - begin);
    if (kept === undefined) this.#places.free(offset);
    else void kept.then(() => this.#places.free(offset));
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
