/**
 * A device that has everything the checker looks at, done right: a region that can be mapped in part, one of its own,
 * four MSI-X vectors, I/O fds, migration and DMA logging. Its parts are data or small methods, so that a test can do
 * one of them wrong.
 */
import { close, createMemory, eventfd, eventfdWrite } from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DeviceInfo,
  DeviceInfoFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  Feature,
  FeatureMigDeviceState,
  FeatureMigration,
  IoEventFd,
  Irq,
  IrqInfo,
  IrqInfoFlags,
  IrqSetFlags,
  MigData,
  MigrationFlags,
  MigrationState,
  NUM_PCI_IRQS,
  Region,
  RegionAccess,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  RegionType,
  SparseMmap,
  SparseMmapArea,
  WriteMulti,
  WriteMultiEntry,
} from "../../../shared/spec/vfio-user.js";
import type {
  Backend,
  DeviceSummary,
  IrqSetRequest,
  PendingCommand,
  UnmapRequest,
} from "../../../shared/vfio-user/backend.js";
import { bitmapSize } from "../../../shared/vfio-user/dma/dma-ranges.js";

const PAGE = 4096;
const VECTORS = 4;
const STATE_BYTES = 1000;
/** The region that PCI does not know. */
export const OWN_REGION = 9;

/** A type 0 header with one 64-bit BAR, INTA, and MSI-X with its table in BAR 0. */
function configSpace(): DataView {
  const data = new DataView(new ArrayBuffer(256));
  data.setUint32(0x00, 0x0003_fff4, true);
  data.setUint16(0x06, 0x10, true);
  data.setUint32(0x10, 0x4, true);
  data.setUint8(0x34, 0x40);
  data.setUint8(0x3d, 1);
  // MSI-X: id, next, control, table, pending bits.
  data.setUint8(0x40, 0x11);
  data.setUint8(0x41, 0x50);
  data.setUint16(0x42, VECTORS - 1, true);
  data.setUint32(0x44, 0x0, true);
  data.setUint32(0x48, 0x800, true);
  // MSI, with the one vector that interrupt type 1 has.
  data.setUint8(0x50, 0x05);
  return data;
}

interface RegionFacts {
  size: number;
  flags: number;
  areas: { offset: number; size: number }[];
  type?: { type: number; subtype: number };
}

export interface Reply {
  readonly body: Uint8Array;
  readonly fds?: readonly number[];
}

const { READ, WRITE, MMAP, CAPS } = RegionInfoFlags;

export class FullDevice implements Backend {
  readonly config = configSpace();
  readonly regions: RegionFacts[] = Array.from({ length: 9 }, () => ({ size: 0, flags: 0, areas: [] }));
  readonly memory = createMemory("full-device", 4 * PAGE, false);
  readonly ioEventfd = eventfd(0);
  readonly irqCounts = [1, 1, VECTORS, 1, 0];
  /** What DEVICE_FEATURE's MIGRATION reports. */
  migrationFlags: number = MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY;
  state: number = MigrationState.RUNNING;
  /** Bytes of the state that were read since STOP_COPY, or have come since RESUMING. */
  protected moved = 0;
  /** DMA is logged: it writes the first page of everything, and no more. */
  logging = false;
  readonly #eventfds = new Map<number, number>();

  constructor() {
    const areas = [
      { offset: PAGE, size: PAGE },
      { offset: 3 * PAGE, size: PAGE },
    ];
    this.regions[Region.BAR0] = { size: 4 * PAGE, flags: READ | WRITE | MMAP | CAPS, areas };
    this.regions[Region.CONFIG] = { size: 256, flags: READ | WRITE, areas: [] };
    const type = { type: 0x8000_fff4, subtype: 1 };
    this.regions[OWN_REGION] = { size: 4 * PAGE, flags: READ | WRITE | MMAP | CAPS, areas, type };
  }

  get device(): DeviceSummary {
    return { regionSizes: this.regions.map(({ size }) => size), postedRegions: 0, irqCounts: this.irqCounts };
  }

