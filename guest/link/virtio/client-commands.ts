/**
 * The bridge's commands that are about the client: that it comes and goes, its DMA maps, its interrupts, its signals
 * (docs/virtio-vfio-user.md, "Commands of vfio-user", "Commands of the link"). Anything else is the endpoint's.
 */
import { inBounds } from "../../../shared/bits.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { toJson } from "../../../shared/json.js";
import { MAX_DIRTY_BITMAP_SIZE, MAX_MESSAGE_FDS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { ClientConnected, Inspect, IoEvent, LinkCommand, NO_DOORBELL } from "../../../shared/spec/link.js";
import {
  Bitmap,
  Command,
  DmaAccess,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  Header,
  IrqSet,
  IrqSetFlags,
} from "../../../shared/spec/vfio-user.js";
import { bitmapSize, unmapRange } from "../../../shared/vfio-user/dma/dma-ranges.js";
import type { Endpoint, IrqChange, Window } from "../link.js";
import type { DeviceSetUp } from "./device-set-up.js";
import type { LinkPendingCommand } from "./pending-command.js";
import type { BridgeRequests } from "./requests.js";

export const UNBOUND = -1;

/** What of the link the commands need. */
interface CommandedLink {
  readonly endpoint: Endpoint;
  readonly window: Window;
  readonly doorbells: Doorbells;
  readonly requests: BridgeRequests;
  readonly setUp: DeviceSetUp;
  readonly maxMessageSize: number;
  readonly log: Log;
  /** Refuses a command whose work failed, and logs what is a bug. */
  fail(command: LinkPendingCommand, error: unknown): void;
}

export class ClientCommands {
  readonly doorbells: Doorbells;
  readonly #endpoint: Endpoint;
  readonly #window: Window;
  readonly #requests: BridgeRequests;
  readonly #setUp: DeviceSetUp;
  readonly #maxMessageSize: number;
  readonly #log: Log;
  readonly #fail: CommandedLink["fail"];
  readonly #dmaMap = DmaMap.view();
  readonly #dmaUnmap = DmaUnmap.view();
  readonly #irqSet = IrqSet.view();
  readonly #ioEvent = IoEvent.view();

  constructor({ endpoint, window, doorbells, requests, setUp, maxMessageSize, log, fail }: CommandedLink) {
    this.doorbells = doorbells;
    this.#endpoint = endpoint;
    this.#window = window;
    this.#requests = requests;
    this.#setUp = setUp;
    this.#maxMessageSize = maxMessageSize;
    this.#log = log;
    this.#fail = fail;
  }

  /** Answers a command, at once or later. @throws ProtocolError */
  handle(command: LinkPendingCommand): void {
    const endpoint = this.#endpoint;
    switch (command.command) {
      case Command.DMA_MAP:
        this.#map(command);
        break;
      case Command.DMA_UNMAP:
        this.#unmap(command);
        break;
      case Command.DEVICE_SET_IRQS:
        this.#setIrqs(command);
        break;
      case LinkCommand.CLIENT_CONNECTED:
        this.#clientConnected(command);
        break;
      case LinkCommand.CLIENT_GONE:
        this.#clientGone(command);
        break;
      case LinkCommand.IO_EVENT:
        needLength(command, IoEvent.size);
        this.#setUp.signalled(this.#ioEvent.at(command.data, command.offset).handle);
        command.reply(0);
        break;
      case LinkCommand.INSPECT:
        this.#inspect(command);
        break;
      default:
        endpoint.handle(command);
    }
  }

  #map(command: LinkPendingCommand): void {
    needLength(command, DmaMap.size);
    const { flags, offset, address, size } = this.#dmaMap.at(command.data, command.offset);
    const inWindow = (flags & DmaMapFlags.MMAP) !== 0;
    if (inWindow && !inBounds(offset, size, this.#window.size)) {
      throw new ProtocolError(`a map of ${size} bytes at window offset ${offset}`, Errno.EINVAL, Command.DMA_MAP);
    }
    this.#endpoint.map({
      address,
      size,
      readable: (flags & DmaMapFlags.READ) !== 0,
      writable: (flags & DmaMapFlags.WRITE) !== 0,
      windowOffset: inWindow ? offset : -1,
      isCopied: !inWindow && (flags & DmaMapFlags.FILE_IO) !== 0,
    });
    command.reply(0);
  }

  #unmap(command: LinkPendingCommand): void {
    needLength(command, DmaUnmap.size);
    const { address, size } = unmapRange(command.data, command.offset);
    const { flags } = this.#dmaUnmap.at(command.data, command.offset);
    if (flags === DmaUnmapFlags.GET_DIRTY_BITMAP) this.#unmapDirty(command, address, size);
    else this.#answer(command, this.#endpoint.unmap(address, size));
  }

  /** The reply is the request and the bitmap behind it. */
  #unmapDirty(command: LinkPendingCommand, address: number, size: number): void {
    needLength(command, DmaUnmap.size + Bitmap.size);
    const { pageSize } = Bitmap.view(command.data, command.offset + DmaUnmap.size);
    const length = bitmapSize(address, size, pageSize);
    const bitmapOffset = DmaUnmap.size + Bitmap.size;
    if (length < 0 || length > MAX_DIRTY_BITMAP_SIZE)
      throw new ProtocolError(`a bitmap for pages of ${pageSize} bytes`);
    const bitmap = new Uint8Array(length);
    const unmapped = () => {
      if (!command.active) return;
      command.reserve(bitmapOffset + length);
      const request = command.bytes.subarray(command.offset, command.offset + bitmapOffset);
      command.replyBytes.set(request, command.replyOffset);
      command.replyBytes.set(bitmap, command.replyOffset + bitmapOffset);
      command.reply(bitmapOffset + length);
    };
    const waiting = this.#endpoint.unmap(address, size, { pageSize, bitmap });
    if (waiting === undefined) unmapped();
    else waiting.then(unmapped).catch((error) => this.#fail(command, error));
  }

  #clientConnected(command: LinkPendingCommand): void {
    needLength(command, ClientConnected.size);
    const connected = ClientConnected.view(command.data, command.offset);
    const { generation, major, minor, maxDataXferSize, maxMessageFds } = connected;
    const most = this.#maxMessageSize - Header.size - DmaAccess.size;
    if (maxDataXferSize === 0) throw new ProtocolError("a client without DMA messages", Errno.EINVAL);
    this.#log.info({ generation, version: `${major}.${minor}`, maxDataXferSize }, "client connected");
    const fds = Math.min(maxMessageFds, MAX_MESSAGE_FDS);
    this.#answer(command, this.#endpoint.connected(Math.min(maxDataXferSize, most), fds));
  }

  #clientGone(command: LinkPendingCommand): void {
    this.#log.info("client gone");
    this.doorbells.unbindAll();
    this.#requests.abandonDma(new PeerGone("the client is gone"));
    this.#answer(command, this.#endpoint.disconnected());
  }

  #inspect(command: LinkPendingCommand): void {
    needLength(command, Inspect.size);
    const most = Inspect.view(command.data, command.offset).maxSize;
    const text = Buffer.from(toJson(this.#endpoint.inspect() ?? null));
    if (text.length > Math.min(most, this.#maxMessageSize - Header.size)) {
      throw new ProtocolError(`a state of ${text.length} bytes`, Errno.E2BIG, LinkCommand.INSPECT);
    }
    command.reserve(text.length);
    command.replyBytes.set(text, command.replyOffset);
    command.reply(text.length);
  }

  #setIrqs(command: LinkPendingCommand): void {
    needLength(command, IrqSet.size);
    const { flags, index, start, count } = this.#irqSet.at(command.data, command.offset);
    if (!this.doorbells.has(index, start, count)) {
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
      change = { ...change, bound: this.doorbells.bind(change, command.data, at) };
    } else if (count === 0 && (flags & IrqSetFlags.ACTION_TRIGGER) !== 0) {
      this.doorbells.unbind(index);
    }
    this.#endpoint.setIrqs(change);
    command.reply(0);
  }

  /** Replies, without a body, when `work` is done. */
  #answer(command: LinkPendingCommand, work: Promise<void> | undefined): void {
    if (work === undefined) command.reply(0);
    else
      work.then(
        () => command.reply(0),
        (error) => this.#fail(command, error),
      );
  }
}

