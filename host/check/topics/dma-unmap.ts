/**
 * DMA_UNMAP: a map, or a part of one, which is refused and left as it was. The specification has a client name a map
 * exactly; stock QEMU does not, and Linux's VFIO unmaps all maps in the range. So a server may refuse any other range,
 * or do as VFIO does.
 */
import { Command, DmaUnmapFlags } from "../../../shared/spec/vfio-user.js";
import { type BadRequest, badRequests } from "../bad-request.js";
import { encodeUnmap, MAP_ADDRESS, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { at, FOUR_PAGES, map, mapped, unmap } from "../dma.js";
import { expectRefusal, expectReply, isError } from "../expect.js";
import { Skip } from "../verdict.js";

const UNMAP = vfioUser("VFIO_USER_DMA_UNMAP");
const { DMA_UNMAP } = Command;
const TOP = 2n ** 64n;
const TO_THE_TOP = { address: MAP_ADDRESS - PAGE, size: TOP - BigInt(MAP_ADDRESS - PAGE) };

interface OddUnmap extends Pick<BadRequest, "id" | "title" | "before"> {
  readonly body: Uint8Array;
}

const REFUSED_UNMAPS: readonly OddUnmap[] = [
  { id: "begin", title: "The beginning of a map", body: encodeUnmap(at(0, 2)), before: mapped(FOUR_PAGES) },
  { id: "end", title: "The end of a map", body: encodeUnmap(at(2, 2)), before: mapped(FOUR_PAGES) },
  {
    id: "size-0",
    title: "The address of a map with size 0",
    body: encodeUnmap({ size: 0 }),
    before: mapped(FOUR_PAGES),
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
  ...[
    { id: "nothing", title: "What was never mapped", range: {}, maps: [] },
    { id: "around", title: "More than a map", range: at(-1, 6), maps: [FOUR_PAGES] },
    { id: "two", title: "Two maps at once", range: at(0, 2), maps: [at(0, 1), at(1, 1)] },
    { id: "apart", title: "Maps with a gap between them", range: at(-1, 8), maps: [at(0, 1), at(2, 2)] },
    { id: "half-of-two", title: "A map and a half", range: at(0, 2), maps: [at(0, 1), at(1, 2)], errs: true },
    { id: "huge", title: "All addresses from one to 2^64", range: TO_THE_TOP, maps: [at(0, 1), at(2, 1)] },
  ].map(({ id, title, range, maps, errs = false }) => ({
    id: `dma-unmap-${id}`,
    section: UNMAP,
    title: `${title}: ${errs ? "refused, and all stays" : "refused, and all stays, or unmapped, and all is gone"}`,
    run: async (context: Context) => {
      const session = await context.connect();
      for (const each of maps) await map(session, each);
      const answer = await session.request(DMA_UNMAP, encodeUnmap(range));
      const note = errs ? expectRefusal(answer, DMA_UNMAP) : expectReply(answer, DMA_UNMAP);
      if (note === "accepted") for (const each of maps) await map(session, each);
      for (const each of maps) await unmap(session, each);
      return note;
    },
  })),
  {
    id: "dma-unmap-twice",
    section: UNMAP,
    title: "What was unmapped already: refused, or accepted, and it can be mapped again",
    run: async (context) => {
      const session = await context.connect();
      await map(session);
      await unmap(session);
      const note = expectReply(await session.request(DMA_UNMAP, encodeUnmap()), DMA_UNMAP);
      await map(session);
      await unmap(session);
      return note;
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
