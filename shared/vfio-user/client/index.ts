/**
 * What `virtio-vfio-user/client` is: a vfio-user client, which plays the driver VM's part towards any server, and what
 * its calls are given: memory, and eventfds for interrupts. docs/client.md shows how to use it.
 *
 * client.ts has a method for each command; bodies.ts makes the longer requests, requests.ts sends them and finds their
 * replies, region-io-fds.ts reads the longest reply; dma.ts answers the server's DMA; migration.ts is what a VMM does
 * to move a device.
 */
export { close, createMemory, eventfd, eventfdRead, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
export { Errno, PeerGone, ProtocolError } from "../../errors.js";
export { Irq, Region } from "../../spec/vfio-user.js";
export type { Capabilities, VersionMessage } from "../version.js";
export {
  Client,
  type ClientOptions,
  type IoEventDescription,
  type IrqSetting,
  type MapSetting,
  type RegionDescription,
  type RegionIoFdsDescription,
  type RegionWriteEntry,
  type Reply,
  type RequestOptions,
} from "./client.js";
