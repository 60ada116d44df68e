/**
 * DMA_MAP: what may be mapped, what overlaps, and that nothing of it survives the client. Whether the server reaches
 * the memory is the device's business and cannot be seen from here.
 */
import { Errno } from "../../../shared/errors.js";
import { Command, DmaMapFlags } from "../../../shared/spec/vfio-user.js";
import { type BadRequest, badRequests } from "../bad-request.js";
import { encodeMap, encodeUnmap, MAP_ADDRESS, type MapFields, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { at, FOUR_PAGES, map, mapped, unmap } from "../dma.js";
import { describe, expectReply, isError } from "../expect.js";
import type { Session } from "../session.js";
import { Failure } from "../verdict.js";

const MAP = vfioUser("VFIO_USER_DMA_MAP");
const { DMA_MAP, DMA_UNMAP } = Command;
/** How many maps are tried at most to reach the limit that a server announces. */
const MANY_MAPS = 1024;
const TOP = 2n ** 64n;

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
    section: vfioUser("VFIO_USER_DMA_UNMAP"),
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

export const dmaMap: readonly Check[] = [...good, ...overlaps, ...oddMaps, ...shortMaps];
