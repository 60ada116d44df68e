/**
 * Replies of the device process on their way to the client: their lengths, and that they echo what was asked. What the
 * handles in them stand for is handle-table.ts. A reply that is longer than the client asked for is an error in the
 * client's VMM, or its end.
 */
import { MAX_IOEVENTFDS, MAX_SHARED_PARTS } from "../../../shared/limits.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  Header,
  IoEventFd,
  IrqInfo,
  MigData,
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
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";

const LARGEST_REGION_INFO =
  RegionInfo.size +
  (RegionCapHeader.size + RegionType.size) +
  (RegionCapHeader.size + SparseMmap.size + MAX_SHARED_PARTS * SparseMmapArea.size);

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

/** Capabilities are checked by HandleTable. */
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

/** Whether a reply to that command is to go through HandleTable: it has handles, or more than a region's fixed part. */
export function hasHandles(command: number, length: number, handles: number): boolean {
  return handles > 0 || (command === Command.DEVICE_GET_REGION_INFO && length > RegionInfo.size);
}
