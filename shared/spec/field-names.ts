/** What the values and the bits of fields are called, for descriptions in other languages (messages.ts). */
import * as link from "./link.js";
import * as vfio from "./vfio-user.js";

/** Names of a field's values, or of its bits. */
export interface Names {
  readonly kind: "values" | "bits";
  readonly names: Readonly<Record<string, number>>;
}

const bits = (names: Names["names"]): Names => ({ kind: "bits", names });
const values = (names: Names["names"]): Names => ({ kind: "values", names });
const { TYPE_MASK: _type, TYPE_COMMAND, TYPE_REPLY, ...headerBits } = vfio.HeaderFlags;
const { DATA_MASK: _data, ACTIONS_MASK: _actions, ...irqSetBits } = vfio.IrqSetFlags;
const { FEATURE_MASK: _feature, ...featureBits } = vfio.DeviceFeatureFlags;

/** By structure and field. */
export const NAMES: Readonly<Record<string, Names>> = {
  "Header.flags": bits(headerBits),
  "DmaMap.flags": bits(vfio.DmaMapFlags),
  "DmaUnmap.flags": bits(vfio.DmaUnmapFlags),
  "DeviceInfo.flags": bits(vfio.DeviceInfoFlags),
  "RegionInfo.flags": bits(vfio.RegionInfoFlags),
  "RegionInfo.index": values(vfio.Region),
  "RegionCapHeader.id": values(vfio.RegionCap),
  "RegionIoFds.index": values(vfio.Region),
  "IoEventFd.type": values(vfio.IoFdType),
  "IoEventFd.flags": bits(vfio.IoEventFdFlags),
  "IrqInfo.flags": bits(vfio.IrqInfoFlags),
  "IrqInfo.index": values(vfio.Irq),
  "IrqSet.flags": bits(irqSetBits),
  "IrqSet.index": values(vfio.Irq),
  "RegionAccess.region": values(vfio.Region),
  "WriteMultiEntry.region": values(vfio.Region),
  "DeviceFeature.flags": bits(featureBits),
  "FeatureMigration.flags": bits(vfio.MigrationFlags),
  "FeatureMigDeviceState.deviceState": values(vfio.MigrationState),
  "Hello.flags": bits(link.HelloFlags),
};

export const MESSAGE_TYPES = { command: TYPE_COMMAND, reply: TYPE_REPLY } as const;
