/**
 * A connected socket and what a Poll does with it around its callback, so that a message costs no call: StreamMemory,
 * Stream and AccessPath.
 */
/**
 * The words by which a Stream, its StreamMemory and their owner tell each other what to do, without a call. Those up to
 * BASE are positions in the streams of bytes, modulo 2^32.
 */
export const StreamWord = {
  /** Both: behind the last byte received. */
  END: 0,
  /** Both: behind the messages that were taken. */
  SCAN: 1,
  /** Both: what is in front is not looked at any more. */
  FLOOR: 2,
  /** Both: the command at the front that another process would be given again; committed after the callback. */
  HANDLED: 3,
  /** The memory: behind the last byte that is to be sent, and behind the last one that was. */
  QUEUED: 4,
  SENT: 5,
  /** The memory: the position of the received ring's first byte. */
  BASE: 6,
  /** The owner: how many bytes may be received; nothing is with a room of 0. */
  ROOM: 7,
  /** The owner: how many fds may come with the next bytes. */
  MOST_FDS: 8,
  /** The owner: 1 where fds are kept before they are received. */
  PEEKS: 9,
  /** The Stream: bytes received for this call, 0 at the end of the stream, a negative errno, or NOTHING_RECEIVED. */
  RECEIVED: 10,
  /** The owner: how many bytes of the reply are to be sent after this call; 0 once they are dealt with. */
  REPLY: 11,
  /** The Stream: how many of them were sent when it was not all, or a negative errno. */
  REPLIED: 12,
  /** The owner: 1 while messages may be answered ahead of which nothing waits or is in flight. */
  READS: 13,
  /** The Stream: how many reads were answered from register memory, which the owner may set back. */
  SERVED: 14,
  /** The memory: what was peeked last has fds, and is still to be received. */
  HAS_FDS: 15,
} as const;
export const STREAM_WORDS = 16;
/** Bytes in front of the rings: what the memory itself has there, in one page, and room for its owner. */
export const STREAM_CONTROL_SIZE = 8 * 4096;

/**
 * The bytes of a connected stream socket on their way in and out, in memory that may outlive the process
 * (docs/decisions/023-exactly-once.md): STREAM_CONTROL_SIZE bytes, a ring for what is received, a ring for what is to
 * be sent. All that it stores can be read after a crash at any instruction.
 */
export interface StreamMemory {
  readonly control: ArrayBuffer;
  /** The ring, twice, so that every message is in one piece. */
  readonly received: ArrayBuffer;
  /** A new connection: nothing came, and nothing is to be sent. */
  begin(): void;
  /** Takes what another process left. False when it is damaged, or fds were lost. */
  load(): boolean;
  /**
   * Receives up to ROOM bytes: the count, 0 at the end of the stream, -1 when nothing waits. `fds` as in native
   * `receive`. With PEEKS, what has fds is left to `receive`, and HAS_FDS is 1.
   */
  peek(fd: number, fds: Int32Array): number;
  /** Receives as many bytes as were peeked. */
  receive(fd: number, length: number, fds: Int32Array): number;
  /** Queues bytes, which `commit` follows; false when there is no room. */
  queue(bytes: Uint8Array, offset: number, length: number): boolean;
  /** At once: what is queued is to be sent, and commands in front of this position were dealt with. */
  commit(handled: number): void;
  /** Sends the next bytes that are queued: how many were, 0 when the socket is full. */
  send(fd: number, length: number, fds?: readonly number[]): number;
  /** What was received last, from this position on, is dealt with. */
  retract(position: number): void;
  /** What the message's header says that begins there, of what is to be sent. */
  unsentSize(position: number): number;
  /**
   * Unmaps it, at once; its buffers are empty then, and everything else throws. Not in the callback of a Poll that it
   * belongs to.
   */
  release(): void;
}

/**
 * The task of a Poll on a connected socket: it receives before it calls back, and sends the reply, if there is one,
 * after. `fds` is as in `receive`; the fd stays the caller's.
 */
export interface Stream {
  /** The buffer whose first REPLY bytes are sent. It must not be transferred. */
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
   * Accesses that this deals with are answered by it from now on, where READS allows it; undefined: no longer.
   */
  answersBy(device: DeviceAccess | undefined): void;
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
