/**
 * The virtio-vfio-user device: config space, queues and the link's own messages (docs/virtio-vfio-user.md).
 *
 * Messages are vfio-user's own framing (spec/vfio-user), little-endian. Where vfio-user passes an fd, the link passes a
 * handle of the bridge's:
 * - DMA_MAP: `flags` has MMAP when the memory is in the window, and then `offset` is the window offset; it has FILE_IO
 *   when the memory is reached by the copy queue; there is no fd.
 * - SET_IRQS with DATA_EVENTFD: `count` little-endian u32 doorbell numbers follow, NO_DOORBELL where there is none.
 * - Replies to DEVICE_GET_REGION_INFO and DEVICE_GET_REGION_IO_FDS: the header's errno is the number of handles, which
 *   follow behind the body as little-endian u32. They come from ALLOCATE_MEMORY and ALLOCATE_EVENTS.
 * VERSION does not occur on the link; CLIENT_CONNECTED takes its place.
 */
import { struct } from "../struct/struct.js";
import { Command } from "./vfio-user.js";

/** "vvfu" in config space tells our device from others with the same VIRTIO id. */
export const MAGIC = 0x75667676;
export const ABI_VERSION = 1;

/** Device configuration layout; bytes past it read as zeros. */
export const Config = struct({
  magic: "u32",
  abiVersion: "u16",
  doorbells: "u16",
  status: "u32",
  /** Counts the clients so far; changes whenever a client connects. */
  generation: "u32",
  windowSize: "u64",
  maxMessageSize: "u32",
  reserved: 4,
  uuid: 16,
  /** UTF-8, NUL-padded. */
  name: 32,
});
export const ConfigStatus = { BRIDGE_UP: 1, CLIENT_CONNECTED: 2, NEEDS_RESET: 4 } as const;

export const Queue = {
  /** Bridge to device process; the driver offers writable buffers. */
  TO_DEVICE: 0,
  /** Device process to bridge; readable buffers. */
  FROM_DEVICE: 1,
  /** DMA copies done by the bridge; see CopyRequest. */
  COPY: 2,
  /** The first doorbell; a kick of queue FIRST_DOORBELL + n rings doorbell n. No buffers are ever put there. */
  FIRST_DOORBELL: 3,
} as const;

/** Feature bits of the device's own. */
export const LinkFeature = { INSPECT: 1n << 0n } as const;

/** The id of the shared memory region that is the window. */
export const WINDOW_SHMID = 0;

export const NO_DOORBELL = 0xffffffff;

/** Commands of the link's own, beside vfio-user's. */
export const LinkCommand = {
  /** Device process to bridge, first message after DRIVER_OK: what the device is. */
  HELLO: 0x101,
  /** Bridge to device process: a client is there. The reply says that the device is ready for its DMA maps. */
  CLIENT_CONNECTED: 0x102,
  /** Bridge to device process: the client is gone. The reply says that all its memory was released. */
  CLIENT_GONE: 0x103,
  /** Device process to bridge, before it resets the device: after the reply the bridge maps and unmaps nothing more. */
  QUIESCE: 0x104,
  /** Device process to bridge, before HELLO: memory that the client may map, placed in the window. */
  ALLOCATE_MEMORY: 0x105,
  /** Device process to bridge, before HELLO: eventfds that the client may signal. */
  ALLOCATE_EVENTS: 0x106,
  /** Bridge to device process: the client signalled such an eventfd. The next one for it comes after the reply. */
  IO_EVENT: 0x107,
  /** Device process to bridge, before HELLO: memory with its registers' values, by which the bridge answers reads. */
  SHARE_REGISTERS: 0x108,
  /** Bridge to device process, with LinkFeature.INSPECT: the reply is the function's state, as JSON. */
  INSPECT: 0x109,
} as const;

/**
 * HELLO: `postedRegions` has a bit for each region whose writes the bridge answers as soon as they are queued. Behind
 * it follow `regions` (NUM_PCI_REGIONS to MAX_REGIONS) u64 sizes and NUM_PCI_IRQS u32 vector counts. The reply has no
 * body.
 */
export const Hello = struct({ abiVersion: "u32", postedRegions: "u32", regions: "u32", flags: "u32" });
/** ISOLATED: no driver-VM memory is to be put into the window. */
export const HelloFlags = { ISOLATED: 1 } as const;

export const ClientConnected = struct({
  generation: "u32",
  major: "u16",
  minor: "u16",
  maxDataXferSize: "u32",
  /** The most fds that the client takes with one reply. */
  maxMessageFds: "u32",
});
export const ClientGone = struct({ generation: "u32", reserved: 4 });

/** Whether a reply to that command of the client's may have handles. */
export const takesHandles = (command: number): boolean =>
  command === Command.DEVICE_GET_REGION_INFO || command === Command.DEVICE_GET_REGION_IO_FDS;

/** The region number of memory that belongs to no region: what shadow ioeventfds write to. */
export const NO_REGION = 0xffffffff;
/** ALLOCATE_MEMORY: `areas` MemoryArea follow, in ascending order. */
export const AllocateMemory = struct({ region: "u32", areas: "u32" });
/** In bytes from the region's start, in whole pages. */
export const MemoryArea = struct({ offset: "u64", size: "u64" });
/** The reply: the window offset of each area follows, a u64. */
export const MemoryAllocated = struct({ handle: "u32", reserved: 4 });
/** ALLOCATE_EVENTS; the reply is `count` u32 handles. */
export const AllocateEvents = struct({ region: "u32", count: "u32" });
export const IoEvent = struct({ handle: "u32", reserved: 4 });

/**
 * SHARE_REGISTERS: `size` bytes of the device VM's memory, `address` as in a queue's descriptors; `areas` RegisterArea
 * follow.
 */
export const ShareRegisters = struct({ address: "u64", size: "u32", areas: "u32" });
/** Bytes [offset, offset + size) of a region are in the memory from `place` on. */
export const RegisterArea = struct({ region: "u32", offset: "u32", size: "u32", place: "u32" });
/**
 * How the memory begins, at a multiple of 8. The bridge counts in `writesSent` what it passes on, the device process in
 * `writesDone` what it has dealt with.
 */
export const RegisterMemoryHead = struct({ writesSent: "u32", writesDone: "u32", valid: "u32", reserved: 4 });

/**
 * A request on the copy queue: this, readable, and behind it, for a write, `length` bytes of data; then writable a
 * CopyStatus and behind it, for a read, room for `length` bytes. The address is the driver VM's.
 */
export const CopyRequest = struct({ address: "i64", length: "u32", flags: "u32" });
/** WRITE: to driver-VM memory. */
export const CopyFlags = { WRITE: 1 } as const;
/** 0, or an errno: EINVAL for an invalid request, EFAULT for memory that is not reached so, or is gone. */
export const CopyStatus = struct({ errno: "u32" });

/** INSPECT: how many bytes the reply may have. */
export const Inspect = struct({ maxSize: "u32", reserved: 4 });
