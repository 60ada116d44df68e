/** DEVICE_FEATURE with features that there are not, and the logging of DMA. Migration is migration.ts. */
import { Command, DeviceFeatureFlags, DmaLoggingReport, Feature } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeFeature, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { expectRefusal } from "../expect.js";
import { hasFeature } from "../feature.js";
import { Skip } from "../verdict.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_FEATURE");
const STATE = vfioUser("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
const { DEVICE_FEATURE } = Command;
const { GET, SET, PROBE } = DeviceFeatureFlags;
/** No feature of VFIO's, now or soon. */
const UNKNOWN_FEATURE = 0xabcd;

const badFeatures = badRequests(SECTION, [
  {
    id: "feature-probe-unknown",
    title: "A probe of an unknown feature is refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(UNKNOWN_FEATURE | PROBE | GET),
    answer: "error",
  },
  {
    id: "feature-get-unknown",
    title: "An unknown feature cannot be got",
    command: DEVICE_FEATURE,
    body: encodeFeature(UNKNOWN_FEATURE | GET, undefined, 4096),
    answer: "error",
  },
  {
    id: "feature-set-unknown",
    title: "An unknown feature cannot be set",
    command: DEVICE_FEATURE,
    body: encodeFeature(UNKNOWN_FEATURE | SET, new Uint8Array(8)),
    answer: "error",
  },
  {
    id: "feature-get-and-set",
    title: "GET and SET, which are mutually exclusive without PROBE, are refused",
    command: DEVICE_FEATURE,
    body: encodeFeature(Feature.MIGRATION | GET | SET, new Uint8Array(8)),
    answer: "error",
  },
  {
    id: "feature-no-method",
    title: "Neither GET, SET nor PROBE: answered, and survived",
    command: DEVICE_FEATURE,
    body: encodeFeature(Feature.MIGRATION),
    answer: "any",
  },
  {
    id: "feature-flags-unknown",
    title: "Unknown flags: answered, and survived",
    command: DEVICE_FEATURE,
    body: encodeFeature((0xfff8_0000 | UNKNOWN_FEATURE) >>> 0),
    answer: "any",
  },
  {
    id: "feature-no-body",
    title: "A request without a body is refused",
    command: DEVICE_FEATURE,
    body: new Uint8Array(0),
    answer: "error",
  },
  {
    id: "feature-short",
    title: "A request of 7 bytes is refused",
    command: DEVICE_FEATURE,
    body: new Uint8Array(7),
    answer: "error",
  },
  {
    id: "feature-argsz-0",
    title: "An argsz of 0: answered, and survived",
    command: DEVICE_FEATURE,
    body: encodeFeature(Feature.MIGRATION | GET, undefined, 0),
    answer: "any",
  },
  {
    id: "feature-state-short",
    title: "A device state that is cut off is refused",
    section: STATE,
    command: DEVICE_FEATURE,
    body: encodeFeature(Feature.MIG_DEVICE_STATE | SET, new Uint8Array(3)),
    answer: "error",
  },
]);

const logging: Check[] = [
  {
    id: "dma-logging-report-unstarted",
    section: vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT"),
    title: "No report of DMA while none is logged",
    run: async (context) => {
      const session = await context.connect();
      if (!(await hasFeature(session, Feature.DMA_LOGGING_REPORT, GET))) throw new Skip("the device does not log DMA");
      const report = DmaLoggingReport.encode({ iova: 0, length: PAGE, pageSize: PAGE });
      const body = encodeFeature(Feature.DMA_LOGGING_REPORT | GET, report, 4096);
      return expectRefusal(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE);
    },
  },
];

export const features: readonly Check[] = [...badFeatures, ...logging];
