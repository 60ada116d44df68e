/**
 * GET_REGION_INFO's reply as a client reads it: the fixed part and the list of capabilities, all from an untrusted
 * server.
 */
import { Errno, ProtocolError } from "../errors.js";
import {
  Command,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../spec/vfio-user.js";

export interface RegionDescription {
  readonly index: number;
  /** RegionInfoFlags. */
  readonly flags: number;
  readonly size: number;
  /** For mmap of `fd`. */
  readonly offset: number;
  /** Whether no more than `areas` can be mapped, where there is an fd; otherwise all of the region can. */
  readonly isSparse: boolean;
  readonly areas: readonly { readonly offset: number; readonly size: number }[];
  /** What a region of the device's own is, by which a client finds it. */
  readonly type: { readonly type: number; readonly subtype: number } | undefined;
  /** The file to map, the caller's from now on; -1 when there is none. */
  readonly fd: number;
}

function refuse(what: string): never {
  const command = Command.DEVICE_GET_REGION_INFO;
  throw new ProtocolError(`the server's reply to command ${command}: ${what}`, Errno.EPROTO, command);
}

/** A reply's body, with a view of the same bytes, and what came along. */
interface Reply {
  readonly body: Uint8Array;
  readonly data: DataView;
  readonly fds: number[];
}

/** Takes the reply's first fd when all is right. @throws ProtocolError EPROTO */
export function parseRegionInfo(index: number, { body, data, fds }: Reply): RegionDescription {
  if (body.length < RegionInfo.size) refuse(`${body.length} bytes`);
  const info = RegionInfo.view(data);
  if (info.index !== index) refuse(`region ${info.index}`);
  let areas: { offset: number; size: number }[] | undefined;
  let type: RegionDescription["type"];
  let at = info.flags & RegionInfoFlags.CAPS ? info.capOffset : 0;
  // Each capability is behind the one before, so that the list ends.
  for (let from: number = RegionInfo.size; at !== 0; ) {
    if (at < from || at + RegionCapHeader.size > body.length) refuse(`a capability at ${at}`);
    const cap = RegionCapHeader.view(data, at);
    from = at + RegionCapHeader.size;
    if (cap.id === RegionCap.TYPE) {
      if (type !== undefined) refuse("two TYPE capabilities");
      if (from + RegionType.size > body.length) refuse("a cut capability");
      const described = RegionType.view(data, from);
      type = { type: described.type, subtype: described.subtype };
      from += RegionType.size;
    } else if (cap.id === RegionCap.SPARSE_MMAP) {
      if (areas !== undefined) refuse("two SPARSE_MMAP capabilities");
      if (from + SparseMmap.size > body.length) refuse("a cut capability");
      const count = SparseMmap.view(data, from).areas;
      areas = [];
      from += SparseMmap.size;
      if (from + count * SparseMmapArea.size > body.length) refuse(`${count} areas`);
      for (let area = 0; area < count; area++, from += SparseMmapArea.size) {
        const { offset, size } = SparseMmapArea.view(data, from);
        if (!(offset + size <= info.size)) refuse(`an area of ${size} at ${offset}`);
        areas.push({ offset, size });
      }
    }
    at = cap.next;
  }
  const fd = fds.length > 0 ? fds[0] : -1;
  if (fds.length > 0) fds[0] = -1;
  const { flags, size, offset } = info;
  return { index, flags, size, offset, isSparse: areas !== undefined, areas: areas ?? [], type, fd };
}
