/**
 * vhost-user: the wire format as tables and constants (QEMU's docs/interop/vhost-user.rst), as far as the
 * virtio-vfio-user device needs it. Little-endian, as on every host that this runs on. Left out: logging, postcopy,
 * in-flight buffers, shared objects, and everything of a single device type.
 */
import { struct } from "../struct/struct.js";

/** "Front-end message types". */
export const Request = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_SHMEM_CONFIG: 44,
} as const;

/** "Back-end message types": what the back-end asks over the channel of SET_BACKEND_REQ_FD. */
export const BackendRequest = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  SHMEM_MAP: 9,
  SHMEM_UNMAP: 10,
} as const;

/** "Header": 12 bytes in front of each message; `size` counts the payload alone. */
export const Header = struct({ request: "u32", flags: "u32", size: "u32" });
export const HeaderFlags = { VERSION_MASK: 3, VERSION: 1, REPLY: 4, NEED_REPLY: 8 } as const;

/** The feature bit that says that protocol features can be negotiated; never offered to the driver. */
export const F_PROTOCOL_FEATURES = 1n << 30n;

/** "Protocol features", as masks. SHMEM's bit is the one that QEMU 11.1 uses. */
export const ProtocolFeature = {
  MQ: 1n << 0n,
  REPLY_ACK: 1n << 3n,
  BACKEND_REQ: 1n << 5n,
  CONFIG: 1n << 9n,
  BACKEND_SEND_FD: 1n << 10n,
  CONFIGURE_MEM_SLOTS: 1n << 15n,
  SHMEM: 1n << 22n,
} as const;

/** A payload of one number: features, queue counts, acknowledgements (0 is success). */
export const U64 = struct({ value: "u64" });
export const Features = struct({ value: "u64big" });

/** SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: a u64 with the queue's index in its low byte. */
export const VRING_INDEX_MASK = 0xff;
export const VRING_NO_FD = 0x100;

/** "A vring state description". */
export const VringState = struct({ index: "u32", num: "u32" });

/** "A vring address description": the addresses are the front-end's own ("user") addresses. */
export const VringAddr = struct({
  index: "u32",
  flags: "u32",
  descriptors: "u64",
  used: "u64",
  available: "u64",
  log: "u64",
});

/** "Memory regions description": `regions` MemoryRegion follow, each with one fd on the message, in order. */
export const MemTable = struct({ regions: "u32", padding: 4 });
export const MemoryRegion = struct({
  guestAddress: "u64",
  size: "u64",
  userAddress: "u64",
  mmapOffset: "u64",
});

/** "Virtio device config space": `size` bytes of it follow. */
export const DeviceConfig = struct({ offset: "u32", size: "u32", flags: "u32" });
export const MAX_CONFIG_SIZE = 256;

/** GET_SHMEM_CONFIG's reply: `regions` u64 sizes follow, by shared memory id. */
export const ShmemConfig = struct({ regions: "u32", padding: 4 });

/**
 * IOTLB_MSG of either side: a miss of the back-end's, with the access that it wants; an update or an invalidation of
 * the front-end's. `userAddress` is one of the front-end's own, as in the memory table.
 */
export const IotlbMessage = struct({
  iova: "u64",
  size: "u64",
  userAddress: "u64",
  access: "u8",
  type: "u8",
  padding: 6,
});
export const IotlbAccess = { READ_WRITE: 3 } as const;
export const IotlbType = { MISS: 1, UPDATE: 2, INVALIDATE: 3 } as const;

/** SHMEM_MAP (with one fd) and SHMEM_UNMAP. */
export const ShmemMap = struct({
  shmid: "u8",
  padding: 7,
  fdOffset: "u64",
  shmOffset: "u64",
  length: "u64",
  flags: "u64",
});
export const ShmemMapFlags = { READ_WRITE: 1 } as const;
