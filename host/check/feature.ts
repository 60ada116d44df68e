/** Asking for a feature, for the checks of features and of migration. */
import { Command, DeviceFeatureFlags } from "../../shared/spec/vfio-user.js";
import { encodeFeature } from "./bodies.js";
import { isError } from "./expect.js";
import type { Session } from "./session.js";
import { Failure } from "./verdict.js";

/** Whether PROBE says that the feature has all of `methods`. */
export async function hasFeature(session: Session, feature: number, methods: number): Promise<boolean> {
  const answer = await session.request(
    Command.DEVICE_FEATURE,
    encodeFeature(feature | methods | DeviceFeatureFlags.PROBE),
  );
  if (answer === undefined) throw new Failure("a reply to DEVICE_FEATURE", "a closed connection");
  return !isError(answer);
}
