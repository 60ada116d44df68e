/**
 * The link: all that a device knows of its driver VM. Two implementations: local.ts (the device sits straight on a
 * vfio-user socket) and virtio.ts (the driver VM is reached through the bridge). A device cannot tell them apart.
 */
import { Errno, ProtocolError } from "../../shared/errors.js";
import type { DirectTrigger } from "../../shared/lane-access.js";
import type { Area } from "../../shared/memory-file.js";
import type { DeviceSummary, DirtyRequest, PendingCommand } from "../../shared/vfio-user/backend.js";
import type { WordAccesses } from "../../shared/vfio-user/device-access.js";
import type { MapPart } from "../../shared/vfio-user/dma/dma-ranges.js";
import type { RegisterArea } from "../../shared/vfio-user/register-memory.js";
import type { Server } from "../../shared/vfio-user/server.js";

/** The address range that holds the driver VM's mapped memory, as a row of ArrayBuffers that never go away. */
export interface Window {
  /** Bytes. */
  readonly size: number;
  /**
   * Bytes of each piece but the last; a power of two. No DMA map of at most this size crosses from one piece to the
   * next.
   */
  readonly pieceSize: number;
  /** The same buffer each time: it stays mapped as long as the window lives, whoever has its address. */
  piece(index: number): ArrayBuffer;
}

/** Bytes of a window, which lie in one piece of it. */
export function windowBytes(window: Window, windowOffset: number, size: number): Uint8Array<ArrayBuffer> {
  const offset = windowOffset % window.pieceSize;
  return new Uint8Array(window.piece((windowOffset - offset) / window.pieceSize), offset, size);
}

/**
 * A DMA map as the device sees it, or a part of one. The address is the one that the driver VM uses (IOVA; see
 * shared/address.ts). What has no window offset is reached by `readMemory` and `writeMemory`.
 */
export type { MapPart as DmaMapping } from "../../shared/vfio-user/dma/dma-ranges.js";

/**
 * An interrupt set-up by the driver VM; see IrqSet in spec/vfio-user. Bounds are checked. DATA_EVENTFD comes with
 * ACTION_TRIGGER alone: what an eventfd masks or unmasks is a change of its own when it does.
 */
export interface IrqChange {
  readonly flags: number;
  readonly index: number;
  readonly start: number;
  readonly count: number;
  /** DATA_BOOL's bytes. */
  readonly bools?: Uint8Array;
  /** DATA_EVENTFD: whether each vector now has a doorbell. */
  readonly bound?: readonly boolean[];
}

/** Memory that the client may map. */
export interface SharedMemory {
  /** What names it in `PendingCommand.reply`; -1 when there is none just now. It changes with each client. */
  readonly descriptor: number;
  /** The bytes of each area, always at the same addresses; zeros for each client. */
  readonly areas: readonly Uint8Array<ArrayBuffer>[];
}

/** Eventfds that the client may signal. */
export interface IoEvents {
  /** As SharedMemory's, for each of them. */
  readonly descriptors: readonly number[];
}

/** The device did not finish in time: the link takes the memory away by force. */
export class DeadlineExceeded extends ProtocolError {
  constructor(
    what: string,
    /** Resolves when it has finished; never rejects. */
    readonly finished: Promise<void>,
  ) {
    super(`the device did not finish its ${what} in time`, Errno.ETIMEDOUT);
  }
}

/** The device's end of the link: what a link calls. */
export interface Endpoint {
  readonly summary: DeviceSummary;
  /**
   * A client is there; nothing is mapped yet. Resolves when the device is ready for it. `maxMessageFds`: the most
   * descriptors that a reply to it may have.
   */
  connected(maxDataXferSize: number, maxMessageFds: number): Promise<void>;
  /**
   * The client is gone: finish or abandon all DMA, then resolve; no memory or doorbell of it may be used afterwards.
   * Rejects with DeadlineExceeded when that takes too long: the link takes the memory away by force.
   */
  disconnected(): Promise<void>;
  map(mapping: MapPart): void;
  /**
   * Takes away all maps in a range. Resolves when no DMA to or from it is in flight; `dirty`'s bitmap is filled in
   * then. Rejects with DeadlineExceeded, the bitmap filled in; or with ProtocolError EINVAL, and all stays mapped: when
   * a map is only partly in the range, or a bitmap is wanted and DMA is not logged.
   */
  unmap(address: number, size: number, dirty?: DirtyRequest): Promise<void> | undefined;
  setIrqs(change: IrqChange): void;
  /** Plain register accesses, for whoever has no command for them. They count as dealt with by the device. */
  readonly words: WordAccesses;
  /** The whole function's state as plain data, for diagnostics. */
  inspect(): unknown;
  /** Any other command; see PendingCommand for the duties. */
  handle(command: PendingCommand): void;
}

export interface Link {
  readonly window: Window;
  /** What the client is connected to, where that is in this process. */
  readonly server?: Server;
  /**
   * Makes memory for areas of a region, in ascending order, or for NO_REGION. Only before `open`, once for each region.
   * Rejects with ProtocolError, PeerGone or SystemError.
   */
  allocateMemory(region: number, areas: readonly Area[]): Promise<SharedMemory>;
  /** Makes `count` eventfds for a region; `signalled` is called with their index. As `allocateMemory`. */
  allocateEvents(region: number, count: number, signalled: (index: number) => void): Promise<IoEvents>;
  /**
   * Gives memory, zeros, from which reads of these registers are answered; see RegisterMirror. `size`: at most
   * MAX_REGISTER_MEMORY bytes. Only before `open`, once. Undefined when there is none to be had: then all reads come to
   * the device.
   */
  shareRegisters(size: number, areas: readonly RegisterArea[]): Promise<Uint8Array<ArrayBuffer> | undefined>;
  /** Starts to serve `endpoint`; resolves when clients can connect. */
  open(endpoint: Endpoint): Promise<void>;
  /** Rings the doorbell of a vector (index: spec/vfio-user Irq). Nothing happens when none is bound. */
  trigger(index: number, vector: number): void;
  /**
   * How `trigger` would do it, for a loop that calls no JavaScript: good until the vector is bound to something else.
   * Undefined where that cannot be, or none is bound.
   */
  directTrigger?(index: number, vector: number): DirectTrigger | undefined;
  /** Doorbells rung so far, but for those that others rang directly. */
  readonly doorbellsRung: number;
  /**
   * The function was reset, in whatever way: signals that the client has not taken are not passed on to the vector's
   * next eventfd. The bridge does that by itself, at DEVICE_RESET; by config space, one of before may come once more.
   */
  functionReset?(): void;
  /**
   * DMA to a map outside the window, and no further: by message, then at most maxDataXferSize bytes; or by copy, if the
   * map `isCopied`. Rejects with ProtocolError or PeerGone.
   */
  readMemory(address: number, target: Uint8Array, isCopied: boolean): Promise<void>;
  writeMemory(address: number, source: Uint8Array, isCopied: boolean): Promise<void>;
  /** Gives up the messages that were not answered and concern the range, or all: see ClientMemory. */
  abandonMessages(address?: number, length?: number): void;
  /** Memory, zeros, that `readMemory` and `writeMemory` need not copy once more. It is never given back. */
  allocate(length: number): Uint8Array<ArrayBuffer>;
  /**
   * Resolves when the link is lost permanently (the device VM's transport broke); never for a client that left, or a
   * link that is set up again.
   */
  readonly closed: Promise<void>;
  close(): Promise<void>;
}
