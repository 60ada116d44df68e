/**
 * What the device says of itself, asked once for a run and leniently: whether the answers are right is the business of
 * the checks of regions and interrupts. Those that need a region or an interrupt choose it here.
 */
import {
  Command,
  DeviceFeatureFlags,
  DeviceInfo,
  IrqInfo,
  IrqInfoFlags,
  Region,
  RegionAccess,
  RegionInfo,
  RegionInfoFlags,
} from "../../shared/spec/vfio-user.js";
import { expectReply, expectThat, Skip } from "./expect.js";
import { encodeAccess, encodeFeature, GET_INFO_BODY, isError, NO_BYTES } from "./messages.js";
import type { CheckerSession } from "./session.js";

const MAX_INDICES = 64;
const DEFAULT_MAX_DATA = 1048576;
const DEFAULT_MAX_MAPS = 65535;

interface RegionFacts {
  readonly index: number;
  readonly flags: number;
  readonly size: number;
}

interface IrqFacts {
  readonly index: number;
  readonly flags: number;
  readonly count: number;
}

export type Capabilities = Readonly<Record<string, unknown>>;

/** The capabilities in a VERSION reply; empty when there are none, or none that can be understood. */
export function parseCapabilities(body: Uint8Array): Capabilities {
  try {
    const text = Buffer.from(body.subarray(4)).toString("utf8").replace(/\0.*$/s, "");
    const json = JSON.parse(text) as { capabilities?: unknown } | null;
    const capabilities = json?.capabilities;
    return typeof capabilities === "object" && capabilities !== null ? (capabilities as Capabilities) : {};
  } catch {
    return {};
  }
}

function numberOf(value: unknown, otherwise: number): number {
  return typeof value === "number" && value >= 0 ? value : otherwise;
}

/** What describes one region or one interrupt type: the request is its fixed part, too. */
interface InfoTable {
  readonly size: number;
  encode(fields: { argsz: number; index: number }): Uint8Array;
}

/** The replies about each index that is described; not those that are refused or too short. */
async function describeEach(
  session: CheckerSession,
  command: number,
  table: InfoTable,
  count: number,
): Promise<{ index: number; data: DataView }[]> {
  const found: { index: number; data: DataView }[] = [];
  for (let index = 0; index < Math.min(count, MAX_INDICES); index++) {
    const answer = await session.request(command, table.encode({ argsz: table.size, index }));
    if (answer === undefined || isError(answer) || answer.body.length < table.size) continue;
    found.push({ index, data: answer.data });
  }
  return found;
}

export class Device {
  readonly regions: readonly RegionFacts[];
  readonly irqs: readonly IrqFacts[];
  readonly maxDataXferSize: number;
  readonly maxDmaMaps: number;
  readonly writeMultiple: boolean;

  constructor(
    readonly flags: number,
    readonly numRegions: number,
    readonly numIrqs: number,
    { max_data_xfer_size, max_dma_maps, write_multiple }: Capabilities,
    facts: { regions: readonly RegionFacts[]; irqs: readonly IrqFacts[] },
  ) {
    this.regions = facts.regions;
    this.irqs = facts.irqs;
    this.maxDataXferSize = numberOf(max_data_xfer_size, DEFAULT_MAX_DATA);
    this.maxDmaMaps = numberOf(max_dma_maps, DEFAULT_MAX_MAPS);
    this.writeMultiple = write_multiple === true;
  }

  /** Asks on a new connection, which has agreed on a version. @throws Failure when the answers cannot be used */
  static async describe(session: CheckerSession): Promise<Device> {
    const { data, body } = await session.success(Command.DEVICE_GET_INFO, GET_INFO_BODY);
    expectThat(body.length >= DeviceInfo.size, `${DeviceInfo.size} bytes of device info`, body.length);
    const { flags, numRegions, numIrqs } = DeviceInfo.view(data);
    const regions = await describeEach(session, Command.DEVICE_GET_REGION_INFO, RegionInfo, numRegions);
    const irqs = await describeEach(session, Command.DEVICE_GET_IRQ_INFO, IrqInfo, numIrqs);
    return new Device(flags, numRegions, numIrqs, parseCapabilities(session.version?.body ?? NO_BYTES), {
      regions: regions.map(({ index, data }) => {
        const { flags, size } = RegionInfo.view(data);
        return { index, flags, size };
      }),
      irqs: irqs.map(({ index, data }) => {
        const { flags, count } = IrqInfo.view(data);
        return { index, flags, count };
      }),
    });
  }

  /** Configuration space, at least its header. @throws Skip */
  config(): RegionFacts {
    const region = this.regions.find(({ index }) => index === Region.CONFIG);
    if (region === undefined || region.size < 64) throw new Skip("there is no PCI configuration space");
    return region;
  }

  /** @throws Skip */
  emptyRegion(): RegionFacts {
    const region = this.regions.find(({ size }) => size === 0);
    if (region === undefined) throw new Skip("every region has a size");
    return region;
  }

  /** A region that can be read, preferably not configuration space, which some servers treat apart. @throws Skip */
  readableRegion(): RegionFacts {
    const found = this.regions.find(
      ({ index, size, flags }) => index !== Region.CONFIG && size > 0 && (flags & RegionInfoFlags.READ) !== 0,
    );
    return found ?? this.config();
  }

  regionSize(index: number): number {
    return this.regions.find((region) => region.index === index)?.size ?? 0;
  }

  irqCount(index: number): number {
    return this.irqs.find((irq) => irq.index === index)?.count ?? 0;
  }

  /** The interrupt type with an eventfd and the most vectors, at least `vectors`. @throws Skip */
  irq(vectors = 1): IrqFacts {
    const best = this.irqs.filter(({ flags }) => flags & IrqInfoFlags.EVENTFD).sort((a, b) => b.count - a.count)[0];
    if (best === undefined || best.count < vectors) {
      const what = vectors === 1 ? "a vector" : `${vectors} vectors`;
      throw new Skip(`no interrupt type has ${what} that takes an eventfd`);
    }
    return best;
  }

  /** @throws Skip */
  async readConfig(session: CheckerSession, offset: number, count: number): Promise<DataView> {
    const { size } = this.config();
    if (offset + count > size) throw new Skip(`configuration space has ${size} bytes`);
    const body = encodeAccess({ region: Region.CONFIG, offset, count });
    const { data } = await session.success(Command.REGION_READ, body, RegionAccess.size + count);
    return new DataView(data.buffer, RegionAccess.size, count);
  }
}

/** Whether PROBE says that the device has all of `methods` for a feature. */
export async function hasFeature(session: CheckerSession, feature: number, methods: number): Promise<boolean> {
  const body = encodeFeature(feature | methods | DeviceFeatureFlags.PROBE);
  const answer = await session.request(Command.DEVICE_FEATURE, body);
  return !isError(expectReply(answer, Command.DEVICE_FEATURE));
}
