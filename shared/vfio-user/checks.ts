/**
 * Checks of a client's commands, before anything else looks at them: how long the body of each may be and how many fds
 * may come with it; and for those that go on to the device, indices, sizes and offsets against what the device has.
 * Done on the bytes in the receive buffer, which only we can change.
 */
import { inBounds } from "../bits.js";
import { Errno, ProtocolError } from "../errors.js";
import { KiB, MAX_DATA_XFER_SIZE, MAX_IRQ_VECTORS, MAX_MESSAGE_FDS, MAX_VERSION_JSON_SIZE } from "../limits.js";
import {
  Bitmap,
  Command,
  DeviceFeature,
  DeviceInfo,
  DmaMap,
  DmaUnmap,
  IrqInfo,
  IrqSet,
  MigData,
  RegionAccess,
  RegionInfo,
  RegionIoFds,
  Version,
  WRITE_MULTI_MAX_DATA,
  WriteMulti,
  WriteMultiEntry,
} from "../spec/vfio-user.js";
import type { DeviceSummary } from "./backend.js";
import type { Frame } from "./socket/connection.js";

interface BodyLimits {
  readonly least: number;
  readonly most: number;
  readonly fds: number;
}

const exactly = (size: number, fds = 0): BodyLimits => ({ least: size, most: size, fds });
const between = (least: number, most: number, fds = 0): BodyLimits => ({ least, most, fds });
/** Some clients send the buffer for the reply, argsz bytes, as the request. */
const atLeast = (size: number): BodyLimits => between(size, 64 * KiB);

/** By command number. A command that is not here is none that a client may send. */
const LIMITS: readonly (BodyLimits | undefined)[] = Object.assign(new Array<BodyLimits | undefined>(19), {
  [Command.VERSION]: between(Version.size, Version.size + MAX_VERSION_JSON_SIZE),
  [Command.DMA_MAP]: exactly(DmaMap.size, 1),
  [Command.DMA_UNMAP]: between(DmaUnmap.size, DmaUnmap.size + Bitmap.size),
  [Command.DEVICE_GET_INFO]: atLeast(DeviceInfo.size),
  [Command.DEVICE_GET_REGION_INFO]: atLeast(RegionInfo.size),
  [Command.DEVICE_GET_REGION_IO_FDS]: atLeast(RegionIoFds.size),
  [Command.DEVICE_GET_IRQ_INFO]: atLeast(IrqInfo.size),
  [Command.DEVICE_SET_IRQS]: between(IrqSet.size, IrqSet.size + MAX_IRQ_VECTORS, MAX_MESSAGE_FDS),
  [Command.REGION_READ]: exactly(RegionAccess.size),
  [Command.REGION_WRITE]: between(RegionAccess.size, RegionAccess.size + MAX_DATA_XFER_SIZE),
  [Command.DEVICE_RESET]: exactly(0),
  [Command.REGION_WRITE_MULTI]: between(WriteMulti.size + WriteMultiEntry.size, MAX_DATA_XFER_SIZE),
  [Command.DEVICE_FEATURE]: between(DeviceFeature.size, MAX_DATA_XFER_SIZE),
  [Command.MIG_DATA_READ]: exactly(MigData.size),
  [Command.MIG_DATA_WRITE]: between(MigData.size, MigData.size + MAX_DATA_XFER_SIZE),
});

/**
 * @throws ProtocolError EINVAL: an unknown command (as libvfio-user answers it), a body too short or too long, or more
 * fds than the command takes where they would have a meaning. Fds on a command that takes none are no error: they are
 * closed.
 */
export function checkBody(command: number, length: number, fds: number): void {
  const limits = LIMITS[command];
  if (limits === undefined) throw new ProtocolError(`no command ${command} for a server`, Errno.EINVAL, command);
  if (length < limits.least || length > limits.most) {
    throw new ProtocolError(`command ${command} with a body of ${length} bytes`, Errno.EINVAL, command);
  }
  if (fds > limits.fds && limits.fds > 0) {
    throw new ProtocolError(`command ${command} with ${fds} fds`, Errno.EINVAL, command);
  }
}

