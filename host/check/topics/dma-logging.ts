/**
 * The log of pages that the device writes: started, reported and stopped by DEVICE_FEATURE, and told by DMA_UNMAP where
 * the server knows that. Whether a page was written is the device's business; the form of what is told is checked here.
 */
import {
  Bitmap,
  Command,
  DeviceFeatureFlags,
  DmaLoggingReport,
  DmaUnmap,
  DmaUnmapFlags,
  Feature,
} from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeFeature, encodeUnmap, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { map, unmap } from "../dma.js";
import {
  bitmapBytes,
  connectLogging,
  countBits,
  encodeStart,
  PAGES,
  RANGE,
  report,
  requestReport,
  start,
  stop,
  WORD,
} from "../dma-logging.js";
import { describe, expectEqual, expectRefusal, expectReply, expectSuccess, isError } from "../expect.js";
import { hasFeature } from "../feature.js";
import type { Session } from "../session.js";
import { Skip } from "../verdict.js";

const LOGGING = vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP");
const REPORT = vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT");
/** Not in vfio-user.rst any more, but libvfio-user and its clients have it. */
const UNMAP_BITMAP = "linux/vfio.h, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP";
const { DEVICE_FEATURE, DMA_UNMAP } = Command;
const { GET, SET } = DeviceFeatureFlags;
const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = Feature;

const written = (count: number) => `${count} pages written`;

const logging: Check[] = [
  {
    id: "dma-logging",
    section: LOGGING,
    title: "DMA is logged from the start to the stop, and not after it",
    run: async (context) => {
      const session = await connectLogging(context);
      const pageSize = await start(session);
      const count = await report(session);
      await stop(session);
      expectRefusal(await requestReport(session, RANGE, PAGE), DEVICE_FEATURE);
      return `pages of ${pageSize} bytes, ${written(count)}`;
    },
  },
  {
    id: "dma-logging-ranges",
    section: LOGGING,
    title: "Logging can be confined to ranges, and started again after a stop",
    run: async (context) => {
      const session = await connectLogging(context);
      await start(session, [RANGE]);
      await report(session);
      await stop(session);
      await start(session, [
        { iova: RANGE.iova, length: PAGE },
        { iova: RANGE.iova + 4 * PAGE, length: 2 * PAGE },
      ]);
      const count = await report(session, { iova: RANGE.iova + 4 * PAGE, length: 2 * PAGE });
      await stop(session);
      return written(count);
    },
  },
  {
    id: "dma-logging-report-sizes",
    section: REPORT,
    title: "A report has the page size that was asked for, whatever the log has",
    run: async (context) => {
      const session = await connectLogging(context);
      await start(session);
      for (const pageSize of [PAGE, 2 * PAGE, 16 * PAGE]) await report(session, RANGE, pageSize);
      for (const pages of [1, 63, 64, 65]) await report(session, { ...RANGE, length: pages * PAGE });
      await stop(session);
      return undefined;
    },
  },
  {
    id: "dma-logging-disconnect",
    section: vfioUser("Client Disconnection"),
    title: "A client that left while DMA was logged does not keep the next one from that",
    run: async (context) => {
      const first = await connectLogging(context);
      await start(first);
      first.close();
      const next = await connectLogging(context);
      const before = describe(await requestReport(next, RANGE, PAGE));
      await next.request(DEVICE_FEATURE, encodeFeature(DMA_LOGGING_STOP | SET));
      await start(next);
      await report(next);
      await stop(next);
      return `a report before the start: ${before}`;
    },
  },
  {
    id: "dma-unmap-dirty",
    section: UNMAP_BITMAP,
    title: "DMA_UNMAP with a bitmap, where the server knows it, tells of the range alone, and unmaps",
    run: async (context) => {
      const session = await connectLogging(context);
      await start(session);
      const size = bitmapBytes(RANGE.length, PAGE);
      const fixed = DmaUnmap.size + Bitmap.size;
      const request = Buffer.concat([
        encodeUnmap({ size: RANGE.length, flags: DmaUnmapFlags.GET_DIRTY_BITMAP, argsz: fixed + size }),
        Bitmap.encode({ pageSize: PAGE, size }),
      ]);
      const answer = await session.request(DMA_UNMAP, request);
      const note = expectReply(answer, DMA_UNMAP);
      if (answer !== undefined && isError(answer)) {
        await unmap(session, { size: RANGE.length });
        await stop(session);
        throw new Skip(`the server refuses it: ${note}`);
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
    section: UNMAP_BITMAP,
    title: "DMA_UNMAP with a bitmap while nothing is logged is answered, and the map is there or not accordingly",
    run: async (context) => {
      const session = await context.connect();
      await map(session);
      const request = Buffer.concat([
        encodeUnmap({ flags: DmaUnmapFlags.GET_DIRTY_BITMAP, argsz: DmaUnmap.size + Bitmap.size + WORD }),
        Bitmap.encode({ pageSize: PAGE, size: WORD }),
      ]);
      const answer = await session.request(DMA_UNMAP, request);
      const note = expectReply(answer, DMA_UNMAP);
      if (answer !== undefined && isError(answer)) await unmap(session);
      else await map(session);
      return note;
    },
  },
];

/** What is wrong, or odd, while DMA is logged. */
const started = async (session: Session) => {
  for (const feature of [DMA_LOGGING_START, DMA_LOGGING_STOP]) {
    if (!(await hasFeature(session, feature, SET))) throw new Skip("the device does not log DMA");
  }
  await map(session, { size: RANGE.length });
  await start(session);
};
const stopped = async (session: Session) => {
  if (!(await hasFeature(session, DMA_LOGGING_START, SET))) throw new Skip("the device does not log DMA");
};
const logged = (pageSize: number) => DmaLoggingReport.encode({ ...RANGE, pageSize });

const badLogging = badRequests(LOGGING, [
  {
    id: "dma-logging-start-short",
    title: "A start that is cut off is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_START | SET, encodeStart().slice(0, 15)),
    answer: "error",
  },
  {
    id: "dma-logging-start-ranges-short",
    title: "A start with fewer ranges than it says is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_START | SET, encodeStart([RANGE], 2)),
    answer: "error",
  },
  {
    id: "dma-logging-start-ranges-max",
    title: "A start with 0xffffffff ranges is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_START | SET, encodeStart([RANGE], 0xffff_ffff)),
    answer: "error",
  },
  {
    id: "dma-logging-start-twice",
    title: "A second start: answered, and survived",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_START | SET, encodeStart()),
    before: started,
    answer: "any",
  },
  {
    id: "dma-logging-stop-unstarted",
    title: "A stop without a start: answered, and survived",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_STOP | SET),
    before: stopped,
    answer: "any",
  },
  {
    id: "dma-logging-report-page-size",
    section: REPORT,
    title: "A report with a page size that is no power of two is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_REPORT | GET, logged(3 * PAGE), PAGE),
    before: started,
    answer: "error",
  },
  {
    id: "dma-logging-report-page-size-0",
    section: REPORT,
    title: "A report with a page size of 0 is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_REPORT | GET, logged(0), PAGE),
    before: started,
    answer: "error",
  },
  {
    id: "dma-logging-report-short",
    section: REPORT,
    title: "A report whose range is cut off is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(DMA_LOGGING_REPORT | GET, logged(PAGE).slice(0, 23), PAGE),
    before: started,
    answer: "error",
  },
]);

export const dmaLogging: readonly Check[] = [...logging, ...badLogging];
