// Made by `npm run lane-table` from lane-table.ts (guest/devices/nvme/queues): what a lane checks.
#pragma once

#include <cstdint>

namespace nvme {

constexpr uint32_t kSubmissionEntrySize = 64;
constexpr uint32_t kCompletionEntrySize = 16;
constexpr uint32_t kOpcodeAt = 0;
constexpr uint32_t kFlagsAt = 1;
constexpr uint32_t kIdentifierAt = 2;
constexpr uint32_t kNamespaceAt = 4;
constexpr uint32_t kPointerAt = 24;
constexpr uint32_t kDword10At = 40;
constexpr uint32_t kCompletionLastWordAt = 12;
constexpr uint32_t kWrite = 1;
constexpr uint32_t kRead = 2;
constexpr uint32_t kWriteZeroes = 8;
constexpr uint32_t kDatasetManagement = 9;
constexpr uint32_t kFuseMask = 3;
constexpr uint32_t kFuseFirst = 1;
constexpr uint32_t kFuseSecond = 2;
constexpr uint32_t kReservedFlags = 63;
constexpr uint32_t kPsdtShift = 6;
constexpr uint32_t kPsdtReserved = 3;
constexpr uint32_t kBlocksMask = 65535;
constexpr uint32_t kForceUnitAccess = 1073741824;
constexpr uint32_t kDeallocateZeroes = 33554432;
constexpr uint32_t kRangesMask = 255;
constexpr uint32_t kDeallocate = 4;
constexpr uint32_t kRangeSize = 16;
constexpr uint32_t kPrpSize = 8;
constexpr uint32_t kPrpAlignment = 4;
constexpr uint32_t kSglDescriptorSize = 16;
constexpr uint32_t kSglDataBlock = 0;
constexpr uint32_t kSglSegment = 32;
constexpr uint32_t kSglLastSegment = 48;
constexpr uint32_t kSglAlignment = 4;
constexpr uint32_t kMaxDescriptors = 1024;
constexpr uint32_t kMaxSegmentRead = 4096;
constexpr uint32_t kMaxZeroes = 262144;
constexpr uint32_t kMaxHoles = 1048576;
constexpr uint32_t kBurst = 16;
constexpr uint32_t kBurstBytes = 262144;
constexpr uint32_t kWorkShift = 14;

}  // namespace nvme
