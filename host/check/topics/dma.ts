/**
 * DMA_MAP and DMA_UNMAP: what may be mapped, what overlaps, that a part of a map is not unmapped and stays as it was,
 * and that nothing of it survives the client. The specification has a client name a map exactly to unmap it; stock QEMU
 * does not, and Linux's VFIO unmaps all maps in the range. So a server may refuse any other range, or do as VFIO does.
 * Whether the server reaches the memory is the device's business and cannot be seen from here.
 */
import { Errno } from "../../../shared/errors.js";
import { Command, DmaMapFlags, DmaUnmap, DmaUnmapFlags } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { describe, expectEqual, expectRefusal, expectReply, Failure, Skip } from "../expect.js";
import { encodeMap, encodeUnmap, isError, MAP_ADDRESS, type MapFields, NO_BYTES, PAGE } from "../messages.js";
import type { CheckerSession } from "../session.js";

const { DMA_MAP, DMA_UNMAP } = Command;
const MAP = { section: vfioUser("VFIO_USER_DMA_MAP"), command: DMA_MAP, prefix: "dma-map" };
const UNMAP = { section: vfioUser("VFIO_USER_DMA_UNMAP"), command: DMA_UNMAP, prefix: "dma-unmap-" };
/** How many maps are tried at most to reach the limit that a server announces. */
const MANY_MAPS = 1024;
const TOP = 2n ** 64n;
const TO_THE_TOP = { address: MAP_ADDRESS - PAGE, size: TOP - BigInt(MAP_ADDRESS - PAGE) };
const FOUR_PAGES = { size: 4 * PAGE };

/** Some pages, counted from where the checker maps. */
const at = (page: number, pages: number): MapFields => ({ address: MAP_ADDRESS + page * PAGE, size: pages * PAGE });

/** Maps what must work. @throws Failure */
export async function map(session: CheckerSession, fields: MapFields = {}, fds: readonly number[] = []): Promise<void> {
  await session.success(DMA_MAP, encodeMap(fields), 0, { fds });
}

/** Unmaps what must work. @throws Failure */
export async function unmap(session: CheckerSession, fields: MapFields = {}): Promise<void> {
  const { address = MAP_ADDRESS, size = PAGE } = fields;
  const { data } = await session.success(DMA_UNMAP, encodeUnmap(fields), DmaUnmap.size);
  const echo = DmaUnmap.view(data);
  expectEqual("the address echoed:", echo.address, Number(address));
  expectEqual("the size echoed:", echo.size, Number(size));
}

const mapped = (fields: MapFields) => (session: CheckerSession) => map(session, fields);
const mapEach = async (session: CheckerSession, maps: readonly MapFields[]) => {
  for (const each of maps) await map(session, each);
};
const unmapEach = async (session: CheckerSession, maps: readonly MapFields[]) => {
  for (const each of maps) await unmap(session, each);
};

const OVERLAPS = [
  { id: "same", title: "The same range", fields: at(0, 4) },
  { id: "inside", title: "A range inside", fields: at(1, 2) },
  { id: "around", title: "A range around it", fields: at(-1, 6) },
  { id: "begin", title: "A range across its beginning", fields: at(-1, 2) },
  { id: "end", title: "A range across its end", fields: at(3, 2) },
];

interface OddMap {
  readonly id: string;
  readonly title: string;
  readonly fields: MapFields;
  readonly fds?: (context: Context) => number[];
}

const memory = (pages: number) => (context: Context) => [context.memory(pages * PAGE)];

/** Not one of these is ruled out by the specification's words. */
const ODD_MAPS: readonly OddMap[] = [
  { id: "wrap", title: "A range that wraps around 2^64", fields: { address: TOP - 4096n, size: 2 * PAGE } },
  { id: "size-max", title: "A size of 2^64 - 4096", fields: { size: TOP - 4096n } },
  { id: "size-0", title: "A size of 0", fields: { size: 0 } },
  { id: "top", title: "The last page below 2^64", fields: { address: TOP - 4096n } },
  { id: "unaligned-address", title: "An address that is not on a page", fields: { address: MAP_ADDRESS + 8 } },
  { id: "unaligned-size", title: "A size that is not whole pages", fields: { size: PAGE + 8 } },
  {
    id: "unaligned-offset",
    title: "An offset in the file that is not on a page",
    fields: { offset: 8 },
    fds: memory(2),
  },
  { id: "flags-none", title: "Neither readable nor writeable", fields: { flags: 0 } },
  { id: "flags-unknown", title: "Unknown flags", fields: { flags: 0xffff_fff3 } },
  { id: "argsz-0", title: "An argsz of 0", fields: { argsz: 0 } },
  { id: "argsz-large", title: "An argsz of 4096", fields: { argsz: 4096 } },
  { id: "offset-no-fd", title: "An offset without an fd", fields: { offset: PAGE } },
  { id: "fd-small", title: "A file smaller than the map", fields: { size: 4 * PAGE }, fds: memory(1) },
  {
    id: "fd-offset-wrap",
    title: "An offset in the file that overflows with the size",
    fields: { offset: TOP - 4096n },
    fds: memory(1),
  },
  { id: "fd-eventfd", title: "An fd that cannot be mapped", fields: {}, fds: (context) => [context.eventfd()] },
  { id: "fd-two", title: "Two fds", fields: {}, fds: (context) => [context.memory(PAGE), context.memory(PAGE)] },
];

