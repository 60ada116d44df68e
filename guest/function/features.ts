/**
 * DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE (vfio-user, "VFIO_USER_DEVICE_FEATURE" and behind it), with the
 * answers that Linux gives to the same mistakes: ENOTTY for a feature that is not there, EINVAL for a method that it
 * does not have. Every function logs DMA; migration has only one whose device says how.
 */
import { exactSpans, formatAddress, wraps } from "../../shared/address.js";
import { isAligned, isPowerOfTwo } from "../../shared/bits.js";
import { Errno, ProtocolError } from "../../shared/errors.js";
import { MAX_DATA_XFER_SIZE, MAX_DIRTY_BITMAP_SIZE, MAX_DMA_LOGGING_RANGES } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import {
  DeviceFeature,
  DeviceFeatureFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  Feature,
  FeatureMigDeviceState,
  FeatureMigration,
  MigData,
  MigrationFlags,
} from "../../shared/spec/vfio-user.js";
import type { DirtyRequest, PendingCommand } from "../../shared/vfio-user/backend.js";
import { bitmapSize } from "../../shared/vfio-user/dma/dma-ranges.js";
import { DirtyLog, type LoggedRange, loggedPageSize } from "./dirty-log.js";
import type { WindowDma } from "./dma.js";
import type { FunctionMigration } from "./migration.js";

const { FEATURE_MASK, GET, SET, PROBE } = DeviceFeatureFlags;

/** By feature, its methods. */
const MIGRATION_METHODS: Readonly<Record<number, number>> = {
  [Feature.MIGRATION]: GET,
  [Feature.MIG_DEVICE_STATE]: GET | SET,
};
const LOGGING_METHODS: Readonly<Record<number, number>> = {
  [Feature.DMA_LOGGING_START]: SET,
  [Feature.DMA_LOGGING_STOP]: SET,
  [Feature.DMA_LOGGING_REPORT]: GET,
};

interface FeatureParts {
  readonly dma: WindowDma;
  /** Undefined for a device that cannot be migrated. */
  readonly migration: FunctionMigration | undefined;
  /** Runs `work` when all resets and earlier work are done. */
  exclusive(work: () => Promise<void>): Promise<void>;
  /** The device's quiesce. False when it failed. */
  quiesce(): Promise<boolean>;
  readonly log: Log;
}

function refuse(what: string, errno: number = Errno.EINVAL): never {
  throw new ProtocolError(what, errno);
}

export class DeviceFeatures {
  /** The client's, in bytes: of one MIG_DATA_READ or MIG_DATA_WRITE. */
  maxDataXferSize = 0;
  readonly #parts: FeatureParts;
  readonly #feature = DeviceFeature.view();
  readonly #state = FeatureMigDeviceState.view();
  readonly #control = DmaLoggingControl.view();
  readonly #range = DmaLoggingRange.view();
  readonly #report = DmaLoggingReport.view();
  readonly #migData = MigData.view();

  constructor(parts: FeatureParts) {
    this.#parts = parts;
  }

