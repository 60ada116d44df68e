/**
 * REGION_READ and REGION_WRITE. Good accesses go to configuration space alone, as reading a device's registers may
 * change them; the one good write is of the interrupt line register's own value, of which no device takes notice.
 */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, Region, RegionAccess, RegionInfoFlags } from "../../../shared/spec/vfio-user.js";
import { type BadRequest, badRequests } from "../bad-request.js";
import { type AccessFields, encodeAccess } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import type { Device, RegionFacts } from "../device.js";
import { isReadable } from "../device.js";
import { expectEqual, expectSuccess } from "../expect.js";
import type { Session } from "../session.js";
import { Skip } from "../verdict.js";
import type { Message } from "../wire.js";

const READ = vfioUser("VFIO_USER_REGION_READ");
const WRITE = vfioUser("VFIO_USER_REGION_WRITE");
const LIMITS = vfioUser("Read and Write Operations");
const { REGION_READ, REGION_WRITE } = Command;
const MAX_U64 = 2n ** 64n - 1n;

function expectEcho({ data }: Message, region: number, offset: number, count: number): void {
  const echo = RegionAccess.view(data);
  expectEqual("the region echoed:", echo.region, region);
  expectEqual("the offset echoed:", echo.offset, offset);
  expectEqual("the count echoed:", echo.count, count);
}

async function read(session: Session, offset: number, count: number): Promise<Uint8Array> {
  const region = Region.CONFIG;
  const answer = await session.request(REGION_READ, encodeAccess({ region, offset, count }));
  const reply = expectSuccess(answer, REGION_READ, RegionAccess.size + count);
  expectEcho(reply, region, offset, count);
  return reply.body.slice(RegionAccess.size);
}

const reads: Check[] = [
  {
    id: "region-read",
    section: READ,
    title: "Reads of 1, 2 and 4 bytes agree with each other, and echo what was asked",
    run: async (context) => {
      context.device().config();
      const session = await context.connect();
      const whole = Buffer.from(await read(session, 0, 4)).toString("hex");
      const halves = [await read(session, 0, 2), await read(session, 2, 2)];
      const bytes: Uint8Array[] = [];
      for (let offset = 0; offset < 4; offset++) bytes.push(await read(session, offset, 1));
      expectEqual("two reads of 2 bytes to give", Buffer.concat(halves).toString("hex"), whole);
      expectEqual("four reads of 1 byte to give", Buffer.concat(bytes).toString("hex"), whole);
      return undefined;
    },
  },
  {
    id: "region-read-config-whole",
    section: READ,
    title: "Configuration space can be read at once, as QEMU does",
    run: async (context) => {
      const { size } = context.device().config();
      await read(await context.connect(), 0, size);
      return `${size} bytes`;
    },
  },
];

/** A region that can be read, preferably not configuration space, which some servers treat apart. */
function anyRegion(device: Device): RegionFacts {
  const found = device.regions.find((region) => region.index !== Region.CONFIG && isReadable(region));
  return found ?? device.config();
}

type Bad = Omit<BadRequest, "command" | "answer">;

/** Out of bounds in either direction: refused, whether it is read or written. */
const OUTSIDE: readonly { id: string; title: string; section?: string; where: (device: Device) => AccessFields }[] = [
  {
    id: "index",
    title: "The region behind the last",
    where: (device) => ({ region: device.numRegions, offset: 0, count: 4 }),
  },
  { id: "index-max", title: "Region 0xffffffff", where: () => ({ region: 0xffff_ffff, offset: 0, count: 4 }) },
  {
    id: "empty",
    title: "A region without a size",
    where: (device) => ({ region: device.emptyRegion().index, offset: 0, count: 4 }),
  },
  {
    id: "end",
    title: "An offset behind the end of configuration space",
    where: (device) => ({ region: Region.CONFIG, offset: device.config().size, count: 4 }),
  },
  {
    id: "end-other",
    title: "An offset behind the end of another region",
    where: (device) => ({ region: anyRegion(device).index, offset: anyRegion(device).size, count: 4 }),
  },
  {
    id: "offset-wrap",
    title: "An offset whose end overflows 64 bits",
    where: (device) => ({ region: anyRegion(device).index, offset: MAX_U64 - 3n, count: 8 }),
  },
  {
    id: "offset-max",
    title: "The offset 2^64 - 1",
    where: (device) => ({ region: anyRegion(device).index, offset: MAX_U64, count: 1 }),
  },
  {
    id: "offset-signed",
    title: "The offset 2^63",
    where: (device) => ({ region: anyRegion(device).index, offset: 2n ** 63n, count: 4 }),
  },
];

