/**
 * What the device says of itself, asked once for a run and leniently: whether the answers are right is the business of
 * the checks of regions and interrupts. Those that need a region or an interrupt choose it here.
 */
import { Command, DeviceInfo, IrqInfo, Region, RegionInfo, RegionInfoFlags } from "../../shared/spec/vfio-user.js";
import { encodeAccess, encodeRegionInfo } from "./bodies.js";
import { expectSuccess, expectThat, isError } from "./expect.js";
import type { Session } from "./session.js";
import { Skip } from "./verdict.js";

const MAX_INDICES = 64;
const DEFAULT_MAX_DATA = 1048576;
const DEFAULT_MAX_MAPS = 65535;

export interface RegionFacts {
  readonly index: number;
  readonly flags: number;
  readonly size: number;
}

export interface IrqFacts {
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

export class Device {
  private constructor(
    readonly flags: number,
    readonly numRegions: number,
    readonly numIrqs: number,
    readonly capabilities: Capabilities,
    readonly regions: readonly RegionFacts[],
    readonly irqs: readonly IrqFacts[],
  ) {}

  get maxDataXferSize(): number {
    return numberOf(this.capabilities.max_data_xfer_size, DEFAULT_MAX_DATA);
  }

  get maxDmaMaps(): number {
    return numberOf(this.capabilities.max_dma_maps, DEFAULT_MAX_MAPS);
  }

  get writeMultiple(): boolean {
    return this.capabilities.write_multiple === true;
  }

  /** Asks on a new connection, which has agreed on a version. @throws Failure when the answers cannot be used */
  static async describe(session: Session): Promise<Device> {
    const answer = await session.request(Command.DEVICE_GET_INFO, DeviceInfo.encode({ argsz: DeviceInfo.size }));
    const { data, body } = expectSuccess(answer, Command.DEVICE_GET_INFO);
    expectThat(body.length >= DeviceInfo.size, `${DeviceInfo.size} bytes of device info`, body.length);
    const { flags, numRegions, numIrqs } = DeviceInfo.view(data);
    const capabilities = parseCapabilities(session.version?.body ?? new Uint8Array(0));
    const regions = await describeRegions(session, Math.min(numRegions, MAX_INDICES));
    const irqs = await describeIrqs(session, Math.min(numIrqs, MAX_INDICES));
    return new Device(flags, numRegions, numIrqs, capabilities, regions, irqs);
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

  /** The interrupt type with an eventfd and the most vectors, at least `vectors`. @throws Skip */
  irq(vectors = 1): IrqFacts {
    const best = this.irqs.filter(({ flags }) => flags & 1).sort((a, b) => b.count - a.count)[0];
    if (best === undefined || best.count < vectors) {
      throw new Skip(
        `no interrupt type has ${vectors === 1 ? "a vector" : `${vectors} vectors`} that takes an eventfd`,
      );
    }
    return best;
  }

  /** @throws Skip */
  async readConfig(session: Session, offset: number, count: number): Promise<DataView> {
    const { size } = this.config();
    if (offset + count > size) throw new Skip(`configuration space has ${size} bytes`);
    const body = encodeAccess({ region: Region.CONFIG, offset, count });
    const answer = await session.request(Command.REGION_READ, body);
    const { data } = expectSuccess(answer, Command.REGION_READ, 16 + count);
    return new DataView(data.buffer, 16, count);
  }
}

async function describeRegions(session: Session, count: number): Promise<RegionFacts[]> {
  const regions: RegionFacts[] = [];
  for (let index = 0; index < count; index++) {
    const answer = await session.request(Command.DEVICE_GET_REGION_INFO, encodeRegionInfo(index));
    if (answer === undefined || isError(answer) || answer.body.length < RegionInfo.size) continue;
    const { flags, size } = RegionInfo.view(answer.data);
    regions.push({ index, flags, size });
  }
  return regions;
}

async function describeIrqs(session: Session, count: number): Promise<IrqFacts[]> {
  const irqs: IrqFacts[] = [];
  for (let index = 0; index < count; index++) {
    const answer = await session.request(Command.DEVICE_GET_IRQ_INFO, IrqInfo.encode({ argsz: IrqInfo.size, index }));
    if (answer === undefined || isError(answer) || answer.body.length < IrqInfo.size) continue;
    const info = IrqInfo.view(answer.data);
    irqs.push({ index, flags: info.flags, count: info.count });
  }
  return irqs;
}

export function isReadable(region: RegionFacts): boolean {
  return region.size > 0 && (region.flags & RegionInfoFlags.READ) !== 0;
}
