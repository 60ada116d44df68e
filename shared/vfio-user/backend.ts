/**
 * The seam between a vfio-user server (server.ts) and what stands behind it: the device in this process (the local
 * link) or the bridge's half of the virtio link. The server owns the socket, VERSION, the DMA table, the checks of
 * fds and lengths, and the order of commands; a backend owns everything that has to do with the device.
 */

import type { DeviceAccess } from "./device-access.js";
import type { RegisterMemory } from "./register-memory.js";
import type { AccessPath } from "./socket/access-path.js";

/** What a server must know of the device to check commands before it passes them on. */
export interface DeviceSummary {
  /**
   * Size in bytes of each region, by VFIO_PCI_*_REGION_INDEX, and then of the device's own (MAX_REGIONS in all); 0
   * where there is none.
   */
  readonly regionSizes: readonly number[];
  /** Bit n: writes to region n may be answered as soon as they are queued (a memory BAR). */
  readonly postedRegions: number;
  /** Vectors of each interrupt index (VFIO_PCI_*_IRQ_INDEX); 0 where there is none. */
  readonly irqCounts: readonly number[];
}

/** Whether writes to a region may be answered as soon as they are queued. */
export function isPosted({ postedRegions }: DeviceSummary, region: number): boolean {
  // A shift counts modulo 32.
  return region < 32 && ((postedRegions >>> region) & 1) === 1;
}

/** Bytes [begin, end) of a map. */
export interface WindowPart {
  readonly begin: number;
  readonly end: number;
}

/** One DMA map of the client's, address (as in ../address.ts) and sizes in bytes. */
export interface MemoryMap {
  readonly address: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /**
   * The memory, if it may be mapped at all (checked: page-aligned, and see `backed`), or -1. The server keeps and
   * closes it.
   */
  readonly fd: number;
  /**
   * Whether that is a memfd, or a file of tmpfs or hugetlbfs: no access to it waits for its owner, nor does closing.
   */
  readonly isMemory: boolean;
  /** Its file's, where there is one. */
  readonly device: number;
  readonly inode: number;
  /**
   * Whether the backend refers to its file otherwise, too, so that closing `fd` frees no memory; the backend sets it.
   */
  isHeld: boolean;
  /**
   * Whether it may be mapped for a device: it is writable, and sealed against shrinking. Otherwise only who knows what
   * may be done to it, and survives a truncation, may map it.
   */
  readonly isShareable: boolean;
  readonly fdOffset: number;
  /** Bytes of the map that its file has: all, unless that is of huge pages. The rest can be had by messages alone. */
  readonly backed: number;
  /** The size of the file's pages, which can only be mapped whole; and what of the map is whole pages. */
  readonly pageSize: number;
  readonly windowPart: WindowPart;
  /** Of the DMA_MAP among all that its client sent. */
  readonly position: number;
  /** Where the backend put `windowPart` in the window, or -1: the backend sets it in `map` and clears it in `unmap`. */
  windowOffset: number;
}

export interface UnmapRange {
  /** As in ../address.ts: exact, whatever it is, as it and the size are multiples of 4096. */
  readonly address: number;
  readonly size: number;
}

/** DMA_UNMAP: everything in a range goes. */
export interface UnmapRequest extends UnmapRange {
  /** What is mapped in the range, all of it wholly. */
  readonly maps: readonly MemoryMap[];
  /** Of the command among all that its client sent; -1 where there is none. */
  readonly position: number;
  /** Where the client also asks which pages of the range, mapped or not, the device wrote. */
  readonly dirty?: DirtyRequest | undefined;
}

export interface DirtyRequest {
  /** Bytes; a power of two. */
  readonly pageSize: number;
  /** All zeros, and of the size that bitmapSize tells for the range; the backend sets the bits before it resolves. */
  readonly bitmap: Uint8Array;
}

/** A checked SET_IRQS: `start` and `count` lie within the index's vectors. */
export interface IrqSetRequest {
  /** IrqSetFlags: one DATA_* and one ACTION_* bit. */
  readonly flags: number;
  readonly index: number;
  readonly start: number;
  readonly count: number;
  /** DATA_BOOL: one byte for each vector. */
  readonly bools?: Uint8Array;
  /**
   * DATA_EVENTFD: one checked eventfd for each vector, -1 where there is none (all -1 takes the binding away). With
   * ACTION_TRIGGER the device signals them; with the other actions the client does, to mask or unmask. The backend owns
   * them from this call on and closes each when it is replaced, unbound, or the client is gone.
   */
  readonly eventfds?: readonly number[];
}