const badReads: Bad[] = [
  ...OUTSIDE.map(({ where, ...rest }) => ({
    ...rest,
    title: `${rest.title} cannot be read`,
    body: (device: Device) => encodeAccess(where(device)),
  })),
  {
    id: "straddle",
    title: "A read across the end of configuration space is refused",
    body: (device) => encodeAccess({ region: Region.CONFIG, offset: device.config().size - 2, count: 4 }),
  },
  {
    id: "straddle-other",
    title: "A read across the end of another region is refused",
    body: (device) => {
      const { index, size } = anyRegion(device);
      return encodeAccess({ region: index, offset: size - 1, count: 4 });
    },
  },
  {
    id: "count-data-limit",
    title: "A count of more than the server's max_data_xfer_size is refused",
    section: LIMITS,
    body: (device) => {
      const largest = [...device.regions].sort((a, b) => b.size - a.size)[0] ?? device.config();
      return encodeAccess({
        region: largest.index,
        offset: 0,
        count: Math.min(device.maxDataXferSize + 1, 0xffff_ffff),
      });
    },
  },
  {
    id: "count-max",
    title: "A count of 0xffffffff is refused",
    body: (device) => encodeAccess({ region: anyRegion(device).index, offset: 0, count: 0xffff_ffff }),
  },
  { id: "no-body", title: "A request without a body is refused", body: new Uint8Array(0) },
  { id: "short", title: "A request of 15 bytes is refused", body: new Uint8Array(15) },
];

const writes: Check[] = [
  {
    id: "region-write",
    section: WRITE,
    title: "A write is answered with what was asked, without data",
    run: async (context) => {
      const device = context.device();
      if (!(device.config().flags & RegionInfoFlags.WRITE)) throw new Skip("configuration space cannot be written");
      const session = await context.connect();
      const bytes = await read(session, ConfigHeader.INTERRUPT_LINE, 1);
      const access = { region: Region.CONFIG, offset: ConfigHeader.INTERRUPT_LINE, count: 1 };
      const answer = await session.request(REGION_WRITE, encodeAccess({ ...access, bytes }));
      expectEcho(expectSuccess(answer, REGION_WRITE, RegionAccess.size), access.region, access.offset, 1);
      return undefined;
    },
  },
];

const FOUR = Uint8Array.of(0, 0, 0, 0);

const badWrites: Bad[] = [
  ...OUTSIDE.map(({ where, ...rest }) => ({
    ...rest,
    title: `${rest.title} cannot be written`,
    body: (device: Device) => {
      const access = where(device);
      return encodeAccess({ ...access, bytes: new Uint8Array(access.count) });
    },
  })),
  {
    id: "straddle",
    title: "A write across the end of a region is refused",
    destructive: true,
    body: (device) => {
      const { index, size } = anyRegion(device);
      return encodeAccess({ region: index, offset: size - 1, count: 4, bytes: FOUR });
    },
  },
  { id: "no-body", title: "A request without a body is refused", body: new Uint8Array(0) },
  { id: "short", title: "A request of 15 bytes is refused", body: new Uint8Array(15) },
  {
    id: "data-none",
    title: "A count without data is refused",
    body: encodeAccess({ region: Region.CONFIG, offset: ConfigHeader.INTERRUPT_LINE, count: 1 }),
  },
  {
    id: "data-short",
    title: "Less data than count is refused",
    body: (device) => encodeAccess({ region: Region.CONFIG, offset: device.config().size, count: 4096, bytes: FOUR }),
  },
  {
    id: "count-max",
    title: "A count of 0xffffffff is refused",
    body: encodeAccess({ region: Region.CONFIG, offset: 0, count: 0xffff_ffff, bytes: FOUR }),
  },
];

/** Odd accesses that need not be refused. */
const ODD: readonly BadRequest[] = [
  {
    id: "region-read-zero",
    title: "A read of 0 bytes is answered",
    section: READ,
    command: REGION_READ,
    body: encodeAccess({ region: Region.CONFIG, offset: 0, count: 0 }),
    answer: "any",
  },
  {
    id: "region-read-long",
    title: "A read request with bytes behind it is answered",
    section: READ,
    command: REGION_READ,
    body: encodeAccess({ region: Region.CONFIG, offset: 0, count: 4, bytes: FOUR }),
    answer: "any",
  },
  {
    id: "region-read-odd",
    title: "A read of 3 bytes at offset 1 is answered",
    section: READ,
    command: REGION_READ,
    body: encodeAccess({ region: Region.CONFIG, offset: 1, count: 3 }),
    answer: "any",
  },
  {
    id: "region-write-zero",
    title: "A write of 0 bytes is answered",
    section: WRITE,
    command: REGION_WRITE,
    body: encodeAccess({ region: Region.CONFIG, offset: 0, count: 0 }),
    answer: "any",
  },
  {
    id: "region-write-data-long",
    title: "More data than count is answered",
    section: WRITE,
    command: REGION_WRITE,
    body: encodeAccess({ region: Region.CONFIG, offset: 0, count: 0, bytes: FOUR }),
    answer: "any",
  },
];

function refused(section: string, prefix: string, command: number, bad: readonly Bad[]): Check[] {
  return badRequests(
    section,
    bad.map((request) => ({ ...request, id: `${prefix}-${request.id}`, command, answer: "error" as const })),
  );
}

export const access: readonly Check[] = [
  ...reads,
  ...refused(READ, "region-read", REGION_READ, badReads),
  ...writes,
  ...refused(WRITE, "region-write", REGION_WRITE, badWrites),
  ...badRequests(LIMITS, ODD),
];
