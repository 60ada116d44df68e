/**
 * The device's end of the link: answers the vfio-user commands that are about the device (specification: "VFIO-user
 * Commands"), and holds what every PCI function has: config space, MSI-X, interrupts, the table of DMA maps.
 * Nothing is allocated for a region access.
 */
import { inBounds } from "../shared/bits.js";
import { Errno } from "../shared/errors.js";
import { QUIESCE_DEADLINE_MS } from "../shared/limits.js";
import type { Log } from "../shared/log.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  DeviceInfoFlags,
  IoEventFd,
  Irq,
  IrqInfo,
  IrqInfoFlags,
  MigData,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  WRITE_MULTI_MAX_DATA,
  WriteMulti,
  WriteMultiEntry,
} from "../shared/spec/vfio-user.js";
import type { DeviceSummary, DirtyRequest, PendingCommand } from "../shared/vfio-user/backend.js";
import type { Device } from "./device.js";
import { WindowDma } from "./dma.js";
import { DeviceFeatures } from "./features.js";
import { InterruptController } from "./interrupts.js";
import { Jobs } from "./jobs.js";
import type { DmaMapping, Endpoint, IrqChange, Link } from "./link/link.js";
import { FunctionMigration, type FunctionParts } from "./migration.js";
import { Patience } from "./patience.js";
import { type ConfigSpace, createConfigSpace } from "./pci/config-space.js";
import { MsixTable, msixLayout } from "./pci/msix.js";
import { Regions } from "./pci/regions.js";
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
  readonly #jobs: Jobs;
  readonly #patience: Patience;
  readonly #sharing: Sharing;
  readonly #link: Link;
  readonly #features: DeviceFeatures;
  /** Undefined for a device that cannot be migrated. */
  readonly #migration: FunctionMigration | undefined;
  /** Set by a config write that asks for a function-level reset. */
  #resetRequested = false;
  /** The end of what runs one behind the other: resets, and what DEVICE_FEATURE does. */
  #tail: Promise<void> = Promise.resolve();
  #paused = false;

  readonly #deviceInfo = DeviceInfo.view();
  readonly #regionInfo = RegionInfo.view();
  readonly #irqInfo = IrqInfo.view();
  readonly #ioFds = RegionIoFds.view();
  readonly #access = RegionAccess.view();
  readonly #multi = WriteMulti.view();
  readonly #multiEntry = WriteMultiEntry.view();

  /** @throws RangeError when the device's identity contradicts itself: an author's bug */
  constructor(device: Device, link: Link, log: Log, quiesceDeadlineMs = QUIESCE_DEADLINE_MS) {
    this.#device = device;
    this.#link = link;
    this.#log = log;
    this.#jobs = new Jobs(log);
    this.#patience = new Patience(quiesceDeadlineMs, log);
    const requestReset = () => {
      this.#resetRequested = true;
    };
    this.#config = createConfigSpace(device.identity, requestReset, {
      intxPending: () => this.interrupts.intxPending,
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
    const regionSizes = Array.from({ length: NUM_PCI_REGIONS }, (_, index) => this.#config.barSizes[index] ?? 0);
    regionSizes[Region.ROM] = this.#config.rom.length;
    regionSizes[Region.CONFIG] = this.#config.size;
    this.summary = { regionSizes, postedRegions: this.#config.memoryBars, irqCounts };
    this.interrupts = new InterruptController(irqCounts, link, this.#config);
    this.#msix = layout && new MsixTable(layout, (vector) => this.interrupts.pending(vector));
    this.#sharing = new Sharing(device, layout, log);
    this.#regions = new Regions(device, this.#config, this.#msix, this.#sharing);
    this.dma = new WindowDma(link, () => this.#config.busMaster && !this.#stopped);
    this.#migration = device.migration && new FunctionMigration(this.#migrationParts(), device.migration);
    this.#features = new DeviceFeatures({
      dma: this.dma,
      migration: this.#migration,
      exclusive: (work) => this.#exclusive(work),
      quiesce: () => this.#inTime("quiesce", this.#quiesce()),
      log,
    });
  }

  /** Starts the device; call it once, before the link is opened. */
  async start(): Promise<void> {
    await this.#sharing.open(this.#link);
    const { dma, interrupts } = this;
    const run = (job: () => void | Promise<void>) => this.#jobs.run(job);
    const shared = (bar: number, index = 0) => this.#sharing.shared(bar, index);
    await this.#device.start?.({ dma, interrupts, log: this.#log, run, shared });
  }

  /** Ends all DMA and releases what the device holds; the link must be closed already. Never rejects. */
  async close(): Promise<void> {
    // What is overdue was logged, and the process ends.
    await this.disconnected().catch(() => {});
    await this.#patience
      .wait(
        "close",
        this.#settle("close", () => this.#device.close?.()),
      )
      .catch(() => {});
  }

  /** A device that has not let go of the client before gets no other. */
  async connected(maxDataXferSize: number, maxMessageFds: number): Promise<void> {
    await this.#patience.idle();
    this.dma.maxMessageData = maxDataXferSize;
    this.#sharing.maxDescriptors = maxMessageFds;
    this.#features.maxDataXferSize = maxDataXferSize;
  }

  async disconnected(): Promise<void> {
    this.dma.unmapAll();
    this.#features.disconnected();
    this.interrupts.reset();
    await this.#patience.wait("reset", this.#reset());
    this.#log.info(this.statistics(), "served so far");
  }

  map(mapping: DmaMapping): void {
    this.dma.map(mapping);
  }

  async unmap(address: number, size: number, dirty?: DirtyRequest): Promise<void> {
    const log = dirty && this.#features.logOf(address, size, dirty);
    this.dma.unmap(address, size);
    try {
      await this.#patience.wait("quiesce", this.#quiesce());
    } finally {
      // Also of a device that is late: whatever it may still have written to is in the log.
      if (dirty) log?.report(address, size, dirty.pageSize, dirty.bitmap, "all");
    }
  }

  /**
   * Resolves when the device does nothing by itself any more: no DMA, no interrupt, no change of its state. False when the device
   * failed; never rejects.
   */
  async pause(): Promise<boolean> {
    this.#paused = true;
    const device = this.#device;
    const stop = () => (device.pause === undefined ? device.quiesce?.() : device.pause());
    const [, isPaused] = await Promise.all([this.#jobs.pause(), this.#settle("pause", stop)]);
    return isPaused;
  }

  /** A reset ends a pause as well. False when the device failed. */
  async resume(): Promise<boolean> {
    if (!this.#paused) return true;
    this.#paused = false;
    const isResumed = await this.#settle("resume", () => this.#device.resume?.());
    this.#jobs.resume();
    return isResumed;
  }

  setIrqs(change: IrqChange): void {
    this.interrupts.change(change);
  }

  handle(command: PendingCommand): void {
    const errno = command.length < (FIXED_SIZE[command.command] ?? 0) ? Errno.EINVAL : this.#dispatch(command);
    if (errno !== 0) command.fail(errno);
  }

  /** Each handler replies, at once or later, and returns 0; or returns the errno of the refusal. */
  #dispatch(command: PendingCommand): number {
    switch (command.command) {
      case Command.REGION_READ:
        return this.#regionRead(command);
      case Command.REGION_WRITE:
        return this.#regionWrite(command);
      case Command.REGION_WRITE_MULTI:
        return this.#regionWriteMulti(command);
      case Command.DEVICE_GET_INFO:
        return this.#getInfo(command);
      case Command.DEVICE_GET_REGION_INFO:
        return this.#getRegionInfo(command);
      case Command.DEVICE_GET_REGION_IO_FDS:
        return this.#getRegionIoFds(command);
      case Command.DEVICE_GET_IRQ_INFO:
        return this.#getIrqInfo(command);
      case Command.DEVICE_RESET:
        return this.#replyAfter(this.#patience.wait("reset", this.#reset()), command, 0);
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

  /** The whole function's state as plain data, for people. */
  inspect(): unknown {
    return {
      config: this.#config.inspect(),
      dma: this.dma.inspect(),
      interrupts: this.interrupts.inspect(),
      jobs: this.#jobs.inspect(),
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
      movedByMessage: dma.bytesByMessage,
      interrupts: interrupts.count,
      doorbellsRung: interrupts.link.doorbellsRung,
    };
  }

  #getInfo(command: PendingCommand): number {
    const request = this.#deviceInfo.at(command.data, command.offset);
    if (request.argsz < DeviceInfo.size) return Errno.EINVAL;
    command.reserve(DeviceInfo.size);
    const reply = this.#deviceInfo.at(command.replyData, command.replyOffset);
    reply.argsz = DeviceInfo.size;
    reply.flags = DeviceInfoFlags.RESET | DeviceInfoFlags.PCI;
    reply.numRegions = NUM_PCI_REGIONS;
    reply.numIrqs = NUM_PCI_IRQS;
    command.reply(DeviceInfo.size);
    return 0;
  }

  #getRegionInfo(command: PendingCommand): number {
    const { argsz, index } = this.#regionInfo.at(command.data, command.offset);
    if (argsz < RegionInfo.size || index >= NUM_PCI_REGIONS) return Errno.EINVAL;
    const memory = this.#sharing.memoryDescriptor(index);
    const capability = memory >= 0 ? this.#sharing.capabilitySize(index) : 0;
    const needed = RegionInfo.size + capability;
    // The descriptor goes with the capability: a client that has no room for it yet asks again.
    const mappable = memory >= 0 && argsz >= needed;
    const length = mappable ? needed : RegionInfo.size;
    command.reserve(length);
    const reply = this.#regionInfo.at(command.replyData, command.replyOffset);
    const size = this.summary.regionSizes[index];
    const writable = index === Region.ROM ? 0 : RegionInfoFlags.WRITE;
    const hasCapability = mappable && capability > 0;
    reply.argsz = needed;
    reply.flags =
      (size > 0 ? RegionInfoFlags.READ | writable : 0) |
      (mappable ? RegionInfoFlags.MMAP : 0) |
      (hasCapability ? RegionInfoFlags.CAPS : 0);
    reply.index = index;
    reply.capOffset = hasCapability ? RegionInfo.size : 0;
    reply.size = size;
    reply.offset = 0;
    if (hasCapability) this.#sharing.putCapability(index, command.replyData, command.replyOffset);
    command.reply(length, mappable ? [memory] : undefined);
    return 0;
  }

  #getRegionIoFds(command: PendingCommand): number {
    const { argsz, flags, index, count } = this.#ioFds.at(command.data, command.offset);
    if (argsz < RegionIoFds.size || flags !== 0 || count !== 0) return Errno.EINVAL;
    // A region that is not there; for any index.
    if (!(this.summary.regionSizes[index] > 0)) return Errno.EINVAL;
    const { descriptors, entries } = this.#sharing.ioFds(index);
    const needed = RegionIoFds.size + entries.length * IoEventFd.size;
    const fits = argsz >= needed && entries.length > 0;
    const length = fits ? needed : RegionIoFds.size;
    command.reserve(length);
    const reply = this.#ioFds.at(command.replyData, command.replyOffset);
    reply.argsz = needed;
    reply.flags = 0;
    reply.index = index;
    reply.count = entries.length;
    if (fits) {
      for (const [n, entry] of entries.entries()) {
        command.replyBytes.set(entry, command.replyOffset + RegionIoFds.size + n * IoEventFd.size);
      }
    }
    command.reply(length, fits ? descriptors : undefined);
    return 0;
  }

  #getIrqInfo(command: PendingCommand): number {
    const request = this.#irqInfo.at(command.data, command.offset);
    const index = request.index;
    if (request.argsz < IrqInfo.size || index >= NUM_PCI_IRQS) return Errno.EINVAL;
    command.reserve(IrqInfo.size);
    const reply = this.#irqInfo.at(command.replyData, command.replyOffset);
    reply.argsz = IrqInfo.size;
    reply.flags = irqFlags(index, this.summary.irqCounts[index]);
    reply.index = index;
    reply.count = this.summary.irqCounts[index];
    command.reply(IrqInfo.size);
    return 0;
  }

  #regionRead(command: PendingCommand): number {
    const request = this.#access.at(command.data, command.offset);
    const { offset, region, count } = request;
    if (!this.#mayAccess(region, offset, count)) return Errno.EINVAL;
    const length = RegionAccess.size + count;
    command.reserve(length);
    const reply = this.#access.at(command.replyData, command.replyOffset);
    reply.offset = offset;
    reply.region = region;
    reply.count = count;
    const start = command.replyOffset + RegionAccess.size;
    try {
      this.#regions.read(region, offset, count, command.replyData, start);
    } catch (error) {
      this.#log.error({ err: error, region, offset, count }, "the device threw in a register read");
      command.replyBytes.fill(0xff, start, start + count);
    }
    command.reply(length);
    return 0;
  }

  #regionWrite(command: PendingCommand): number {
    const request = this.#access.at(command.data, command.offset);
    const { offset, region, count } = request;
    const start = command.offset + RegionAccess.size;
    if (!inBounds(RegionAccess.size, count, command.length)) return Errno.EINVAL;
    if (!this.#mayAccess(region, offset, count)) return Errno.EINVAL;
    if (!this.#tryWrite(region, offset, count, command.data, start)) return Errno.EIO;
    command.reserve(RegionAccess.size);
    const reply = this.#access.at(command.replyData, command.replyOffset);
    reply.offset = offset;
    reply.region = region;
    reply.count = count;
    return this.#replyToWrite(command, RegionAccess.size);
  }

  #regionWriteMulti(command: PendingCommand): number {
    const writes = this.#multi.at(command.data, command.offset).writes;
    // Division instead of multiplication: the count is the peer's, and may be anything up to 2^64.
    if (writes > (command.length - WriteMulti.size) / WriteMultiEntry.size) return Errno.EINVAL;
    const first = command.offset + WriteMulti.size;
    const end = first + writes * WriteMultiEntry.size;
    // All are checked before the first is done, so that a refused command changed nothing.
    for (let at = first; at < end; at += WriteMultiEntry.size) {
      const { offset, region, count } = this.#multiEntry.at(command.data, at);
      if (count > WRITE_MULTI_MAX_DATA || !this.#mayAccess(region, offset, count)) return Errno.EINVAL;
    }
    for (let at = first; at < end; at += WriteMultiEntry.size) {
      const { offset, region, count } = this.#multiEntry.at(command.data, at);
      const data = at + WriteMultiEntry.offsets.data;
      if (!this.#tryWrite(region, offset, count, command.data, data)) return Errno.EIO;
    }
    command.reserve(WriteMulti.size);
    this.#multi.at(command.replyData, command.replyOffset).writes = writes;
    return this.#replyToWrite(command, WriteMulti.size);
  }

  /** Whether an access lies within its region, and does not reach the device while that stands still. */
  #mayAccess(region: number, offset: number, count: number): boolean {
    if (!inBounds(offset, count, this.summary.regionSizes[region] ?? 0)) return false;
    return !this.#stopped || !this.#regions.reachesDevice(region, offset, count);
  }

  get #stopped(): boolean {
    return this.#migration?.stopped === true;
  }

  /** A config write may have asked for a function-level reset: then the reply waits for it. */
  #replyToWrite(command: PendingCommand, length: number): number {
    if (this.#resetRequested) return this.#replyAfter(this.#patience.wait("reset", this.#reset()), command, length);
    command.reply(length);
    return 0;
  }

  #replyAfter(work: Promise<void>, command: PendingCommand, length: number): number {
    work.then(
      () => command.reply(length),
      () => command.fail(Errno.ETIMEDOUT),
    );
    return 0;
  }

  /** False when the device threw, which was logged. */
  #tryWrite(region: number, offset: number, count: number, data: DataView, from: number): boolean {
    try {
      this.#regions.write(region, offset, count, data, from);
      return true;
    } catch (error) {
      this.#log.error({ err: error, region, offset, count }, "the device threw in a register write");
      return false;
    }
  }

  /** The function's reset: the device's work first, while what it still reads through DMA is there. */
  #reset(): Promise<void> {
    this.#resetRequested = false;
    return this.#exclusive(async () => {
      await this.#jobs.reset(async () => {
        this.#regions.resetRegisters();
        await this.#settle("reset", () => this.#device.reset?.());
      });
      this.#config.reset();
      this.#msix?.reset();
      this.interrupts.forgetPending();
      this.#sharing.forgetWaiting();
      this.#migration?.reset();
      await this.resume();
    });
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
      log: this.#log,
      pause: () => this.#inTime("pause", this.pause()),
      resume: () => this.#inTime("resume", this.resume()),
      jobsWait: () => this.#jobs.held > 0,
    };
  }

  /** Whether `work` came to a good end before its deadline. */
  async #inTime(what: string, work: Promise<boolean>): Promise<boolean> {
    try {
      await this.#patience.wait(what, work);
      return await work;
    } catch {
      return false;
    }
  }

  /** Waits for the DMA that is under way. False when the device failed. */
  async #quiesce(): Promise<boolean> {
    const quiesced = this.#settle("quiesce", () => this.#device.quiesce?.());
    const [, isQuiet] = await Promise.all([this.#jobs.settled(), quiesced]);
    return isQuiet;
  }

  /** Waits for one of the device's promises; a failure (false) is the device's bug, is logged, and goes no further. */
  async #settle(what: string, action: () => void | Promise<void>): Promise<boolean> {
    try {
      await action();
      return true;
    } catch (error) {
      this.#log.error({ err: error }, `the device's ${what} failed`);
      return false;
    }
  }
}

function irqFlags(index: number, count: number): number {
  if (count === 0) return 0;
  if (index === Irq.INTX) return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED;
  if (index === Irq.ERR || index === Irq.REQ) return IrqInfoFlags.EVENTFD;
  return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE;
}
