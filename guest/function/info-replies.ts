/**
 * What a function says of itself: the answers to the commands that ask (vfio-user, "VFIO_USER_DEVICE_GET_INFO",
 * "..._GET_REGION_INFO", "..._GET_REGION_IO_FDS", "..._GET_IRQ_INFO"). Each method replies and returns 0, or returns
 * the errno of the refusal; bodies are at least as long as their fixed part.
 */
import { Errno } from "../../shared/errors.js";
import {
  DeviceInfo,
  DeviceInfoFlags,
  IoEventFd,
  Irq,
  IrqInfo,
  IrqInfoFlags,
  NUM_PCI_IRQS,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  RegionType,
} from "../../shared/spec/vfio-user.js";
import type { DeviceSummary, PendingCommand } from "../../shared/vfio-user/backend.js";
import { type DeviceRegion, FIRST_DEVICE_REGION } from "../pci/identity.js";
import type { Sharing } from "./sharing.js";

const TYPE_CAPABILITY = RegionCapHeader.size + RegionType.size;

export class InfoReplies {
  readonly #summary: DeviceSummary;
  readonly #flags: readonly number[];
  readonly #own: readonly DeviceRegion[];
  readonly #sharing: Sharing;
  readonly #deviceInfo = DeviceInfo.view();
  readonly #regionInfo = RegionInfo.view();
  readonly #irqInfo = IrqInfo.view();
  readonly #ioFds = RegionIoFds.view();

  /** `flags`: RegionInfoFlags.READ and WRITE of each region; `own`: those of the device's own. */
  constructor(summary: DeviceSummary, flags: readonly number[], own: readonly DeviceRegion[], sharing: Sharing) {
    this.#summary = summary;
    this.#flags = flags;
    this.#own = own;
    this.#sharing = sharing;
  }

  getInfo(command: PendingCommand): number {
    const request = this.#deviceInfo.at(command.data, command.offset);
    if (request.argsz < DeviceInfo.size) return Errno.EINVAL;
    command.reserve(DeviceInfo.size);
    const reply = this.#deviceInfo.at(command.replyData, command.replyOffset);
    reply.argsz = DeviceInfo.size;
    reply.flags = DeviceInfoFlags.RESET | DeviceInfoFlags.PCI;
    reply.numRegions = this.#summary.regionSizes.length;
    reply.numIrqs = NUM_PCI_IRQS;
    command.reply(DeviceInfo.size);
    return 0;
  }

  /** Capabilities, and the descriptor of what can be mapped, come to a client that has room for all of them. */
  getRegionInfo(command: PendingCommand): number {
    const { argsz, index } = this.#regionInfo.at(command.data, command.offset);
    if (argsz < RegionInfo.size || index >= this.#summary.regionSizes.length) return Errno.EINVAL;
    const own = this.#own[index - FIRST_DEVICE_REGION];
    const memory = this.#sharing.memoryDescriptor(index);
    const sparse = memory >= 0 ? this.#sharing.capabilitySize(index) : 0;
    const capabilities = (own === undefined ? 0 : TYPE_CAPABILITY) + sparse;
    const needed = RegionInfo.size + capabilities;
    const fits = argsz >= needed;
    const mappable = fits && memory >= 0;
    const hasCapabilities = fits && capabilities > 0;
    const length = fits ? needed : RegionInfo.size;
    command.reserve(length);
    const reply = this.#regionInfo.at(command.replyData, command.replyOffset);
    reply.argsz = needed;
    reply.flags =
      this.#flags[index] | (mappable ? RegionInfoFlags.MMAP : 0) | (hasCapabilities ? RegionInfoFlags.CAPS : 0);
    reply.index = index;
    reply.capOffset = hasCapabilities ? RegionInfo.size : 0;
    reply.size = this.#summary.regionSizes[index];
    reply.offset = 0;
    if (hasCapabilities) {
      let at = RegionInfo.size;
      if (own !== undefined) {
        const next = sparse > 0 ? at + TYPE_CAPABILITY : 0;
        putType(own, next, command.replyData, command.replyOffset + at);
        at += TYPE_CAPABILITY;
      }
      if (sparse > 0) this.#sharing.putCapability(index, command.replyData, command.replyOffset + at);
    }
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

/** The TYPE capability; `next` is where in the reply the one behind it is, or 0. */
function putType({ type, subtype }: DeviceRegion, next: number, data: DataView, start: number): void {
  Object.assign(RegionCapHeader.view(data, start), { id: RegionCap.TYPE, version: 1, next });
  Object.assign(RegionType.view(data, start + RegionCapHeader.size), { type, subtype });
}

function irqFlags(index: number, count: number): number {
  if (count === 0) return 0;
  if (index === Irq.INTX) return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED;
  if (index === Irq.ERR || index === Irq.REQ) return IrqInfoFlags.EVENTFD;
  return IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE;
}
