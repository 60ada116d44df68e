/**
 * vfio-user messages, byte by byte: name, table, bytes (the body, in hexadecimal), and what they say. Field values are
 * chosen so that no two bytes of a structure are alike, unless it is a message seen from stock QEMU.
 */
import * as spec from "../../../shared/spec/vfio-user.js";
import type { Struct, Table } from "../../../shared/struct/struct.js";

export interface Vector {
  readonly name: string;
  readonly table: Struct<Table>;
  readonly bytes: string;
  readonly fields: Readonly<Record<string, number>>;
}

function vector<T extends Table>(
  name: string,
  table: Struct<T>,
  bytes: string,
  fields: Readonly<Partial<Record<keyof T & string, number>>>,
): Vector {
  return { name, table: table as unknown as Struct<Table>, bytes, fields: fields as Record<string, number> };
}

export const VECTORS: readonly Vector[] = [
  vector("Header", spec.Header, "0201 0403 08070605 0c0b0a09 100f0e0d", {
    id: 0x0102,
    command: 0x0304,
    size: 0x05060708,
    flags: 0x090a0b0c,
    errno: 0x0d0e0f10,
  }),
  vector("Header of an error reply EINVAL to DMA_MAP, id 3", spec.Header, "0300 0200 10000000 21000000 16000000", {
    id: 3,
    command: spec.Command.DMA_MAP,
    size: 16,
    flags: spec.HeaderFlags.TYPE_REPLY | spec.HeaderFlags.ERROR,
    errno: 22,
  }),
  vector("Version 0.2", spec.Version, "0000 0200", { major: 0, minor: 2 }),
  vector("Version", spec.Version, "0201 0403", { major: 0x0102, minor: 0x0304 }),
  vector(
    "DmaMap of 512 MiB, readable and writable",
    spec.DmaMap,
    "20000000 03000000 0000100000000000 0000000001000000 0000002000000000",
    { argsz: 32, flags: 3, offset: 0x100000, address: 0x1_0000_0000, size: 0x2000_0000 },
  ),
  vector("DmaMap", spec.DmaMap, "04030201 08070605 100f0e0d0c0b0a00 1817161514131200 201f1e1d1c1b1a00", {
    argsz: 0x01020304,
    flags: 0x05060708,
    offset: 0x0a_0b0c_0d0e_0f10,
    address: 0x12_1314_1516_1718,
    size: 0x1a_1b1c_1d1e_1f20,
  }),
  vector("DmaUnmap", spec.DmaUnmap, "18000000 02000000 100f0e0d0c0b0a00 1817161514131200", {
    argsz: 24,
    flags: spec.DmaUnmapFlags.ALL,
    address: 0x0a_0b0c_0d0e_0f10,
    size: 0x12_1314_1516_1718,
  }),
  vector("Bitmap", spec.Bitmap, "0010000000000000 0807060504030200", { pageSize: 4096, size: 0x02_0304_0506_0708 }),
  vector("DeviceInfo of a PCI device", spec.DeviceInfo, "10000000 03000000 09000000 05000000", {
    argsz: 16,
    flags: spec.DeviceInfoFlags.RESET | spec.DeviceInfoFlags.PCI,
    numRegions: spec.NUM_PCI_REGIONS,
    numIrqs: spec.NUM_PCI_IRQS,
  }),
  vector("RegionInfo", spec.RegionInfo, "04030201 08070605 0c0b0a09 100f0e0d 1817161514131200 201f1e1d1c1b1a00", {
    argsz: 0x01020304,
    flags: 0x05060708,
    index: 0x090a0b0c,
    capOffset: 0x0d0e0f10,
    size: 0x12_1314_1516_1718,
    offset: 0x1a_1b1c_1d1e_1f20,
  }),
  vector("RegionCapHeader", spec.RegionCapHeader, "0100 0200 08070605", { id: 1, version: 2, next: 0x05060708 }),
  vector("SparseMmap", spec.SparseMmap, "04030201 00000000", { areas: 0x01020304 }),
  vector("SparseMmapArea", spec.SparseMmapArea, "0010000000000000 0020000000000000", { offset: 4096, size: 8192 }),
  vector("RegionType", spec.RegionType, "04030201 08070605", { type: 0x01020304, subtype: 0x05060708 }),
  vector("RegionIoFds", spec.RegionIoFds, "04030201 08070605 0c0b0a09 100f0e0d", {
    argsz: 0x01020304,
    flags: 0x05060708,
    index: 0x090a0b0c,
    count: 0x0d0e0f10,
  }),
  vector(
    "IoEventFd",
    spec.IoEventFd,
    "0807060504030200 100f0e0d0c0b0a00 14131211 18171615 1c1b1a19 201f1e1d 2827262524230200 302f2e2d2c2b0a00",
    {
      gpaOffset: 0x02_0304_0506_0708,
      size: 0x0a_0b0c_0d0e_0f10,
      fdIndex: 0x11121314,
      type: 0x15161718,
      flags: 0x191a1b1c,
      shadowMemFdIndex: 0x1d1e1f20,
      shadowOffset: 0x02_2324_2526_2728,
      dataMatch: 0x0a_2b2c_2d2e_2f30,
    },
  ),
  vector("IrqInfo", spec.IrqInfo, "10000000 09000000 02000000 00080000", {
    argsz: 16,
    flags: spec.IrqInfoFlags.EVENTFD | spec.IrqInfoFlags.NORESIZE,
    index: spec.Irq.MSIX,
    count: 2048,
  }),
  vector("IrqSet as QEMU enables MSI-X", spec.IrqSet, "14000000 24000000 02000000 00000000 01000000", {
    argsz: 20,
    flags: spec.IrqSetFlags.DATA_EVENTFD | spec.IrqSetFlags.ACTION_TRIGGER,
    index: spec.Irq.MSIX,
    start: 0,
    count: 1,
  }),
  vector("IrqSet", spec.IrqSet, "04030201 08070605 0c0b0a09 100f0e0d 14131211", {
    argsz: 0x01020304,
    flags: 0x05060708,
    index: 0x090a0b0c,
    start: 0x0d0e0f10,
    count: 0x11121314,
  }),
  vector("RegionAccess of config space", spec.RegionAccess, "0000000000000000 07000000 00100000", {
    offset: 0,
    region: spec.Region.CONFIG,
    count: 4096,
  }),
  vector("RegionAccess", spec.RegionAccess, "0807060504030200 0c0b0a09 100f0e0d", {
    offset: 0x02_0304_0506_0708,
    region: 0x090a0b0c,
    count: 0x0d0e0f10,
  }),
  vector("DmaAccess", spec.DmaAccess, "0807060504030200 100f0e0d0c0b0a00", {
    address: 0x02_0304_0506_0708,
    count: 0x0a_0b0c_0d0e_0f10,
  }),
  vector("DmaAccessQemu", spec.DmaAccessQemu, "0807060504030200 100f0e0d", {
    address: 0x02_0304_0506_0708,
    count: 0x0d0e0f10,
  }),
  vector("WriteMulti", spec.WriteMulti, "0300000000000000", { writes: 3 }),
  vector("WriteMultiEntry", spec.WriteMultiEntry, "0807060504030200 0c0b0a09 100f0e0d 0000000000000000", {
    offset: 0x02_0304_0506_0708,
    region: 0x090a0b0c,
    count: 0x0d0e0f10,
  }),
  vector("DeviceFeature: set the migration state", spec.DeviceFeature, "10000000 02000200", {
    argsz: 16,
    flags: spec.DeviceFeatureFlags.SET | spec.Feature.MIG_DEVICE_STATE,
  }),
  vector("FeatureMigration", spec.FeatureMigration, "0500000000000000", {
    flags: spec.MigrationFlags.STOP_COPY | spec.MigrationFlags.PRE_COPY,
  }),
  vector("FeatureMigDeviceState", spec.FeatureMigDeviceState, "03000000 ffffffff", {
    deviceState: spec.MigrationState.STOP_COPY,
    dataFd: 0xffffffff,
  }),
  vector("DmaLoggingControl", spec.DmaLoggingControl, "0010000000000000 02000000 00000000", {
    pageSize: 4096,
    numRanges: 2,
  }),
  vector("DmaLoggingRange", spec.DmaLoggingRange, "0807060504030200 100f0e0d0c0b0a00", {
    iova: 0x02_0304_0506_0708,
    length: 0x0a_0b0c_0d0e_0f10,
  }),
  vector("DmaLoggingReport", spec.DmaLoggingReport, "0807060504030200 100f0e0d0c0b0a00 0010000000000000", {
    iova: 0x02_0304_0506_0708,
    length: 0x0a_0b0c_0d0e_0f10,
    pageSize: 4096,
  }),
  vector("MigData", spec.MigData, "08001000 00001000", { argsz: 0x100008, size: 0x100000 }),
];
