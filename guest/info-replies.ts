/**
 * What a function says of itself: the answers to the commands that ask (vfio-user, "VFIO_USER_DEVICE_GET_INFO",
 * "..._GET_REGION_INFO", "..._GET_REGION_IO_FDS", "..._GET_IRQ_INFO"). Each method replies and returns 0, or returns the errno
 * of the refusal; bodies are at least as long as their fixed part.
 */
import { Errno } from "../shared/errors.js";
import {
  DeviceInfo,
  DeviceInfoFlags,
  IoEventFd,
  Irq,
  IrqInfo,
  IrqInfoFlags,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
} from "../shared/spec/vfio-user.js";
import type { DeviceSummary, PendingCommand } from "../shared/vfio-user/backend.js";
import type { Sharing } from "./sharing.js";

export class InfoReplies {
  readonly #summary: DeviceSummary;
  readonly #sharing: Sharing;
  readonly #deviceInfo = DeviceInfo.view();
  readonly #regionInfo = RegionInfo.view();
  readonly #irqInfo = IrqInfo.view();
  readonly #ioFds = RegionIoFds.view();

  constructor(summary: DeviceSummary, sharing: Sharing) {
    this.#summary = summary;
    this.#sharing = sharing;
  }

  getInfo(command: PendingCommand): number {
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

  getRegionInfo(command: PendingCommand): number {
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
    const size = this.#summary.regionSizes[index];
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

  getRegionIoFds(command: PendingCommand): number {
    const { argsz, flags, index, count } = this.#ioFds.at(command.data, command.offset);
    if (argsz < RegionIoFds.size || flags !== 0 || count !== 0) return Errno.EINVAL;
    // A region that is not there; for any index.
    if (!(this.#summary.regionSizes[index] > 0)) return Errno.EINVAL;
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

  getIrqInfo(command: PendingCommand): number {
    const request = this.#irqInfo.at(command.data, command.offset);
    const index = request.index;
    if (request.argsz < IrqInfo.size || index >= NUM_PCI_IRQS) return Errno.EINVAL;
    command.reserve(IrqInfo.size);
    const reply = this.#irqInfo.at(command.replyData, command.replyOffset);
    reply.argsz = IrqInfo.size;
    reply.flags = irqFlags(index, this.#summary.irqCounts[index]);
    reply.index = index;
    reply.count = this.#summary.irqCounts[index];
    command.reply(IrqInfo.size);
    return 0;
  }
}

function irqFlags(index: number, count: number): number {
  if (count === 0) return 0;
  if (index === Irq.INTX) return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED;
  if (index === Irq.ERR || index === Irq.REQ) return IrqInfoFlags.EVENTFD;
  return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE;
}
