/**
 * An NVM Express 1.4 controller as a PCI device: what it is made of, its registers and doorbells, and what it logs.
 */
import type { Device, DeviceContext, DeviceMethods, PciIdentity } from "../../device.js";
import { RegisterFile } from "../../pci/registers.js";
import { AdminCommands, adminOpcodes } from "./commands/admin.js";
import { AsyncEvents } from "./commands/events.js";
import { Features } from "./commands/features.js";
import type { Identity } from "./commands/identify.js";
import { IoCommands } from "./commands/io.js";
import { type Counters, LogPages } from "./commands/log-pages.js";
import { controlMethods } from "./control-methods.js";
import { type ControllerParts, KeepAlive, Lifecycle } from "./lifecycle.js";
import type { Command } from "./queues/command.js";
import { Doorbells } from "./queues/doorbells.js";
import { QueueEngine } from "./queues/engine.js";
import type { Polling } from "./queues/lanes.js";
import {
  type BarLayout,
  barLayout,
  DOORBELL_OFFSET,
  MINIMUM_PAGE_SIZE,
  REGISTERS_SIZE,
  type RegisterName,
  registerTable,
} from "./registers.js";
import { ErrorEvent, EventType, LogPage, NoticeEvent, OAES_NAMESPACE_ATTRIBUTE, Psdt, Status } from "./spec.js";
import { Namespace, type NamespaceEvents, statusOf } from "./storage/namespace.js";
import { Namespaces } from "./storage/namespaces.js";
import type { Storage, StorageError } from "./storage/storage.js";

/** A namespace to be. */
export interface Disk {
  readonly storage: Storage;
  /** 512 or 4096 bytes. */
  readonly blockSize: number;
}

/** All of the controller's choices; see `createNvme` for what is usual. */
export interface ControllerOptions extends Identity {
  /** Namespaces 1 to n. */
  readonly disks: readonly Disk[];
  /** I/O queues of each kind; each has a vector, after the admin queue's vector 0. */
  readonly queues: number;
  readonly deviceId: number;
  /** Doorbells are memory that the driver VM's VMM may map, polled as this says; or undefined. */
  readonly sharedDoorbells: Polling | undefined;
  /** Threads that serve I/O queues; 0: none, and they are served in the event loop. */
  readonly lanes: number;
  /** The CPU of each; undefined: any. */
  readonly laneCpus: readonly number[] | undefined;
}

/** Mass storage, non-volatile memory, NVM Express. */
const CLASS_CODE = 0x01_08_02;

export class NvmeController implements Device {
  readonly methods: DeviceMethods;
  readonly identity: PciIdentity;
  readonly #options: ControllerOptions;
  readonly #layout: BarLayout;
  readonly registers: { readonly 0: RegisterFile<RegisterName> };
  readonly #namespaces: Namespaces;
  readonly #features: Features;
  #started: Parts | undefined;

  constructor(options: ControllerOptions) {
    this.#options = options;
    const vectors = options.queues + 1;
    const isShared = options.sharedDoorbells !== undefined;
    const layout = barLayout(options.queues, isShared);
    const doorbells = { offset: DOORBELL_OFFSET, size: layout.doorbellsSize };
    this.#layout = layout;
    this.identity = {
      vendorId: options.vendorId,
      deviceId: options.deviceId,
      subsystemVendorId: options.subsystemVendorId,
      subsystemId: options.deviceId,
      revisionId: 1,
      classCode: CLASS_CODE,
      bars: { 0: { size: layout.size, is64Bit: true, ...(isShared ? { shared: [doorbells] } : {}) } },
      msix: { vectors, bar: 0, offset: layout.msixOffset },
      // For drivers and firmware without MSI-X, and without messages at all.
      intx: true,
      capabilities: { msi: { vectors: msiVectors(vectors) } },
    };
    this.#features = new Features(options.queues, vectors);
    const events: NamespaceEvents = {
      onSyncFailed: ({ id }, error) => this.#onSyncFailed(id, error),
      onFailed: ({ id }, error, direction) => this.#onDiskFailed(id, error, direction),
      // Before the start there is nobody to be told.
      onResized: (namespace) => this.#started && this.#onResized(namespace),
      onRemoved: ({ id }) => this.#started && this.#onRemoved(id),
      onBug: (error) => this.#onBug(error),
    };
    this.#namespaces = new Namespaces(
      options.disks.map(({ storage, blockSize }, n) => new Namespace(n + 1, storage, blockSize, events)),
    );
    this.methods = controlMethods(this.#namespaces);
    const table = registerTable(layout, {
      onMaskSet: (bits) => this.#parts.engine.setInterruptMask(this.#parts.engine.interrupts.mask | bits),
      onMaskClear: (bits) => this.#parts.engine.setInterruptMask(this.#parts.engine.interrupts.mask & ~bits),
      maskOf: () => this.#parts.engine.interrupts.mask >>> 0,
      onConfiguration: (value, previous) => this.#parts.lifecycle.configure(value, previous),
      onSubsystemReset: () => this.#parts.lifecycle.resetSubsystem(),
    });
    this.registers = { 0: new RegisterFile<RegisterName>(REGISTERS_SIZE, table) };
  }

