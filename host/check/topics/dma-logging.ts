/**
 * The log of pages that the device writes: started, reported and stopped by DEVICE_FEATURE, and reported by DMA_UNMAP
 * where the server knows that. Whether a page was written is the device's business; the form of a report is checked
 * here.
 */
import { isPowerOfTwo } from "../../../shared/bits.js";
import {
  Bitmap,
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  DmaUnmap,
  DmaUnmapFlags,
  Feature,
} from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { hasFeature } from "../device.js";
import { describe, expectEqual, expectReply, expectSuccess, expectThat, Skip } from "../expect.js";
import { encodeFeature, encodeUnmap, isError, MAP_ADDRESS, PAGE } from "../messages.js";
import type { CheckerSession } from "../session.js";
import { map, unmap } from "./dma.js";

const { DEVICE_FEATURE, DMA_UNMAP } = Command;
const LOGGING = {
  section: vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP"),
  command: DEVICE_FEATURE,
  prefix: "dma-logging",
};
const REPORT = vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT");
/** Not in vfio-user.rst any more, but libvfio-user and its clients have it. */
const UNMAP_BITMAP = "linux/vfio.h, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP";
const { GET, SET } = DeviceFeatureFlags;
const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = Feature;

/** Three more than a multiple of 64, so that there are bits which mean no page. */
const PAGES = 67;
const RANGE = { iova: MAP_ADDRESS, length: PAGES * PAGE };
type Range = typeof RANGE;
/** Bitmaps are whole words. */
const WORD = 8;
const bitmapBytes = (length: number, pageSize: number) => WORD * Math.ceil(length / pageSize / 64);

async function needLogging(session: CheckerSession, ...methods: readonly (readonly [number, number])[]): Promise<void> {
  for (const [feature, method] of methods) {
    if (!(await hasFeature(session, feature, method))) throw new Skip("the device does not log DMA");
  }
}

/** With memory mapped that the device may write. @throws Skip when the device does not log */
async function prepare(session: CheckerSession, context: Context): Promise<void> {
  await needLogging(session, [DMA_LOGGING_START, SET], [DMA_LOGGING_STOP, SET], [DMA_LOGGING_REPORT, GET]);
  await map(session, { size: RANGE.length }, [context.memory(RANGE.length)]);
}

function encodeStart(ranges: readonly Range[] = [], numRanges = ranges.length): Uint8Array {
  return Buffer.concat([
    DmaLoggingControl.encode({ pageSize: PAGE, numRanges }),
    ...ranges.map((range) => DmaLoggingRange.encode(range)),
  ]);
}

/** The reply has the request's data, but for the page size that the device chose, which this gives. */
async function start(session: CheckerSession, ranges: readonly Range[] = []): Promise<number> {
  const body = encodeFeature(DMA_LOGGING_START | SET, encodeStart(ranges));
  const { data, body: came } = await session.success(DEVICE_FEATURE, body, body.length);
  const { pageSize } = DmaLoggingControl.view(data, DeviceFeature.size);
  const rest = DeviceFeature.size + DmaLoggingControl.offsets.numRanges;
  expectThat(Buffer.compare(came.subarray(rest), body.subarray(rest)) === 0, "ranges as in the request", "others");
  expectThat(isPowerOfTwo(pageSize), "a page size that is a power of two", pageSize);
  return pageSize;
}

async function stop(session: CheckerSession): Promise<void> {
  await session.success(DEVICE_FEATURE, encodeFeature(DMA_LOGGING_STOP | SET));
}

function encodeReport(range: Range, pageSize: number): { body: Uint8Array; replyLength: number } {
  const replyLength = DeviceFeature.size + DmaLoggingReport.size + bitmapBytes(range.length, pageSize);
  const report = DmaLoggingReport.encode({ ...range, pageSize });
  return { body: encodeFeature(DMA_LOGGING_REPORT | GET, report, replyLength), replyLength };
}

const WHOLE_REPORT = encodeReport(RANGE, PAGE).body;

