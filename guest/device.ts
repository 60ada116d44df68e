/**
 * The device author's interface: what a PCI device written in TypeScript is, and what it is given. Nothing in here
 * knows how the driver VM is reached.
 */
import { formatAddress } from "../shared/address.js";
import type { LaneAccess } from "../shared/lane-access.js";
import type { Log } from "../shared/log.js";
import type { DeviceRegion, PciIdentity } from "./pci/identity.js";
import type { RegisterFile } from "./pci/registers.js";
import type { ScatterList } from "./scatter-list.js";

export type { BarOptions, IoEventFdOptions, PciCapabilities, PciIdentity, SharedPart } from "./pci/identity.js";
export { type DeviceRegion, FIRST_DEVICE_REGION } from "./pci/identity.js";

/** A part of the window: `length` bytes of `bytes` (a whole piece of the window) from `offset` on. */
export interface Segment {
  bytes: Uint8Array;
  data: DataView;
  offset: number;
  length: number;
}

/**
 * DMA to and from driver-VM memory. Addresses are the driver VM's (IOVA), sizes in bytes. An address of 2^63 or more,
 * as an IOMMU may make them, is the negative number of two's complement, which keeps it exact: `dmaAddress(low, high)`,
 * or `registers.getAddress`. Anything further than 2^53 from both ends of the address space is never mapped.
 */
export interface Dma {
  /**
   * Zero-copy: finds the longest run from `address` on, at most `length` bytes, that lies in one map and one piece of
   * the window, and puts it into `into` (which is reused, so nothing is allocated). Returns its length; 0 where nothing
   * is mapped, the access is not permitted, or the memory is not in the window. The segment is good until the device's
   * `quiesce` or `reset` resolves or, in synchronous code, until it returns to the event loop. Of memory that is gone,
   * as below, it is zeros.
   *
   * While the driver VM logs DMA for a live migration, all of a segment that was located for "write" counts as written
   * from then until a `quiesce` that began later has resolved: `quiesce` is called for each report of the log.
   */
  locate(address: number, length: number, access: "read" | "write", into: Segment): number;
  /** A Uint8Array on driver-VM memory itself, or undefined when it is not in one piece of the window. Same lifetime. */
  view(address: number, length: number, access: "read" | "write"): Uint8Array | undefined;
  /**
   * Fills `target` from driver-VM memory, by window, copy or message. Rejects with DmaError when a part is not mapped,
   * not readable, or gone because the client made the memory's file smaller; `target` is then undefined in content.
   */
  read(address: number, target: Uint8Array): Promise<void>;
  write(address: number, source: Uint8Array): Promise<void>;
  /** The same where all of it is in the window. @throws DmaError otherwise */
  readSync(address: number, target: Uint8Array): void;
  writeSync(address: number, source: Uint8Array): void;
  /**
   * The same for the ranges of a scatter list, one behind the other in the first `list.length` bytes of the array.
   * @throws RangeError when the array is shorter
   */
  readList(list: ScatterList, target: Uint8Array): Promise<void>;
  writeList(list: ScatterList, source: Uint8Array): Promise<void>;
  readListSync(list: ScatterList, target: Uint8Array): void;
  writeListSync(list: ScatterList, source: Uint8Array): void;
  /**
   * Memory for data, zeros, for as long as the process lives: where the bridge copies (`--dma copy`), `read` and
   * `write` to and from it, or a part of it, cost one copy less. Elsewhere, and above 2 MiB, it is memory like any
   * other; but from 4 KiB on it begins at a page, which some processors copy twice as fast. Take it once.
   */
  allocate(length: number): Uint8Array<ArrayBuffer>;
  /** Whether none of the above is in flight, as it is while bytes go by copies or messages. */
  isIdle(): boolean;
  /**
   * Resolves when what is in flight now has ended; for a device that says itself when it has stopped. Resets and unmaps
   * wait anyway.
   */
  settled(): Promise<void>;
  /**
   * Bytes moved so far through the window by this interface; a device that uses segments or views adds to it with
   * `account`.
   */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  account(read: number, written: number): void;
}

