/**
 * The log of pages that the device writes: started, reported and stopped by DEVICE_FEATURE, and told by DMA_UNMAP where the
 * server knows that. Whether a page was written is the device's business; the form of what is told is checked here.
 */
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
import { badRequests } from "../bad-request.js";
import { encodeFeature, encodeUnmap, MAP_ADDRESS, PAGE } from "../bodies.js";
import { type Check, Skip, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { map, unmap } from "../dma.js";
import { describe, expectEqual, expectRefusal, expectReply, expectSuccess, expectThat, isError } from "../expect.js";
import { hasFeature } from "../feature.js";
import type { Session } from "../session.js";

const LOGGING = vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP");
const REPORT = vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT");
/** Not in vfio-user.rst any more, but libvfio-user and its clients have it. */
const UNMAP_BITMAP = "linux/vfio.h, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP";
const { DEVICE_FEATURE, DMA_UNMAP } = Command;
const { GET, SET } = DeviceFeatureFlags;
const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = Feature;

/** Three more than a multiple of 64, so that there are bits which mean no page. */
const PAGES = 67;
const RANGE = { iova: MAP_ADDRESS, length: PAGES * PAGE };
const WORD = 8;

type Range = typeof RANGE;

/** Bytes of the bitmap for a range. */
const bitmapBytes = (length: number, pageSize: number) => WORD * Math.ceil(length / pageSize / 64);

function encodeStart(ranges: readonly Range[] = [], numRanges = ranges.length): Uint8Array {
  return Buffer.concat([
    DmaLoggingControl.encode({ pageSize: PAGE, numRanges }),
    ...ranges.map((range) => DmaLoggingRange.encode(range)),
  ]);
}

/** With memory mapped that the device may write. @throws Skip when the device does not log */
async function connectLogging(context: Context): Promise<Session> {
  const session = await context.connect();
  for (const [feature, method] of [
    [DMA_LOGGING_START, SET],
    [DMA_LOGGING_STOP, SET],
    [DMA_LOGGING_REPORT, GET],
  ]) {
    if (!(await hasFeature(session, feature, method))) throw new Skip("the device does not log DMA");
  }
  await map(session, { size: RANGE.length }, [context.memory(RANGE.length)]);
  return session;
}

/** The reply has the request's data, but for the page size that the device chose. */
async function start(session: Session, ranges: readonly Range[] = []): Promise<number> {
  const payload = encodeStart(ranges);
  const body = encodeFeature(DMA_LOGGING_START | SET, payload);
  const { data, body: came } = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, body.length);
  const { pageSize } = DmaLoggingControl.view(data, DeviceFeature.size);
  const rest = DeviceFeature.size + DmaLoggingControl.offsets.numRanges;
  expectThat(Buffer.compare(came.subarray(rest), body.subarray(rest)) === 0, "ranges as in the request", "others");
  expectThat(isPowerOfTwo(pageSize), "a page size that is a power of two", pageSize);
  return pageSize;
}

async function stop(session: Session): Promise<void> {
  const body = encodeFeature(DMA_LOGGING_STOP | SET);
  expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE);
}

function requestReport(session: Session, range: Range, pageSize: number) {
  const needed = DeviceFeature.size + DmaLoggingReport.size + bitmapBytes(range.length, pageSize);
  const body = encodeFeature(DMA_LOGGING_REPORT | GET, DmaLoggingReport.encode({ ...range, pageSize }), needed);
  return session.request(DEVICE_FEATURE, body);
}

/** The number of pages that the device says it wrote. @throws Failure */
async function report(session: Session, range: Range = RANGE, pageSize = PAGE): Promise<number> {
  const fixed = DeviceFeature.size + DmaLoggingReport.size;
  const length = fixed + bitmapBytes(range.length, pageSize);
  const { data, body } = expectSuccess(await requestReport(session, range, pageSize), DEVICE_FEATURE, length);
  expectEqual("argsz", DeviceFeature.view(data).argsz, length);
  const echo = DmaLoggingReport.view(data, DeviceFeature.size);
  expectEqual("the iova", echo.iova, range.iova);
  expectEqual("the length", echo.length, range.length);
  expectEqual("the page size", echo.pageSize, pageSize);
  return countBits(body.subarray(fixed), Math.ceil(range.length / pageSize));
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

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

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
      expectRefusal(await session.request(DMA_UNMAP, encodeUnmap({ size: RANGE.length })), DMA_UNMAP);
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
      else expectRefusal(await session.request(DMA_UNMAP, encodeUnmap()), DMA_UNMAP);
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
