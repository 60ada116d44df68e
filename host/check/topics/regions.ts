/** GET_REGION_INFO with its capabilities and fds. What the regions contain is access.ts. */
import { mapFile, PROT_READ } from "../../../native/index.js";
import { isAligned } from "../../../shared/bits.js";
import { isSystemError } from "../../../shared/errors.js";
import { GiB } from "../../../shared/limits.js";
import { Command, NUM_PCI_REGIONS, RegionCap, RegionInfo, RegionInfoFlags } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeRegionInfo, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { expectEqual, expectSuccess, expectThat } from "../expect.js";
import { type Area, allInfos, areasOf, capabilities, checkAreas, type FullInfo, typeOf } from "../region-info.js";
import { Failure, Skip } from "../verdict.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_GET_REGION_INFO");
const SPARSE = vfioUser("VFIO region info cap sparse mmap");
const GET_REGION_INFO = Command.DEVICE_GET_REGION_INFO;
const KNOWN_FLAGS = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;

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
    title: "Capability lists stay within the reply, in places of their own, and end",
    run: async (context) => {
      const session = await context.connect();
      const found = (await allInfos(context, session)).flatMap(capabilities);
      if (found.length === 0) throw new Skip("no region has capabilities");
      return `${found.length} capabilities`;
    },
  },
  {
    id: "region-info-capability-versions",
    section: vfioUser("VFIO sparse mmap cap header"),
    title: "Capabilities have the version that is described, 1, and each is there once",
    run: async (context) => {
      const session = await context.connect();
      const all = await allInfos(context, session);
      if (all.every((info) => capabilities(info).length === 0)) throw new Skip("no region has capabilities");
      for (const info of all) {
        const ids = capabilities(info).map(({ id }) => id);
        for (const { id, version } of capabilities(info)) {
          if (id !== RegionCap.SPARSE_MMAP && id !== RegionCap.TYPE) continue;
          expectEqual(`region ${info.index}: capability ${id} with version`, version, 1);
          const count = ids.filter((other) => other === id).length;
          expectEqual(`region ${info.index}: capabilities with id ${id}:`, count, 1);
        }
      }
      return undefined;
    },
  },
  {
    id: "region-info-type",
    section: "linux/vfio.h, VFIO_REGION_INFO_CAP_TYPE",
    title: "Regions behind those of PCI have a type capability",
    run: async (context) => {
      const session = await context.connect();
      const own = (await allInfos(context, session)).filter(({ index, size }) => index >= NUM_PCI_REGIONS && size > 0);
      if (own.length === 0) throw new Skip("the device has no regions of its own");
      const types = own.map((info) => {
        const type = typeOf(info);
        if (type === undefined) throw new Failure(`region ${info.index}: a type capability`, "none");
        return type;
      });
      return types.map(({ type, subtype }, n) => `${own[n].index}: ${type.toString(16)}/${subtype}`).join(", ");
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