/** How many pages the device says it wrote. @throws Failure */
async function report(session: CheckerSession, range: Range = RANGE, pageSize = PAGE): Promise<number> {
  const request = encodeReport(range, pageSize);
  const { data, body } = await session.success(DEVICE_FEATURE, request.body, request.replyLength);
  expectEqual("argsz", DeviceFeature.view(data).argsz, request.replyLength);
  const echo = DmaLoggingReport.view(data, DeviceFeature.size);
  expectEqual("the iova", echo.iova, range.iova);
  expectEqual("the length", echo.length, range.length);
  expectEqual("the page size", echo.pageSize, pageSize);
  const bitmap = body.subarray(DeviceFeature.size + DmaLoggingReport.size);
  return countBits(bitmap, Math.ceil(range.length / pageSize));
}

/** @throws Failure for a bit behind the range's last page */
function countBits(bitmap: Uint8Array, pages: number): number {
  let count = 0;
  for (let bit = 0; bit < bitmap.length * 8; bit++) {
    if (((bitmap[bit >> 3] >> (bit & 7)) & 1) === 0) continue;
    expectThat(bit < pages, `no bit set behind those of ${pages} pages`, `bit ${bit}`);
    count++;
  }
  return count;
}

const written = (count: number) => `${count} pages written`;

/** DMA_UNMAP with a bitmap of `bytes` for the pages in it. */
function encodeUnmapDirty(size: number, bytes: number): Uint8Array {
  const argsz = DmaUnmap.size + Bitmap.size + bytes;
  const unmap = encodeUnmap({ size, flags: DmaUnmapFlags.GET_DIRTY_BITMAP, argsz });
  return Buffer.concat([unmap, Bitmap.encode({ pageSize: PAGE, size: bytes })]);
}

const started = async (session: CheckerSession) => {
  await needLogging(session, [DMA_LOGGING_START, SET], [DMA_LOGGING_STOP, SET]);
  await map(session, { size: RANGE.length });
  await start(session);
};
const encodeLogged = (pageSize: number) => DmaLoggingReport.encode({ ...RANGE, pageSize });

