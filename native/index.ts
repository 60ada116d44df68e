/**
 * System calls and the few loops that may not wait for a garbage collection; all policy is in TypeScript.
 *
 * Conventions: a failing call throws a `SystemError` (an Error with `errno` (positive), `code` such as "ENOENT" and
 * `syscall`). What is no failure but "not now" is a return value, -1. All fds are made close-on-exec, sockets also
 * non-blocking. fd 0 is a valid fd. Nothing here busy-waits, exits the process or keeps state shared between
 * environments, so every worker thread may load the addon. Offsets and lengths are bytes and are checked against the
 * buffers they go with (RangeError).
 */
import { createRequire } from "node:module";

const addon = createRequire(import.meta.url)("./addon.node") as Addon;

/** Which conditions a Poll waits for, as bits. */
export const POLL_READABLE = 1;
export const POLL_WRITABLE = 2;
/** Reported along with the others when the peer hung up. */
export const POLL_DISCONNECT = 4;
/** Reported, alone, for a Stream: the reply was not sent whole, StreamWord.REPLIED tells how far. */
export const POLL_UNSENT = 8;

/** The words by which a Stream and its owner tell each other what to do, without a call. */
export const StreamWord = {
  /** The owner: where in the buffer the next bytes go, and how many at most; nothing is received with a room of 0. */
  OFFSET: 0,
  ROOM: 1,
  /**
   * The Stream: how many bytes were received for this call, 0 at the end of the stream, a negative errno, or
   * NOTHING_RECEIVED.
   */
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
} as const;
export const STREAM_WORDS = 8;
/** In fds[0], where fds are received: some were lost, and the others are closed. */
export const LOST_FDS = -1;
export const NOTHING_RECEIVED = -(2 ** 31);

/** Seals of a memfd (fcntl F_GET_SEALS). */
export const F_SEAL_SEAL = 0x1;
export const F_SEAL_SHRINK = 0x2;
export const F_SEAL_GROW = 0x4;
export const F_SEAL_WRITE = 0x8;

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
 * are made once, one for each piece, and stay valid for ever. What no system call may touch (EFAULT) is harmless to
 * everything else in this process, by signal handlers:
 * - an unmapped part reads as zeros and swallows writes;
 * - so does what a file's owner truncated, or punched out where no huge page is left: `isLost` tells;
 * - a write to what was mapped without PROT_WRITE goes to a private copy of the page, and `stray` is signalled. Whoever
 *   made the reservation then maps the memory anew.
 */
export interface Reservation {
  readonly size: number;
  /** How often something that is mapped was found to be gone: what was there may be zeros until it is mapped anew. */
  readonly repairs: number;
  /**
   * The ArrayBuffer over [index * pieceSize, (index + 1) * pieceSize), made on first use. The last may be shorter.
   * Making one costs a full garbage collection (V8 counts all of its bytes): touch those that matter before there is
   * traffic.
   */
  piece(index: number): ArrayBuffer;
  /**
   * mmap(MAP_SHARED | MAP_FIXED) of fd's [fdOffset, fdOffset + length) at `offset`; all three page-aligned. It replaces
   * what was mapped there; when mmap fails, nothing is. EINVAL, and nothing changes, for parts of huge pages.
   */
  map(offset: number, length: number, fd: number, fdOffset: number, protection: number): void;
  unmap(offset: number, length: number): void;
  /**
   * Unmaps everything; the address space itself stays reserved as long as an ArrayBuffer of it lives. Nothing but
   * `size` and `release` may be used afterwards.
   */
  release(): void;
}

/**
 * uv_poll on the environment's own loop; one for each fd. The callback gets the events' bits, or a negative errno:
 * -EBADF when the fd is in an error state (a connection that was reset), and then the Poll has stopped. What the
 * callback throws becomes an uncaughtException. An open Poll is not garbage-collected.
 */
export interface Poll {
  /** May be called again to wait for other events. */
  start(events: number): void;
  stop(): void;
  /** Stops for good; the fd stays open and may be closed right after. */
  close(): void;
  /** Whether it keeps the process alive (it does at first). */
  ref(): void;
  unref(): void;
}

