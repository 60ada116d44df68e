/**
 * REGION_READ and REGION_WRITE. Good accesses go to configuration space alone, as reading a device's registers may
 * change them; the one good write is of the interrupt line register's own value, of which no device takes notice.
 */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, Region, RegionAccess, RegionInfoFlags } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Device } from "../device.js";
import { expectEqual, Skip } from "../expect.js";
import { type AccessFields, encodeAccess, type Message, NO_BYTES } from "../messages.js";
import type { CheckerSession } from "../session.js";

const { REGION_READ, REGION_WRITE } = Command;
const LIMITS = vfioUser("Read and Write Operations");
const READ = { section: vfioUser("VFIO_USER_REGION_READ"), command: REGION_READ, prefix: "region-read" };
const WRITE = { section: vfioUser("VFIO_USER_REGION_WRITE"), command: REGION_WRITE, prefix: "region-write" };
const MAX_U64 = 2n ** 64n - 1n;
const FOUR = Uint8Array.of(0, 0, 0, 0);
const CONFIG = { region: Region.CONFIG, offset: 0 };

function expectEcho({ data }: Message, { region, offset, count }: { region: number; offset: number; count: number }) {
  const echo = RegionAccess.view(data);
  expectEqual("the region echoed:", echo.region, region);
  expectEqual("the offset echoed:", echo.offset, offset);
  expectEqual("the count echoed:", echo.count, count);
}

async function read(session: CheckerSession, offset: number, count: number): Promise<Uint8Array> {
  const access = { region: Region.CONFIG, offset, count };
  const reply = await session.success(REGION_READ, encodeAccess(access), RegionAccess.size + count);
  expectEcho(reply, access);
  return reply.body.slice(RegionAccess.size);
}

/** The same range read in pieces of `size` bytes, as hexadecimal digits. */
async function readPieces(session: CheckerSession, length: number, size: number): Promise<string> {
  let digits = "";
  for (let at = 0; at < length; at += size) digits += Buffer.from(await read(session, at, size)).toString("hex");
  return digits;
}

interface Outside {
  readonly id: string;
  readonly title: string;
  readonly where: (device: Device) => AccessFields;
}

/** Out of bounds in either direction: refused, whether it is read or written. */
const OUTSIDE: readonly Outside[] = [
  {
    id: "-index",
    title: "The region behind the last",
    where: (device) => ({ region: device.numRegions, offset: 0, count: 4 }),
  },
  { id: "-index-max", title: "Region 0xffffffff", where: () => ({ region: 0xffff_ffff, offset: 0, count: 4 }) },
  {
    id: "-empty",
    title: "A region without a size",
    where: (device) => ({ region: device.emptyRegion().index, offset: 0, count: 4 }),
  },
  {
    id: "-end",
    title: "An offset behind the end of configuration space",
    where: (device) => ({ region: Region.CONFIG, offset: device.config().size, count: 4 }),
  },
  {
    id: "-end-other",
    title: "An offset behind the end of another region",
    where: (device) => ({ region: device.readableRegion().index, offset: device.readableRegion().size, count: 4 }),
  },
  {
    id: "-offset-wrap",
    title: "An offset whose end overflows 64 bits",
    where: (device) => ({ region: device.readableRegion().index, offset: MAX_U64 - 3n, count: 8 }),
  },
  {
    id: "-offset-max",
    title: "The offset 2^64 - 1",
    where: (device) => ({ region: device.readableRegion().index, offset: MAX_U64, count: 1 }),
  },
  {
    id: "-offset-signed",
    title: "The offset 2^63",
    where: (device) => ({ region: device.readableRegion().index, offset: 2n ** 63n, count: 4 }),
  },
];

/** Across the end of the region that `choose` gives. */
const across = (choose: (device: Device) => { index: number; size: number }, before: number, bytes?: Uint8Array) => {
  return (device: Device) => {
    const { index, size } = choose(device);
    return encodeAccess({ region: index, offset: size - before, count: 4, ...(bytes && { bytes }) });
  };
};