export const dmaLogging = [
  ...topic(LOGGING, [
    {
      id: "",
      title: "DMA is logged from the start to the stop, and not after it",
      connected: async (session, context) => {
        await prepare(session, context);
        const pageSize = await start(session);
        const count = await report(session);
        await stop(session);
        await session.refusal(DEVICE_FEATURE, WHOLE_REPORT);
        return `pages of ${pageSize} bytes, ${written(count)}`;
      },
    },
    {
      id: "-ranges",
      title: "Logging can be confined to ranges, and started again after a stop",
      connected: async (session, context) => {
        await prepare(session, context);
        await start(session, [RANGE]);
        await report(session);
        await stop(session);
        const last = { iova: RANGE.iova + 4 * PAGE, length: 2 * PAGE };
        await start(session, [{ iova: RANGE.iova, length: PAGE }, last]);
        const count = await report(session, last);
        await stop(session);
        return written(count);
      },
    },
    {
      id: "-report-sizes",
      section: REPORT,
      title: "A report has the page size that was asked for, whatever the log has",
      connected: async (session, context) => {
        await prepare(session, context);
        await start(session);
        for (const pageSize of [PAGE, 2 * PAGE, 16 * PAGE]) await report(session, RANGE, pageSize);
        for (const pages of [1, 63, 64, 65]) await report(session, { ...RANGE, length: pages * PAGE });
        await stop(session);
      },
    },
    {
      id: "-disconnect",
      section: vfioUser("Client Disconnection"),
      title: "A client that left while DMA was logged does not keep the next one from that",
      connected: async (first, context) => {
        await prepare(first, context);
        await start(first);
        first.close();
        const next = await context.connect();
        await prepare(next, context);
        const before = describe(await next.request(DEVICE_FEATURE, WHOLE_REPORT));
        await next.request(DEVICE_FEATURE, encodeFeature(DMA_LOGGING_STOP | SET));
        await start(next);
        await report(next);
        await stop(next);
        return `a report before the start: ${before}`;
      },
    },
  ]),
  ...topic({ section: UNMAP_BITMAP }, [
    {
      id: "dma-unmap-dirty",
      title: "DMA_UNMAP with a bitmap, where the server knows it, reports the range alone, and unmaps",
      connected: async (session, context) => {
        await prepare(session, context);
        await start(session);
        const size = bitmapBytes(RANGE.length, PAGE);
        const fixed = DmaUnmap.size + Bitmap.size;
        const answer = await session.request(DMA_UNMAP, encodeUnmapDirty(RANGE.length, size));
        if (isError(expectReply(answer, DMA_UNMAP))) {
          await unmap(session, { size: RANGE.length });
          await stop(session);
          throw new Skip(`the server refuses it: ${describe(answer)}`);
        }
        const { data, body } = expectSuccess(answer, DMA_UNMAP, fixed + size);
        const echo = DmaUnmap.view(data);
        expectEqual("the address echoed:", echo.address, RANGE.iova);
        expectEqual("the size echoed:", echo.size, RANGE.length);
        expectEqual("the bitmap's page size", Bitmap.view(data, DmaUnmap.size).pageSize, PAGE);
        expectEqual("the bitmap's size", Bitmap.view(data, DmaUnmap.size).size, size);
        const count = countBits(body.subarray(fixed), PAGES);
        await map(session, { size: RANGE.length });
        await stop(session);
        return written(count);
      },
    },
    {
      id: "dma-unmap-dirty-unlogged",
      title: "DMA_UNMAP with a bitmap while nothing is logged is answered, and the map is there or not accordingly",
      connected: async (session) => {
        await map(session);
        const note = await session.reply(DMA_UNMAP, encodeUnmapDirty(PAGE, WORD));
        if (note === "accepted") await map(session);
        else await unmap(session);
        return note;
      },
    },
  ]),
  ...topic({ ...LOGGING, answer: "error" }, [
    {
      id: "-start-short",
      title: "A start that is cut off is refused",
      body: encodeFeature(DMA_LOGGING_START | SET, encodeStart().slice(0, 15)),
    },
    {
      id: "-start-ranges-short",
      title: "A start with fewer ranges than it says is refused",
      body: encodeFeature(DMA_LOGGING_START | SET, encodeStart([RANGE], 2)),
    },
    {
      id: "-start-ranges-max",
      title: "A start with 0xffffffff ranges is refused",
      body: encodeFeature(DMA_LOGGING_START | SET, encodeStart([RANGE], 0xffff_ffff)),
    },
    {
      id: "-start-twice",
      title: "A second start: answered, and survived",
      body: encodeFeature(DMA_LOGGING_START | SET, encodeStart()),
      before: started,
      answer: "any",
    },
    {
      id: "-stop-unstarted",
      title: "A stop without a start: answered, and survived",
      body: encodeFeature(DMA_LOGGING_STOP | SET),
      before: (session) => needLogging(session, [DMA_LOGGING_START, SET]),
      answer: "any",
    },
    {
      id: "-report-page-size",
      section: REPORT,
      title: "A report with a page size that is no power of two is refused",
      body: encodeFeature(DMA_LOGGING_REPORT | GET, encodeLogged(3 * PAGE), PAGE),
      before: started,
    },
    {
      id: "-report-page-size-0",
      section: REPORT,
      title: "A report with a page size of 0 is refused",
      body: encodeFeature(DMA_LOGGING_REPORT | GET, encodeLogged(0), PAGE),
      before: started,
    },
    {
      id: "-report-short",
      section: REPORT,
      title: "A report whose range is cut off is refused",
      body: encodeFeature(DMA_LOGGING_REPORT | GET, encodeLogged(PAGE).slice(0, 23), PAGE),
      before: started,
    },
  ]),
];
