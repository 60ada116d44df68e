/**
 * GET_REGION_IO_FDS's reply as a client reads it, from an untrusted server. Sub-regions are 40 bytes in the
 * specification and 48 in libvfio-user; which they are follows from argsz. Ioregionfds are passed over.
 */
import { Command, IoEventFd, IoEventFdFlags, IoFdType, RegionIoFds } from "../../spec/vfio-user.js";
import { getU64 } from "../../struct/struct.js";
import type { Reply } from "./requests.js";
import { badReply } from "./requests.js";

const SPECIFIED_SIZE = 40;

/** One ioeventfd: a write of `size` bytes (0: any) at `offset` of the region is to become a signal of `fd`. */
export interface IoEventDescription {
  readonly offset: number;
  readonly size: number;
  /** Index in RegionIoFdsDescription.fds. */
  readonly fd: number;
  /** Only for writes of this value. */
  readonly datamatch: number | undefined;
  /** The value is to be stored at `offset` of a file before the signal. */
  readonly shadow: { readonly fd: number; readonly offset: number } | undefined;
}

export interface RegionIoFdsDescription {
  readonly events: readonly IoEventDescription[];
  /** The caller's from now on. */
  readonly fds: readonly number[];
}

const refuse: (what: string) => never = (what) => badReply(Command.DEVICE_GET_REGION_IO_FDS, what);

/** Takes the reply's fds when all is right. @throws ProtocolError EPROTO */
export function parseRegionIoFds(index: number, { body, data, fds }: Reply): RegionIoFdsDescription {
  if (body.length < RegionIoFds.size) refuse(`${body.length} bytes`);
  const { argsz, index: replied, count } = RegionIoFds.view(data);
  if (replied !== index) refuse(`region ${replied}`);
  if (argsz > body.length) refuse(`${body.length} bytes of ${argsz}`);
  const entrySize = count === 0 ? SPECIFIED_SIZE : (argsz - RegionIoFds.size) / count;
  if (!(entrySize >= SPECIFIED_SIZE)) refuse(`${count} sub-regions in ${argsz} bytes`);
  const events: IoEventDescription[] = [];
  for (let n = 0; n < count; n++) {
    const at = RegionIoFds.size + n * Math.floor(entrySize);
    const event = parseEvent(data, at, entrySize >= IoEventFd.size, fds.length);
    if (event !== undefined) events.push(event);
  }
  return { events, fds: fds.splice(0) };
}

function parseEvent(data: DataView, at: number, isLong: boolean, fds: number): IoEventDescription | undefined {
  // Both layouts are the same up to here.
  const type = data.getUint32(at + IoEventFd.offsets.type, true);
  if (type !== IoFdType.IOEVENTFD && type !== IoFdType.IOEVENTFD_SHADOW) return undefined;
  if (type === IoFdType.IOEVENTFD_SHADOW && !isLong) refuse("a shadow without a place");
  const fd = data.getUint32(at + IoEventFd.offsets.fdIndex, true);
  if (fd >= fds) refuse(`fd ${fd} of ${fds}`);
  const flags = data.getUint32(at + IoEventFd.offsets.flags, true);
  const { dataMatch, shadowOffset } = IoEventFd.offsets;
  const match = getU64(data, at + (isLong ? dataMatch : shadowOffset));
  let shadow: IoEventDescription["shadow"];
  if (type === IoFdType.IOEVENTFD_SHADOW) {
    const { shadowMemFdIndex, shadowOffset: offset } = IoEventFd.view(data, at);
    if (shadowMemFdIndex >= fds || !Number.isSafeInteger(offset)) refuse(`shadow fd ${shadowMemFdIndex} of ${fds}`);
    shadow = { fd: shadowMemFdIndex, offset };
  }
  const offset = getU64(data, at);
  const size = getU64(data, at + IoEventFd.offsets.size);
  return { offset, size, fd, datamatch: flags & IoEventFdFlags.DATAMATCH ? match : undefined, shadow };
}