/**
 * The task of a Poll on a connected socket: it receives before it calls back, and sends the reply, if there is one,
 * after. Both buffers belong to it until others take their place; they must not be transferred.
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
  /**
   * When it returns, the thread no longer touches the pair; what the source was signalled until then has reached the
   * target, perhaps once too often. An unknown id is ignored.
   */
  remove(id: number): void;
  /**
   * Signals relayed by this pair so far (RangeError if it is unknown); by all pairs, removed ones too, without an id.
   */
  count(id?: number): number;
  /** Ends the thread and drops all pairs. */
  close(): void;
}

/** Numbers of one copy in a CopyList's entries, in this order. */
export const COPY_ENTRY = {
  SOURCE: 0,
  SOURCE_OFFSET: 1,
  TARGET: 2,
  TARGET_OFFSET: 3,
  LENGTH: 4,
  /** The upper half of a file's offset, whose lower half is SOURCE_OFFSET or TARGET_OFFSET. */
  FILE_OFFSET_HIGH: 5,
  SIZE: 6,
} as const;

/** Flags of preadv2 and pwritev2. */
export const RWF_NOWAIT = 8;

/**
 * Copies between ArrayBuffers, or between them and files, carried out by one call in the order of the list, without
 * garbage.
 */
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

/** Numbers of a request to an IoPool, in this order; IO_PIECE.SIZE numbers for each piece of memory follow. */
export const IO_REQUEST = {
  /** Below the pool's number of requests; not that of one under way. */
  NUMBER: 0,
  /** One of IO_OPERATION. */
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
/** Numbers of an IoPool's `ends`; from FIRST on two for each end: the request's number, and 0 or a positive errno. */
export const IO_ENDS = {
  /** Ends so far, modulo 2^32. The place of an end is its count, modulo the number of requests. */
  COUNT: 0,
  /** 0 asks for a signal at the next end. To be cleared before COUNT is looked at, both by Atomics. */
  TOLD: 1,
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
  /** See IO_ENDS. */
  readonly ends: Int32Array;
  /** Makes a buffer known and returns its number. */
  add(buffer: ArrayBuffer): number;
  /** Forgets a buffer that no request under way uses. */
  remove(number: number): void;
  /**
   * Begins the requests in the first `count` numbers. RangeError for one that makes no sense or is not within its
   * buffers; those before it have begun.
   */
  submit(count: number): void;
  /** Nothing has ended for a while: what waits behind it gets threads of its own, as long as there are any. */
  hurry(): void;
  /** Blocks until IO_ENDS.COUNT is another than `count`: for ever, when nothing is under way. */
  wait(count: number): void;
  /** Drops what no thread has begun, waits for the rest and ends the threads. So does the end of the environment. */
  close(): void;
}

/**
 * Writes lines of text to a file descriptor from a thread of its own, so that no reader and no disk holds the caller
 * up.
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
  /**
   * "memory" is a file whose pages are there: a memfd, one of tmpfs or hugetlbfs, or one with DAX. Others may take for
   * ever.
   */
  readonly kind: "memory" | "file" | "socket" | "other";
}

/** A system call's failure, where it is handed to a callback. */
export interface SystemFailure extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
}

