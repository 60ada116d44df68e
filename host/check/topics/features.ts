/**
 * DEVICE_FEATURE with features that there are not, or cut off. Those that there are: dma-logging.ts and migration.ts.
 */
import { Command, DeviceFeatureFlags, DmaLoggingReport, Feature } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import { hasFeature } from "../device.js";
import { Skip } from "../expect.js";
import { encodeFeature, NO_BYTES, PAGE } from "../messages.js";

const FEATURE = { section: vfioUser("VFIO_USER_DEVICE_FEATURE"), command: Command.DEVICE_FEATURE, prefix: "feature-" };
const { GET, SET, PROBE } = DeviceFeatureFlags;
/** No feature of VFIO's, now or soon. */
const UNKNOWN = 0xabcd;
const EIGHT = new Uint8Array(8);

export const features = [
  ...topic({ ...FEATURE, answer: "error" }, [
    {
      id: "probe-unknown",
      title: "A probe of an unknown feature is refused",
      body: encodeFeature(UNKNOWN | PROBE | GET),
    },
    {
      id: "get-unknown",
      title: "An unknown feature cannot be got",
      body: encodeFeature(UNKNOWN | GET, undefined, 4096),
    },
    { id: "set-unknown", title: "An unknown feature cannot be set", body: encodeFeature(UNKNOWN | SET, EIGHT) },
    {
      id: "get-and-set",
      title: "GET and SET, which are mutually exclusive without PROBE, are refused",
      body: encodeFeature(Feature.MIGRATION | GET | SET, EIGHT),
    },
    {
      id: "no-method",
      title: "Neither GET, SET nor PROBE: answered, and survived",
      body: encodeFeature(Feature.MIGRATION),
      answer: "any",
    },
    {
      id: "flags-unknown",
      title: "Unknown flags: answered, and survived",
      body: encodeFeature((0xfff8_0000 | UNKNOWN) >>> 0),
      answer: "any",
    },
    { id: "no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "short", title: "A request of 7 bytes is refused", body: new Uint8Array(7) },
    {
      id: "argsz-0",
      title: "An argsz of 0: answered, and survived",
      body: encodeFeature(Feature.MIGRATION | GET, undefined, 0),
      answer: "any",
    },
    {
      id: "state-short",
      title: "A device state that is cut off is refused",
      section: vfioUser("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"),
      body: encodeFeature(Feature.MIG_DEVICE_STATE | SET, new Uint8Array(3)),
    },
  ]),
  ...topic({ section: vfioUser("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT") }, [
    {
      id: "dma-logging-report-unstarted",
      title: "No report of DMA while none is logged",
      connected: async (session) => {
        const isThere = await hasFeature(session, Feature.DMA_LOGGING_REPORT, GET);
        if (!isThere) throw new Skip("the device does not log DMA");
        const report = DmaLoggingReport.encode({ iova: 0, length: PAGE, pageSize: PAGE });
        return session.refusal(Command.DEVICE_FEATURE, encodeFeature(Feature.DMA_LOGGING_REPORT | GET, report, 4096));
      },
    },
  ]),
];
