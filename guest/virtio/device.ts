/**
 * The author's interface to a virtio device (VIRTIO 1.2): what it is, its queues, its configuration. `virtioDevice`
 * makes a PCI device of it, with everything that all virtio devices have alike: feature negotiation, queues,
 * interrupts, reset, pause and migration.
 */
import type { Log } from "../../shared/log.js";
import type { Dma } from "../device.js";
import type { RegisterFile } from "../pci/registers.js";
import type { QueueDeclaration, Virtqueue } from "./queue.js";

export interface VirtioContext {
  readonly dma: Dma;
  readonly log: Log;
  /** What the driver took of `features`; 0 before it has. */
  readonly features: bigint;
  /** Whether the driver said DRIVER_OK, and nothing was reset since. */
  readonly isLive: boolean;
  /** By its number. Queues that the driver did not enable have nothing to take. */
  readonly queues: readonly Virtqueue[];
  /** `config` has changed by the device's own doing: the driver is told. */
  configChanged(): void;
  /** Something went wrong that only a reset mends; says so to the driver (VIRTIO 1.2, 2.1.2). */
  needsReset(reason: string): void;
  /** See DeviceContext.run. */
  run(job: (signal: AbortSignal) => void | Promise<void>): void;
}

/** Its life: `start`; then, for each driver, `ready` and, whatever becomes of it, `reset`; in the end `close`. */
export interface VirtioDevice {
  /** VIRTIO 1.2, 5 "Device Types". */
  readonly id: number;
  /** The class code in config space, 24 bits; when left out, what QEMU has for that type. */
  readonly classCode?: number;
  /** Feature bits of the device type (0 to 23, and 50 up) that are offered. */
  readonly features?: bigint;
  /** In the order of their numbers. */
  readonly queues: readonly QueueDeclaration[];
  /** The device configuration layout (5.x.4); none when left out. */
  readonly config?: RegisterFile;
  /** MSI-X vectors; one for each queue and one for the configuration when left out. */
  readonly vectors?: number;
  /** Called once, before anything else. */
  start?(context: VirtioContext): void | Promise<void>;
  /** Whether these features, a subset of what is offered, go together. */
  accepts?(features: bigint): boolean;
  /** The driver said DRIVER_OK: queues run from now on. */
  ready?(): void;
  /** Promise: when it resolves nothing of before is left. Queues have stopped, and `handle` has ended. */
  reset?(): void | Promise<void>;
  /** As Device.pause and Device.resume, for what a device does that no queue asks for. */
  pause?(): void | Promise<void>;
  resume?(): void | Promise<void>;
  close?(): void | Promise<void>;
  inspect?(): unknown;
  /** The device's own state for a migration, beside `config`; nothing when left out. */
  save?(): Uint8Array | Promise<Uint8Array>;
  /** Takes it on; throws when it is none. */
  load?(state: Uint8Array): void | Promise<void>;
}
