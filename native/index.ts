/**
 * System calls and the few loops that may not wait for a garbage collection; all policy is in TypeScript.
 *
 * Conventions: a failing call throws a `SystemError` (an Error with `errno` (positive), `code` such as "ENOENT" and
 * `syscall`). What is no failure but "not now" is a return value, -1. All fds are made close-on-exec, sockets also
 * non-blocking. fd 0 is a valid fd. Nothing here busy-waits, exits the process or keeps state shared between
 * environments, so every worker thread may load the addon. Offsets and lengths are bytes and are checked against the
 * buffers they go with (RangeError).
 */
import { loadAddon } from "./platform.js";
import type * as tasks from "./stream.js";

export { STREAM_CONTROL_SIZE, STREAM_WORDS, StreamWord } from "./stream.js";
export type Stream = tasks.Stream;
export type StreamMemory = tasks.StreamMemory;
export type AccessPath = tasks.AccessPath;
export type DeviceAccess = tasks.DeviceAccess;
export type DevicePath = tasks.DevicePath;
export type DeviceQueueParts = tasks.DeviceQueueParts;
export type DriverRing = tasks.DriverRing;

const addon = loadAddon() as Addon;

/** Which conditions a Poll waits for, as bits. */
export const POLL_READABLE = 1;
export const POLL_WRITABLE = 2;
/** Reported along with the others when the peer hung up. */
export const POLL_DISCONNECT = 4;
/** Reported, alone, for a Stream: the reply, or an answer of `ANSWERED` bytes, was not sent whole: see REPLIED. */
export const POLL_UNSENT = 8;
/** Reported by an AccessPath, alone or along with the others: its state has something for TypeScript. */
export const POLL_PATH = 16;

/** In fds[0], where fds are received: some were lost, and the others are closed. */
export const LOST_FDS = -1;
export const NOTHING_RECEIVED = -(2 ** 31);

/** Seals of a memfd (fcntl F_GET_SEALS). */
export const F_SEAL_SEAL = 0x1;
export const F_SEAL_SHRINK = 0x2;
export const F_SEAL_GROW = 0x4;

/** Modes of fallocate. */
export const FALLOC_FL_KEEP_SIZE = 0x1;
/** Space is given back, and reads as zeros; with KEEP_SIZE. */
export const FALLOC_FL_PUNCH_HOLE = 0x2;
/** Space reads as zeros and stays, without its being written. */
export const FALLOC_FL_ZERO_RANGE = 0x10;

/** Page protections of a map. */
export const PROT_READ = 1;
export const PROT_WRITE = 2;

/**
 * Address space into which memory is mapped with MAP_FIXED; piece by piece, each of which is reserved when it is first
 * needed, the first at once. ENOMEM where the process may have no more (RLIMIT_AS, vm.max_map_count). Its ArrayBuffers
 * are made once, one for each piece, and stay valid forever. What no system call may touch (EFAULT) is harmless to
 * everything else in this process, by signal handlers:
 * - an unmapped part reads as zeros and swallows writes;
 * - so does what a file's owner truncated, or punched out where no huge page is left: `isLost` tells;
 * - a write to what was mapped without PROT_WRITE goes to a private copy of the page, and the eventfd `stray`, the
 *   caller's, is signalled if there is one. Whoever made the reservation then maps the memory again.
 */
export interface Reservation {
  readonly size: number;
  /** How often something that is mapped was found to be gone: what was there may be zeros until it is mapped again. */
  readonly repairs: number;
  /**
   * The ArrayBuffer over [index * pieceSize, (index + 1) * pieceSize), made on first use; the last may be shorter.
   * Making one costs a full garbage collection (V8 counts all its bytes): touch what matters before there is traffic.
   */
  piece(index: number): ArrayBuffer;
  /**
   * mmap(MAP_SHARED | MAP_FIXED) of fd's [fdOffset, fdOffset + length) at `offset`; all three page-aligned. It replaces
   * what was mapped there; when mmap fails, nothing is. EINVAL, and nothing changes, for parts of huge pages.
   */
  map(offset: number, length: number, fd: number, fdOffset: number, protection: number): void;
  unmap(offset: number, length: number): void;
  /** Unmaps everything; addresses stay reserved as long as an ArrayBuffer has them. Only `size` may be used then. */
  release(): void;
}