  /** DEVICE_FEATURE: replies, at once or later, and returns 0; or returns the errno of the refusal. */
  feature(command: PendingCommand): number {
    const { argsz, flags } = this.#feature.at(command.data, command.offset);
    const methods = flags & (GET | SET);
    const isProbe = (flags & PROBE) !== 0;
    if (argsz < DeviceFeature.size || (flags & ~(FEATURE_MASK | GET | SET | PROBE)) !== 0) return Errno.EINVAL;
    if (!isProbe && methods !== GET && methods !== SET) return Errno.EINVAL;
    const feature = flags & FEATURE_MASK;
    const known = (this.#parts.migration && MIGRATION_METHODS[feature]) ?? LOGGING_METHODS[feature];
    if (known === undefined) return Errno.ENOTTY;
    if ((methods & ~known) !== 0) return Errno.EINVAL;
    // A probe and a SET are answered with the request.
    if ((isProbe || methods === SET) && argsz < command.length) return Errno.EINVAL;
    if (isProbe) {
      this.#echo(command);
      return 0;
    }
    return this.#later(command, () => this.#run(feature, methods, command));
  }

  migDataRead(command: PendingCommand): number {
    return this.#later(command, async () => {
      const { argsz, size } = this.#migData.at(command.data, command.offset);
      this.#checkTransfer(argsz, size);
      const bytes = await this.#migration().read(size);
      const length = MigData.size + bytes.length;
      command.reserve(length);
      const reply = this.#migData.at(command.replyData, command.replyOffset);
      reply.argsz = length;
      reply.size = bytes.length;
      command.replyBytes.set(bytes, command.replyOffset + MigData.size);
      command.reply(length);
    });
  }

  migDataWrite(command: PendingCommand): number {
    return this.#later(command, async () => {
      const { argsz, size } = this.#migData.at(command.data, command.offset);
      this.#checkTransfer(argsz, size);
      if (command.length !== MigData.size + size) refuse(`${size} bytes in a body of ${command.length}`);
      const at = command.offset + MigData.size;
      this.#migration().write(command.bytes.subarray(at, at + size));
      command.reply(0);
    });
  }

  /**
   * The log that knows which pages of a map were written.
   * @throws ProtocolError EINVAL when DMA is not logged, or the bitmap is none of the range's
   */
  logOf(address: number, size: number, dirty: DirtyRequest): DirtyLog {
    const { dirtyLog } = this.#parts.dma;
    if (dirtyLog === undefined) refuse("DMA is not logged");
    if (bitmapSize(address, size, dirty.pageSize) !== dirty.bitmap.length) refuse("a bitmap of another size");
    return dirtyLog;
  }

  /** The client is gone, and its log with it. */
  disconnected(): void {
    this.#parts.dma.dirtyLog = undefined;
  }

  async #run(feature: number, methods: number, command: PendingCommand): Promise<void> {
    switch (feature) {
      case Feature.MIGRATION: {
        const at = this.#replyTo(command, FeatureMigration.size);
        FeatureMigration.view(command.replyData, at).flags = MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY;
        command.reply(DeviceFeature.size + FeatureMigration.size);
        return;
      }
      case Feature.MIG_DEVICE_STATE:
        if (methods === GET) this.#getState(command);
        else await this.#setState(command);
        return;
      case Feature.DMA_LOGGING_START:
        await this.#startLogging(command);
        return;
      case Feature.DMA_LOGGING_STOP:
        // Stopping what was not started is no error, as in Linux.
        this.#parts.dma.dirtyLog = undefined;
        this.#echo(command);
        return;
      case Feature.DMA_LOGGING_REPORT:
        await this.#reportWritten(command);
        return;
    }
  }

  #getState(command: PendingCommand): void {
    const at = this.#replyTo(command, FeatureMigDeviceState.size);
    const reply = this.#state.at(command.replyData, at);
    reply.deviceState = this.#migration().state;
    // There is no such fd in vfio-user: -1.
    reply.dataFd = 0xffffffff;
    command.reply(DeviceFeature.size + FeatureMigDeviceState.size);
  }

  async #setState(command: PendingCommand): Promise<void> {
    this.#needLength(command, FeatureMigDeviceState.size);
    const { deviceState } = this.#state.at(command.data, command.offset + DeviceFeature.size);
    await this.#migration().setState(deviceState);
    this.#echo(command);
  }

  async #startLogging(command: PendingCommand): Promise<void> {
    const { dma } = this.#parts;
    this.#needLength(command, DmaLoggingControl.size);
    const at = command.offset + DeviceFeature.size;
    const { pageSize, numRanges } = this.#control.at(command.data, at);
    if (dma.dirtyLog !== undefined) refuse("DMA is logged already");
    if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize)) refuse(`a page size of ${pageSize}`);
    if (numRanges > MAX_DMA_LOGGING_RANGES) refuse(`${numRanges} ranges to log`, Errno.E2BIG);
    this.#needLength(command, DmaLoggingControl.size + numRanges * DmaLoggingRange.size);
    const ranges = this.#ranges(command.data, at + DmaLoggingControl.size, numRanges, pageSize);
    const log = new DirtyLog(loggedPageSize(pageSize), ranges);
    dma.dirtyLog = log;
    // What the device was given to write to before now is not in the log: it is to be done with that first.
    if (!(await this.#parts.quiesce())) {
      dma.dirtyLog = undefined;
      refuse("the device did not quiesce", Errno.EIO);
    }
    this.#echo(command, (data, offset) => {
      this.#control.at(data, offset + DeviceFeature.size).pageSize = log.pageSize;
    });
  }

  /**
   * Of what is named, where maps can be. @throws ProtocolError EINVAL: empty, not on a page, overlapping; EOVERFLOW:
   * past 2^64
   */
  #ranges(data: DataView, offset: number, count: number, pageSize: number): LoggedRange[] {
    const ranges: LoggedRange[] = [];
    for (let n = 0; n < count; n++) {
      const { iova, length } = this.#range.at(data, offset + n * DmaLoggingRange.size);
      const range = `a range at ${formatAddress(iova)} of ${length}`;
      if (wraps(iova, length)) refuse(range, Errno.EOVERFLOW);
      if (length === 0 || !isAligned(iova, pageSize) || !isAligned(length, pageSize)) refuse(range);
      for (const { start, end } of exactSpans(iova, length)) ranges.push({ address: start, size: end - start });
    }
    ranges.sort((a, b) => a.address - b.address);
    for (let n = 1; n < ranges.length; n++) {
      if (ranges[n - 1].address + ranges[n - 1].size > ranges[n].address) refuse("ranges that overlap");
    }
    return ranges;
  }

  async #reportWritten(command: PendingCommand): Promise<void> {
    this.#needLength(command, DmaLoggingReport.size);
    const { dirtyLog } = this.#parts.dma;
    const { iova, length, pageSize } = this.#report.at(command.data, command.offset + DeviceFeature.size);
    if (dirtyLog === undefined) refuse("DMA is not logged");
    const size = bitmapSize(iova, length, pageSize);
    const range = `a report of ${length} bytes at ${formatAddress(iova)}`;
    if (size < 0) refuse(`${range} in pages of ${pageSize}`);
    if (!dirtyLog.covers(iova, length)) refuse(`${range}, which are not logged`);
    if (size > MAX_DIRTY_BITMAP_SIZE) refuse(`a bitmap of ${size} bytes`, Errno.E2BIG);
    const at = this.#replyTo(command, DmaLoggingReport.size + size);
    this.#parts.dma.collectWritten();
    dirtyLog.settle();
    const isQuiet = await this.#parts.quiesce();
    Object.assign(this.#report.at(command.replyData, at), { iova, length, pageSize });
    const start = at + DmaLoggingReport.size;
    const bitmap = command.replyBytes.subarray(start, start + size).fill(0);
    dirtyLog.report(iova, length, pageSize, bitmap, isQuiet ? "settled" : "nothing");
    command.reply(DeviceFeature.size + DmaLoggingReport.size + size);
  }

  /** Makes room for a GET's reply with `length` bytes of data; returns where they go. */
  #replyTo(command: PendingCommand, length: number): number {
    const { argsz, flags } = this.#feature.at(command.data, command.offset);
    const needed = DeviceFeature.size + length;
    if (argsz < needed) refuse(`argsz ${argsz}, needed are ${needed}`);
    command.reserve(needed);
    const reply = this.#feature.at(command.replyData, command.replyOffset);
    reply.argsz = needed;
    reply.flags = flags;
    return command.replyOffset + DeviceFeature.size;
  }

  /** Replies with the request's body, in which `change` may correct something. */
  #echo(command: PendingCommand, change?: (data: DataView, offset: number) => void): void {
    const { bytes, offset, length } = command;
    command.reserve(length);
    command.replyBytes.set(bytes.subarray(offset, offset + length), command.replyOffset);
    change?.(command.replyData, command.replyOffset);
    command.reply(length);
  }

  /** Runs `work`, which replies, when its turn comes. */
  #later(command: PendingCommand, work: () => Promise<void>): number {
    this.#parts.exclusive(work).catch((error) => {
      if (!(error instanceof ProtocolError)) this.#parts.log.error({ err: error }, "a feature failed");
      command.fail(error instanceof ProtocolError ? error.errno : Errno.EIO);
    });
    return 0;
  }

  #migration(): FunctionMigration {
    return this.#parts.migration ?? refuse("the device cannot be migrated");
  }

  #needLength(command: PendingCommand, length: number): void {
    if (command.length < DeviceFeature.size + length) refuse(`a body of ${command.length} bytes`);
  }

  #checkTransfer(argsz: number, size: number): void {
    if (size > this.maxDataXferSize || size > MAX_DATA_XFER_SIZE) refuse(`${size} bytes at once`);
    if (argsz < MigData.size + size) refuse(`argsz ${argsz} for ${size} bytes`);
  }
}
