/**
 * What a lane checks of a command, and how far it goes, as one table: of it native/lane_nvme_table.h is made
 * (`npm run lane-table`), and a test holds the two against each other. The numbers are the specification's (spec.ts),
 * but for the bounds of what is done at once.
 */
import { KiB, MiB } from "../../../../shared/limits.js";
import {
  COMPLETION_ENTRY_SIZE,
  Command,
  Completion,
  DSM_DEALLOCATE,
  DSM_NR_MASK,
  DsmRange,
  Fuse,
  NvmOpcode,
  Psdt,
  RW_FUA,
  RW_NLB_MASK,
  SGL_DESCRIPTOR_SIZE,
  SglType,
  SUBMISSION_ENTRY_SIZE,
  WRITE_ZEROES_DEAC,
} from "../spec.js";
import { MAX_DESCRIPTORS, MAX_SEGMENT_READ, PRP_ALIGNMENT, PRP_SIZE, SGL_ALIGNMENT } from "./data-pointer.js";

/** By their names in C++. */
const LANE_TABLE: Readonly<Record<string, number>> = {
  kSubmissionEntrySize: SUBMISSION_ENTRY_SIZE,
  kCompletionEntrySize: COMPLETION_ENTRY_SIZE,
  kOpcodeAt: Command.offsets.OPC,
  kFlagsAt: Command.offsets.FLAGS,
  kIdentifierAt: Command.offsets.CID,
  kNamespaceAt: Command.offsets.NSID,
  kPointerAt: Command.offsets.PRP1,
  kDword10At: Command.offsets.CDW10,
  kCompletionLastWordAt: Completion.offsets.CID,
  // What a lane does; all other commands go up.
  kWrite: NvmOpcode.WRITE,
  kRead: NvmOpcode.READ,
  kWriteZeroes: NvmOpcode.WRITE_ZEROES,
  kDatasetManagement: NvmOpcode.DATASET_MANAGEMENT,
  kFuseMask: Fuse.MASK,
  kFuseFirst: Fuse.FIRST,
  kFuseSecond: Fuse.SECOND,
  kReservedFlags: 0x3f,
  kPsdtShift: 6,
  kPsdtReserved: Psdt.RESERVED,
  kBlocksMask: RW_NLB_MASK,
  kForceUnitAccess: RW_FUA,
  kDeallocateZeroes: WRITE_ZEROES_DEAC,
  kRangesMask: DSM_NR_MASK,
  kDeallocate: DSM_DEALLOCATE,
  kRangeSize: DsmRange.size,
  kPrpSize: PRP_SIZE,
  kPrpAlignment: PRP_ALIGNMENT,
  kSglDescriptorSize: SGL_DESCRIPTOR_SIZE,
  kSglDataBlock: SglType.DATA_BLOCK,
  kSglSegment: SglType.SEGMENT,
  kSglLastSegment: SglType.LAST_SEGMENT,
  kSglAlignment: SGL_ALIGNMENT,
  kMaxDescriptors: MAX_DESCRIPTORS,
  kMaxSegmentRead: MAX_SEGMENT_READ,
  // Bytes of zeros that one command writes at once, and of holes, whose pages are to be freed: some 50 us.
  kMaxZeroes: 256 * KiB,
  kMaxHoles: MiB,
  // Of one queue, before others are served; and what a command counts for: one, and one for each 2^n bytes.
  kBurst: 16,
  kBurstBytes: 256 * KiB,
  kWorkShift: 14,
};

/** All of native/lane_nvme_table.h. */
export function laneTableHeader(): string {
  const lines = Object.entries(LANE_TABLE).map(([name, value]) => `constexpr uint32_t ${name} = ${value};`);
  return `// Made by \`npm run lane-table\` from lane-table.ts (guest/devices/nvme/queues): what a lane checks.
#pragma once

#include <cstdint>

namespace nvme {

${lines.join("\n")}

}  // namespace nvme
`;
}
