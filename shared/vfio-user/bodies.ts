/**
 * How long the body of each command from a client may be, and how many fds may come with it; checked before anything
 * else.
 */
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
  WriteMulti,
  WriteMultiEntry,
} from "../spec/vfio-user.js";

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
