/** What a Poll does with a socket around its callback, so that a message costs no call: Stream and AccessPath. */
/** The words by which a Stream and its owner tell each other what to do, without a call. */
export const StreamWord = {
  /** The owner: where in the buffer the next bytes go, and how many at most; nothing is received with a room of 0. */
  OFFSET: 0,
  ROOM: 1,
  /** The Stream: bytes received for this call, 0 at the end of the stream, a negative errno, or NOTHING_RECEIVED. */
  RECEIVED: 2,
  /** The owner: how many bytes of the reply are to be sent after this call; 0 once they are dealt with. */
  REPLY: 3,
  /** The Stream: how many of them were sent when it was not all, or a negative errno. */
  REPLIED: 4,
  /** The owner: 1 while reads may be answered from register memory, ahead of which nothing waits to be sent. */
  READS: 5,
  /** The Stream: how many were so far, which the owner may set back. */
  SERVED: 6,
  /** The owner: how many fds may come with the next bytes. */
  MOST_FDS: 7,
  /** The Stream: how long an answer of `answersBy` is that was not sent whole, which the owner sets back to 0. */
  ANSWERED: 8,
} as const;
export const STREAM_WORDS = 9;

/**
 * The task of a Poll on a connected socket: it receives before it calls back, and sends the reply, if there is one,
 * after. `words` are StreamWord's; `fds` is as in `receive`; the fd stays the caller's. Both buffers belong to it until
 * others take their place; they must not be transferred.
 */
export interface Stream {
  /** The buffer that OFFSET and ROOM are about. */
  receiveInto(bytes: Uint8Array): void;
  /** The buffer whose first REPLY bytes are sent. */
  replyFrom(bytes: Uint8Array): void;
  /**
   * Answers reads of registers from their values in `memory`, at a multiple of 8, from now on, without a callback;
   * undefined: no longer. `areas` has four numbers each: the region, the offset in it, the size, and where in `memory`
   * it begins. RangeError for areas outside of it. shared/vfio-user/register-memory.ts has the rest.
   */
  readsFrom(memory: Uint8Array | undefined, areas?: Uint32Array): void;
  /** Register accesses go by this path from now on, as far as its state lets them; undefined: no longer. */
  accessesBy(path: AccessPath | undefined): void;
  /**
   * Accesses that this deals with are answered by it from now on, where READS allows it; undefined: no longer. `bytes`
   * has room for an answer.
   */
  answersBy(device: DeviceAccess | undefined, bytes?: Uint8Array): void;
}

/** A queue from the driver's side: shared/virtqueue/driver.ts has its parts. */
export type DriverRing = readonly [
  state: Int32Array,
  lengths: Float64Array,
  descriptors: Uint8Array,
  available: Uint8Array,
  used: Uint8Array,
  eventIndex: boolean,
];
/** A queue, and its buffers of `size` bytes, one behind the other, which the device has from `address` on. */
export type DeviceQueueParts = readonly [ring: DriverRing, bytes: Uint8Array, address: number, size: number];

/**
 * Takes plain register accesses from a ring of the bridge's to a DeviceAccess, and the replies back. It is the task of
 * the Poll on the interrupt's eventfd, of this process's own; the callback is called for what it leaves.
 * guest/link/virtio/device-path.ts has its state.
 */
export interface DevicePath {
  /** To the device and from it, and that of copies, which are the callback's; none: the path does nothing. */
  rings(to?: DeviceQueueParts, from?: DeviceQueueParts, copies?: DriverRing): void;
  /**
   * How the first two queues are notified: by their numbers, stored in registers that are mapped; by eventfds, -1 where
   * there is none; or by a function.
   */
  notifications(registers: ArrayBuffer, ...offsets: number[]): void;
  notifications(how: Int32Array | ((queue: number) => void)): void;
  /** Who deals with the accesses. */
  device(access: DeviceAccess): void;
  /** Deals with what is there, outside of a wake-up. */
  run(): void;
  /**
   * Whether to poll again instead of sleeping, at a turn at which messages came or did not. `now`: microseconds, for
   * tests.
   */
  continues(found: boolean, now?: number): boolean;
}

/** Plain register accesses at the device's end; shared/vfio-user/device-access.ts has the rest. */
export interface DeviceAccess {
  /**
   * Reads are answered from `memory`, as Stream.readsFrom has it, but that all that came before is done. `counts`:
   * writes that are done are counted there.
   */
  registers(memory: Uint8Array | undefined, areas?: Uint32Array, counts?: boolean): void;
  /**
   * Writes of 4 bytes to words of a region, `stride` apart, are written to `target`, an object of the addon's that has
   * as many doorbells. Only where there is register memory, and while it is valid.
   */
  doorbells(region: number, offset: number, stride: number, count: number, target: object): void;
  /** Deals with a whole message: the length of its reply, 0 where none is wanted; -1 when it does not. */
  answer(message: Uint8Array, reply: Uint8Array): number;
  /** As AccessPath's. */
  measure(latencies: Uint32Array | undefined): void;
}

/** A ring, with the memory of its three parts: shared/virtqueue/device.ts has the table of its state. */
export type AccessRing = readonly [
  state: Int32Array,
  descriptors: Uint8Array,
  available: Uint8Array,
  used: Uint8Array,
  eventIndex: boolean,
];

/**
 * Takes plain register accesses from a Stream to the ring of a device VM, and the replies back, without a call into
 * JavaScript. It is the task of the Poll on the kick of the second ring. All that it knows and does is in its state
 * (shared/vfio-user/socket/access-path.ts), which TypeScript can look at and change between any two messages.
 */
export interface AccessPath {
  /** To the device, and from it; none: the path is stopped. */
  rings(to?: AccessRing, from?: AccessRing): void;
  /** The device VM's memory, as pieces that begin at these addresses of its own. */
  memory(addresses: Float64Array, pieces: readonly Uint8Array[]): void;
  /** Register memory, in which writes are counted that are passed on. */
  registers(memory: Uint8Array | undefined): void;
  /**
   * A whole message, bytes[offset, offset + length), that was taken from the ring: false when it is not the reply to an
   * access of the path's.
   */
  deliver(bytes: Uint8Array, offset: number, length: number): boolean;
  /** The words of shared/histogram.ts, in which latencies are counted from now on; undefined: nobody looks. */
  measure(latencies: Uint32Array | undefined): void;
}
