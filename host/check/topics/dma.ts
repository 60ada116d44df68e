/**
 * DMA_MAP and DMA_UNMAP: what may be mapped, what overlaps, what is unmapped, and that nothing of it survives the client.
 * Whether the server reaches the memory is the device's business and cannot be seen from here.
 */
import { Errno } from "../../../shared/errors.js";
import { Command, DmaMapFlags, DmaUnmap, DmaUnmapFlags } from "../../../shared/spec/vfio-user.js";
import { type BadRequest, badRequests } from "../bad-request.js";
import { encodeMap, encodeUnmap, MAP_ADDRESS, type MapFields, PAGE } from "../bodies.js";
import { type Check, Failure, Skip, vfioUser } from "../check.js";
import { describe, expectEqual, expectReply, expectSuccess, isError } from "../expect.js";
import type { Session } from "../session.js";

const MAP = vfioUser("VFIO_USER_DMA_MAP");
const UNMAP = vfioUser("VFIO_USER_DMA_UNMAP");
const { DMA_MAP, DMA_UNMAP } = Command;
/** How many maps are tried at most to reach the limit that a server announces. */
const MANY_MAPS = 1024;
const TOP = 2n ** 64n;

async function map(session: Session, fields: MapFields = {}, fds: readonly number[] = []): Promise<void> {
  expectSuccess(await session.request(DMA_MAP, encodeMap(fields), { fds }), DMA_MAP, 0);
}

async function unmap(session: Session, fields: MapFields = {}): Promise<void> {
  const { address = MAP_ADDRESS, size = PAGE } = fields;
  const { data } = expectSuccess(await session.request(DMA_UNMAP, encodeUnmap(fields)), DMA_UNMAP, DmaUnmap.size);
  const echo = DmaUnmap.view(data);
  expectEqual("the address echoed:", echo.address, Number(address));
  expectEqual("the size echoed:", echo.size, Number(size));
}

const good: Check[] = [
  {
    id: "dma-map",
    section: MAP,
    title: "Memory without an fd is mapped, and unmapped again",
    run: async (context) => {
      const session = await context.connect();
      await map(session);
      await unmap(session);
      return undefined;
    },
  },
  {
    id: "dma-map-fd",
    section: MAP,
    title: "Memory with an fd and an offset in it is mapped, and unmapped again",
    run: async (context) => {
      const session = await context.connect();
      const fields = { size: 2 * PAGE, offset: PAGE };
      await map(session, fields, [context.memory(4 * PAGE)]);
      await unmap(session, fields);
      return undefined;
    },
  },
  {
    id: "dma-map-read-only",
    section: MAP,
    title: "Memory that is only readable is mapped",
    run: async (context) => {
      const session = await context.connect();
      await map(session, { flags: DmaMapFlags.READ }, [context.memory(PAGE)]);
      await unmap(session);
      return undefined;
    },
  },
  {
    id: "dma-map-adjacent",
    section: MAP,
    title: "Maps may touch each other",
    run: async (context) => {
      const session = await context.connect();
      const addresses = [1, 0, 2].map((page) => MAP_ADDRESS + page * PAGE);
      for (const address of addresses) await map(session, { address });
      for (const address of addresses) await unmap(session, { address });
      return undefined;
    },
  },
  {
    id: "dma-map-address-0",
    section: MAP,
    title: "Memory at address 0, where a PC has it, is mapped",
    run: async (context) => {
      const session = await context.connect();
      await map(session, { address: 0, size: 0xa0000 }, [context.memory(0xa0000)]);
      await unmap(session, { address: 0, size: 0xa0000 });
      return undefined;
    },
  },
  {
    id: "dma-map-again",
    section: UNMAP,
    title: "What was unmapped can be mapped again",
    run: async (context) => {
      const session = await context.connect();
      for (let times = 0; times < 3; times++) {
        await map(session, {}, [context.memory(PAGE)]);
        await unmap(session);
      }
      return undefined;
    },
  },
  {
    id: "dma-map-many",
    section: vfioUser("VFIO_USER_VERSION"),
    title: `As many maps as max_dma_maps says, ${MANY_MAPS} at most, can be valid at once`,
    run: async (context) => {
      const { maxDmaMaps } = context.device();
      const count = Math.min(maxDmaMaps, MANY_MAPS);
      const session = await context.connect();
      for (let index = 0; index < count; index++) {
        const answer = await session.request(DMA_MAP, encodeMap({ address: MAP_ADDRESS + index * 2 * PAGE }));
        if (answer === undefined || isError(answer)) {
          throw new Failure(
            `${count} maps, as max_dma_maps is ${maxDmaMaps}`,
            `${describe(answer)} for map ${index + 1}`,
          );
        }
      }
      for (let index = 0; index < count; index++) await unmap(session, { address: MAP_ADDRESS + index * 2 * PAGE });
      return `${count} maps`;
    },
  },
  {
    id: "dma-map-disconnect",
    section: vfioUser("Client Disconnection"),
    title: "The maps of a client that is gone are gone",
    run: async (context) => {
      const first = await context.connect();
      await map(first, { size: 4 * PAGE }, [context.memory(4 * PAGE)]);
      first.close();
      const second = await context.connect();
      await map(second, { address: MAP_ADDRESS + PAGE });
      await unmap(second, { address: MAP_ADDRESS + PAGE });
      return undefined;
    },
  },
];