  start(context: DeviceContext): void {
    const { mdts, firmware, sharedDoorbells, lanes, laneCpus } = this.#options;
    const { log } = context;
    const registers = this.registers[0];
    const namespaces = this.#namespaces;
    const features = this.#features;
    const maxTransfer = MINIMUM_PAGE_SIZE * 2 ** mdts;
    const counters: Counters = { bytesRead: 0, bytesWritten: 0, reads: 0, writes: 0, mediaErrors: 0 };
    const isShared = sharedDoorbells !== undefined;
    const doorbells = new Doorbells(
      this.#options.queues,
      this.#layout.stride,
      isShared ? context.shared(0) : undefined,
    );
    const choices = { count: lanes, cpus: laneCpus, polling: sharedDoorbells ?? "adaptive" };
    const engine = new QueueEngine(context, doorbells, choices, counters, () => this.#turn());
    if (context.lanes !== undefined) namespaces.giveTo(context.lanes.context);
    namespaces.faults.onActive = (isActive) => engine.lanes.sendAllUp(isActive);
    const events = new AsyncEvents(engine);
    const io = new IoCommands(namespaces, features, counters, maxTransfer);
    const { inFlight } = engine.commands;
    const logSources = { counters, inFlight, namespaces, features, firmware, adminOpcodes: adminOpcodes(doorbells) };
    const logPages = new LogPages(logSources);
    const keepAlive = new KeepAlive(() => lifecycle.fail("the Keep Alive Timer expired"));
    const parts = { context, engine, events, features, keepAlive, logPages, maxTransfer, namespaces, registers };
    const lifecycle = new Lifecycle(parts);
    const admin = new AdminCommands({ ...parts, identity: this.#options });
    this.#started = { ...parts, io, admin, lifecycle, counters };
    log.info(
      { namespaces: this.#describeNamespaces(), queues: this.#options.queues, sharedDoorbells, lanes },
      "NVMe controller",
    );
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar !== 0 || offset < DOORBELL_OFFSET || offset >= this.#layout.msixOffset) return;
    this.#ringDoorbell(offset, size, value & 0xffff);
  }

  /** The value is in memory already. */
  sharedWritten(_bar: number, offset: number, size: number): void {
    this.#ringDoorbell(offset, size, 0);
  }

  #ringDoorbell(offset: number, size: number, value: number): void {
    const error = this.#parts.engine.ringDoorbell((offset - DOORBELL_OFFSET) / this.#layout.stride, size, value);
    if (error !== undefined) this.#onInvalidDoorbell(error);
  }

  #onInvalidDoorbell(error: number): void {
    this.#parts.events.raise(EventType.ERROR, error, LogPage.ERROR_INFORMATION);
  }

  async reset(): Promise<void> {
    await this.#parts.lifecycle.reset();
  }

  /** What is in flight ends; doorbells are only noted, and time stands still. */
  async pause(): Promise<void> {
    const { engine, keepAlive } = this.#parts;
    this.#namespaces.unwatch();
    keepAlive.set(0);
    await engine.pause();
    await this.#namespaces.settled("all");
  }

  resume(): void {
    const { engine, events, keepAlive } = this.#parts;
    engine.resume();
    if (engine.submissionQueues[0] === undefined) return;
    keepAlive.set(this.#features.keepAliveMs);
    this.#namespaces.watch();
    events.deliver();
  }

  async close(): Promise<void> {
    this.#started?.engine.close();
    this.#namespaces.takeBack();
    await this.#namespaces.settled("all");
    await new Promise<void>((resolve) => this.#namespaces.sync(() => resolve()));
    await Promise.all(this.#options.disks.map(({ storage }) => storage.close()));
  }

  inspect(): unknown {
    const namespaces = this.#describeNamespaces();
    if (this.#started === undefined) return { namespaces };
    const { engine, counters } = this.#started;
    return { namespaces, ...engine.inspect(), ...counters };
  }

  #describeNamespaces(): object[] {
    return this.#namespaces.all.map(({ id, blockCount, blockSize, storage: { readOnly, size, isRemoved } }) => {
      const unusedBytes = size - blockCount * blockSize;
      const marks = { ...(readOnly && { readOnly }), ...(isRemoved && { isRemoved }) };
      return { id, blockCount, blockSize, ...marks, ...(unusedBytes > 0 && { unusedBytes }) };
    });
  }

  get #parts(): Parts {
    if (this.#started === undefined) throw new Error("the device was not started");
    return this.#started;
  }

  /** A turn of the queues: commands are carried out as far as that goes at once. */
  #turn(): void {
    const { engine } = this.#parts;
    if (!engine.begin()) return;
    try {
      this.#takeReports();
      for (let command = engine.next(); command !== undefined; command = engine.next()) this.#execute(command);
    } catch (error) {
      this.#onBug(error);
    } finally {
      engine.end();
      this.#takeReports();
    }
  }

  /** What came up at the queues that is for the log, the registers or the driver's events. */
  #takeReports(): void {
    const { engine, events, lifecycle, logPages } = this.#parts;
    const { reports } = engine;
    for (const failure of reports.failures.splice(0)) logPages.recordError(failure);
    if (reports.bug !== undefined) {
      const { bug } = reports;
      reports.bug = undefined;
      this.#onBug(bug);
    }
    if (reports.fatal !== undefined) lifecycle.fail(`a queue's memory cannot be reached: ${reports.fatal}`);
    if (reports.invalidDoorbell) this.#onInvalidDoorbell(ErrorEvent.INVALID_DOORBELL_VALUE);
    if (reports.adminRoom) events.deliver();
    reports.clear();
  }

  /** Checks what all commands have in common, and hands the command on. */
  #execute(command: Command, isLate = false): void {
    const { admin, io } = this.#parts;
    const { faults } = this.#namespaces;
    const isAdmin = command.queue.id === 0;
    const mayFail = faults.isActive && !isAdmin && !isLate && command.partner === undefined;
    if (mayFail && faults.intercept(command, () => this.#executeLate(command))) return;
    if (command.partner !== undefined) io.executePair(command, command.partner);
    // 4.4: admin commands have no SGLs over PCI Express.
    else if (command.hasInvalidFlags || (isAdmin && command.psdt !== Psdt.PRP)) command.complete(Status.INVALID_FIELD);
    else if (isAdmin) admin.execute(command);
    else io.execute(command);
  }

  /** The same of one that was held up, outside of a turn. */
  #executeLate(command: Command): void {
    try {
      this.#execute(command, true);
    } catch (error) {
      this.#onBug(error);
    }
  }

  /** A bug of ours stops the controller, not the process. */
  #onBug(error: unknown): void {
    this.#parts.context.log.error({ err: error }, "a bug in the NVMe controller");
    this.#parts.lifecycle.fail("internal error");
  }

