/**
 * GET_REGION_INFO with its capabilities, as the specification lays them out, and its fds. What the regions contain is
 * access.ts.
 */
import { mapFile, PROT_READ } from "../../../native/index.js";
import { inBounds, isAligned } from "../../../shared/bits.js";
import { isSystemError } from "../../../shared/errors.js";
import { GiB } from "../../../shared/limits.js";
import {
  Command,
  NUM_PCI_REGIONS,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Device } from "../device.js";
import { expectEqual, expectThat, Failure, Skip, walkList } from "../expect.js";
import { encodeRegionInfo, type Message, NO_BYTES, PAGE } from "../messages.js";
import type { CheckerSession } from "../session.js";

const { DEVICE_GET_REGION_INFO } = Command;
const REGION_INFO = { section: vfioUser("VFIO_USER_DEVICE_GET_REGION_INFO"), command: DEVICE_GET_REGION_INFO };
const KNOWN_FLAGS = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;
const ARGSZ = 4096;
const MAX_ARGSZ = 1024 * 1024;
const MAX_REGIONS = 64;
/** As the structures of <linux/vfio.h> lie in memory: a header has 32-bit fields, an area 64-bit ones. */
const HEADER_ALIGNMENT = 4;
const AREA_ALIGNMENT = 8;

interface FullInfo {
  readonly index: number;
  readonly flags: number;
  readonly size: number;
  readonly offset: number;
  readonly reply: Message;
}

/** The whole info of a region, asked for with as much room as it takes. */
async function fullInfo(session: CheckerSession, index: number): Promise<FullInfo> {
  let argsz = ARGSZ;
  for (;;) {
    const reply = await session.success(DEVICE_GET_REGION_INFO, encodeRegionInfo(index, argsz));
    const { length } = reply.body;
    expectThat(length >= RegionInfo.size, `region ${index}: at least ${RegionInfo.size} bytes`, length);
    const info = RegionInfo.view(reply.data);
    const isCut = info.argsz > argsz && info.argsz <= MAX_ARGSZ;
    if (!isCut) return { index, flags: info.flags, size: info.size, offset: info.offset, reply };
    argsz = info.argsz;
  }
}

async function allInfos(session: CheckerSession, { numRegions }: Device): Promise<FullInfo[]> {
  const infos: FullInfo[] = [];
  for (let index = 0; index < Math.min(numRegions, MAX_REGIONS); index++) infos.push(await fullInfo(session, index));
  return infos;
}

interface Capability {
  readonly id: number;
  readonly version: number;
  /** Behind its header. */
  readonly at: number;
  /** Where the next capability begins, or the reply ends. */
  readonly end: number;
}

/** @throws Failure when their list leaves the reply, overlaps the fixed part or itself, or does not end */
function capabilities({ index, flags, reply }: FullInfo): Capability[] {
  if (!(flags & RegionInfoFlags.CAPS)) return [];
  const { data, body } = reply;
  const { capOffset } = RegionInfo.view(data);
  const name = `region ${index}: a capability`;
  const headerSize = RegionCapHeader.size;
  const bounds = { name, from: RegionInfo.size, to: body.length, headerSize, alignment: HEADER_ALIGNMENT };
  const starts = walkList(bounds, capOffset, (at) => RegionCapHeader.view(data, at).next);
  expectThat(starts.length > 0, `${name}, as the CAPS flag is set`, "none");
  return starts.map((start) => {
    const end = Math.min(body.length, ...starts.filter((other) => other > start));
    const came = `one at ${start}, and the next at ${end}`;
    expectThat(end - start >= headerSize, `${name} that no other begins in`, came);
    const { id, version } = RegionCapHeader.view(data, start);
    return { id, version, at: start + headerSize, end };
  });
}

/** What a region of the device's own says it is: type and subtype. @throws Failure when it does not, or is cut */
function typeOf(info: FullInfo): string {
  const name = `region ${info.index}: a type capability`;
  const capability = capabilities(info).find(({ id }) => id === RegionCap.TYPE);
  if (capability === undefined) throw new Failure(name, "none");
  const length = capability.end - capability.at;
  expectThat(length >= RegionType.size, `${name} of ${RegionCapHeader.size + RegionType.size} bytes`, length);
  const { type, subtype } = RegionType.view(info.reply.data, capability.at);
  return `${info.index}: ${type.toString(16)}/${subtype}`;
}

interface Area {
  readonly offset: number;
  readonly size: number;
}