const access = RegionAccess.view();
const multi = WriteMulti.view();
const entry = WriteMultiEntry.view();
const regionIoFds = RegionIoFds.view();
const irqInfo = IrqInfo.view();
const migData = MigData.view();

function refuse(command: number, what: string): never {
  throw new ProtocolError(`command ${command}: ${what}`, Errno.EINVAL, command);
}

function checkAccess(command: number, device: DeviceSummary, region: number, offset: number, count: number): void {
  if (region >= device.regionSizes.length) refuse(command, `region ${region}`);
  if (count > MAX_DATA_XFER_SIZE) refuse(command, `${count} bytes at once`);
  if (!inBounds(offset, count, device.regionSizes[region])) {
    refuse(command, `${count} bytes at ${offset} of region ${region} of ${device.regionSizes[region]} bytes`);
  }
}

function checkArgsz(frame: Frame, least: number): void {
  const argsz = frame.data.getUint32(frame.offset, true);
  if (argsz < least) refuse(frame.command, `argsz ${argsz}, needed are ${least}`);
}

function checkIndex(frame: Frame, index: number, count: number): void {
  if (index >= count) refuse(frame.command, `index ${index} of ${count}`);
}

/**
 * Checks a command that is for the device, whose body has a proper length (`checkBody`).
 * @throws ProtocolError EINVAL
 */
export function checkRequest(frame: Frame, device: DeviceSummary): void {
  const { command, data, offset, length } = frame;
  switch (command) {
    case Command.REGION_READ:
      access.at(data, offset);
      checkAccess(command, device, access.region, access.offset, access.count);
      return;
    case Command.REGION_WRITE:
      access.at(data, offset);
      if (length !== RegionAccess.size + access.count) refuse(command, `${access.count} bytes in a body of ${length}`);
      checkAccess(command, device, access.region, access.offset, access.count);
      return;
    case Command.REGION_WRITE_MULTI: {
      const { writes } = multi.at(data, offset);
      if (length !== WriteMulti.size + writes * WriteMultiEntry.size) refuse(command, `${writes} writes`);
      for (let at = WriteMulti.size; at < length; at += WriteMultiEntry.size) {
        entry.at(data, offset + at);
        if (entry.count > WRITE_MULTI_MAX_DATA) refuse(command, `${entry.count} bytes in one write`);
        checkAccess(command, device, entry.region, entry.offset, entry.count);
      }
      return;
    }
    case Command.DEVICE_GET_INFO:
      checkArgsz(frame, DeviceInfo.size);
      return;
    case Command.DEVICE_GET_REGION_INFO:
      checkArgsz(frame, RegionInfo.size);
      checkIndex(frame, data.getUint32(offset + RegionInfo.offsets.index, true), device.regionSizes.length);
      return;
    case Command.DEVICE_GET_REGION_IO_FDS:
      checkArgsz(frame, RegionIoFds.size);
      regionIoFds.at(data, offset);
      if (regionIoFds.argsz > MAX_DATA_XFER_SIZE) refuse(command, `argsz ${regionIoFds.argsz}`);
      if (regionIoFds.flags !== 0 || regionIoFds.count !== 0) refuse(command, "flags or count that are not 0");
      checkIndex(frame, regionIoFds.index, device.regionSizes.length);
      return;
    case Command.DEVICE_GET_IRQ_INFO:
      checkArgsz(frame, IrqInfo.size);
      checkIndex(frame, irqInfo.at(data, offset).index, device.irqCounts.length);
      return;
    case Command.DEVICE_FEATURE:
      checkArgsz(frame, DeviceFeature.size);
      return;
    case Command.MIG_DATA_READ:
    case Command.MIG_DATA_WRITE: {
      const { argsz, size } = migData.at(data, offset);
      if (size > MAX_DATA_XFER_SIZE || argsz < MigData.size + size) refuse(command, `size ${size}, argsz ${argsz}`);
      if (command === Command.MIG_DATA_WRITE && length !== MigData.size + size) {
        refuse(command, `${size} bytes in a body of ${length}`);
      }
      return;
    }
  }
}
