/**
 * A PCI function behind a Device: command dispatch, and its life, which is resets, unmaps and clients that come and go.
 * What it is made of, in the order of a command's way:
 *
 * - declaration.ts: what an author gave is a device. device-callbacks.ts: how its callbacks are made and waited for.
 * - region-access.ts, regions.ts: register accesses, and which part of the function they are about. sharing.ts: memory
 *   and ioeventfds that the driver VM's VMM has of it. info-replies.ts: what it says of itself.
 * - dma.ts, transfers-in-flight.ts, list-copies.ts, dirty-log.ts: DMA, and the log of what was written by it.
 *   interrupts.ts. lane-mirror.ts: what loops in C++ know of both.
 * - features.ts, migration.ts, migration-stream.ts: DEVICE_FEATURE, and how the function's state moves.
 */
import { Errno } from "../../shared/errors.js";
import { QUIESCE_DEADLINE_MS } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  Irq,
  IrqInfo,
  MigData,
  NUM_PCI_IRQS,
  RegionAccess,
  RegionInfo,
  RegionIoFds,
  WriteMulti,
} from "../../shared/spec/vfio-user.js";
import type { DeviceSummary, DirtyRequest, PendingCommand } from "../../shared/vfio-user/backend.js";
import type { WordAccesses } from "../../shared/vfio-user/device-access.js";
import { isWrite } from "../../shared/vfio-user/register-memory.js";
import type { Device } from "../device.js";
import type { DmaMapping, Endpoint, IrqChange, Link } from "../link/link.js";
import { ConfigSpace } from "../pci/config-space.js";
import { MsixTable, msixLayout } from "../pci/msix.js";
import { RegisterMirror } from "../pci/register-mirror.js";
import { checkDeclaration } from "./declaration.js";
import { DeviceCallbacks, type Job } from "./device-callbacks.js";
import { WindowDma } from "./dma.js";
import { DeviceFeatures } from "./features.js";
import { InfoReplies } from "./info-replies.js";
import { InterruptController } from "./interrupts.js";
import { FunctionLanes } from "./lane-mirror.js";
import { FunctionMigration, type FunctionParts } from "./migration.js";
import { accessFlags, RegionAccesses, type RunState } from "./region-access.js";
import { Regions } from "./regions.js";
import { Sharing } from "./sharing.js";

/** Fixed part of each command's body; a shorter one is refused whatever the link checked. */
const FIXED_SIZE: Readonly<Record<number, number>> = {
  [Command.DEVICE_GET_INFO]: DeviceInfo.size,
  [Command.DEVICE_GET_REGION_INFO]: RegionInfo.size,
  [Command.DEVICE_GET_REGION_IO_FDS]: RegionIoFds.size,
  [Command.DEVICE_GET_IRQ_INFO]: IrqInfo.size,
  [Command.REGION_READ]: RegionAccess.size,
  [Command.REGION_WRITE]: RegionAccess.size,
  [Command.REGION_WRITE_MULTI]: WriteMulti.size,
  [Command.DEVICE_FEATURE]: DeviceFeature.size,
  [Command.MIG_DATA_READ]: MigData.size,
  [Command.MIG_DATA_WRITE]: MigData.size,
};

export class DeviceEndpoint implements Endpoint {
  readonly summary: DeviceSummary;
  readonly dma: WindowDma;
  readonly interrupts: InterruptController;
  readonly #device: Device;
  readonly #log: Log;
  readonly #config: ConfigSpace;
  readonly #msix: MsixTable | undefined;
  readonly #regions: Regions;
  readonly callbacks: DeviceCallbacks;
  readonly #sharing: Sharing;
  readonly #mirror: RegisterMirror;
  readonly #link: Link;
  readonly #lanes: FunctionLanes;
  readonly #features: DeviceFeatures;
  /** Undefined for a device that cannot be migrated. */
  readonly #migration: FunctionMigration | undefined;
  /** Set by a config write that asks for a function-level reset. */
  #resetRequested = false;
  /** While the device has not finished a reset it is cut off: DMA fails, interrupts go nowhere, its BARs are dead. */
  readonly #state: RunState = { isStopped: false, resets: 0 };
  /** Whether the function was a bus master at the last write. */
  #wasMaster = false;
  /** The end of what runs one behind the other: resets, and what DEVICE_FEATURE does. */
  #tail: Promise<void> = Promise.resolve();

