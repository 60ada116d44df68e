/** GET_REGION_INFO with its capabilities and fds. What the regions contain is access.ts. */
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
  SparseMmap,
  SparseMmapArea,
} from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeRegionInfo, PAGE } from "../bodies.js";
import { type Check, Failure, Skip, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectSuccess, expectThat } from "../expect.js";
import type { Session } from "../session.js";
import type { Message } from "../wire.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_GET_REGION_INFO");
const SPARSE = vfioUser("VFIO region info cap sparse mmap");
const GET_REGION_INFO = Command.DEVICE_GET_REGION_INFO;
const ARGSZ = 4096;
const MAX_ARGSZ = 1024 * 1024;
const KNOWN_FLAGS = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;

interface FullInfo {
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
    const answer = await session.request(GET_REGION_INFO, encodeRegionInfo(index, argsz));
    const reply = expectSuccess(answer, GET_REGION_INFO);
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

async function allInfos(context: Context, session: Session): Promise<FullInfo[]> {
  const { numRegions } = context.device();
  const infos: FullInfo[] = [];
  for (let index = 0; index < Math.min(numRegions, 64); index++) infos.push(await fullInfo(session, index));
  return infos;
}

interface Capability {
  readonly id: number;
  /** Behind its header. */
  readonly at: number;
  /** Where the next capability begins, or the reply ends. */
  readonly end: number;
}

/** Walks the chain. @throws Failure when it leaves the reply, overlaps the fixed part, or does not end */
function capabilities({ index, flags, reply }: FullInfo): Capability[] {
  if (!(flags & RegionInfoFlags.CAPS)) return [];
  const starts: number[] = [];
  const { length } = reply.body;
  let at: number = RegionInfo.view(reply.data).capOffset;
  for (; at !== 0; at = RegionCapHeader.view(reply.data, at).next) {
    const name = `region ${index}: a capability`;
    expectThat(at >= RegionInfo.size, `${name} behind the fixed part`, `one at ${at}`);
    expectThat(at + RegionCapHeader.size <= length, `${name} within the ${length} bytes of the reply`, `one at ${at}`);
    expectThat(!starts.includes(at), `${name} list that ends`, `one that comes back to ${at}`);
    starts.push(at);
  }
  expectThat(starts.length > 0, `region ${index}: a capability, as the CAPS flag is set`, "none");
  return starts.map((start) => {
    const end = Math.min(length, ...starts.filter((other) => other > start));
    return { id: RegionCapHeader.view(reply.data, start).id, at: start + RegionCapHeader.size, end };
  });
}

interface Area {
  readonly offset: number;
  readonly size: number;
}

/** The areas that a client may map: the sparse ones, or the whole region. */
function areasOf(info: FullInfo): Area[] {
  if (!(info.flags & RegionInfoFlags.MMAP)) return [];
  const sparse = capabilities(info).find(({ id }) => id === RegionCap.SPARSE_MMAP);
  if (sparse === undefined) return [{ offset: 0, size: info.size }];
  const { data } = info.reply;
  const name = `region ${info.index}: a sparse mmap capability`;
  expectThat(
    sparse.at + SparseMmap.size <= sparse.end,
    `${name} of at least 16 bytes`,
    `${sparse.end - sparse.at + 8}`,
  );
  const { areas } = SparseMmap.view(data, sparse.at);
  const room = Math.floor((sparse.end - sparse.at - SparseMmap.size) / SparseMmapArea.size);
  expectThat(areas <= room, `${name} with all of its ${areas} areas`, `room for ${room}`);
  return Array.from({ length: areas }, (_, index) => {
    const { offset, size } = SparseMmapArea.view(data, sparse.at + SparseMmap.size + index * SparseMmapArea.size);
    return { offset, size };
  });
}

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

const infos: Check[] = [
  {
    id: "region-info",
    section: SECTION,
    title: "Each region is described: index echoed, argsz and flags in order",
    run: async (context) => {
      const session = await context.connect();
      const described: string[] = [];
      for (const { index, flags, size, reply } of await allInfos(context, session)) {
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
    id: "region-info-argsz-growth",
    section: vfioUser("Message sizes"),
    title: "When the capabilities do not fit argsz, the reply is the fixed part and says how much is needed",
    run: async (context) => {
      const session = await context.connect();
      const larger = (await allInfos(context, session)).filter(({ reply }) => reply.body.length > RegionInfo.size);
      if (larger.length === 0) throw new Skip("no region has capabilities");
      for (const { index, reply } of larger) {
        const answer = await session.request(GET_REGION_INFO, encodeRegionInfo(index));
        const { data } = expectSuccess(answer, GET_REGION_INFO, RegionInfo.size);
        expectEqual(`region ${index}: argsz`, RegionInfo.view(data).argsz, reply.body.length);
      }
      return undefined;
    },
  },
  {
    id: "region-info-capabilities",
    section: vfioUser("VFIO region capabilities"),
    title: "Capability lists stay within the reply and end",
    run: async (context) => {
      const session = await context.connect();
      const found = (await allInfos(context, session)).flatMap(capabilities);
      if (found.length === 0) throw new Skip("no region has capabilities");
      return `${found.length} capabilities`;
    },
  },
  {
    id: "region-info-type",
    section: vfioUser("Device-Specific Regions"),
    title: "Device-specific regions have a type capability",
    run: async (context) => {
      const session = await context.connect();
      const specific = (await allInfos(context, session)).filter(
        ({ index, size }) => index >= NUM_PCI_REGIONS && size > 0,
      );
      if (specific.length === 0) throw new Skip("the device has no regions of its own");
      for (const info of specific) {
        const has = capabilities(info).some(({ id }) => id === RegionCap.TYPE);
        expectThat(has, `region ${info.index}: a type capability`, "none");
      }
      return undefined;
    },
  },
  {
    id: "region-info-areas",
    section: SPARSE,
    title: "Areas that can be mapped are whole pages within the region and do not overlap",
    run: async (context) => {
      const session = await context.connect();
      const sparse = (await allInfos(context, session)).filter((info) =>
        capabilities(info).some(({ id }) => id === RegionCap.SPARSE_MMAP),
      );
      if (sparse.length === 0) throw new Skip("no region can be mapped in part");
      return `${sparse.reduce((sum, info) => sum + checkAreas(info), 0)} areas`;
    },
  },
  {
    id: "region-info-mmap",
    section: SECTION,
    title: "A region that can be mapped comes with an fd, and mapping its areas works",
    run: async (context) => {
      const session = await context.connect();
      const mappable = (await allInfos(context, session)).filter(({ flags }) => flags & RegionInfoFlags.MMAP);
      if (mappable.length === 0) throw new Skip("no region can be mapped");
      for (const info of mappable) {
        expectThat(info.reply.fds.length > 0, `region ${info.index}: an fd, as the MMAP flag is set`, "none");
        for (const area of areasOf(info)) tryMap(info, area);
      }
      return undefined;
    },
  },
];

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

const badInfos = badRequests(SECTION, [
  {
    id: "region-info-index",
    title: "The index behind the last region is refused",
    command: GET_REGION_INFO,
    body: (device) => encodeRegionInfo(device.numRegions),
    answer: "error",
  },
  {
    id: "region-info-index-max",
    title: "Index 0xffffffff is refused",
    command: GET_REGION_INFO,
    body: encodeRegionInfo(0xffff_ffff),
    answer: "error",
  },
  {
    id: "region-info-no-body",
    title: "A request without a body is refused",
    command: GET_REGION_INFO,
    body: new Uint8Array(0),
    answer: "error",
  },
  {
    id: "region-info-short",
    title: "A request that ends before the index is refused",
    command: GET_REGION_INFO,
    body: encodeRegionInfo(0).slice(0, 8),
    answer: "error",
  },
  {
    id: "region-info-argsz-zero",
    title: "An argsz of 0 is survived",
    command: GET_REGION_INFO,
    body: encodeRegionInfo(0, 0),
    answer: "any",
  },
  {
    id: "region-info-argsz-small",
    title: "An argsz of 31 is survived",
    command: GET_REGION_INFO,
    body: encodeRegionInfo(0, 31),
    answer: "any",
  },
  {
    id: "region-info-argsz-max",
    title: "An argsz of 0xffffffff is survived",
    command: GET_REGION_INFO,
    body: encodeRegionInfo(0, 0xffff_ffff),
    answer: "any",
  },
]);

export const regions: readonly Check[] = [...infos, ...badInfos];
