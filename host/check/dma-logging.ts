/** Starting, reading and stopping the log of written pages, where that must work, and counting what a bitmap tells. */
import { isPowerOfTwo } from "../../shared/bits.js";
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  Feature,
} from "../../shared/spec/vfio-user.js";
import { encodeFeature, MAP_ADDRESS, PAGE } from "./bodies.js";
import type { Context } from "./context.js";
import { map } from "./dma.js";
import { expectEqual, expectSuccess, expectThat } from "./expect.js";
import { hasFeature } from "./feature.js";
import type { Session } from "./session.js";
import { Skip } from "./verdict.js";

const { DEVICE_FEATURE } = Command;
const { GET, SET } = DeviceFeatureFlags;
const { DMA_LOGGING_START, DMA_LOGGING_STOP, DMA_LOGGING_REPORT } = Feature;

/** Three more than a multiple of 64, so that there are bits which mean no page. */
export const PAGES = 67;
export const RANGE = { iova: MAP_ADDRESS, length: PAGES * PAGE };
export const WORD = 8;

export type Range = typeof RANGE;

/** Bytes of the bitmap for a range. */
export const bitmapBytes = (length: number, pageSize: number) => WORD * Math.ceil(length / pageSize / 64);

export function encodeStart(ranges: readonly Range[] = [], numRanges = ranges.length): Uint8Array {
  return Buffer.concat([
    DmaLoggingControl.encode({ pageSize: PAGE, numRanges }),
    ...ranges.map((range) => DmaLoggingRange.encode(range)),
  ]);
}

/** With memory mapped that the device may write. @throws Skip when the device does not log */
export async function connectLogging(context: Context): Promise<Session> {
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
export async function start(session: Session, ranges: readonly Range[] = []): Promise<number> {
  const payload = encodeStart(ranges);
  const body = encodeFeature(DMA_LOGGING_START | SET, payload);
  const { data, body: came } = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, body.length);
  const { pageSize } = DmaLoggingControl.view(data, DeviceFeature.size);
  const rest = DeviceFeature.size + DmaLoggingControl.offsets.numRanges;
  expectThat(Buffer.compare(came.subarray(rest), body.subarray(rest)) === 0, "ranges as in the request", "others");
  expectThat(isPowerOfTwo(pageSize), "a page size that is a power of two", pageSize);
  return pageSize;
}

export async function stop(session: Session): Promise<void> {
  const body = encodeFeature(DMA_LOGGING_STOP | SET);
  expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE);
}

export function requestReport(session: Session, range: Range, pageSize: number) {
  const needed = DeviceFeature.size + DmaLoggingReport.size + bitmapBytes(range.length, pageSize);
  const body = encodeFeature(DMA_LOGGING_REPORT | GET, DmaLoggingReport.encode({ ...range, pageSize }), needed);
  return session.request(DEVICE_FEATURE, body);
}

/** The number of pages that the device says it wrote. @throws Failure */
export async function report(session: Session, range: Range = RANGE, pageSize = PAGE): Promise<number> {
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
export function countBits(bitmap: Uint8Array, pages: number): number {
  let count = 0;
  for (let bit = 0; bit < bitmap.length * 8; bit++) {
    if (((bitmap[bit >> 3] >> (bit & 7)) & 1) === 0) continue;
    expectThat(bit < pages, `no bit set behind those of ${pages} pages`, `bit ${bit}`);
    count++;
  }
  return count;
}