export const dmaMap = [
  ...topic(MAP, [
    {
      id: "",
      title: "Memory without an fd is mapped, and unmapped again",
      connected: async (session) => {
        await map(session);
        await unmap(session);
      },
    },
    {
      id: "-fd",
      title: "Memory with an fd and an offset in it is mapped, and unmapped again",
      connected: async (session, context) => {
        const fields = { size: 2 * PAGE, offset: PAGE };
        await map(session, fields, [context.memory(4 * PAGE)]);
        await unmap(session, fields);
      },
    },
    {
      id: "-read-only",
      title: "Memory that is only readable is mapped",
      connected: async (session, context) => {
        await map(session, { flags: DmaMapFlags.READ }, [context.memory(PAGE)]);
        await unmap(session);
      },
    },
    {
      id: "-adjacent",
      title: "Maps may touch each other",
      connected: async (session) => {
        const maps = [at(1, 1), at(0, 1), at(2, 1)];
        await mapEach(session, maps);
        await unmapEach(session, maps);
      },
    },
    {
      id: "-address-0",
      title: "Memory at address 0, where a PC has it, is mapped",
      connected: async (session, context) => {
        await map(session, { address: 0, size: 0xa0000 }, [context.memory(0xa0000)]);
        await unmap(session, { address: 0, size: 0xa0000 });
      },
    },
    {
      id: "-again",
      section: UNMAP.section,
      title: "What was unmapped can be mapped again",
      connected: async (session, context) => {
        for (let times = 0; times < 3; times++) {
          await map(session, {}, [context.memory(PAGE)]);
          await unmap(session);
        }
      },
    },
    {
      id: "-many",
      section: vfioUser("VFIO_USER_VERSION"),
      title: `As many maps as max_dma_maps says, ${MANY_MAPS} at most, can be valid at once`,
      described: async (session, { maxDmaMaps }) => {
        const maps = Array.from({ length: Math.min(maxDmaMaps, MANY_MAPS) }, (_, index) => at(2 * index, 1));
        for (const [index, each] of maps.entries()) {
          const answer = await session.request(DMA_MAP, encodeMap(each));
          if (answer !== undefined && !isError(answer)) continue;
          const expected = `${maps.length} maps, as max_dma_maps is ${maxDmaMaps}`;
          throw new Failure(expected, `${describe(answer)} for map ${index + 1}`);
        }
        await unmapEach(session, maps);
        return `${maps.length} maps`;
      },
    },
    {
      id: "-disconnect",
      section: vfioUser("Client Disconnection"),
      title: "The maps of a client that is gone are gone",
      connected: async (first, context) => {
        await map(first, FOUR_PAGES, [context.memory(4 * PAGE)]);
        first.close();
        const second = await context.connect();
        await map(second, at(1, 1));
        await unmap(second, at(1, 1));
      },
    },
  ]),
  ...topic(
    { ...MAP, answer: "error", suffix: " is refused with EEXIST when something is mapped there" },
    OVERLAPS.map(({ id, title, fields }) => ({
      id: `-overlap-${id}`,
      title,
      body: encodeMap(fields),
      before: mapped(FOUR_PAGES),
      errno: Errno.EEXIST,
    })),
  ),
  ...topic(
    { ...MAP, answer: "any", suffix: ": answered, and survived" },
    ODD_MAPS.map(({ id, title, fields, fds }) => ({
      id: `-${id}`,
      title,
      body: encodeMap(fields),
      ...(fds && { fds }),
      // In what way the server stored an odd map is its own business.
      undo: (session: CheckerSession) => session.reply(DMA_UNMAP, encodeUnmap(fields)),
    })),
  ),
  ...topic({ ...MAP, answer: "error" }, [
    { id: "-no-body", title: "A request without a body is refused", body: NO_BYTES },
    {
      id: "-short",
      title: "A request of 31 bytes is refused, and its fd is not missed",
      body: encodeMap().slice(0, 31),
      fds: memory(1),
    },
  ]),
];