/**
 * uv_poll on the environment's own loop; one for each fd. The callback gets the events' bits, or a negative errno:
 * -EBADF when the fd is in an error state (a connection that was reset), and then the Poll has stopped. What the
 * callback throws becomes an uncaughtException. An open Poll is not garbage-collected. With the task "eventfd" it takes
 * the count before each call, and calls for none that is 0; a Stream as the task is of the same fd.
 */
export interface Poll {
  /** May be called again to wait for other events. */
  start(events: number): void;
  stop(): void;
  /** Stops permanently; the fd stays open and may be closed right after. */
  close(): void;
  /** Whether it keeps the process alive (it does at first). */
  ref(): void;
  unref(): void;
}

/**
 * A native thread that moves eventfd signals: a signal of a source fd adds 1 to its target eventfd. The thread starts
 * with the first `add`. Both fds are duplicated, so the caller keeps its own. Signals of one source stay in order,
 * several that come close together become one, as they do in the eventfd. Neither a blocking fd nor a full counter nor
 * a source that is signalled all the time stops the others. A source's count is taken when its pair ends, not before.
 */
export interface Relay {
  /** Returns an id for remove and count. Throws EINVAL for what is no eventfd. */
  add(source: number, target: number): number;
  /**
   * Gives a pair another target. Each signal of the source reaches the one or the other, and none is lost. Throws
   * ENOENT for an unknown id, EINVAL for what is no eventfd; never for want of fds.
   */
  retarget(id: number, target: number): void;
  /** Then the thread does not touch the pair; signals so far have reached the target, perhaps once too often. */
  remove(id: number): void;
  /** Signals relayed by this pair so far (RangeError if it is unknown); without an id by all, removed ones too. */
  count(id?: number): number;
  /** Ends the thread and drops all pairs. */
  close(): void;
}

/**
 * Numbers of one copy in a CopyList's entries, in this order. FILE_OFFSET_HIGH is the upper half of a file's offset,
 * whose lower half is SOURCE_OFFSET or TARGET_OFFSET.
 */
export const COPY_ENTRY = {
  SOURCE: 0,
  SOURCE_OFFSET: 1,
  TARGET: 2,
  TARGET_OFFSET: 3,
  LENGTH: 4,
  FILE_OFFSET_HIGH: 5,
  SIZE: 6,
} as const;
/** In the place of SOURCE: the target is a file, and the range becomes a hole of it (FALLOC_FL_PUNCH_HOLE). */
export const COPY_HOLE = 0xffff_ffff;
/** Flags of preadv2 and pwritev2. */
export const RWF_NOWAIT = 8;

/** Copies between ArrayBuffers, or between them and files, by one call in the order of the list, without garbage. */
export interface CopyList {
  /** COPY_ENTRY.SIZE numbers for each copy: sources and targets by number, offsets and lengths in bytes. */
  readonly entries: Uint32Array;
  /**
   * What became of each copy: 0, or a positive errno. A file that moves less than asked for is EIO, a write beyond its
   * end ENOSPC; memory that is gone, as `isLost` says, EFAULT.
   */
  readonly results: Int32Array;
  /** Makes a buffer known and returns its number, from 0 on. It is kept for as long as the list. */
  add(buffer: ArrayBuffer): number;
  /** The same with a file, read and written with these flags (RWF_NOWAIT). The fd stays the caller's, and open. */
  addFile(fd: number, flags: number): number;
  /** Puts another buffer in the place of one that was added. */
  replace(number: number, buffer: ArrayBuffer): void;
  /**
   * Carries out the first `count` copies, and returns how many failed. RangeError for one that is not within its
   * buffers; those before it are done.
   */
  run(count: number): number;
}

/**
 * Numbers of a request to an IoPool, in this order; IO_PIECE.SIZE numbers for each piece of memory follow. NUMBER is
 * below the pool's number of requests, and not that of one in flight; OPERATION is one of IO_OPERATION.
 */
