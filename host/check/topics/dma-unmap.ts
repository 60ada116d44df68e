/** DMA_UNMAP: it names a map exactly, and a refusal leaves everything as it was. */
import { Command, DmaUnmapFlags } from "../../../shared/spec/vfio-user.js";
import { type BadRequest, badRequests } from "../bad-request.js";
import { encodeUnmap, PAGE } from "../bodies.js";
import { type Check, Skip, vfioUser } from "../check.js";
import { at, FOUR_PAGES, map, mapped, unmap } from "../dma.js";
import { expectReply, isError } from "../expect.js";

const UNMAP = vfioUser("VFIO_USER_DMA_UNMAP");
const { DMA_UNMAP } = Command;
const TOP = 2n ** 64n;

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

export const dmaUnmap: readonly Check[] = [
  ...unmaps,
  ...unmapRequests("error", "refused", REFUSED_UNMAPS),
  ...unmapRequests("any", "answered, and survived", ODD_UNMAPS),
];
