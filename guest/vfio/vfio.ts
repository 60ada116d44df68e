/**
 * A PCI function by Linux's VFIO (<linux/vfio.h>): container, group and type 1 IOMMU, BARs, MSI-X vector 0. Left out:
 * noiommu mode and iommufd, which no Debian kernel has switched on, and everything that a virtio device does not need.
 *
 * pci-function.ts is what the links see of it; uapi.ts has Linux's interface, registers.ts accesses to it,
 * dma-memory.ts the memory, and bind.ts gives the function to vfio-pci.
 */
import { closeSync, openSync } from "node:fs";
import {
  addressOf,
  close,
  type DevicePath,
  eventfd,
  ioctl,
  mapFile,
  POLL_READABLE,
  Poll,
  PROT_READ,
  PROT_WRITE,
} from "../../native/index.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import { CommandBits, Header, NUM_BARS } from "../../shared/spec/pci.js";
import { Irq, IrqInfo, IrqSet, IrqSetFlags, Region, RegionInfo, RegionInfoFlags } from "../../shared/spec/vfio-user.js";
import { bindToVfio } from "./bind.js";
import { DmaAllocator } from "./dma-memory.js";
import type { DmaMemory, PciFunction, Registers } from "./pci-function.js";
import { FileRegisters, MappedRegisters } from "./registers.js";
import { GroupStatus, GroupStatusFlags, IommuMap, IommuMapFlags, IommuType, Request } from "./uapi.js";

const EVENTFD_SIZE = 4;

interface Bar {
  readonly size: number;
  /** Where the region begins in the device's file. */
  readonly offset: number;
  readonly mappable: boolean;
}

export class VfioFunction implements PciFunction {
  readonly config: Registers;
  translated = false;
  readonly #container: number;
  readonly #group: number;
  readonly #device: number;
  readonly #bars: readonly Bar[];
  readonly #registers = new Map<number, Registers>();
  readonly #memory: DmaAllocator;
  #eventfd = -1;
  #poll: Poll | undefined;

  private constructor(container: number, group: number, device: number) {
    this.#container = container;
    this.#group = group;
    this.#device = device;
    this.#memory = new DmaAllocator((buffer, start, size, iova) => mapInIommu(container, buffer, start, size, iova));
    this.#bars = Array.from({ length: NUM_BARS }, (_, index) => regionInfo(device, index));
    this.config = new FileRegisters(device, regionInfo(device, Region.CONFIG).offset);
    const command = this.config.read16(Header.COMMAND);
    this.config.write16(Header.COMMAND, command | CommandBits.MEMORY | CommandBits.BUS_MASTER);
  }

  /**
   * Takes the function at `address` (domain:bus:device.function) from its driver.
   * @throws UserError that says what the machine lacks
   */
  static open(address: string): VfioFunction {
    const groupNumber = bindToVfio(address);
    const opened: number[] = [];
    const keep = (fd: number) => {
      opened.push(fd);
      return fd;
    };
    try {
      const container = keep(openSync("/dev/vfio/vfio", "r+"));
      const group = keep(openGroup(groupNumber));
      requireViable(group, groupNumber, address);
      ioctl(group, Request.GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(container).buffer));
      ioctl(container, Request.SET_IOMMU, IommuType.TYPE1V2);
      const device = keep(ioctl(group, Request.GROUP_GET_DEVICE_FD, Buffer.from(`${address}\0`)));
      return new VfioFunction(container, group, device);
    } catch (error) {
      for (const fd of opened) close(fd);
      if (isSystemError(error)) throw new UserError(`VFIO does not open ${address}: ${error.message}`);
      throw error;
    }
  }

  barSize(bar: number): number {
    return this.#bars[bar]?.size ?? 0;
  }

  registers(bar: number): Registers {
    const known = this.#registers.get(bar);
    if (known !== undefined) return known;
    const { size, offset, mappable } = this.#bars[bar];
    const registers = mappable
      ? new MappedRegisters(this.memory(bar, 0, size))
      : new FileRegisters(this.#device, offset);
    this.#registers.set(bar, registers);
    return registers;
  }

  /** @throws UserError when the BAR cannot be mapped */
  memory(bar: number, offset: number, length: number): ArrayBuffer {
    const region = this.#bars[bar];
    if (!region.mappable) throw new UserError(`BAR ${bar} of the device cannot be mapped`);
    return mapFile(this.#device, region.offset + offset, length, PROT_READ | PROT_WRITE);
  }

  allocate(bytes: number): DmaMemory {
    return this.#memory.allocate(bytes, this.translated);
  }

  interrupt(callback: () => void, task: DevicePath | "eventfd" = "eventfd"): void {
    const info = IrqInfo.encode({ argsz: IrqInfo.size, index: Irq.MSIX });
    ioctl(this.#device, Request.DEVICE_GET_IRQ_INFO, info);
    if (IrqInfo.view(new DataView(info.buffer)).count === 0) throw new UserError("the device has no MSI-X");
    this.#eventfd = eventfd(0);
    const set = new Uint8Array(IrqSet.size + EVENTFD_SIZE);
    const data = new DataView(set.buffer);
    set.set(
      IrqSet.encode({
        argsz: set.length,
        flags: IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER,
        index: Irq.MSIX,
        start: 0,
        count: 1,
      }),
    );
    data.setInt32(IrqSet.size, this.#eventfd, true);
    ioctl(this.#device, Request.DEVICE_SET_IRQS, set);
    this.#poll = new Poll(this.#eventfd, callback, task);
    this.#poll.start(POLL_READABLE);
  }

  close(): void {
    this.#poll?.close();
    if (this.#eventfd !== -1) close(this.#eventfd);
    this.#eventfd = -1;
    close(this.#device);
    closeSync(this.#group);
    closeSync(this.#container);
  }
}

function mapInIommu(container: number, buffer: ArrayBuffer, start: number, size: number, iova: number): void {
  const flags = IommuMapFlags.READ | IommuMapFlags.WRITE;
  const map = IommuMap.encode({ argsz: IommuMap.size, flags, address: addressOf(buffer) + start, iova, size });
  ioctl(container, Request.IOMMU_MAP_DMA, map);
}

function openGroup(number: string): number {
  try {
    return openSync(`/dev/vfio/${number}`, "r+");
  } catch (error) {
    if (!isSystemError(error)) throw error;
    if (error.code === "EBUSY") throw new UserError(`IOMMU group ${number} is in use: end the process that uses it`);
    const owner = error.code === "EACCES" ? `: as root, "chown USER /dev/vfio/${number}" gives it to a user` : "";
    throw new UserError(`cannot open /dev/vfio/${number}: ${error.message}${owner}`);
  }
}

function requireViable(group: number, number: string, address: string): void {
  const status = GroupStatus.encode({ argsz: GroupStatus.size });
  ioctl(group, Request.GROUP_GET_STATUS, status);
  if ((GroupStatus.view(new DataView(status.buffer)).flags & GroupStatusFlags.VIABLE) !== 0) return;
  const what = `IOMMU group ${number} of ${address} holds other devices that have drivers`;
  throw new UserError(`${what}: give the device a pcie-root-port of its own`);
}

/** Size 0 where there is no such region. */
function regionInfo(device: number, index: number): Bar {
  const info = RegionInfo.encode({ argsz: RegionInfo.size, index });
  ioctl(device, Request.DEVICE_GET_REGION_INFO, info);
  const { size, offset, flags } = RegionInfo.view(new DataView(info.buffer));
  return { size, offset, mappable: (flags & RegionInfoFlags.MMAP) !== 0 };
}
