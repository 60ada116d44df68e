/**
 * An NVM Express 1.4 controller as a PCI device: registers, enabling and disabling, shutdown, reset. Commands are in
 * admin.ts and io.ts, queues in engine.ts.
 *
 * All state below CC.EN goes with it: disabling kills the queues at once, and CSTS.RDY falls when the file I/O under way has
 * ended, so that no byte of driver-VM memory is touched afterwards.
 */
import type { Device, DeviceContext, PciIdentity } from "../../device.js";
import { RegisterFile } from "../../pci/registers.js";
import { AdminCommands } from "./admin.js";
import type { Command } from "./command.js";
import { ringDoorbell } from "./doorbells.js";
import { adminQueuesOf } from "./enable.js";
import { QueueEngine } from "./engine.js";
import { AsyncEvents } from "./events.js";
import { Features } from "./features.js";
import type { Identity } from "./identify.js";
import { IoCommands } from "./io.js";
import { KeepAlive } from "./keep-alive.js";
import { LogPages } from "./log-pages.js";
import { Namespace } from "./namespace.js";
import { Namespaces } from "./namespaces.js";
import {
  BAR_SIZE,
  Cc,
  Csts,
  DOORBELL_OFFSET,
  MINIMUM_PAGE_SIZE,
  MSIX_OFFSET,
  REGISTERS_SIZE,
  type RegisterName,
  registerTable,
} from "./registers.js";
import {
  CRITICAL_WARNING_RELIABILITY,
  ErrorEvent,
  EventType,
  LogPage,
  NoticeEvent,
  SmartEvent,
  Status,
} from "./spec.js";
import { OAES_NAMESPACE_ATTRIBUTE } from "./spec-identify.js";
import type { Storage, StorageError } from "./storage.js";

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
}

/** Mass storage, non-volatile memory, NVM Express. */
const CLASS_CODE = 0x01_08_02;

export class NvmeController implements Device {
  readonly identity: PciIdentity;
  readonly #options: ControllerOptions;
  readonly #registers: RegisterFile<RegisterName>;
  readonly #namespaces: Namespaces;
  readonly #features: Features;
  #started: Parts | undefined;
  /** Counts disables and resets, so that what was begun before one leaves the registers alone. */
  #generation = 0;
  /** A disable or reset waits for file I/O: enabling waits too. */
  #draining = false;