const UNMAPS = [
  { id: "nothing", title: "What was never mapped", range: {}, maps: [] },
  { id: "around", title: "More than a map", range: at(-1, 6), maps: [FOUR_PAGES] },
  { id: "two", title: "Two maps at once", range: at(0, 2), maps: [at(0, 1), at(1, 1)] },
  { id: "apart", title: "Maps with a gap between them", range: at(-1, 8), maps: [at(0, 1), at(2, 2)] },
  { id: "half-of-two", title: "A map and a half", range: at(0, 2), maps: [at(0, 1), at(1, 2)], errs: true },
  { id: "huge", title: "All addresses from one to 2^64", range: TO_THE_TOP, maps: [at(0, 1), at(2, 1)] },
];

export const dmaUnmap = [
  ...topic(UNMAP, [
    {
      id: "all",
      title: "Unmapping all, where the server knows it, leaves nothing",
      connected: async (session) => {
        await mapEach(session, [at(0, 1), at(2, 1)]);
        const body = encodeUnmap({ flags: DmaUnmapFlags.ALL, address: 0, size: 0 });
        const note = await session.reply(DMA_UNMAP, body);
        if (note !== "accepted") throw new Skip(`the server refuses it: ${note}`);
        await map(session, at(0, 4));
      },
    },
    ...UNMAPS.map(({ id, title, range, maps, errs = false }) => ({
      id,
      title: `${title}: ${errs ? "refused, and all stays" : "refused, and all stays, or unmapped, and all is gone"}`,
      connected: async (session: CheckerSession) => {
        await mapEach(session, maps);
        const answer = await session.request(DMA_UNMAP, encodeUnmap(range));
        const note = errs ? expectRefusal(answer, DMA_UNMAP) : describe(expectReply(answer, DMA_UNMAP));
        if (note === "accepted") await mapEach(session, maps);
        await unmapEach(session, maps);
        return note;
      },
    })),
    {
      id: "twice",
      title: "What was unmapped already: refused, or accepted, and it can be mapped again",
      connected: async (session) => {
        await map(session);
        await unmap(session);
        const note = await session.reply(DMA_UNMAP, encodeUnmap());
        await map(session);
        await unmap(session);
        return note;
      },
    },
    {
      id: "refused-keeps",
      title: "An unmap that was refused leaves the map as it was",
      connected: async (session) => {
        await map(session, FOUR_PAGES);
        await session.reply(DMA_UNMAP, encodeUnmap(at(0, 2)));
        await unmap(session, FOUR_PAGES);
      },
    },
  ]),
  ...topic({ ...UNMAP, answer: "error", suffix: ": refused" }, [
    { id: "begin", title: "The beginning of a map", body: encodeUnmap(at(0, 2)), before: mapped(FOUR_PAGES) },
    { id: "end", title: "The end of a map", body: encodeUnmap(at(2, 2)), before: mapped(FOUR_PAGES) },
    {
      id: "size-0",
      title: "The address of a map with size 0",
      body: encodeUnmap({ size: 0 }),
      before: mapped(FOUR_PAGES),
    },
    {
      id: "wrap",
      title: "A range that wraps around 2^64",
      body: encodeUnmap({ address: TOP - 4096n, size: 2 * PAGE }),
    },
    { id: "no-body", title: "A request without a body", body: NO_BYTES },
    { id: "short", title: "A request of 23 bytes", body: encodeUnmap().slice(0, 23), before: mapped({}) },
  ]),
  ...topic({ ...UNMAP, answer: "any", suffix: ": answered, and survived" }, [
    { id: "argsz-0", title: "An argsz of 0", body: encodeUnmap({ argsz: 0 }), before: mapped({}) },
    { id: "flags-unknown", title: "Unknown flags", body: encodeUnmap({ flags: 0xffff_fff0 }), before: mapped({}) },
    {
      id: "bitmap",
      title: "A dirty bitmap without saying which",
      body: encodeUnmap({ flags: DmaUnmapFlags.GET_DIRTY_BITMAP }),
      before: mapped({}),
    },
    {
      id: "all-with-range",
      title: "All, but with a range",
      body: encodeUnmap({ flags: DmaUnmapFlags.ALL }),
      before: mapped({}),
    },
  ]),
];
