/**
 * Linux's VFIO interface (<linux/vfio.h>): the requests, and the structures that vfio-user did not take over (for those
 * see spec/vfio-user: region info, interrupt info and interrupt sets are the same bytes).
 */
import { struct } from "../../shared/struct/struct.js";

const BASE = 0x3b64;

/** _IO(';', 100 + n) */
export const Request = {
  SET_IOMMU: BASE + 2,
  GROUP_GET_STATUS: BASE + 3,
  GROUP_SET_CONTAINER: BASE + 4,
  GROUP_GET_DEVICE_FD: BASE + 6,
  DEVICE_GET_REGION_INFO: BASE + 8,
  DEVICE_GET_IRQ_INFO: BASE + 9,
  DEVICE_SET_IRQS: BASE + 10,
  IOMMU_MAP_DMA: BASE + 13,
} as const;

export const IommuType = { TYPE1V2: 3 } as const;

export const GroupStatus = struct({ argsz: "u32", flags: "u32" });
export const GroupStatusFlags = { VIABLE: 1 } as const;

export const IommuMap = struct({ argsz: "u32", flags: "u32", address: "u64", iova: "u64", size: "u64" });
export const IommuMapFlags = { READ: 1, WRITE: 2 } as const;
