/**
 * Replies of the device process on their way to the client: their lengths, and, where they give the client fds or
 * describe a region, what the handles in them stand for. A reply that is longer than the client asked for, or that
 * speaks of memory which is not there, is an error in the client's VMM, or its end.
 */
import { inBounds } from "../../../shared/bits.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { MAX_IOEVENTFDS, MAX_SHARED_PARTS } from "../../../shared/limits.js";
import { NO_REGION } from "../../../shared/spec/link.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  Header,
  IoEventFd,
  IoFdType,
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
import type { DeviceSummary, PendingCommand } from "../../../shared/vfio-user/backend.js";
import { parseRegionInfo } from "../../../shared/vfio-user/region-description.js";
import type { IoEvents } from "./io-events.js";
import type { RegionMemories } from "./region-memory.js";

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

function refuse(what: string): never {
  throw new ProtocolError(`the device process gives the client ${what}`, Errno.EIO);
}

export class HandleTable {
  readonly #memories: RegionMemories;
  readonly #events: IoEvents;

  constructor(memories: RegionMemories, events: IoEvents) {
    this.#memories = memories;
    this.#events = events;
  }

  /**
   * The fds for a reply with `body`, whose length was checked, and `handles`. The fds stay the bridge's.
   * @throws ProtocolError EIO when it names what is not the device's, or describes what is not there
   */
  resolve(command: number, body: Uint8Array<ArrayBuffer>, handles: readonly number[], device: DeviceSummary): number[] {
    const data = new DataView(body.buffer, body.byteOffset, body.length);
    if (command === Command.DEVICE_GET_REGION_INFO) return this.#regionInfo(body, data, handles, device);
    return this.#regionIoFds(data, handles, device);
  }

  #regionInfo(body: Uint8Array, data: DataView, handles: readonly number[], device: DeviceSummary): number[] {
    const index = data.getUint32(RegionInfo.offsets.index, true);
    const { flags, size, offset, isSparse, areas } = parseRegionInfo(index, { body, data, fds: [] });
    if (size !== device.regionSizes[index]) refuse(`region ${index} with ${size} bytes`);
    if (handles.length === 0) {
      if (isSparse) refuse(`areas of region ${index} without the memory`);
      return [];
    }
    const memory = this.#memories.byHandle(handles[0]);
    if (memory?.region !== index) refuse(`handle ${handles[0]} as memory of region ${index}`);
    const mapped = isSparse ? areas : [{ offset: 0, size }];
    const exists = mapped.every((area) =>
      memory.areas.some((known) => known.offset === area.offset && known.size === area.size),
    );
    if (offset !== 0 || mapped.length === 0 || !exists) {
      refuse(`memory of region ${index} that is not there`);
    }
    if ((flags & RegionInfoFlags.MMAP) === 0) refuse(`memory of region ${index} that cannot be mapped`);
    return [memory.fd];
  }

  #regionIoFds(data: DataView, handles: readonly number[], device: DeviceSummary): number[] {
    const { index, count } = RegionIoFds.view(data);
    const entry = IoEventFd.view();
    const fds: number[] = new Array(handles.length).fill(-1);
    for (let n = 0; n < count; n++) {
      entry.at(data, RegionIoFds.size + n * IoEventFd.size);
      const { type, fdIndex, shadowMemFdIndex, shadowOffset, gpaOffset, size } = entry;
      if (type !== IoFdType.IOEVENTFD && type !== IoFdType.IOEVENTFD_SHADOW) refuse(`a sub-region of type ${type}`);
      if (!inBounds(gpaOffset, size, device.regionSizes[index] ?? 0)) refuse(`a sub-region outside of region ${index}`);
      if (fdIndex >= handles.length) refuse(`fd ${fdIndex} of ${handles.length}`);
      const eventfd = this.#events.fd(index, handles[fdIndex]);
      if (eventfd < 0) refuse(`handle ${handles[fdIndex]} as an eventfd of region ${index}`);
      put(fds, fdIndex, eventfd);
      if (type !== IoFdType.IOEVENTFD_SHADOW) continue;
      const memory = this.#memories.byHandle(handles[shadowMemFdIndex] ?? 0);
      if (memory?.region !== NO_REGION || !inBounds(shadowOffset, 8, memory.size)) refuse("shadow memory of its own");
      put(fds, shadowMemFdIndex, memory.fd);
    }
    // One that nothing describes was not checked.
    if (fds.includes(-1)) refuse("an fd that has no use");
    return fds;
  }
}

function put(fds: number[], index: number, fd: number): void {
  if (fds[index] !== -1 && fds[index] !== fd) refuse("one fd for two purposes");
  fds[index] = fd;
}
