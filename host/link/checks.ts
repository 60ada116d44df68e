/**
 * Checks of what the device process says: its HELLO, and the bodies of its replies before they go on to the client. A reply
 * that is longer than the client asked for, or that speaks of an fd that is not there, is an error in the client's VMM.
 */
import { Errno, ProtocolError } from "../../shared/errors.js";
import { MAX_IRQ_VECTORS } from "../../shared/limits.js";
import { ABI_VERSION, Hello } from "../../shared/spec/link.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  Header,
  IrqInfo,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  WriteMulti,
} from "../../shared/spec/vfio-user.js";
import { getU64 } from "../../shared/struct/struct.js";
import type { DeviceSummary, PendingCommand } from "../../shared/vfio-user/backend.js";

const REGION_SIZES = Hello.size;
const IRQ_COUNTS = REGION_SIZES + 8 * NUM_PCI_REGIONS;
export const HELLO_SIZE = IRQ_COUNTS + 4 * NUM_PCI_IRQS;

/** Reads HELLO's body, data[offset, offset + length). @throws ProtocolError */
export function parseHello(data: DataView, offset: number, length: number): DeviceSummary {
  const { abiVersion, postedRegions } = Hello.view(data, offset);
  if (abiVersion !== ABI_VERSION) throw new ProtocolError(`HELLO with ABI version ${abiVersion}`, Errno.EPROTO);
  if (length !== HELLO_SIZE) throw new ProtocolError(`HELLO of ${length} bytes`);
  const regionSizes = Array.from({ length: NUM_PCI_REGIONS }, (_, i) => getU64(data, offset + REGION_SIZES + 8 * i));
  if (!regionSizes.every(Number.isSafeInteger)) throw new ProtocolError("HELLO with a region too large");
  const irqCounts = Array.from({ length: NUM_PCI_IRQS }, (_, i) => data.getUint32(offset + IRQ_COUNTS + 4 * i, true));
  if (irqCounts.some((count) => count > MAX_IRQ_VECTORS)) throw new ProtocolError("HELLO with too many vectors");
  const postable = (1 << NUM_PCI_REGIONS) - 1 - (1 << Region.CONFIG);
  if (postedRegions & ~postable) throw new ProtocolError(`HELLO with posted regions 0x${postedRegions.toString(16)}`);
  return { postedRegions, regionSizes, irqCounts };
}

const access = RegionAccess.view();
const replied = RegionAccess.view();
const info = RegionInfo.view();

/**
 * Checks the reply to a relayed command, whose body is data[Header.size, Header.size + length), and takes out of it what
 * the bridge does not do. Returns the length to pass on, or -1 when the reply is not one to that command.
 */
export function checkReply(command: PendingCommand, data: DataView, length: number): number {
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
    case Command.DEVICE_GET_REGION_INFO: {
      if (length < RegionInfo.size) return -1;
      // The bridge has no memory of the device's to offer, so nothing in the region can be mapped.
      const reply = info.at(data, Header.size);
      reply.flags &= ~(RegionInfoFlags.MMAP | RegionInfoFlags.CAPS);
      reply.capOffset = 0;
      reply.argsz = RegionInfo.size;
      return RegionInfo.size;
    }
    case Command.DEVICE_GET_REGION_IO_FDS:
      return fixed(RegionIoFds.size);
    case Command.DEVICE_GET_IRQ_INFO:
      return fixed(IrqInfo.size);
    case Command.DEVICE_RESET:
      return fixed(0);
    case Command.REGION_WRITE_MULTI:
      return fixed(WriteMulti.size);
    case Command.DEVICE_FEATURE:
    case Command.MIG_DATA_READ:
      // Both requests begin with argsz, the most that the client takes.
      return length >= DeviceFeature.size && length <= command.data.getUint32(command.offset, true) ? length : -1;
    default:
      return length;
  }
}
