/**
 * GET_REGION_INFO's reply as the checker reads it: the whole of it, and the capabilities as the specification lays them
 * out. What is wrong with a reply is a Failure.
 */
import { inBounds, isAligned } from "../../shared/bits.js";
import {
  Command,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../../shared/spec/vfio-user.js";
import { encodeRegionInfo, PAGE } from "./bodies.js";
import type { Context } from "./context.js";
import { expectSuccess, expectThat } from "./expect.js";
import type { Session } from "./session.js";
import type { Message } from "./wire.js";

const ARGSZ = 4096;
const MAX_ARGSZ = 1024 * 1024;
const MAX_REGIONS = 64;
/** As the structures of <linux/vfio.h> lie in memory: a header has 32-bit fields, an area 64-bit ones. */
const HEADER_ALIGNMENT = 4;
const AREA_ALIGNMENT = 8;

export interface FullInfo {
  readonly index: number;
  readonly flags: number;
  readonly size: number;
  readonly offset: number;
  readonly reply: Message;
}

/** The whole info of a region, asked for with as much room as it takes. */
async function fullInfo(session: Session, index: number): Promise<FullInfo> {
  let argsz = ARGSZ;
  for (;;) {
    const answer = await session.request(Command.DEVICE_GET_REGION_INFO, encodeRegionInfo(index, argsz));
    const reply = expectSuccess(answer, Command.DEVICE_GET_REGION_INFO);
    const { length } = reply.body;
    expectThat(length >= RegionInfo.size, `region ${index}: at least ${RegionInfo.size} bytes`, length);
    const info = RegionInfo.view(reply.data);
    if (info.argsz > argsz && info.argsz <= MAX_ARGSZ) {
      argsz = info.argsz;
      continue;
    }
    return { index, flags: info.flags, size: info.size, offset: info.offset, reply };
  }
}

export async function allInfos(context: Context, session: Session): Promise<FullInfo[]> {
  const { numRegions } = context.device();
  const infos: FullInfo[] = [];
  for (let index = 0; index < Math.min(numRegions, MAX_REGIONS); index++) infos.push(await fullInfo(session, index));
  return infos;
}

export interface Capability {
  readonly id: number;
  readonly version: number;
  /** Behind its header. */
  readonly at: number;
  /** Where the next capability begins, or the reply ends. */
  readonly end: number;
}

/** Walks the chain. @throws Failure when it leaves the reply, overlaps the fixed part or itself, or does not end */
export function capabilities({ index, flags, reply }: FullInfo): Capability[] {
  if (!(flags & RegionInfoFlags.CAPS)) return [];
  const starts: number[] = [];
  const { length } = reply.body;
  const name = `region ${index}: a capability`;
  let at: number = RegionInfo.view(reply.data).capOffset;
  for (; at !== 0; at = RegionCapHeader.view(reply.data, at).next) {
    expectThat(at >= RegionInfo.size, `${name} behind the fixed part`, `one at ${at}`);
    expectThat(at + RegionCapHeader.size <= length, `${name} within the ${length} bytes of the reply`, `one at ${at}`);
    expectThat(isAligned(at, HEADER_ALIGNMENT), `${name} at a multiple of ${HEADER_ALIGNMENT}`, `one at ${at}`);
    expectThat(!starts.includes(at), `${name} list that ends`, `one that comes back to ${at}`);
    starts.push(at);
  }
  expectThat(starts.length > 0, `region ${index}: a capability, as the CAPS flag is set`, "none");
  return starts.map((start) => {
    const end = Math.min(length, ...starts.filter((other) => other > start));
    const came = `one at ${start}, and the next at ${end}`;
    expectThat(end - start >= RegionCapHeader.size, `${name} that no other begins in`, came);
    const { id, version } = RegionCapHeader.view(reply.data, start);
    return { id, version, at: start + RegionCapHeader.size, end };
  });
}

/** What a region of the device's own says it is; undefined when it does not. @throws Failure when it is cut */
export function typeOf(info: FullInfo): { type: number; subtype: number } | undefined {
  const capability = capabilities(info).find(({ id }) => id === RegionCap.TYPE);
  if (capability === undefined) return undefined;
  const length = capability.end - capability.at;
  const name = `region ${info.index}: a type capability`;
  expectThat(length >= RegionType.size, `${name} of ${RegionCapHeader.size + RegionType.size} bytes`, length);
  const { type, subtype } = RegionType.view(info.reply.data, capability.at);
  return { type, subtype };
}

export interface Area {
  readonly offset: number;
  readonly size: number;
}

/** The areas that a client may map: the sparse ones, or the whole region. @throws Failure when they are cut */
export function areasOf(info: FullInfo): Area[] {
  if (!(info.flags & RegionInfoFlags.MMAP)) return [];
  const sparse = capabilities(info).find(({ id }) => id === RegionCap.SPARSE_MMAP);
  if (sparse === undefined) return [{ offset: 0, size: info.size }];
  const { data } = info.reply;
  const name = `region ${info.index}: a sparse mmap capability`;
  const start = sparse.at - RegionCapHeader.size;
  expectThat(isAligned(start, AREA_ALIGNMENT), `${name} at a multiple of ${AREA_ALIGNMENT}`, `one at ${start}`);
  const least = RegionCapHeader.size + SparseMmap.size;
  expectThat(sparse.end - start >= least, `${name} of at least ${least} bytes`, `${sparse.end - start}`);
  const { areas } = SparseMmap.view(data, sparse.at);
  const room = Math.floor((sparse.end - sparse.at - SparseMmap.size) / SparseMmapArea.size);
  expectThat(areas <= room, `${name} with all of its ${areas} areas`, `room for ${room}`);
  return Array.from({ length: areas }, (_, index) => {
    const { offset, size } = SparseMmapArea.view(data, sparse.at + SparseMmap.size + index * SparseMmapArea.size);
    return { offset, size };
  });
}

/** Whole pages within the region that do not overlap. Returns how many there are. @throws Failure */
export function checkAreas(info: FullInfo): number {
  let before = 0;
  const areas = areasOf(info).sort((a, b) => a.offset - b.offset);
  for (const { offset, size } of areas) {
    const came = `${size} bytes at ${offset}`;
    const name = `region ${info.index}: areas`;
    expectThat(size > 0 && inBounds(offset, size, info.size), `${name} within its ${info.size} bytes`, came);
    expectThat(isAligned(offset, PAGE) && isAligned(size, PAGE), `${name} of whole pages`, came);
    expectThat(offset >= before, `${name} that do not overlap`, came);
    before = offset + size;
  }
  return areas.length;
}
