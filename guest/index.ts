/// <reference types="node" preserve="true" />
/** What a device's author imports: the interface to implement, and parts to build from. */
export { dmaAddress } from "../shared/address.js";
export { inBounds } from "../shared/bits.js";
export type { Level, Log, LogMethod } from "../shared/log.js";
export {
  type BarOptions,
  type Device,
  type DeviceContext,
  type DeviceRegion,
  type Dma,
  DmaError,
  FIRST_DEVICE_REGION,
  type Interrupts,
  type IoEventFdOptions,
  type Migration,
  type PciCapabilities,
  type PciIdentity,
  type Segment,
  type SharedPart,
} from "./device.js";
export { bytesAsRegisters, pair, type Register, RegisterFile, type RegisterTable } from "./pci/registers.js";
export { ScatterList } from "./scatter-list.js";
export {
  type Chain,
  type QueueDeclaration,
  type VirtioContext,
  type VirtioDevice,
  type Virtqueue,
  virtioDevice,
} from "./virtio/index.js";