interface Addon {
  listen(path: string, backlog: number): number;
  connect(path: string): number;
  isListener(fd: number): boolean;
  accept(fd: number): number;
  isHungUp(fd: number): boolean;
  socketPair(): [number, number];
  receive(fd: number, bytes: Uint8Array, offset: number, length: number, fds: Int32Array, most?: number): number;
  send(fd: number, bytes: Uint8Array, offset: number, length: number, fds?: readonly number[]): number;
  duplicate(fd: number): number;
  close(fd: number): void;
  discard(fd: number, owner?: number, isOwnSocket?: boolean): number;
  takeDiscarded(): number[];
  fileStatus(fd: number): FileStatus;
  getSeals(fd: number): number;
  addSeals(fd: number, seals: number): void;
  isEventfd(fd: number): boolean;
  isWritable(fd: number): boolean;
  memoryStatus(fd: number, status: Float64Array): void;
  createMemory(name: string, size: number, hugePages: boolean): number;
  lockFile(fd: number, shared: boolean): boolean;
  unlockFile(fd: number): void;
  directAlignment(fd: number): number | undefined;
  getAttribute(fd: number, name: string): string | undefined;
  Reservation: new (size: number, pieceSize: number, stray?: number) => Reservation;
  eventfd(count: number): number;
  eventfdRead(fd: number): number;
  eventfdSignalled(fd: number): boolean;
  eventfdWrite(fd: number): void;
  Poll: new (fd: number, callback: (events: number) => void, task?: "eventfd" | Stream) => Poll;
  eventsWait(except: number): boolean;
  Stream: new (fd: number, words: Int32Array, fds: Int32Array) => Stream;
  Relay: new () => Relay;
  ioctl(fd: number, request: number, argument: Uint8Array | number): number;
  mapFile(fd: number, offset: number, length: number, protection: number): ArrayBuffer;
  anyLost: Uint32Array;
  isLost(bytes: Uint8Array, offset: number, length: number): boolean;
  addressOf(buffer: ArrayBuffer): number;
  createCopyList(capacity: number): CopyList;
  createIoPool(requests: number, threads: number, words: number, signal: number): IoPool;
  LineWriter: new (fd: number, capacity: number, notice: string) => LineWriter;
  load8(buffer: ArrayBuffer, offset: number): number;
  load16(buffer: ArrayBuffer, offset: number): number;
  load32(buffer: ArrayBuffer, offset: number): number;
  store8(buffer: ArrayBuffer, offset: number, value: number): void;
  store16(buffer: ArrayBuffer, offset: number, value: number): void;
  store32(buffer: ArrayBuffer, offset: number, value: number): void;
}