/** @throws ProtocolError when the body is shorter than `length` */
function needLength(command: LinkPendingCommand, length: number): void {
  if (command.length < length)
    throw new ProtocolError(`a body of ${command.length} bytes`, Errno.EINVAL, command.command);
}

/** Which doorbell each interrupt vector has: what SET_IRQS said. */
export class Doorbells {
  /** By interrupt index, the doorbell of each vector, or UNBOUND. */
  readonly #doorbells: readonly Int32Array[];

  /** `irqCounts`: vectors by interrupt index; `count`: how many doorbells there are. */
  constructor(
    irqCounts: readonly number[],
    readonly count: number,
  ) {
    this.#doorbells = irqCounts.map((vectors) => new Int32Array(vectors).fill(UNBOUND));
  }

  of(index: number, vector: number): number {
    return this.#doorbells[index][vector];
  }

  /** Whether interrupt `index` has all of these vectors; for any numbers. */
  has(index: number, start: number, count: number): boolean {
    const vectors = this.#doorbells[index];
    return vectors !== undefined && inBounds(start, count, vectors.length);
  }

  /**
   * Notes the doorbell numbers at `at` of `data`, one for each vector; returns which vectors have one.
   * @throws ProtocolError for a doorbell that is not there; nothing is changed then
   */
  bind({ index, start, count }: IrqChange, data: DataView, at: number): boolean[] {
    const numbers = Array.from({ length: count }, (_, n) => data.getUint32(at + n * 4, true));
    for (const number of numbers) {
      if (number !== NO_DOORBELL && number >= this.count) throw new ProtocolError(`no doorbell ${number}`);
    }
    const bound = numbers.map((number) => number !== NO_DOORBELL);
    for (let n = 0; n < count; n++) this.#doorbells[index][start + n] = bound[n] ? numbers[n] : UNBOUND;
    return bound;
  }

  unbind(index: number): void {
    this.#doorbells[index].fill(UNBOUND);
  }

  unbindAll(): void {
    for (const vectors of this.#doorbells) vectors.fill(UNBOUND);
  }
}