export const access = [
  ...topic(READ, [
    {
      id: "",
      title: "Reads of 1, 2 and 4 bytes agree with each other, and echo what was asked",
      described: async (session, device) => {
        device.config();
        const whole = await readPieces(session, 4, 4);
        expectEqual("two reads of 2 bytes to give", await readPieces(session, 4, 2), whole);
        expectEqual("four reads of 1 byte to give", await readPieces(session, 4, 1), whole);
      },
    },
    {
      id: "-config-whole",
      title: "Configuration space can be read at once, as QEMU does",
      described: async (session, device) => {
        const { size } = device.config();
        await read(session, 0, size);
        return `${size} bytes`;
      },
    },
  ]),
  ...topic({ ...READ, answer: "error" }, [
    ...OUTSIDE.map(({ id, title, where }) => ({
      id,
      title: `${title} cannot be read`,
      body: (device: Device) => encodeAccess(where(device)),
    })),
    {
      id: "-straddle",
      title: "A read across the end of configuration space is refused",
      body: across((device) => device.config(), 2),
    },
    {
      id: "-straddle-other",
      title: "A read across the end of another region is refused",
      body: across((device) => device.readableRegion(), 1),
    },
    {
      id: "-count-data-limit",
      title: "A count of more than the server's max_data_xfer_size is refused",
      section: LIMITS,
      body: (device) => {
        const { index } = [...device.regions].sort((a, b) => b.size - a.size)[0] ?? device.config();
        return encodeAccess({ region: index, offset: 0, count: Math.min(device.maxDataXferSize + 1, 0xffff_ffff) });
      },
    },
    {
      id: "-count-max",
      title: "A count of 0xffffffff is refused",
      body: (device) => encodeAccess({ region: device.readableRegion().index, offset: 0, count: 0xffff_ffff }),
    },
    { id: "-no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "-short", title: "A request of 15 bytes is refused", body: new Uint8Array(15) },
  ]),
  ...topic(WRITE, [
    {
      id: "",
      title: "A write is answered with what was asked, without data",
      described: async (session, device) => {
        if (!(device.config().flags & RegionInfoFlags.WRITE)) throw new Skip("configuration space cannot be written");
        const access = { region: Region.CONFIG, offset: ConfigHeader.INTERRUPT_LINE, count: 1 };
        const bytes = await read(session, access.offset, 1);
        expectEcho(await session.success(REGION_WRITE, encodeAccess({ ...access, bytes }), RegionAccess.size), access);
      },
    },
  ]),
  ...topic({ ...WRITE, answer: "error" }, [
    ...OUTSIDE.map(({ id, title, where }) => ({
      id,
      title: `${title} cannot be written`,
      body: (device: Device) => {
        const access = where(device);
        return encodeAccess({ ...access, bytes: new Uint8Array(access.count) });
      },
    })),
    {
      id: "-straddle",
      title: "A write across the end of a region is refused",
      destructive: true,
      body: across((device) => device.readableRegion(), 1, FOUR),
    },
    { id: "-no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "-short", title: "A request of 15 bytes is refused", body: new Uint8Array(15) },
    {
      id: "-data-none",
      title: "A count without data is refused",
      body: encodeAccess({ region: Region.CONFIG, offset: ConfigHeader.INTERRUPT_LINE, count: 1 }),
    },
    {
      id: "-data-short",
      title: "Less data than count is refused",
      body: (device) => encodeAccess({ region: Region.CONFIG, offset: device.config().size, count: 4096, bytes: FOUR }),
    },
    {
      id: "-count-max",
      title: "A count of 0xffffffff is refused",
      body: encodeAccess({ ...CONFIG, count: 0xffff_ffff, bytes: FOUR }),
    },
  ]),
  // Odd accesses that need not be refused.
  ...topic({ ...READ, answer: "any" }, [
    { id: "-zero", title: "A read of 0 bytes is answered", body: encodeAccess({ ...CONFIG, count: 0 }) },
    {
      id: "-long",
      title: "A read request with bytes behind it is answered",
      body: encodeAccess({ ...CONFIG, count: 4, bytes: FOUR }),
    },
    {
      id: "-odd",
      title: "A read of 3 bytes at offset 1 is answered",
      body: encodeAccess({ ...CONFIG, offset: 1, count: 3 }),
    },
  ]),
  ...topic({ ...WRITE, answer: "any" }, [
    { id: "-zero", title: "A write of 0 bytes is answered", body: encodeAccess({ ...CONFIG, count: 0 }) },
    {
      id: "-data-long",
      title: "More data than count is answered",
      body: encodeAccess({ ...CONFIG, count: 0, bytes: FOUR }),
    },
  ]),
];