/** Interrupts to the driver VM. */
export interface Interrupts {
  /** Signals a vector: MSI-X, else MSI, whichever the driver VM enabled; else INTx (vector is ignored). */
  trigger(vector: number): void;
  /**
   * The same, but INTA# stays asserted until `lower`: a driver that handled one cause of several is interrupted again.
   * For devices with an interrupt status register; one device uses either this or `trigger`.
   */
  raise(vector: number): void;
  /** No cause is left: INTA# is deasserted. Messages that were sent stay sent. */
  lower(): void;
  /** Whether INTA# is all that the driver VM has: it enabled neither MSI-X nor MSI. */
  readonly byPin: boolean;
  /**
   * Tells the driver VM's VMM of an uncorrectable error (VFIO's ERR interrupt; stock QEMU stops the VM). False when it
   * does not listen.
   */
  reportError(): boolean;
  /** Asks the driver VM's VMM to give the device up (VFIO's REQ). False when it does not listen: QEMU 11.1 does not. */
  requestRelease(): boolean;
  /** Interrupts signalled so far. */
  readonly count: number;
}

/** What a device is given when it starts. */
export interface DeviceContext {
  readonly dma: Dma;
  readonly interrupts: Interrupts;
  /**
   * Lines of one message, and of one level, are limited in their number, since a driver VM can cause them: keep the
   * message constant, and put what changes into the details. debug and trace are not limited.
   */
  readonly log: Log;
  /**
   * Starts work that takes time, DMA above all. `reset`, `quiesce` and `pause` wait for it without the author's doing,
   * so each job must end by itself: a reset aborts `signal`, for a job that waits for something else than DMA. While
   * the function is paused a new job waits for `resume`; while it is being reset, or where more than MAX_JOBS are under
   * way, it is dropped. A job that fails is logged: DmaError is the driver VM's mistake, anything else the device's.
   */
  run(job: (signal: AbortSignal) => void | Promise<void>): void;
  /**
   * The memory of part `index` of a BAR's `shared`, in the order of the declaration; the same bytes for as long as the
   * device lives. It is zeroed for each client, right before the `reset` that follows the last one's leaving; a reset
   * alone leaves it as it is. The driver VM may write it at any time: copy, check, then use. @throws RangeError when
   * there is no such part
   */
  shared(bar: number, index?: number): Uint8Array<ArrayBuffer>;
  /**
   * What loops of this package's own in C++ reach the driver VM by; undefined where there is nothing for them. No part
   * of the author's interface: it changes without notice.
   */
  readonly lanes?: LaneAccess;
}

/**
 * A device. All offsets and sizes are bytes; accesses are of 1, 2 or 4 bytes and naturally aligned: others arrive in
 * pieces. Where a BAR is named, the index of one of `regions` can be: FIRST_DEVICE_REGION for the first.
 *
 * Its life: `start`, then any number of clients, one after the other; then a last `reset`, and `close`. What is left
 * out below is answered by the framework; what takes time is a promise, which must resolve by itself: the driver VM
 * waits for it. A promise that rejects is logged as the device's bug, and the framework goes on as if it had resolved;
 * a migration fails.
 */