export const IO_REQUEST = {
  NUMBER: 0,
  OPERATION: 1,
  FD: 2,
  POSITION_LOW: 3,
  POSITION_HIGH: 4,
  PIECES: 5,
  SIZE: 6,
} as const;
/** What follows a request that is ALLOCATE, in place of one piece; MODE is fallocate's. */
export const IO_RANGE = { MODE: 0, LENGTH_LOW: 1, LENGTH_HIGH: 2, SIZE: 3 } as const;
export const IO_PIECE = { BUFFER: 0, OFFSET: 1, LENGTH: 2, SIZE: 3 } as const;
/**
 * SYNC is fdatasync, SYNC_ALL fsync; neither has pieces. SET_ATTRIBUTE has two: the extended attribute's name, with a
 * zero at its end, and the value. COPY is from each piece of an even number to the next one, which is as long; it has
 * neither file nor position; it ends with EFAULT, all else being copied, where memory is gone.
 */
export const IO_OPERATION = {
  READ: 0,
  WRITE: 1,
  COPY: 2,
  SYNC: 3,
  SYNC_ALL: 4,
  ALLOCATE: 5,
  SET_ATTRIBUTE: 6,
} as const;
/** Numbers of an IoPool's `completions`; from FIRST on two for each: its request's number, and 0 or an errno. */
export const IO_COMPLETIONS = {
  /** Completions so far, modulo 2^32. The index of one is its count, modulo the number of requests. */
  COUNT: 0,
  /** 0 asks for a signal at the next completion. To be cleared before COUNT is read, both by Atomics. */
  SIGNALLED: 1,
  FIRST: 2,
  SIZE: 2,
} as const;

/**
 * A few threads that read, write and sync files and copy memory, for work that has to wait; they start when they are
 * needed. Requests begin in the order in which they come, and end in any. All of a request's bytes are moved, or it
 * ends with an errno; where the file ends, that is EIO, or ENOSPC for a write: no file grows. Until it has ended its fd
 * has to stay open, and its memory in place.
 */
export interface IoPool {
  /** Where requests are written for `submit`, one behind the other. */
  readonly requests: Uint32Array;
  /** See IO_COMPLETIONS. */
  readonly completions: Int32Array;
  /** Makes a buffer known and returns its number. */
  add(buffer: ArrayBuffer): number;
  /** Forgets a buffer that no request in flight uses. */
  remove(number: number): void;
  /**
   * Begins the requests in the first `count` numbers. RangeError for one that is invalid or not within its buffers;
   * those before it have begun.
   */
  submit(count: number): void;
  /** Nothing has been completed for a while: requests that wait get threads of their own, as long as there are any. */
  addWorkers(): void;
  /** Blocks until IO_COMPLETIONS.COUNT is another than `count`: forever, when nothing is in flight. */
  wait(count: number): void;
  /** Drops what no thread has begun, waits for the rest and ends the threads. So does the end of the environment. */
  close(): void;
}

/**
 * Writes lines of text to a file descriptor (the caller's, which stays open, and may be blocking) from a thread of its
 * own, so that no reader and no disk holds the caller up. At most `capacity` bytes wait, or one line. `notice` is the
 * line that says what was lost, as a JSON object without its end: time, lost and reason are added.
 */
export interface LineWriter {
  /**
   * Whole lines, each with its newline. They are lost when too much waits already; they are counted, as are those that
   * could not be written, and a line says so as soon as one can be written again.
   */
  write(lines: string): void;
  /** Blocks until all is written (or lost), but at most so long. Returns whether it is. */
  flush(milliseconds: number): boolean;
}

/** What matters of a file that a peer handed over. */
export interface FileStatus {
  readonly device: number;
  readonly inode: number;
  readonly size: number;
  /** "memory": its pages are there (a memfd, a file of tmpfs or hugetlbfs, or with DAX). Others may take forever. */
  readonly kind: "memory" | "file" | "socket" | "other";
}

/** What a Poll does around its callback. */
export type PollTask = "eventfd" | Stream | AccessPath | DevicePath;