const mapped = (fields: MapFields) => (session: Session) => map(session, fields);
const FOUR_PAGES = { size: 4 * PAGE };
const at = (page: number, pages: number): MapFields => ({ address: MAP_ADDRESS + page * PAGE, size: pages * PAGE });

const overlaps = badRequests(
  MAP,
  [
    { id: "same", title: "The same range", fields: at(0, 4) },
    { id: "inside", title: "A range inside", fields: at(1, 2) },
    { id: "around", title: "A range around it", fields: at(-1, 6) },
    { id: "begin", title: "A range across its beginning", fields: at(-1, 2) },
    { id: "end", title: "A range across its end", fields: at(3, 2) },
  ].map(({ id, title, fields }) => ({
    id: `dma-map-overlap-${id}`,
    title: `${title} is refused with EEXIST when something is mapped there`,
    command: DMA_MAP,
    body: encodeMap(fields),
    before: mapped(FOUR_PAGES),
    answer: "error" as const,
    errno: Errno.EEXIST,
  })),
);

/** Takes back what was mapped; in what way the server stored an odd map is its own business. */
const undoMap = (fields: MapFields) => async (session: Session) => {
  expectReply(await session.request(DMA_UNMAP, encodeUnmap(fields)), DMA_UNMAP);
};

interface OddMap extends Pick<BadRequest, "id" | "title" | "fds"> {
  readonly fields: MapFields;
}

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
    fds: (context) => [context.memory(2 * PAGE)],
  },
  { id: "flags-none", title: "Neither readable nor writeable", fields: { flags: 0 } },
  { id: "flags-unknown", title: "Unknown flags", fields: { flags: 0xffff_fff3 } },
  { id: "argsz-0", title: "An argsz of 0", fields: { argsz: 0 } },
  { id: "argsz-large", title: "An argsz of 4096", fields: { argsz: 4096 } },
  { id: "offset-no-fd", title: "An offset without an fd", fields: { offset: PAGE } },
  {
    id: "fd-small",
    title: "A file smaller than the map",
    fields: { size: 4 * PAGE },
    fds: (context) => [context.memory(PAGE)],
  },
  {
    id: "fd-offset-wrap",
    title: "An offset in the file that overflows with the size",
    fields: { offset: TOP - 4096n },
    fds: (context) => [context.memory(PAGE)],
  },
  { id: "fd-eventfd", title: "An fd that cannot be mapped", fields: {}, fds: (context) => [context.eventfd()] },
  {
    id: "fd-two",
    title: "Two fds",
    fields: {},
    fds: (context) => [context.memory(PAGE), context.memory(PAGE)],
  },
];

/** Not one of these is ruled out by the specification's words. */
const oddMaps = badRequests(
  MAP,
  ODD_MAPS.map(({ id, title, fields, fds }) => ({
    id: `dma-map-${id}`,
    title: `${title}: answered, and survived`,
    command: DMA_MAP,
    body: encodeMap(fields),
    ...(fds && { fds }),
    answer: "any" as const,
    undo: undoMap(fields),
  })),
);