/**
 * A command in flight. The object is reused for the next command, so it must not be kept past `reply` or `fail`, of
 * which exactly one is called, at once or later. (With NO_REPLY they are called too, and send nothing.)
 */
export interface PendingCommand {
  /** False once it is answered: by somebody else, too, when it took too long. */
  readonly active: boolean;
  /** vfio-user's command number. */
  readonly command: number;
  /** The request's body is bytes[offset, offset + length); `data` views the same buffer. Valid until reply or fail. */
  readonly bytes: Uint8Array;
  readonly data: DataView;
  readonly offset: number;
  readonly length: number;
  /** Where it begins in all that clients sent, modulo 2^32; -1 where nobody counts. */
  readonly position: number;
  /** It may have been handed over before, by another process. */
  readonly isAgain: boolean;
  /** Where the reply's body is to be written: replyBytes from replyOffset on. Call `reserve` first. */
  readonly replyBytes: Uint8Array;
  readonly replyData: DataView;
  readonly replyOffset: number;
  /** Makes room for a reply body of that many bytes (zeros are not promised); replyBytes and replyData may change. */
  reserve(length: number): void;
  /**
   * Sends the reply with the first `length` reserved bytes as its body. fds are sent along and stay the caller's; on
   * the virtio link they are handles of the bridge's.
   */
  reply(length: number, fds?: readonly number[]): void;
  /** Sends an error reply. */
  fail(errno: number): void;
}

export interface ClientVersion {
  readonly major: number;
  readonly minor: number;
  /** The client's max_data_xfer_size: the most that one DMA_READ or DMA_WRITE to it may carry, in bytes. */
  readonly maxDataXferSize: number;
  /** The client's max_msg_fds: the most fds that a reply to it may carry. */
  readonly maxMessageFds: number;
}

/** Sends DMA_READ and DMA_WRITE to the client; rejects with ProtocolError (its errno) or PeerGone. */
export interface ClientMemory {
  read(address: number, target: Uint8Array): Promise<void>;
  /** `sent` is called when all of it was sent. */
  write(address: number, source: Uint8Array, sent?: () => void): Promise<void>;
  /** Resolves when the client has dealt with the writes that another process sent it. */
  settled(): Promise<void>;
  /**
   * Gives up what was not answered and concerns the range, or all: it rejects with ECANCELED, and a late answer changes
   * nothing. A write that was sent may still be carried out.
   */
  abandon(address?: number, length?: number): void;
}

/** What of a client's accesses does not come to the backend as commands. */
export interface DirectAccesses {
  /** Reads are answered from this memory, from now on; undefined: from none. */
  readFrom(memory: RegisterMemory | undefined): void;
  /** Accesses that it deals with are answered by a device of this process from now on, and are counted there. */
  answerBy(device: DeviceAccess): void;
  /** Accesses go by this path from now on, as far as it takes them. */
  passBy(path: AccessPath): void;
  /** The access that the path asked the device for, which the caller answers now; undefined when there is none. */
  take(): PendingCommand | undefined;
}

export interface Backend {
  /** It answers posted writes itself, as soon as they are sure to be made. */
  readonly answersWrites?: boolean;
  /** The device, or undefined while none is there. */
  readonly device: DeviceSummary | undefined;
  /**
   * Vectors of each interrupt index, also while the device is away for a time: the backend then remembers what the
   * client sets up. Undefined before there was a device.
   */
  readonly irqCounts: readonly number[] | undefined;
  /**
   * A client said VERSION. Resolves when a device is there and ready for its maps; a rejection becomes the error reply
   * and ends the session.
   */
  connect(version: ClientVersion, memory: ClientMemory, accesses: DirectAccesses): Promise<void>;
  /**
   * The client is gone: release all maps and eventfds, then resolve. Called once for each `connect`, also while that
   * one is pending. Never rejects.
   */
  disconnect(): Promise<void>;
  /** Undefined when it is done already, or the promise of it. @throws what it would reject with */
  map(map: MemoryMap): Promise<void> | undefined;
  /** The same when nothing touches any of the memory any more. A failure leaves all of it mapped. */
  unmap(request: UnmapRequest): Promise<void> | undefined;
  setIrqs(request: IrqSetRequest): Promise<void>;
  /**
   * Any other command that is for the device. The body's length was checked against the specification's tables, a
   * region access against the region's size.
   */
  handle(command: PendingCommand): void;
  /**
   * Before and after the commands that came together are handed over: whoever is to be woken up for them can be so
   * once.
   */
  receiving?(now: boolean): void;
}
