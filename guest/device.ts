/**
 * The device author's interface: what a PCI device written in TypeScript is, and what it is given. Nothing in here knows
 * how the driver VM is reached.
 */
import type { Log } from "../shared/log.js";
import type { PciIdentity } from "./pci/identity.js";

export type { BarOptions, PciCapabilities, PciIdentity } from "./pci/identity.js";

/** A place in the window: `length` bytes of `bytes` (a whole piece of the window) from `offset` on. */
export interface Segment {
  bytes: Uint8Array;
  data: DataView;
  offset: number;
  length: number;
}

/** DMA to and from driver-VM memory. Addresses are the driver VM's (IOVA), sizes in bytes. */
export interface Dma {
  /**
   * Zero-copy: finds the longest run from `address` on, at most `length` bytes, that lies in one map and one piece of the
   * window, and puts it into `into` (which is reused, so nothing is allocated). Returns its length; 0 where nothing is
   * mapped, the access is not permitted, or the memory is not in the window. The segment is good until the device's
   * `quiesce` or `reset` resolves or, in synchronous code, until it returns to the event loop.
   */
  locate(address: number, length: number, access: "read" | "write", into: Segment): number;
  /** A Uint8Array on driver-VM memory itself, or undefined when it is not in one piece of the window. Same lifetime. */
  view(address: number, length: number, access: "read" | "write"): Uint8Array | undefined;
  /** Fills `target` from driver-VM memory, by window or by message. Rejects with DmaError when a part is not mapped or not readable; `target` is then undefined in content. */
  read(address: number, target: Uint8Array): Promise<void>;
  write(address: number, source: Uint8Array): Promise<void>;
  /** The same where all of it is in the window. @throws DmaError otherwise */
  readSync(address: number, target: Uint8Array): void;
  writeSync(address: number, source: Uint8Array): void;
  /** Bytes moved so far through the window by this interface; a device that uses segments or views adds to it with `account`. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  account(read: number, written: number): void;
}

/** Interrupts to the driver VM. */
export interface Interrupts {
  /** Signals a vector: MSI-X, else MSI, whichever the driver VM enabled; else INTx (vector is ignored). */
  trigger(vector: number): void;
  /** Interrupts signalled so far. */
  readonly count: number;
}

/** What a device is given when it starts. */
export interface DeviceContext {
  readonly dma: Dma;
  readonly interrupts: Interrupts;
  readonly log: Log;
}

/** A device. All offsets and sizes are bytes; accesses are of 1, 2 or 4 bytes and naturally aligned: others arrive in pieces. */
export interface Device {
  readonly identity: PciIdentity;
  /** Called once, before anything else. */
  start(context: DeviceContext): void | Promise<void>;
  /** A read of a BAR, as an unsigned number. Synchronous: the driver VM's CPU waits. */
  readBar(bar: number, offset: number, size: number): number;
  writeBar(bar: number, offset: number, size: number, value: number): void;
  /** The function is reset (DEVICE_RESET, FLR, the client left): back to the power-on state. Resolves when no DMA is under way. */
  reset(): void | Promise<void>;
  /** Some driver-VM memory is about to go away: resolves when DMA that is under way is finished. New DMA to what stays mapped may start meanwhile. */
  quiesce(): void | Promise<void>;
  /** The process ends: release files. Called after reset. */
  close(): void | Promise<void>;
  /** The device's state as plain data, for people. */
  inspect?(): unknown;
}

/** DMA to an address that is not mapped, or not for that access. */
export class DmaError extends Error {
  override readonly name = "DmaError";
  constructor(
    readonly address: number,
    readonly length: number,
    access: "read" | "write",
  ) {
    super(`DMA ${access} of ${length} bytes at 0x${address.toString(16)}: not mapped for it in the driver VM`);
  }
}