/** The addon's exports, each made available below by its name. */
interface Addon {
  /**
   * A listening AF_UNIX stream socket, which only this user may connect to. A stale socket file (nobody listens:
   * ECONNREFUSED) is replaced; a served one, and anything that is not a socket, is EADDRINUSE.
   */
  listen(path: string, backlog: number): number;
  /** Connects to an AF_UNIX stream socket (blocking, then non-blocking). EAGAIN: its backlog is full for 5 s. */
  connect(path: string): number;
  /** Whether a file descriptor is a listening AF_UNIX stream socket; false for one that is not open at all. */
  isListener(fd: number): boolean;
  /** The next connection, or -1 when none waits. */
  accept(fd: number): number;
  /** Whether the other end of a connected socket was closed, also while something is to be received from it. */
  isHungUp(fd: number): boolean;
  /** Two connected AF_UNIX stream sockets. */
  socketPair(): [number, number];
  /**
   * recvmsg into bytes[offset, offset + length), at least one byte: the byte count, 0 at the end of the stream, -1 when
   * nothing waits. fds[0] becomes the count of fds that came along, at most `most` (as many as `fds` has room for, if
   * it is left out), which follow. When some were lost, since there were more or the process has no room for them, it
   * is LOST_FDS less the count of the rest. EBUSY when dropping those takes long: nothing is received any more then.
   */
  receive(fd: number, bytes: Uint8Array, offset: number, length: number, fds: Int32Array, most?: number): number;
  /** sendmsg of at least one byte, with at most 253 fds on the first: the byte count, or -1 when the socket is full. */
  send(fd: number, bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number;
  /** fcntl F_DUPFD_CLOEXEC. */
  duplicate(fd: number): number;
  /** Closes an fd that came from here. (In a worker fs.closeSync warns of fds that Node did not open.) */
  close(fd: number): void;
  /**
   * Closes an fd that a peer handed over, without waiting: 0 when it is closed. Otherwise a thread closes it, however
   * long that takes, and the result is the number by which `takeDiscarded` says when it has. Each `owner`, any number,
   * has threads of its own. `isOwnSocket`: it is a connection's, in which such fds may wait.
   */
  discard(fd: number, owner?: number, isOwnSocket?: boolean): number;
  /** What threads have closed since this was asked last. */
  takeDiscarded(): number[];
  /** Of what a file system says without asking a server (AT_STATX_DONT_SYNC): sizes, but of memory, may be old. */
  fileStatus(fd: number): FileStatus;
  addSeals(fd: number, seals: number): void;
  /** True when the fd is an eventfd (and no other anonymous inode). */
  isEventfd(fd: number): boolean;
  /**
   * For memory that a peer hands over: status[0] becomes the file's size in bytes, or -1 for what is no regular file;
   * status[1] is 1 when it was opened for writing, else 0; status[2] its seals, or -1 for what has none: it is not
   * memory (memfd, tmpfs, hugetlbfs), and access to it may take forever; status[3] the size of its pages, which are
   * mapped whole; status[4] and status[5] its device and inode.
   */
  memoryStatus(fd: number, status: Float64Array): void;
  /** memfd_create, ftruncate to `size`, sealing allowed; 2 MiB huge pages when asked for. */
  createMemory(name: string, size: number, hugePages: boolean): number;
  /**
   * Takes a lock of the whole file, which goes with the open file description (F_OFD_SETLK): no second open of the file
   * gets one, not even in this process, unless both are shared. False when somebody else's lock is in the way. An
   * exclusive lock needs an fd that may write, a shared one an fd that may read. The last close, or the end of the
   * process, releases it.
   */
  lockFile(fd: number, shared: boolean): boolean;
  /** Releases it. To be called before closing: a child process has a copy of every fd from its fork to its exec. */
  unlockFile(fd: number): void;
  /**
   * What positions, lengths and memory have to be multiples of for a file that is opened with O_DIRECT, in bytes
   * (STATX_DIOALIGN); 0 where it cannot be, undefined when its file system does not say.
   */
  directAlignment(fd: number): number | undefined;
  /** An extended attribute, as UTF-8; undefined when the file, or its file system, has none. ERANGE above 4 KiB. */
  getAttribute(fd: number, name: string): string | undefined;

  Reservation: new (size: number, pieceSize: number, stray?: number) => Reservation;
  /**
   * mmap(MAP_SHARED) of a file or device, at most 4 GiB; unmapped when the ArrayBuffer is collected. A truncated file
   * reads as zeros, as in a Reservation.
   */
  mapFile(fd: number, offset: number, length: number, protection: number): ArrayBuffer;
  /** Zeros, a multiple of 2 MiB long and aligned to it, in large pages where the kernel has some; not for children. */
  allocateAligned(length: number): ArrayBuffer;
  /** [0]: 1 once this process found mapped memory to be gone, else 0. To be read by Atomics. */
  anyLost: Uint32Array;
  /**
   * Whether part of bytes[offset, offset + length), at least one byte, is zeros in the place of memory that is gone: it
   * was touched, and was not mapped again. To be asked after a copy; shared/lost-memory.ts asks only where there is
   * any.
   */
  isLost(bytes: Uint8Array, offset: number, length: number): boolean;
  /** The address of an ArrayBuffer's first byte in this process. */
  addressOf(buffer: ArrayBuffer): number;
  /** A non-blocking eventfd with that initial count. */
  eventfd(count: number): number;
  /** Takes the count (which becomes 0); 0 when it was 0. Never waits, whoever made the eventfd blocking. */
  eventfdRead(fd: number): number;
  /** Whether there is a count that nobody has taken; leaves it there. */
  eventfdSignalled(fd: number): boolean;
  /** Adds 1. A full counter is no error: the reader has a signal waiting. Never waits, as eventfdRead. */
  eventfdWrite(fd: number): void;
  Poll: new (fd: number, callback: (events: number) => void, task?: PollTask) => Poll;
  /** Whether the event loop has an event that it did not get to yet, of any fd but `except`. It costs a system call. */
  eventsWait(except: number): boolean;
  Stream: new (fd: number, memory: StreamMemory, fds: Int32Array) => Stream;
  /** At an offset of a file, a multiple of the page size; or with -1 in memory of its own. Sizes are powers of two. */
  StreamMemory: new (
    words: Int32Array,
    fd: number,
    offset: number,
    received: number,
    unsent: number,
  ) => StreamMemory;
  AccessPath: new (state: Uint8Array, layout: Uint32Array, turns: Int32Array, share: Int32Array) => AccessPath;
  /** `polling`: 0 as long as it pays, 1 always, 2 never. */
  DevicePath: new (
    state: Uint8Array,
    layout: Uint32Array,
    polling: number,
  ) => DevicePath;
  DeviceAccess: new (state: Uint8Array, layout: Uint32Array, device: object) => DeviceAccess;
  Relay: new () => Relay;
  /** Room for `capacity` copies, at most 65536. */
  createCopyList(capacity: number): CopyList;
  /**
   * At most `requests` at a time, a power of two up to 4096, by at most `threads` threads; room for `words` numbers in
   * `requests`. Ends are signalled on the eventfd `signal`, which stays the caller's.
   */
  createIoPool(requests: number, threads: number, words: number, signal: number): IoPool;
  LineWriter: new (fd: number, capacity: number, notice: string) => LineWriter;
  /** ioctl with a structure in place, or with a number by value. Returns the call's result. */
  ioctl(fd: number, request: number, argument: Uint8Array | number): number;
  /** Volatile accesses of exactly one width for device registers; `offset` aligned to the width. */
  load8(buffer: ArrayBuffer, offset: number): number;
  load16(buffer: ArrayBuffer, offset: number): number;
  load32(buffer: ArrayBuffer, offset: number): number;
  store8(buffer: ArrayBuffer, offset: number, value: number): void;
  store16(buffer: ArrayBuffer, offset: number, value: number): void;
  store32(buffer: ArrayBuffer, offset: number, value: number): void;
}

export const { listen, connect, isListener, accept, isHungUp, socketPair, receive, send } = addon;
export const { duplicate, close, discard, takeDiscarded, fileStatus, addSeals, isEventfd } = addon;
export const { memoryStatus, createMemory, lockFile, unlockFile, directAlignment, getAttribute } = addon;
export const { Reservation, mapFile, allocateAligned, anyLost, isLost, addressOf } = addon;
export const { eventfd, eventfdRead, eventfdSignalled, eventfdWrite, Poll, eventsWait, Stream } = addon;
export const { StreamMemory, AccessPath, DeviceAccess, DevicePath, Relay } = addon;
export const { createCopyList, createIoPool, LineWriter, ioctl } = addon;
export const { load8, load16, load32, store8, store16, store32 } = addon;