/** The areas that a client may map: the sparse ones, or the whole region. @throws Failure when they are cut */
function areasOf(info: FullInfo): Area[] {
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
function checkAreas(info: FullInfo): number {
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

/** Maps without looking: what a device's memory holds is its own business. */
function tryMap(info: FullInfo, { offset, size }: Area): void {
  const at = info.offset + offset;
  if (!Number.isSafeInteger(at) || !isAligned(at, PAGE) || size === 0) {
    throw new Failure(`region ${info.index}: an offset that mmap takes`, `${info.offset}, with an area at ${offset}`);
  }
  try {
    mapFile(info.reply.fds[0], at, Math.min(size, 1 * GiB), PROT_READ);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new Failure(`region ${info.index}: to map ${size} bytes at ${offset}`, `${error.code} from ${error.syscall}`);
  }
}

export const regions = [
  ...topic({ ...REGION_INFO, prefix: "region-info" }, [
    {
      id: "",
      title: "Each region is described: index echoed, argsz and flags in order",
      described: async (session, device) => {
        const described: string[] = [];
        for (const { index, flags, size, reply } of await allInfos(session, device)) {
          const info = RegionInfo.view(reply.data);
          expectEqual(`region ${index}: the index`, info.index, index);
          expectEqual(`region ${index}: argsz`, info.argsz, reply.body.length);
          expectThat((flags & ~KNOWN_FLAGS) === 0, `region ${index}: flags below 16`, flags);
          expectThat(Number.isSafeInteger(size), `region ${index}: a size below 2^53`, size);
          if (size > 0) described.push(`${index}: ${size}`);
        }
        return described.join(", ");
      },
    },
    {
      id: "-argsz-growth",
      section: vfioUser("Message sizes"),
      title: "When the capabilities do not fit argsz, the reply is the fixed part and says how much is needed",
      described: async (session, device) => {
        const larger = (await allInfos(session, device)).filter(({ reply }) => reply.body.length > RegionInfo.size);
        if (larger.length === 0) throw new Skip("no region has capabilities");
        for (const { index, reply } of larger) {
          const { data } = await session.success(DEVICE_GET_REGION_INFO, encodeRegionInfo(index), RegionInfo.size);
          expectEqual(`region ${index}: argsz`, RegionInfo.view(data).argsz, reply.body.length);
        }
      },
    },
    {
      id: "-capabilities",
      section: vfioUser("VFIO region capabilities"),
      title: "Capability lists stay within the reply, do not overlap, and end",
      described: async (session, device) => {
        const found = (await allInfos(session, device)).flatMap(capabilities);
        if (found.length === 0) throw new Skip("no region has capabilities");
        return `${found.length} capabilities`;
      },
    },
    {
      id: "-capability-versions",
      section: vfioUser("VFIO sparse mmap cap header"),
      title: "Capabilities have the version that is described, 1, and each is there once",
      described: async (session, device) => {
        const all = (await allInfos(session, device)).map((info) => ({ info, found: capabilities(info) }));
        if (all.every(({ found }) => found.length === 0)) throw new Skip("no region has capabilities");
        for (const { info, found } of all) {
          for (const { id, version } of found) {
            if (id !== RegionCap.SPARSE_MMAP && id !== RegionCap.TYPE) continue;
            expectEqual(`region ${info.index}: capability ${id} with version`, version, 1);
            const count = found.filter((other) => other.id === id).length;
            expectEqual(`region ${info.index}: capabilities with id ${id}:`, count, 1);
          }
        }
      },
    },
    {
      id: "-type",
      section: "linux/vfio.h, VFIO_REGION_INFO_CAP_TYPE",
      title: "Regions behind those of PCI have a type capability",
      described: async (session, device) => {
        const all = await allInfos(session, device);
        const own = all.filter(({ index, size }) => index >= NUM_PCI_REGIONS && size > 0);
        if (own.length === 0) throw new Skip("the device has no regions of its own");
        return own.map(typeOf).join(", ");
      },
    },
    {
      id: "-areas",
      section: vfioUser("VFIO region info cap sparse mmap"),
      title: "Areas that can be mapped are whole pages within the region and do not overlap",
      described: async (session, device) => {
        const isSparse = (info: FullInfo) => capabilities(info).some(({ id }) => id === RegionCap.SPARSE_MMAP);
        const sparse = (await allInfos(session, device)).filter(isSparse);
        if (sparse.length === 0) throw new Skip("no region can be mapped in part");
        return `${sparse.reduce((sum, info) => sum + checkAreas(info), 0)} areas`;
      },
    },
    {
      id: "-mmap",
      title: "A region that can be mapped comes with an fd, and mapping its areas works",
      described: async (session, device) => {
        const mappable = (await allInfos(session, device)).filter(({ flags }) => flags & RegionInfoFlags.MMAP);
        if (mappable.length === 0) throw new Skip("no region can be mapped");
        for (const info of mappable) {
          expectThat(info.reply.fds.length > 0, `region ${info.index}: an fd, as the MMAP flag is set`, "none");
          for (const area of areasOf(info)) tryMap(info, area);
        }
      },
    },
  ]),
  ...topic({ ...REGION_INFO, prefix: "region-info-", answer: "error" }, [
    {
      id: "index",
      title: "The index behind the last region is refused",
      body: (device) => encodeRegionInfo(device.numRegions),
    },
    { id: "index-max", title: "Index 0xffffffff is refused", body: encodeRegionInfo(0xffff_ffff) },
    { id: "no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "short", title: "A request that ends before the index is refused", body: encodeRegionInfo(0).slice(0, 8) },
  ]),
  ...topic({ ...REGION_INFO, prefix: "region-info-", answer: "any" }, [
    { id: "argsz-zero", title: "An argsz of 0 is survived", body: encodeRegionInfo(0, 0) },
    { id: "argsz-small", title: "An argsz of 31 is survived", body: encodeRegionInfo(0, 31) },
    { id: "argsz-max", title: "An argsz of 0xffffffff is survived", body: encodeRegionInfo(0, 0xffff_ffff) },
  ]),
];
