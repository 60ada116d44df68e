/**
 * Checks of what the device process says: its HELLO, and the bodies of its replies before they go on to the client. A
 * reply that is longer than the client asked for, or that speaks of an fd that is not there, is an error in the
 * client's VMM.
 */

import { inBounds, isAligned } from "../../../shared/bits.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import {
  MAX_IOEVENTFDS,
  MAX_IRQ_VECTORS,
  MAX_REGIONS,
  MAX_REGISTER_AREAS,
  MAX_REGISTER_MEMORY,
  MAX_SHARED_PARTS,
} from "../../../shared/limits.js";
import {
  ABI_VERSION,
  AllocateEvents,
  AllocateMemory,
  Hello,
  HelloFlags,
  MemoryArea,
  RegisterArea,
  RegisterMemoryHead,
  ShareRegisters,
} from "../../../shared/spec/link.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  Header,
  IoEventFd,
  IrqInfo,
  MigData,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  RegionType,
  SparseMmap,
  SparseMmapArea,
  WriteMulti,
} from "../../../shared/spec/vfio-user.js";
import { getU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary, PendingCommand } from "../../../shared/vfio-user/backend.js";

const LARGEST_REGION_INFO =
  RegionInfo.size +
  (RegionCapHeader.size + RegionType.size) +
  (RegionCapHeader.size + SparseMmap.size + MAX_SHARED_PARTS * SparseMmapArea.size);

/** Whether a region's memory can be mapped, and its writes be ioeventfds: a BAR, or one of the device's own. */
export function isSharable(region: number): boolean {
  return region <= Region.BAR5 || (region >= NUM_PCI_REGIONS && region < MAX_REGIONS);
}

/** Reads the body of ALLOCATE_MEMORY, data[offset, offset + length). @throws ProtocolError */
export function parseAllocateMemory(data: DataView, offset: number, length: number) {
  if (length < AllocateMemory.size) throw new ProtocolError(`ALLOCATE_MEMORY of ${length} bytes`);
  const { region, areas: count } = AllocateMemory.view(data, offset);
  if (count > MAX_SHARED_PARTS || length !== AllocateMemory.size + count * MemoryArea.size) {
    throw new ProtocolError(`ALLOCATE_MEMORY of ${count} areas in ${length} bytes`);
  }
  const area = MemoryArea.view();
  const areas = Array.from({ length: count }, (_, n) => {
    const { offset: start, size } = area.at(data, offset + AllocateMemory.size + n * MemoryArea.size);
    return { offset: start, size };
  });
  return { region, areas };
}

/** Reads the body of ALLOCATE_EVENTS. @throws ProtocolError */
export function parseAllocateEvents(data: DataView, offset: number, length: number) {
  if (length !== AllocateEvents.size) throw new ProtocolError(`ALLOCATE_EVENTS of ${length} bytes`);
  const { region, count } = AllocateEvents.view(data, offset);
  return { region, count };
}

/** Reads the body of SHARE_REGISTERS. @throws ProtocolError */
export function parseShareRegisters(data: DataView, offset: number, length: number) {
  if (length < ShareRegisters.size) throw new ProtocolError(`SHARE_REGISTERS of ${length} bytes`);
  const { address, size, areas: count } = ShareRegisters.view(data, offset);
  if (size < RegisterMemoryHead.size || size > MAX_REGISTER_MEMORY || !isAligned(address, 8)) {
    throw new ProtocolError(`${size} bytes of register memory at ${address}`);
  }
  if (count > MAX_REGISTER_AREAS || length !== ShareRegisters.size + count * RegisterArea.size) {
    throw new ProtocolError(`SHARE_REGISTERS of ${count} areas in ${length} bytes`);
  }
  const view = RegisterArea.view();
  const areas = Array.from({ length: count }, (_, n) => {
    const {
      region,
      offset: start,
      size: bytes,
      place,
    } = view.at(data, offset + ShareRegisters.size + n * RegisterArea.size);
    if (place < RegisterMemoryHead.size || !inBounds(place, bytes, size)) {
      throw new ProtocolError(`registers of ${bytes} bytes at ${place} of their memory`);
    }
    return { region, offset: start, size: bytes, place };
  });
  return { address, size, areas };
}

/** Bytes of a HELLO's body with that many regions. */
export function helloSize(regions: number): number {
  return Hello.size + 8 * regions + 4 * NUM_PCI_IRQS;
}

/** What HELLO says: the device, and that its process is to have no driver-VM memory in its window. */
export interface HelloContent {
  readonly summary: DeviceSummary;
  readonly isolated: boolean;
}