const shortMaps = badRequests(MAP, [
  {
    id: "dma-map-no-body",
    title: "A request without a body is refused",
    command: DMA_MAP,
    body: new Uint8Array(0),
    answer: "error",
  },
  {
    id: "dma-map-short",
    title: "A request of 31 bytes is refused, and its fd is not missed",
    command: DMA_MAP,
    body: encodeMap().slice(0, 31),
    fds: (context) => [context.memory(PAGE)],
    answer: "error",
  },
]);

interface OddUnmap extends Pick<BadRequest, "id" | "title" | "before"> {
  readonly body: Uint8Array;
}

const REFUSED_UNMAPS: readonly OddUnmap[] = [
  { id: "nothing", title: "What was never mapped", body: encodeUnmap() },
  { id: "begin", title: "The beginning of a map", body: encodeUnmap(at(0, 2)), before: mapped(FOUR_PAGES) },
  { id: "end", title: "The end of a map", body: encodeUnmap(at(2, 2)), before: mapped(FOUR_PAGES) },
  { id: "around", title: "More than a map", body: encodeUnmap(at(-1, 6)), before: mapped(FOUR_PAGES) },
  {
    id: "size-0",
    title: "The address of a map with size 0",
    body: encodeUnmap({ size: 0 }),
    before: mapped(FOUR_PAGES),
  },
  {
    id: "two",
    title: "Two maps at once",
    body: encodeUnmap(at(0, 2)),
    before: async (session) => {
      await map(session, at(0, 1));
      await map(session, at(1, 1));
    },
  },
  {
    id: "twice",
    title: "What was unmapped already",
    body: encodeUnmap(),
    before: async (session) => {
      await map(session);
      await unmap(session);
    },
  },
  { id: "wrap", title: "A range that wraps around 2^64", body: encodeUnmap({ address: TOP - 4096n, size: 2 * PAGE }) },
  { id: "no-body", title: "A request without a body", body: new Uint8Array(0) },
  { id: "short", title: "A request of 23 bytes", body: encodeUnmap().slice(0, 23), before: mapped({}) },
];

const ODD_UNMAPS: readonly OddUnmap[] = [
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
];

function unmapRequests(answer: "error" | "any", what: string, requests: readonly OddUnmap[]): Check[] {
  return badRequests(
    UNMAP,
    requests.map(({ id, title, ...rest }) => ({
      ...rest,
      id: `dma-unmap-${id}`,
      title: `${title}: ${what}`,
      command: DMA_UNMAP,
      answer,
    })),
  );
}

const unmaps: Check[] = [
  {
    id: "dma-unmap-all",
    section: UNMAP,
    title: "Unmapping all, where the server knows it, leaves nothing",
    run: async (context) => {
      const session = await context.connect();
      for (const page of [0, 2]) await map(session, at(page, 1));
      const body = encodeUnmap({ flags: DmaUnmapFlags.ALL, address: 0, size: 0 });
      const answer = await session.request(DMA_UNMAP, body);
      const note = expectReply(answer, DMA_UNMAP);
      if (answer !== undefined && isError(answer)) throw new Skip(`the server refuses it: ${note}`);
      await map(session, at(0, 4));
      return undefined;
    },
  },
  {
    id: "dma-unmap-refused-keeps",
    section: UNMAP,
    title: "An unmap that was refused leaves the map as it was",
    run: async (context) => {
      const session = await context.connect();
      await map(session, FOUR_PAGES);
      expectReply(await session.request(DMA_UNMAP, encodeUnmap(at(0, 2))), DMA_UNMAP);
      await unmap(session, FOUR_PAGES);
      return undefined;
    },
  },
];

export const dma: readonly Check[] = [
  ...good,
  ...overlaps,
  ...oddMaps,
  ...shortMaps,
  ...unmaps,
  ...unmapRequests("error", "refused", REFUSED_UNMAPS),
  ...unmapRequests("any", "answered, and survived", ODD_UNMAPS),
];