  /** A client is there, or was and its memory is not released. */
  isServing = false;
  #wasServed = () => {};
  /** Resolves when the first client has gone. */
  readonly served = new Promise<void>((resolve) => {
    this.#wasServed = resolve;
  });

  readonly #info: InfoReplies;
  readonly #accesses: RegionAccesses;
  /** @throws DeclarationError or RangeError when the device is none, or contradicts itself: an author's bug */
  constructor(device: Device, link: Link, log: Log, quiesceDeadlineMs = QUIESCE_DEADLINE_MS, dmaAnswerMs?: number) {
    checkDeclaration(device);
    this.#device = device;
    this.#link = link;
    this.#log = log;
    this.callbacks = new DeviceCallbacks(device, quiesceDeadlineMs, log, dmaAnswerMs);
    const requestReset = () => {
      this.#resetRequested = true;
    };
    this.#config = new ConfigSpace(device.identity, requestReset, {
      msiPending: () => this.interrupts.msiPending(),
      changed: () => this.interrupts.gateChanged(),
    });
    const layout = msixLayout(device.identity);
    const irqCounts = Array.from({ length: NUM_PCI_IRQS }, () => 0);
    irqCounts[Irq.INTX] = this.#config.intxPins;
    irqCounts[Irq.MSI] = this.#config.msiVectors;
    irqCounts[Irq.MSIX] = this.#config.msixVectors;
    irqCounts[Irq.ERR] = 1;
    irqCounts[Irq.REQ] = 1;
    this.#lanes = new FunctionLanes(link, irqCounts);
    this.interrupts = new InterruptController(irqCounts, link, this.#config, this.#lanes.vectors);
    this.#msix = layout && new MsixTable(layout, (vector) => this.interrupts.pending(vector));
    this.#sharing = new Sharing(device, layout, log);
    this.#regions = new Regions(device, this.#config, this.#msix, this.#sharing);
    this.#mirror = new RegisterMirror(this.#regions.mirrored);
    this.summary = { regionSizes: this.#regions.sizes, postedRegions: this.#config.memoryBars, irqCounts };
    const mayMaster = () => this.#config.busMaster && !this.#state.isStopped && this.#state.resets === 0;
    this.dma = new WindowDma(link, mayMaster, this.#lanes.memory);
    this.#migration = device.migration && new FunctionMigration(this.#migrationParts(), device.migration);
    const regionFlags = accessFlags(this.#regions.sizes, device.regions);
    this.#info = new InfoReplies(this.summary, regionFlags, device.regions ?? [], this.#sharing);
    this.#accesses = new RegionAccesses(this.#regions, regionFlags, this.#state, log);
    this.#features = new DeviceFeatures({
      dma: this.dma,
      migration: this.#migration,
      exclusive: (work) => this.#exclusive(work),
      quiesce: () => this.callbacks.inTime("quiesce", this.#quiesce(), () => this.dma.clientIsSilent()),
      log,
    });
  }

  /** Starts the device; call it once, before the link is opened. */
  async start(): Promise<void> {
    await this.#sharing.open(this.#link);
    const memory = await this.#link.shareRegisters(this.#mirror.size, this.#mirror.areas);
    if (memory !== undefined) this.#mirror.open(memory);
    const { dma, interrupts } = this;
    const run = (job: Job) => {
      if (this.#state.resets === 0) this.callbacks.run(job);
    };
    const shared = (bar: number, index = 0) => this.#sharing.shared(bar, index);
    await this.#device.start?.({ dma, interrupts, log: this.#log, run, shared, lanes: this.#lanes.access(interrupts) });
  }

  /** Ends all DMA and releases what the device holds; the link must be closed already. Never rejects. */
  async close(): Promise<void> {
    // What is late was logged, and the process ends.
    await this.disconnected().catch(() => {});
    await this.callbacks.wait("close", this.callbacks.close()).catch(() => {});
  }

  /** A device that has not released the client before gets no other. */
  async connected(maxDataXferSize: number, maxMessageFds: number): Promise<void> {
    await this.callbacks.lateWork();
    this.isServing = true;
    this.dma.maxMessageData = maxDataXferSize;
    this.#sharing.maxDescriptors = maxMessageFds;
    this.#features.maxDataXferSize = maxDataXferSize;
  }

  async disconnected(): Promise<void> {
    this.dma.unmapAll();
    this.#features.disconnected();
    this.interrupts.reset();
    await this.#reset();
    if (!this.isServing) return;
    this.#log.info(this.statistics(), "served so far");
    this.isServing = false;
    this.#wasServed();
  }

  get words(): WordAccesses {
    return this.#accesses;
  }

  map(mapping: DmaMapping): void {
    this.dma.map(mapping);
  }

  unmap(address: number, size: number, dirty?: DirtyRequest): Promise<void> | undefined {
    const log = dirty && this.#features.logOf(address, size, dirty);
    if (!this.dma.unmap(address, size) && dirty === undefined) return undefined;
    // Also of a device that is late: whatever it may still have written to is in the log.
    const report = () => {
      this.dma.collectWritten();
      if (dirty !== undefined) log?.report(address, size, dirty.pageSize, dirty.bitmap, "all");
    };
    const quiesced = this.#quiesce(address, size);
    const isFutile = () => {
      if (!this.dma.clientIsSilent()) return false;
      this.dma.abandonMessages(address, size);
      return true;
    };
    if (typeof quiesced !== "boolean") return this.callbacks.wait("quiesce", quiesced, isFutile).finally(report);
    report();
    return undefined;
  }

  setIrqs(change: IrqChange): void {
    this.interrupts.change(change);
  }

  handle(command: PendingCommand): void {
    const counts = isWrite(command.command);
    const errno = command.length < (FIXED_SIZE[command.command] ?? 0) ? Errno.EINVAL : this.#dispatch(command);
    if (errno !== 0) command.fail(errno);
    if (counts) this.#mirror.writeDone();
  }

  /** Each handler replies, at once or later, and returns 0; or returns the errno of the refusal. */
  #dispatch(command: PendingCommand): number {
    switch (command.command) {
      case Command.REGION_READ:
        return this.#accesses.read(command);
      case Command.REGION_WRITE:
        return this.#accesses.write(command) || this.#replyToWrite(command, RegionAccess.size);
      case Command.REGION_WRITE_MULTI:
        return this.#accesses.writeMulti(command) || this.#replyToWrite(command, WriteMulti.size);
      case Command.DEVICE_GET_INFO:
        return this.#info.getInfo(command);
      case Command.DEVICE_GET_REGION_INFO:
        return this.#info.getRegionInfo(command);
      case Command.DEVICE_GET_REGION_IO_FDS:
        return this.#info.getRegionIoFds(command);
      case Command.DEVICE_GET_IRQ_INFO:
        return this.#info.getIrqInfo(command);
      case Command.DEVICE_RESET:
        return this.#replyAfterReset(command, 0);
      case Command.DEVICE_FEATURE:
        return this.#features.feature(command);
      case Command.MIG_DATA_READ:
        return this.#features.migDataRead(command);
      case Command.MIG_DATA_WRITE:
        return this.#features.migDataWrite(command);
      default:
        return Errno.ENOTSUP;
    }
  }

  /** The whole function's state as plain data, for diagnostics. */
  inspect(): unknown {
    return {
      config: this.#config.registers.inspect(),
      dma: this.dma.inspect(),
      interrupts: this.interrupts.inspect(),
      jobs: this.callbacks.inspectJobs(),
      registers: this.#regions.inspect(),
      migration: this.#migration?.inspect(),
      device: this.#device.inspect?.(),
    };
  }

  /** What the device did so far, for the log. Sizes in bytes. */
  statistics(): Readonly<Record<string, number>> {
    const { dma, interrupts } = this;
    return {
      readThroughWindow: dma.bytesRead,
      writtenThroughWindow: dma.bytesWritten,
      movedByCopy: dma.bytesByCopy,
      movedByMessage: dma.bytesByMessage,
      interrupts: interrupts.count,
      doorbellsRung: interrupts.link.doorbellsRung,
    };
  }

  /**
   * A config write may have asked for a function-level reset, or have cleared the bus master bit: then the reply waits
   * for the reset, or for the DMA in flight.
   */
  #replyToWrite(command: PendingCommand, length: number): 0 {
    const wasMaster = this.#wasMaster;
    this.#wasMaster = this.#config.busMaster;
    this.dma.gateChanged();
    if (this.#resetRequested) this.#replyAfterReset(command, length);
    else if (wasMaster && !this.#wasMaster) void this.#replyAfterDma(command, length);
    else command.reply(length);
    return 0;
  }

  #replyAfterReset(command: PendingCommand, length: number): 0 {
    // For the driver VM the function is reset, also where the device is late.
    const reply = () => command.reply(length);
    this.#reset().then(reply, reply);
    return 0;
  }

  async #replyAfterDma(command: PendingCommand, length: number): Promise<void> {
    await this.callbacks.inTime("quiesce", this.#quiesce(), this.#cutOff);
    command.reply(length);
  }

  /** The device is to do no DMA any more: what the client has not answered by now is given up. */
  readonly #cutOff = (): boolean => {
    if (this.dma.clientIsSilent()) this.dma.abandonMessages();
    return false;
  };

  /**
   * Waits for the device's DMA that is in flight, and for its transfers to and from a range; at once where there is
   * none.
   */
  #quiesce(address?: number, size?: number): boolean | Promise<boolean> {
    const quiesced = this.callbacks.quiesce();
    return this.dma.isIdle(address, size) ? quiesced : this.#quiesceDma(quiesced, address, size);
  }

  async #quiesceDma(quiesced: boolean | Promise<boolean>, address?: number, size?: number): Promise<boolean> {
    await this.dma.settled(address, size);
    return quiesced;
  }

  /**
   * The function's reset. The device is cut off at once, and stays so until it has done its part.
   * @throws DeadlineExceeded when that takes too long: all else is reset then, and nothing of the device gets out
   */
  async #reset(): Promise<void> {
    this.#resetRequested = false;
    this.#state.resets++;
    this.dma.gateChanged();
    this.callbacks.abortJobs();
    this.interrupts.mute();
    this.#sharing.hold();
    let isLate = false;
    const finished = this.#exclusive(async () => {
      await this.callbacks.reset();
      this.#regions.resetRegisters();
      await this.dma.settled();
      // What the driver VM has set up since it was answered that the function is reset stays.
      if (!isLate) this.#resetFunction();
      this.#sharing.forgetWaiting();
      this.#migration?.reset();
      if (--this.#state.resets === 0) {
        this.dma.gateChanged();
        this.interrupts.unmute();
        this.#sharing.release();
        this.#mirror.release();
      } else {
        this.#sharing.hold();
        this.#mirror.hold();
      }
      await this.callbacks.resume();
    });
    try {
      await this.callbacks.wait("reset", finished, this.#cutOff);
    } catch (error) {
      isLate = true;
      this.#resetFunction();
      // Reads of the device's registers have to come here, to be answered as of a dead device.
      this.#mirror.hold();
      throw error;
    }
  }

  /** What is the framework's, and so never late. */
  #resetFunction(): void {
    this.#config.reset();
    this.dma.gateChanged();
    this.#msix?.reset();
    this.interrupts.forgetPending();
    this.#link.functionReset?.();
  }

  async #pause(): Promise<boolean> {
    const isPaused = await this.callbacks.pause();
    await this.dma.settled();
    return isPaused;
  }

  #exclusive(work: () => Promise<void>): Promise<void> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {});
    return done;
  }

  #migrationParts(): FunctionParts {
    return {
      config: this.#config,
      msix: this.#msix,
      regions: this.#regions,
      sharing: this.#sharing,
      interrupts: this.interrupts,
      mirror: this.#mirror,
      state: this.#state,
      log: this.#log,
      stateChanged: () => this.dma.gateChanged(),
      pause: () => this.callbacks.inTime("pause", this.#pause(), () => this.dma.clientIsSilent()),
      resume: () => this.callbacks.inTime("resume", this.callbacks.resume()),
      jobsWait: () => this.callbacks.heldJobs > 0,
    };
  }
}
