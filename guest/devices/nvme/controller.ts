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
import { QueueEngine } from "./engine.js";
import { AsyncEvents } from "./events.js";
import { Features } from "./features.js";
import { type Identity, identifyController, identifyNamespace, namespaceDescriptors } from "./identify.js";
import { IoCommands } from "./io.js";
import { LogPages } from "./log-pages.js";
import { Namespace } from "./namespace.js";
import { CompletionQueue, Doorbell, SubmissionQueue } from "./queues.js";
import {
  Aqa,
  BAR_SIZE,
  Cc,
  Csts,
  DOORBELL_OFFSET,
  DOORBELL_STRIDE,
  MINIMUM_PAGE_SIZE,
  MPSMAX,
  MSIX_OFFSET,
  REGISTERS_SIZE,
  type RegisterName,
  registerTable,
} from "./registers.js";
import { CRITICAL_WARNING_RELIABILITY, ErrorEvent, EventType, LogPage, SmartEvent, Status } from "./spec.js";
import type { Storage, StorageError } from "./storage.js";

/** All of the controller's choices; see `createNvme` for what is usual. */
export interface ControllerOptions extends Identity {
  readonly storage: Storage;
  /** 512 or 4096 bytes. */
  readonly blockSize: number;
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
  readonly #namespace: Namespace;
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
    this.#namespace = new Namespace(options.storage, options.blockSize, (error) => this.#onSyncFailed(error));
    const table = registerTable({
      onMaskSet: (bits) => this.#setInterruptMask(this.#parts.engine.interruptMask | bits),
      onMaskClear: (bits) => this.#setInterruptMask(this.#parts.engine.interruptMask & ~bits),
      maskOf: () => this.#parts.engine.interruptMask >>> 0,
      onConfiguration: (value, previous) => this.#configure(value, previous),
    });
    this.#registers = new RegisterFile<RegisterName>(REGISTERS_SIZE, table);
  }

  start(context: DeviceContext): void {
    const { storage, mdts, firmware } = this.#options;
    const maxTransfer = MINIMUM_PAGE_SIZE * 2 ** mdts;
    const namespace = this.#namespace;
    const features = this.#features;
    const engine = new QueueEngine(context, storage, {
      execute: (command) => this.#execute(command),
      onError: (command, status) => logPages.recordError(command, status),
      onFatal: (reason) => this.#fail(`a queue's memory cannot be reached: ${reason}`),
      onTransferred: (command, error) => io.onTransferred(command, error),
    });
    const events = new AsyncEvents(engine);
    const io = new IoCommands(context, engine, namespace, features, maxTransfer);
    const logPages = new LogPages(io.counters, namespace, features, firmware);
    const admin = new AdminCommands({
      context,
      engine,
      events,
      features,
      logPages,
      namespace,
      registers: this.#registers,
      controllerData: identifyController(this.#options, namespace),
      namespaceData: identifyNamespace(namespace),
      namespaceDescriptors: namespaceDescriptors(this.#options),
      maxTransfer,
    });
    this.#started = { context, engine, events, io, admin };
    const { blockCount, blockSize } = namespace;
    context.log.info({ blockCount, blockSize, queues: this.#options.queues }, "NVMe controller");
  }

  readBar(bar: number, offset: number, size: number): number {
    if (bar !== 0 || offset + size > REGISTERS_SIZE) return 0;
    return this.#registers.read(offset, size);
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar !== 0) return;
    if (offset + size <= REGISTERS_SIZE) this.#registers.write(offset, size, value);
    else if (offset >= DOORBELL_OFFSET && offset < MSIX_OFFSET) this.#ringDoorbell(offset, size, value);
  }

  async reset(): Promise<void> {
    this.#registers.reset();
    this.#setInterruptMask(0);
    await this.#stopAndDrain();
  }

  async quiesce(): Promise<void> {
    await this.#parts.engine.inFlight.drained();
  }

  async close(): Promise<void> {
    await this.#started?.engine.inFlight.drained();
    await new Promise<void>((resolve) => this.#namespace.sync(() => resolve()));
    await this.#options.storage.close();
  }

  inspect(): unknown {
    const { blockCount, blockSize } = this.#namespace;
    const registers = this.#registers.inspect();
    if (this.#started === undefined) return { registers, blockCount, blockSize };
    const { engine, io } = this.#started;
    return { registers, blockCount, blockSize, ...engine.inspect(), ...io.counters };
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
    const registers = this.#registers;
    const cc = registers.get("CC");
    const aqa = registers.get("AQA");
    const submission = registers.get("ASQ_LOW") + registers.get("ASQ_HIGH") * 0x1_0000_0000;
    const completion = registers.get("ACQ_LOW") + registers.get("ACQ_HIGH") * 0x1_0000_0000;
    const pageSize = Cc.pageSizeOf(cc);
    engine.pageSize = pageSize;
    const reason =
      Cc.cssOf(cc) !== 0
        ? "CC.CSS is not the NVM command set"
        : Cc.mpsOf(cc) > MPSMAX
          ? "CC.MPS is above CAP.MPSMAX"
          : Cc.amsOf(cc) !== 0
            ? "CC.AMS is not round robin"
            : Aqa.asqsOf(aqa) < 2 || Aqa.acqsOf(aqa) < 2
              ? "AQA: an admin queue has fewer than two entries"
              : !isQueueBase(submission, pageSize) || !isQueueBase(completion, pageSize)
                ? "ASQ or ACQ is no address of a memory page"
                : undefined;
    if (reason !== undefined) {
      this.#fail(reason);
      return;
    }
    const completionQueue = new CompletionQueue(0, completion, Aqa.acqsOf(aqa), 0, true);
    engine.completionQueues[0] = completionQueue;
    engine.submissionQueues[0] = new SubmissionQueue(0, submission, Aqa.asqsOf(aqa), completionQueue);
    registers.set("CSTS", Csts.RDY);
    this.#parts.context.log.info("enabled by the driver");
  }

  /** 7.3.2, Controller Reset: queues are gone at once, RDY falls when nothing is under way. */
  #disable(): void {
    this.#registers.set("CSTS", this.#registers.get("CSTS") & Csts.RDY);
    void this.#stopAndDrain();
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
    this.#registers.set("CSTS", 0);
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
    void inFlight.drained().then(() =>
      this.#namespace.sync(() => {
        if (generation === this.#generation) setStatus(Csts.SHST_COMPLETE);
      }),
    );
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
    this.#features.reset();
  }

  #onSyncFailed(error: StorageError): void {
    const { context, events } = this.#parts;
    context.log.error({ err: error }, "the disk's file could not be synced: data may be lost");
    if ((this.#features.eventWarnings & CRITICAL_WARNING_RELIABILITY) === 0) return;
    events.raise(EventType.SMART, SmartEvent.RELIABILITY, LogPage.SMART);
  }

  #setInterruptMask(mask: number): void {
    this.#parts.engine.interruptMask = mask;
    this.#parts.engine.schedule();
  }

  /** 3.1.24 and 3.1.25: submission and completion doorbells take turns. */
  #ringDoorbell(offset: number, size: number, value: number): void {
    const { engine, events } = this.#parts;
    // Before the controller is ready doorbells mean nothing.
    if (engine.submissionQueues[0] === undefined) return;
    const number = (offset - DOORBELL_OFFSET) / DOORBELL_STRIDE;
    const id = Math.floor(number / 2);
    const isCompletion = number % 2 === 1;
    const index = value & 0xffff;
    const submission = engine.submissionQueues[id];
    const completion = engine.completionQueues[id];
    if (!Number.isInteger(number) || size < 2 || (isCompletion ? completion : submission) === undefined) {
      events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_REGISTER, LogPage.ERROR_INFORMATION);
      return;
    }
    let result: number = Doorbell.INVALID;
    if (isCompletion && completion !== undefined) result = engine.ringCompletion(completion, index);
    else if (submission !== undefined) result = engine.ringSubmission(submission, index);
    if (result === Doorbell.INVALID) {
      events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogPage.ERROR_INFORMATION);
    } else if (isCompletion && id === 0) {
      events.deliver();
    }
  }
}

/** What is made when the device starts. */
interface Parts {
  readonly context: DeviceContext;
  readonly engine: QueueEngine;
  readonly events: AsyncEvents;
  readonly io: IoCommands;
  readonly admin: AdminCommands;
}

/** Address 0 is as good as any other to an IOMMU. Memory that is not there is noticed when it is used. */
function isQueueBase(address: number, pageSize: number): boolean {
  return address % pageSize === 0 && address <= Number.MAX_SAFE_INTEGER - 0x1_0000_0000;
}
