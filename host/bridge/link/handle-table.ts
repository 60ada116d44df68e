/**
 * What the handles in a reply of the device process stand for, where it gives the client fds or describes a region. The
 * description of a region has to be that of memory and eventfds which are there.
 */
import { inBounds } from "../../../shared/bits.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { NO_REGION } from "../../../shared/spec/link.js";
import {
  Command,
  IoEventFd,
  IoFdType,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
} from "../../../shared/spec/vfio-user.js";
import type { DeviceSummary } from "../../../shared/vfio-user/backend.js";
import { parseRegionInfo } from "../../../shared/vfio-user/region-description.js";
import type { IoEvents } from "./io-events.js";
import type { RegionMemories } from "./region-memory.js";

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