export const {
  /**
   * A listening AF_UNIX stream socket, which only this user may connect to. A stale socket file (nobody listens:
   * ECONNREFUSED) is replaced; a served one, and anything that is not a socket, is EADDRINUSE.
   */
  listen,
  /**
   * Connects to an AF_UNIX stream socket (blocking connect, then non-blocking). EAGAIN when its backlog is full for 5
   * s.
   */
  connect,
  /** Whether a file descriptor is a listening AF_UNIX stream socket; false for one that is not open at all. */
  isListener,
  /** The next connection, or -1 when none waits. */
  accept,
  /** Whether the other end of a connected socket was closed, also while there is something to be received from it. */
  isHungUp,
  /** Two connected AF_UNIX stream sockets. */
  socketPair,
  /**
   * recvmsg into bytes[offset, offset + length), at least one byte: the byte count, 0 at the end of the stream, -1 when
   * nothing waits. fds[0] becomes the count of fds that came along, at most `most` (as many as `fds` has room for, if
   * it is left out), which follow. When some were lost, since there were more or the process has no room for them, it
   * is LOST_FDS less the count of the rest. EBUSY when dropping those takes long: nothing is received any more then.
   */
  receive,
  /**
   * sendmsg of bytes[offset, offset + length), at least one byte, with at most 253 fds on the first: the byte count, or
   * -1 when the socket is full. MSG_NOSIGNAL.
   */
  send,
  /** fcntl F_DUPFD_CLOEXEC. */
  duplicate,
  /** Closes an fd that came from here. (In a worker fs.closeSync warns of fds that Node did not open.) */
  close,
  /**
   * Closes an fd that a peer handed over, without waiting: 0 when it is closed. Otherwise a thread closes it, however
   * long that takes, and the result is the number by which `takeDiscarded` says when it has. Each `owner`, any number,
   * has threads of its own. `isOwnSocket`: it is a connection's, in which such fds may wait.
   */
  discard,
  /** What threads have closed since this was asked last. */
  takeDiscarded,
  /**
   * Of what a file system says without asking a server (AT_STATX_DONT_SYNC): sizes of files other than memory may be
   * old.
   */
  fileStatus,
  /** fcntl F_GET_SEALS; 0 for a file that cannot be sealed. */
  getSeals,
  addSeals,
  /** True when the fd is an eventfd (and no other anonymous inode). */
  isEventfd,
  /** True when the fd was opened for writing. */
  isWritable,
  /**
   * For memory that a peer hands over: status[0] becomes the file's size in bytes, or -1 for what is no regular file;
   * status[1] is 1 when it was opened for writing, else 0; status[2] its seals, or -1 for what has none: it is not
   * memory (memfd, tmpfs, hugetlbfs), and access to it may take for ever; status[3] the size of its pages, which are
   * mapped whole.
   */
  memoryStatus,
  /** memfd_create, ftruncate to `size`, sealing allowed; 2 MiB huge pages when asked for. */
  createMemory,
  /**
   * Takes a lock of the whole file, which goes with the open file description (F_OFD_SETLK): no second open of the file
   * gets one, not even in this process, unless both are shared. False when somebody else's lock is in the way. An
   * exclusive lock needs an fd that may write, a shared one an fd that may read. The last close, or the end of the
   * process, gives it back.
   */
  lockFile,
  /**
   * Gives that lock back. To be called before closing: a child process has a copy of every descriptor, and with it of
   * the lock, from its fork to its exec.
   */
  unlockFile,
  /**
   * What positions, lengths and memory have to be multiples of for a file that is opened with O_DIRECT, in bytes
   * (STATX_DIOALIGN); 0 where it cannot be, undefined when its file system does not say.
   */
  directAlignment,
  /**
   * An extended attribute, as UTF-8; undefined when the file, or its file system, has none. ERANGE above 4096 bytes.
   */
  getAttribute,
  /**
   * new Reservation(size, pieceSize, stray): `stray`, if any, is an eventfd, the caller's, which stays open until
   * `release`.
   */
  Reservation,
  /** A non-blocking eventfd with that initial count. */
  eventfd,
  /** Takes the count (which becomes 0); 0 when it was 0. Never waits, whoever made the eventfd blocking. */
  eventfdRead,
  /** Whether there is a count that nobody has taken; leaves it there. */
  eventfdSignalled,
  /** Adds 1. A full counter is no error: the reader has a signal waiting. Never waits, as eventfdRead. */
  eventfdWrite,
  /**
   * new Poll(fd, callback), or with a task: "eventfd" takes the count before each call, and calls for none that is 0; a
   * Stream of the same fd receives and sends.
   */
  Poll,
  /** Whether the event loop has an event that it did not get to yet, of any fd but `except`. It costs a system call. */
  eventsWait,
  /** new Stream(fd, words, fds): `words` are StreamWord's; `fds` is as in `receive`. The fd stays the caller's. */
  Stream,
  /** new Relay() */
  Relay,
  /** ioctl with a structure in place, or with a number by value. Returns the call's result. */
  ioctl,
  /**
   * mmap(MAP_SHARED) of a file or device, at most 4 GiB; unmapped when the ArrayBuffer is collected. A truncated file
   * reads as zeros, as in a Reservation.
   */
  mapFile,
  /** [0]: 1 once this process found mapped memory to be gone, else 0. To be read by Atomics. */
  anyLost,
  /**
   * Whether part of bytes[offset, offset + length), at least one byte, is zeros in the place of memory that is gone: it
   * was touched, and is not mapped anew. To be asked after a copy; shared/lost-memory.ts asks only where something ever
   * was.
   */
  isLost,
  /** The address of an ArrayBuffer's first byte in this process. */
  addressOf,
  /** Room for `capacity` copies, at most 65536. */
  createCopyList,
  /**
   * At most `requests` at a time, a power of two up to 4096, by at most `threads` threads; room for `words` numbers in
   * `requests`. Ends are signalled on the eventfd `signal`, which stays the caller's.
   */
  createIoPool,
  /**
   * new LineWriter(fd, capacity, notice): at most `capacity` bytes wait, or one line. `notice` is the line that says
   * what was lost, as a JSON object without its end: time, lost and reason are added. The fd stays the caller's, and
   * open; it may be blocking.
   */
  LineWriter,
  /** Volatile accesses of exactly one width for device registers; `offset` aligned to the width. */
  load8,
  load16,
  load32,
  store8,
  store16,
  store32,
} = addon;
