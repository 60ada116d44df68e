/**
 * What `virtio-vfio-user/client` is: a vfio-user client, which plays the driver VM's part towards any server, and what
 * its calls are given: memory, and eventfds for interrupts.
 */
export { close, createMemory, eventfd, eventfdRead, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
export { Errno, PeerGone, ProtocolError } from "../../errors.js";
export { Irq, Region } from "../../spec/vfio-user.js";
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