/** Reads HELLO's body, data[offset, offset + length). @throws ProtocolError */
export function parseHello(data: DataView, offset: number, length: number): HelloContent {
  if (length < Hello.size) throw new ProtocolError(`HELLO of ${length} bytes`);
  const { abiVersion, postedRegions, regions, flags } = Hello.view(data, offset);
  if (abiVersion !== ABI_VERSION) throw new ProtocolError(`HELLO with ABI version ${abiVersion}`, Errno.EPROTO);
  if ((flags & ~HelloFlags.ISOLATED) !== 0) throw new ProtocolError(`HELLO with flags 0x${flags.toString(16)}`);
  if (regions < NUM_PCI_REGIONS || regions > MAX_REGIONS) throw new ProtocolError(`HELLO with ${regions} regions`);
  if (length !== helloSize(regions)) throw new ProtocolError(`HELLO with ${regions} regions in ${length} bytes`);
  const sizes = offset + Hello.size;
  const regionSizes = Array.from({ length: regions }, (_, n) => getU64(data, sizes + 8 * n));
  if (!regionSizes.every(Number.isSafeInteger)) throw new ProtocolError("HELLO with a region too large");
  const counts = sizes + 8 * regions;
  const irqCounts = Array.from({ length: NUM_PCI_IRQS }, (_, n) => data.getUint32(counts + 4 * n, true));
  if (irqCounts.some((count) => count > MAX_IRQ_VECTORS)) throw new ProtocolError("HELLO with too many vectors");
  // Of as many as there are, and not of config space, whose writes have effects that the driver VM waits for.
  const posts = (region: number) => ((postedRegions >>> region) & 1) === 1;
  if (postedRegions >= 2 ** regions || posts(Region.CONFIG))
    throw new ProtocolError(`HELLO with posted regions 0x${postedRegions.toString(16)}`);
  return { summary: { postedRegions, regionSizes, irqCounts }, isolated: (flags & HelloFlags.ISOLATED) !== 0 };
}

const access = RegionAccess.view();
const replied = RegionAccess.view();
const info = RegionInfo.view();
const ioFds = RegionIoFds.view();
const migData = MigData.view();

/**
 * Checks the reply to a relayed command, whose body is data[Header.size, Header.size + length), and takes out of it
 * what needs an fd where it has no handles. Returns the length to pass on, or -1 when the reply is not one to that
 * command.
 */
export function checkReply(command: PendingCommand, data: DataView, length: number, handles: number): number {
  const fixed = (size: number) => (length === size ? length : -1);
  switch (command.command) {
    case Command.REGION_READ:
    case Command.REGION_WRITE: {
      const { offset, region, count } = access.at(command.data, command.offset);
      const size = RegionAccess.size + (command.command === Command.REGION_READ ? count : 0);
      if (length !== size) return -1;
      const reply = replied.at(data, Header.size);
      return reply.offset === offset && reply.region === region && reply.count === count ? length : -1;
    }
    case Command.DEVICE_GET_INFO:
      return fixed(DeviceInfo.size);
    case Command.DEVICE_GET_REGION_INFO:
      return checkRegionInfo(command, data, length, handles);
    case Command.DEVICE_GET_REGION_IO_FDS:
      return checkRegionIoFds(command, data, length, handles);
    case Command.DEVICE_GET_IRQ_INFO:
      return fixed(IrqInfo.size);
    case Command.DEVICE_RESET:
      return fixed(0);
    case Command.REGION_WRITE_MULTI:
      return fixed(WriteMulti.size);
    case Command.DEVICE_FEATURE:
      // The request begins with argsz, the most that the client takes.
      return length >= DeviceFeature.size && length <= argszOf(command) ? length : -1;
    case Command.MIG_DATA_READ: {
      const wanted = migData.at(command.data, command.offset).size;
      if (length < MigData.size || length > MigData.size + wanted) return -1;
      const { argsz, size } = migData.at(data, Header.size);
      return argsz === length && size === length - MigData.size ? length : -1;
    }
    case Command.MIG_DATA_WRITE:
      return fixed(0);
    default:
      return length;
  }
}

/** The most that a client takes with the reply to a command which begins with argsz. */
function argszOf(command: PendingCommand): number {
  return command.data.getUint32(command.offset, true);
}

/** Capabilities are looked at by HandleTable. */
function checkRegionInfo(command: PendingCommand, data: DataView, length: number, handles: number): number {
  if (length < RegionInfo.size) return -1;
  const reply = info.at(data, Header.size);
  if (reply.index !== command.data.getUint32(command.offset + RegionInfo.offsets.index, true)) return -1;
  // Nothing can be mapped without an fd.
  if (handles === 0) reply.flags &= ~RegionInfoFlags.MMAP;
  if (handles > 0 || length > RegionInfo.size) {
    return handles <= 1 && reply.argsz === length && length <= argszOf(command) ? length : -1;
  }
  // A larger argsz makes the client ask again, with room for the capabilities.
  reply.flags &= ~RegionInfoFlags.CAPS;
  reply.capOffset = 0;
  if (reply.argsz < RegionInfo.size || reply.argsz > LARGEST_REGION_INFO) reply.argsz = RegionInfo.size;
  return RegionInfo.size;
}

function checkRegionIoFds(command: PendingCommand, data: DataView, length: number, handles: number): number {
  if (length < RegionIoFds.size) return -1;
  const { argsz, index, count } = ioFds.at(data, Header.size);
  if (index !== command.data.getUint32(command.offset + RegionIoFds.offsets.index, true)) return -1;
  if (count > MAX_IOEVENTFDS || argsz !== RegionIoFds.size + count * IoEventFd.size) return -1;
  if (handles === 0) return length === RegionIoFds.size ? length : -1;
  return length === argsz && length <= argszOf(command) ? length : -1;
}