  constructor(options: ControllerOptions) {
    this.#options = options;
    const vectors = options.queues + 1;
    this.identity = {
      vendorId: options.vendorId,
      deviceId: options.deviceId,
      subsystemVendorId: options.subsystemVendorId,
      subsystemId: options.deviceId,
      revisionId: 1,
      classCode: CLASS_CODE,
      bars: { 0: { size: BAR_SIZE, is64Bit: true } },
      msix: { vectors, bar: 0, offset: MSIX_OFFSET },
    };
    this.#features = new Features(options.queues, vectors);
    const namespaces = options.disks.map(
      ({ storage, blockSize }, n) =>
        new Namespace(n + 1, storage, blockSize, (error) => this.#onSyncFailed(n + 1, error)),
    );
    this.#namespaces = new Namespaces(namespaces, (namespace) => this.#onSizeChanged(namespace));
    const table = registerTable({
      onMaskSet: (bits) => this.#setInterruptMask(this.#parts.engine.interruptMask | bits),
      onMaskClear: (bits) => this.#setInterruptMask(this.#parts.engine.interruptMask & ~bits),
      maskOf: () => this.#parts.engine.interruptMask >>> 0,
      onConfiguration: (value, previous) => this.#configure(value, previous),
      onSubsystemReset: () => this.#resetSubsystem(),
    });
    this.#registers = new RegisterFile<RegisterName>(REGISTERS_SIZE, table);
  }

  start(context: DeviceContext): void {
    const { mdts, firmware } = this.#options;
    const maxTransfer = MINIMUM_PAGE_SIZE * 2 ** mdts;
    const namespaces = this.#namespaces;
    const features = this.#features;
    const engine = new QueueEngine(context, {
      execute: (command) => this.#execute(command),
      onError: (command, status) => logPages.recordError(command, status),
      onInvalidDoorbell: () =>
        events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogPage.ERROR_INFORMATION),
      onFatal: (reason) => this.#fail(`a queue's memory cannot be reached: ${reason}`),
      onTransferred: (command, error) => io.onTransferred(command, error),
    });
    const events = new AsyncEvents(engine);
    const io = new IoCommands(context, engine, namespaces, features, maxTransfer);
    const logPages = new LogPages(io.counters, engine.inFlight, namespaces, features, firmware);
    const keepAlive = new KeepAlive(() => this.#fail("the Keep Alive Timer expired"));
    const admin = new AdminCommands({
      context,
      engine,
      events,
      features,
      logPages,
      namespaces,
      keepAlive,
      registers: this.#registers,
      identity: this.#options,
      maxTransfer,
    });
    this.#started = { context, engine, events, io, admin, logPages, keepAlive };
    context.log.info({ namespaces: this.#sizes(), queues: this.#options.queues }, "NVMe controller");
  }

  readBar(bar: number, offset: number, size: number): number {
    if (bar !== 0 || offset + size > REGISTERS_SIZE) return 0;
    return this.#registers.read(offset, size);
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar !== 0) return;
    if (offset + size <= REGISTERS_SIZE) this.#registers.write(offset, size, value);
    else if (offset >= DOORBELL_OFFSET && offset < MSIX_OFFSET) {
      const { engine, events } = this.#parts;
      ringDoorbell(engine, events, offset, size, value);
    }
  }

  async reset(): Promise<void> {
    const isOn = (this.#registers.get("CC") & Cc.EN) !== 0;
    const isShutDown = (this.#registers.get("CSTS") & Csts.SHST_MASK) === Csts.SHST_COMPLETE;
    if (isOn && !isShutDown) this.#parts.logPages.unsafeShutdowns++;
    this.#registers.reset();
    this.#setInterruptMask(0);
    await this.#stopAndDrain();
  }

  async quiesce(): Promise<void> {
    await this.#parts.engine.inFlight.drained();
  }

  /** What is under way ends; doorbells are only taken note of, and time stands still. */
  async pause(): Promise<void> {
    const { engine, keepAlive } = this.#parts;
    this.#namespaces.unwatch();
    keepAlive.set(0);
    await engine.pause();
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
    await this.#started?.engine.inFlight.drained();
    await new Promise<void>((resolve) => this.#namespaces.sync(() => resolve()));
    await Promise.all(this.#options.disks.map(({ storage }) => storage.close()));
  }

  inspect(): unknown {
    const registers = this.#registers.inspect();
    const namespaces = this.#sizes();
    if (this.#started === undefined) return { registers, namespaces };
    const { engine, io } = this.#started;
    return { registers, namespaces, ...engine.inspect(), ...io.counters };
  }

  #sizes(): object[] {
    return this.#namespaces.all.map(({ id, blockCount, blockSize }) => ({ id, blockCount, blockSize }));
  }

  get #parts(): Parts {
    if (this.#started === undefined) throw new Error("the device was not started");
    return this.#started;
  }

  /** Checks what all commands have in common, and hands the command on. A bug of ours stops the controller, not the process. */
  #execute(command: Command): void {
    const { admin, io, context } = this.#parts;
    if (context.log.isLevelEnabled("trace")) {
      context.log.trace({ queue: command.queue.id, id: command.id, opcode: command.opcode }, "command");
    }
    try {
      // FUSE and PSDT: neither fused operations nor SGLs.
      if (command.flags !== 0) command.complete(Status.INVALID_FIELD);
      else if (command.queue.id === 0) admin.execute(command);
      else io.execute(command);
    } catch (error) {
      context.log.error({ err: error }, "a bug in the NVMe controller");
      this.#fail("internal error");
    }
  }

  /** CC was written. */
  #configure(value: number, previous: number): void {
    const enabled = (value & Cc.EN) !== 0;
    if (enabled !== ((previous & Cc.EN) !== 0)) {
      if (enabled) this.#enable();
      else this.#disable();
    }
    if (Cc.shnOf(value) !== 0 && Cc.shnOf(previous) === 0) this.#shutDown();
  }

  /** 7.6.1: RDY when all is in order, CFS when the driver's set-up is not. */
  #enable(): void {
    if (this.#draining) return;
    const { engine } = this.#parts;
    const set = adminQueuesOf(this.#registers);
    if (typeof set === "string") {
      this.#fail(set);
      return;
    }
    engine.pageSize = set.pageSize;
    engine.completionQueues[0] = set.completionQueue;
    engine.submissionQueues[0] = set.submissionQueue;
    this.#setStatus(Csts.RDY);
    this.#namespaces.watch();
    this.#parts.context.log.info("enabled by the driver");
  }

  /** 7.3.2, Controller Reset: queues are gone at once, RDY falls when nothing is under way. */
  #disable(): void {
    this.#setStatus(this.#registers.get("CSTS") & Csts.RDY);
    void this.#stopAndDrain();
  }

  /** 7.3.1: there is one controller in the subsystem. */
  #resetSubsystem(): void {
    this.#parts.context.log.info("NVM subsystem reset by the driver");
    this.#registers.reset();
    this.#registers.set("CSTS", Csts.NSSRO);
    this.#setInterruptMask(0);
    void this.#stopAndDrain();
  }

  /** Sets all of CSTS but NSSRO, which is the driver's to clear. */
  #setStatus(status: number): void {
    this.#registers.set("CSTS", status | (this.#registers.get("CSTS") & Csts.NSSRO));
  }

  /** Back to disabled. The admin queue's registers stay as they are. Resolves when nothing is under way. */
  async #stopAndDrain(): Promise<void> {
    const { inFlight } = this.#parts.engine;
    const generation = ++this.#generation;
    this.#stop();
    if (inFlight.count > 0) {
      this.#draining = true;
      await inFlight.drained();
      if (generation !== this.#generation) return;
    }
    this.#draining = false;
    this.#setStatus(0);
    if ((this.#registers.get("CC") & Cc.EN) !== 0) this.#enable();
  }

  /** 7.6.2: what was written goes to stable storage, then SHST says so. */
  #shutDown(): void {
    const { inFlight } = this.#parts.engine;
    const generation = this.#generation;
    const setStatus = (shst: number): void => {
      this.#registers.set("CSTS", (this.#registers.get("CSTS") & ~Csts.SHST_MASK) | shst);
    };
    setStatus(Csts.SHST_OCCURRING);
    void inFlight.drained().then(() => {
      const epoch = inFlight.begin();
      this.#namespaces.sync(() => {
        inFlight.end(epoch);
        if (generation === this.#generation) setStatus(Csts.SHST_COMPLETE);
      });
    });
  }

  /** 9.5 Controller Fatal Status: nothing goes on until the driver resets the controller. */
  #fail(reason: string): void {
    this.#parts.context.log.warn({ reason }, "controller fatal status");
    this.#stop();
    this.#registers.set("CSTS", this.#registers.get("CSTS") | Csts.CFS);
  }

  #stop(): void {
    this.#parts.engine.stop();
    this.#parts.events.reset();
    this.#parts.keepAlive.set(0);
    this.#namespaces.unwatch();
    this.#namespaces.changed.clear();
    this.#features.reset();
  }

  #onSizeChanged({ id, blockCount }: Namespace): void {
    const { context, events } = this.#parts;
    context.log.info({ namespace: id, blockCount }, "a namespace's size has changed");
    if ((this.#features.events & OAES_NAMESPACE_ATTRIBUTE) === 0) return;
    events.raise(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogPage.CHANGED_NAMESPACE_LIST);
  }

  #onSyncFailed(id: number, error: StorageError): void {
    const { context, events } = this.#parts;
    context.log.error({ namespace: id, err: error }, "the disk's file could not be synced: data may be lost");
    if ((this.#features.events & CRITICAL_WARNING_RELIABILITY) === 0) return;
    events.raise(EventType.SMART, SmartEvent.RELIABILITY, LogPage.SMART);
  }

  #setInterruptMask(mask: number): void {
    this.#parts.engine.interruptMask = mask;
    this.#parts.engine.schedule();
  }
}

/** What is made when the device starts. */
interface Parts {
  readonly context: DeviceContext;
  readonly engine: QueueEngine;
  readonly events: AsyncEvents;
  readonly io: IoCommands;
  readonly admin: AdminCommands;
  readonly logPages: LogPages;
  readonly keepAlive: KeepAlive;
}