export interface Device {
  readonly identity: PciIdentity;
  /** Regions that PCI does not know, which the driver VM's VMM finds by their type. */
  readonly regions?: readonly DeviceRegion[];
  /**
   * By BAR, the registers at its start: accesses to them are answered from these, `reset` puts them back, `inspect`
   * shows them.
   */
  readonly registers?: Readonly<Record<number, RegisterFile>>;
  /** Called once, before anything else. */
  start?(context: DeviceContext): void | Promise<void>;
  /**
   * A read of a BAR outside `registers`, as an unsigned number; zeros when left out. Synchronous: the driver VM's CPU
   * waits.
   */
  readBar?(bar: number, offset: number, size: number): number;
  /** A write to a BAR outside `registers`; ignored when left out. */
  writeBar?(bar: number, offset: number, size: number, value: number): void;
  /**
   * A write by message to a part of BAR `bar` that is `shared`; it is in the memory already. So a device that polls the
   * memory hears of it at once where the driver VM's VMM has not mapped it.
   */
  sharedWritten?(bar: number, offset: number, size: number): void;
  /**
   * A write that BAR `bar`'s `ioeventfds[index]` describes, instead of `writeBar`. Several may come as one, and one may
   * come after a reset that followed it. `value` is that of `datamatch`, or the last one that was written where there
   * is a `shadow` (a number, exact to 2^53); otherwise it is undefined.
   */
  ioEvent?(bar: number, index: number, value: number | undefined): void;
  /**
   * The function is reset (DEVICE_RESET, FLR, the client left): back to the power-on state. Called when all jobs have
   * ended; `registers` still say what the function was about, and get their reset values when the promise is kept.
   * Promise: when it resolves nothing of before is left: no DMA, no interrupt, no change of registers. From the
   * driver's request on until then DMA fails and interrupts go nowhere.
   *
   * A device that takes longer than QUIESCE_DEADLINE_MS is cut off: the driver VM finds the function reset and its BARs
   * dead (all ones, as of a PCI device that does not answer) until the promise is kept. So wait for nothing that may
   * hang, such as a disk.
   */
  reset?(): void | Promise<void>;
  /**
   * Some driver-VM memory is about to go away, the log of what the device wrote is about to be read, or the bus master
   * bit was cleared. Promise: DMA that was in flight when it was called, jobs apart, is finished, and no view or
   * segment of before is used again. New DMA to what stays mapped may start meanwhile.
   */
  quiesce?(): void | Promise<void>;
  /**
   * The driver VM is being stopped, as for migration. Promise: until `resume` the device does no DMA, triggers no
   * interrupt, and changes nothing of its state but by register accesses. Where it is left out, `quiesce` is called
   * instead: enough for a device that does nothing unless it is told to by a register.
   */
  pause?(): void | Promise<void>;
  /** The end of a pause: what was held back goes on. Called before held jobs start. */
  resume?(): void | Promise<void>;
  /**
   * The halt: the process ends. Called once, after `reset`, when no client is there. Promise: files and the like are
   * released.
   */
  close?(): void | Promise<void>;
  /**
   * The device's own state as plain data, for diagnostics: SIGUSR1 shows it, along with the registers, interrupts and
   * DMA maps.
   */
  inspect?(): unknown;
  /**
   * What the control socket can have the device do, by the names of shared/control/methods.ts, which has their
   * parameters; they were checked. What they throw as a UserError is the caller's answer.
   */
  readonly methods?: DeviceMethods;
  /**
   * A device with it can be moved, with its driver VM or without, to another process that runs the same kind of device.
   */
  readonly migration?: Migration;
}

export type DeviceMethods = Readonly<
  Record<string, (params: Readonly<Record<string, string | number | boolean | undefined>>) => unknown>
>;

/**
 * How a device's state moves to another process (<linux/vfio.h>, migration version 2). Config space, the MSI-X table,
 * interrupts that wait, `registers` and shared parts move by themselves: a device that has nothing else gives `{}`.
 * What is below is called while the device is paused, but for `preCopy`. Such a device gets no access to its BARs; DMA
 * is refused to it, its interrupts and ioeventfds wait. Jobs do not move: where one waits for the end of the pause, the
 * device is not saved.
 */
export interface Migration {
  /**
   * The state beside `registers`, in a form of the device's own. It may be asked for more than once, and go on here
   * after all.
   */
  save?(): Uint8Array | Promise<Uint8Array>;
  /**
   * Takes on a state that another device's `save` gave, in place of its own; empty where there is no `save`.
   * `registers` and shared parts have their new values. All of it came through the driver VM's VMM: check it, and throw
   * (or reject) when it is none of the device's; then only a reset helps. `pieces` is what `preCopy` gave, in order.
   */
  load?(state: Uint8Array, pieces: readonly Uint8Array[]): void | Promise<void>;
  /**
   * For a state so large that it takes long to copy: called while the device runs, gives a piece of it that is to be
   * copied already, or undefined when there is nothing new at the moment. `first`: a new copy begins, and with it all
   * pieces again. `save` then need not hold what is in the pieces.
   */
  preCopy?(first: boolean): Uint8Array | undefined | Promise<Uint8Array | undefined>;
}

/** DMA to an address that is not mapped, or not for that access, or whose memory is gone. */
export class DmaError extends Error {
  override readonly name = "DmaError";
  constructor(
    readonly address: number,
    readonly length: number,
    access: "read" | "write",
    reason = "not mapped for it in the driver VM",
  ) {
    super(`DMA ${access} of ${length} bytes at ${formatAddress(address)}: ${reason}`);
  }
}