  #onResized({ id, blockCount }: Namespace): void {
    const { context, events } = this.#parts;
    this.#namespaces.changed.add(id);
    context.log.info({ namespace: id, blockCount }, "a namespace's size has changed");
    if ((this.#features.events & OAES_NAMESPACE_ATTRIBUTE) === 0) return;
    events.raise(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogPage.CHANGED_NAMESPACE_LIST);
  }

  #onRemoved(namespace: number): void {
    const message =
      "the disk's file was removed or replaced: what it holds is gone when this process ends, so save it now";
    this.#parts.context.log.error({ namespace }, message);
  }

  #onDiskFailed(id: number, error: StorageError, direction: "read" | "write"): void {
    const details = { namespace: id, err: error };
    const { log } = this.#parts.context;
    if (error.code === "EFBIG") {
      log.error(
        details,
        "the disk's file may not be as large, so writes fail: raise the limit (ulimit -f, LimitFSIZE=)",
      );
    } else if (statusOf(error, "write") === Status.CAPACITY_EXCEEDED) {
      log.error(details, "the disk's file system is full, so the driver VM's writes fail: make room there");
    } else {
      log.error(details, direction === "read" ? "the disk could not be read" : "the disk could not be written");
    }
  }

  #onSyncFailed(id: number, error: StorageError | null): void {
    const { context, events, logPages } = this.#parts;
    events.warn(logPages.criticalWarning & this.#features.events);
    if (error === null) {
      context.log.info({ namespace: id }, "the disk can be synced again");
      return;
    }
    const until =
      statusOf(error, "write") === Status.CAPACITY_EXCEEDED
        ? "flushes fail until there is space"
        : "every flush fails until the disk is formatted or the device is started again";
    const message = `the disk could not be synced: what was written since its last flush may be lost, and ${until}`;
    context.log.error({ namespace: id, err: error }, message);
  }
}

/**
 * A power of two, of which PCI allows up to 32; vectors above share them. Not more than MSI-X has: each needs a
 * doorbell.
 */
function msiVectors(vectors: number): 1 | 2 | 4 | 8 | 16 | 32 {
  return Math.min(32, 2 ** Math.floor(Math.log2(vectors))) as 1 | 2 | 4 | 8 | 16 | 32;
}

/** What is made when the device starts. */
interface Parts extends ControllerParts {
  readonly io: IoCommands;
  readonly admin: AdminCommands;
  readonly lifecycle: Lifecycle;
  readonly counters: Counters;
}