  async connect(): Promise<void> {}

  async disconnect(): Promise<void> {
    for (const fd of this.#eventfds.values()) close(fd);
    this.#eventfds.clear();
    this.logging = false;
  }

  async map(): Promise<void> {}
  async unmap({ dirty }: UnmapRequest): Promise<void> {
    if (dirty && !this.logging) throw new ProtocolError("nothing is logged", Errno.EINVAL);
    if (dirty) dirty.bitmap[0] = 1;
  }

  /** Ends what the constructor began. */
  end(): void {
    close(this.memory);
    close(this.ioEventfd);
  }

  async setIrqs({ flags, index, start, count, bools, eventfds }: IrqSetRequest): Promise<void> {
    if (count === 0) this.disable(index);
    for (let each = 0; each < count; each++) {
      const key = index * 0x10000 + start + each;
      const bound = this.#eventfds.get(key);
      if (flags & IrqSetFlags.DATA_EVENTFD) {
        this.bind(key, eventfds?.[each] ?? -1);
      } else if (flags & IrqSetFlags.ACTION_TRIGGER && bound !== undefined && this.wanted(bools, each)) {
        eventfdWrite(bound);
      }
    }
  }

  protected wanted(bools: Uint8Array | undefined, index: number): boolean {
    return bools === undefined || bools[index] !== 0;
  }

  protected disable(index: number): void {
    for (const key of [...this.#eventfds.keys()]) if (Math.floor(key / 0x10000) === index) this.bind(key, -1);
  }

  protected bind(key: number, fd: number): void {
    const before = this.#eventfds.get(key);
    if (before !== undefined) close(before);
    if (fd === -1) this.#eventfds.delete(key);
    else this.#eventfds.set(key, fd);
  }

  handle(command: PendingCommand): void {
    try {
      const { body, fds } = this.answer(command);
      command.reserve(body.length);
      command.replyBytes.set(body, command.replyOffset);
      command.reply(body.length, fds);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      command.fail(error.errno);
    }
  }

  protected answer(command: PendingCommand): Reply {
    const { data, offset } = command;
    switch (command.command) {
      case Command.DEVICE_GET_INFO: {
        const flags = DeviceInfoFlags.PCI | DeviceInfoFlags.RESET;
        const info = { argsz: DeviceInfo.size, flags, numRegions: this.regions.length, numIrqs: NUM_PCI_IRQS };
        return { body: DeviceInfo.encode(info) };
      }
      case Command.DEVICE_GET_REGION_INFO:
        return this.regionInfo(command);
      case Command.DEVICE_GET_REGION_IO_FDS:
        return this.ioFds(command);
      case Command.DEVICE_GET_IRQ_INFO: {
        const { index } = IrqInfo.view(data, offset);
        const flags = IrqInfoFlags.EVENTFD | (index === Irq.INTX ? IrqInfoFlags.MASKABLE : 0);
        const count = this.irqCounts[index];
        return { body: IrqInfo.encode({ argsz: IrqInfo.size, flags, index, count }) };
      }
      case Command.REGION_READ:
        return this.readRegion(command);
      case Command.REGION_WRITE: {
        const access = RegionAccess.view(data, offset);
        this.writeRegion(access.region, access.offset, command.bytes, offset + RegionAccess.size, access.count);
        return { body: command.bytes.slice(offset, offset + RegionAccess.size) };
      }
      case Command.REGION_WRITE_MULTI: {
        const { writes } = WriteMulti.view(data, offset);
        for (let index = 0; index < writes; index++) {
          const at = offset + WriteMulti.size + index * WriteMultiEntry.size;
          const entry = WriteMultiEntry.view(data, at);
          this.writeRegion(entry.region, entry.offset, command.bytes, at + 16, entry.count);
        }
        return { body: WriteMulti.encode({ writes }) };
      }
      case Command.DEVICE_RESET:
        this.state = MigrationState.RUNNING;
        return { body: new Uint8Array(0) };
      case Command.DEVICE_FEATURE:
        return this.feature(command);
      case Command.MIG_DATA_READ:
        return this.readState(command);
      case Command.MIG_DATA_WRITE:
        return this.writeState(command);
      default:
        throw new ProtocolError("no such command", Errno.EINVAL);
    }
  }

  /** The region's capabilities, in the place where its info has them. */
  protected capabilities(index: number): Uint8Array {
    const { areas, type } = this.regions[index];
    const next = RegionInfo.size + RegionCapHeader.size + RegionType.size;
    return Buffer.concat([
      type ? RegionCapHeader.encode({ id: RegionCap.TYPE, version: 1, next }) : new Uint8Array(0),
      type ? RegionType.encode(type) : new Uint8Array(0),
      RegionCapHeader.encode({ id: RegionCap.SPARSE_MMAP, version: 1, next: 0 }),
      SparseMmap.encode({ areas: areas.length }),
      ...areas.map((area) => SparseMmapArea.encode(area)),
    ]);
  }

  protected regionInfo(command: PendingCommand): Reply {
    const { argsz, index } = RegionInfo.view(command.data, command.offset);
    const { size, flags } = this.regions[index];
    const capability = flags & CAPS ? this.capabilities(index) : new Uint8Array(0);
    const needed = RegionInfo.size + capability.length;
    const fits = argsz >= needed;
    const capOffset = fits && capability.length > 0 ? RegionInfo.size : 0;
    const info = RegionInfo.encode({ argsz: needed, flags, index, size, capOffset });
    const fds = flags & MMAP && fits ? [this.memory] : [];
    return { body: fits ? Buffer.concat([info, capability]) : info, fds };
  }

  protected ioFds(command: PendingCommand): Reply {
    const { index } = RegionIoFds.view(command.data, command.offset);
    if (index !== Region.BAR0) throw new ProtocolError("none", Errno.EINVAL);
    const argsz = RegionIoFds.size + IoEventFd.size;
    const sub = IoEventFd.encode({ gpaOffset: 0x10, size: 4, fdIndex: 0 });
    return { body: Buffer.concat([RegionIoFds.encode({ argsz, index, count: 1 }), sub]), fds: [this.ioEventfd] };
  }

  protected readRegion(command: PendingCommand): Reply {
    const { region, offset, count } = RegionAccess.view(command.data, command.offset);
    const bytes = new Uint8Array(count);
    if (region === Region.CONFIG) bytes.set(new Uint8Array(this.config.buffer, offset, count));
    return { body: Buffer.concat([RegionAccess.encode({ offset, region, count }), bytes]) };
  }

  /** What BAR 0 in configuration space says. */
  protected get barSize(): number {
    return this.regions[0].size;
  }

  /** What can be written: BAR 0 (its low 14 bits are those of its size) and the interrupt line. */
  protected writeRegion(region: number, offset: number, bytes: Uint8Array, from: number, count: number): void {
    if (region !== Region.CONFIG) return;
    for (let index = 0; index < count; index++) {
      const at = offset + index;
      const value = bytes[from + index];
      if (at === 0x3c) this.config.setUint8(at, value);
      if (at < 0x10 || at > 0x13) continue;
      const writable = (~(this.barSize - 1) >>> (8 * (at - 0x10))) & 0xff;
      this.config.setUint8(at, (value & writable) | (at === 0x10 ? 4 : 0));
    }
  }

  protected feature(command: PendingCommand): Reply {
    const { bytes, data, offset, length } = command;
    const { flags } = DeviceFeature.view(data, offset);
    const feature = flags & DeviceFeatureFlags.FEATURE_MASK;
    const { GET, SET, PROBE } = DeviceFeatureFlags;
    const known: Readonly<Record<number, number>> = {
      [Feature.MIGRATION]: GET,
      [Feature.MIG_DEVICE_STATE]: GET | SET,
      [Feature.DMA_LOGGING_START]: SET,
      [Feature.DMA_LOGGING_STOP]: SET,
      [Feature.DMA_LOGGING_REPORT]: GET,
    };
    const methods = flags & (GET | SET);
    if ((methods & ~(known[feature] ?? 0)) !== 0 || methods === 0 || (flags & ~0x7ffff) !== 0) {
      throw new ProtocolError("no such feature", Errno.EINVAL);
    }
    if (flags & PROBE) return { body: bytes.slice(offset, offset + length) };
    if (methods === (GET | SET)) throw new ProtocolError("GET and SET", Errno.EINVAL);
    const reply = (payload: Uint8Array) => {
      const fixed = DeviceFeature.encode({ argsz: DeviceFeature.size + payload.length, flags });
      return { body: Buffer.concat([fixed, payload]) };
    };
    const payload = bytes.subarray(offset + DeviceFeature.size, offset + length);
    if (feature === Feature.DMA_LOGGING_START) return reply(this.startLogging(payload));
    if (feature === Feature.DMA_LOGGING_STOP) {
      this.stopLogging();
      return reply(new Uint8Array(0));
    }
    if (feature === Feature.DMA_LOGGING_REPORT) return reply(Buffer.concat([payload, this.report(payload)]));
    if (feature === Feature.MIGRATION) return reply(FeatureMigration.encode({ flags: this.migrationFlags }));
    if (methods === SET) {
      if (length < DeviceFeature.size + FeatureMigDeviceState.size) throw new ProtocolError("cut off", Errno.EINVAL);
      this.changeState(FeatureMigDeviceState.view(data, offset + DeviceFeature.size).deviceState);
    }
    return reply(FeatureMigDeviceState.encode({ deviceState: this.state, dataFd: 0 }));
  }

  protected startLogging(payload: Uint8Array): Uint8Array {
    const data = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const ranges = payload.length < DmaLoggingControl.size ? -1 : DmaLoggingControl.view(data).numRanges;
    const isWhole = payload.length === DmaLoggingControl.size + ranges * DmaLoggingRange.size;
    if (!isWhole || this.logging) throw new ProtocolError("cut off, or started already", Errno.EINVAL);
    this.logging = true;
    return payload;
  }

  protected stopLogging(): void {
    this.logging = false;
  }

  protected report(payload: Uint8Array): Uint8Array {
    if (!this.logging || payload.length !== DmaLoggingReport.size) throw new ProtocolError("no log", Errno.EINVAL);
    const data = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const { iova, length, pageSize } = DmaLoggingReport.view(data);
    const size = bitmapSize(iova, length, pageSize);
    if (size < 0) throw new ProtocolError("no such pages", Errno.EINVAL);
    const bitmap = new Uint8Array(size);
    bitmap[0] = 1;
    return bitmap;
  }

  protected changeState(state: number): void {
    const { ERROR, STOP, RUNNING, STOP_COPY, PRE_COPY, RESUMING } = MigrationState;
    const isBack = this.state === STOP_COPY && state === PRE_COPY;
    if (![STOP, RUNNING, STOP_COPY, PRE_COPY, RESUMING].includes(state as 1) || isBack || this.state === ERROR) {
      throw new ProtocolError("no way", Errno.EINVAL);
    }
    const isCut = this.state === RESUMING && state !== RESUMING && this.moved !== STATE_BYTES;
    this.state = isCut ? ERROR : state;
    this.moved = 0;
    if (isCut) throw new ProtocolError("a state that is cut off", Errno.EINVAL);
  }

  protected writeState(command: PendingCommand): Reply {
    if (this.state !== MigrationState.RESUMING) throw new ProtocolError("not resuming", Errno.EINVAL);
    this.moved += command.length - MigData.size;
    return { body: new Uint8Array(0) };
  }

  protected readState(command: PendingCommand): Reply {
    if (this.state !== MigrationState.STOP_COPY) throw new ProtocolError("not saving", Errno.EINVAL);
    const size = Math.min(MigData.view(command.data, command.offset).size, STATE_BYTES - this.moved);
    this.moved += size;
    return { body: Buffer.concat([MigData.encode({ argsz: MigData.size + size, size }), new Uint8Array(size)]) };
  }
}
