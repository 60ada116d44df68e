// The register accesses of vfio-user (REGION_READ, REGION_WRITE, REGION_WRITE_MULTI), checked as
// shared/vfio-user/checks.ts checks them: a test (test/shared/vfio-user/socket/access-path.test.ts) and the fuzz target
// access-path hold the two against each other. What is not plainly right is nobody's access here, and TypeScript's to
// refuse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are little-endian");

struct MessageHeader {
  uint16_t id;
  uint16_t command;
  uint32_t size;
  uint32_t flags;
  uint32_t error;
};
static_assert(sizeof(MessageHeader) == 16);

// The fixed part of REGION_READ and REGION_WRITE, and of their replies.
struct RegionAccess {
  uint64_t offset;
  uint32_t region;
  uint32_t count;
};
static_assert(sizeof(RegionAccess) == 16);

struct WriteMultiEntry {
  uint64_t offset;
  uint32_t region;
  uint32_t count;
  uint8_t data[8];
};
static_assert(sizeof(WriteMultiEntry) == 24);

constexpr uint16_t kRegionRead = 9;
constexpr uint16_t kRegionWrite = 10;
constexpr uint16_t kRegionWriteMulti = 15;
constexpr uint32_t kTypeMask = 0xf;
constexpr uint32_t kReply = 1;
constexpr uint32_t kNoReply = 0x10;
constexpr uint32_t kError = 0x20;
constexpr uint32_t kMaxDataTransfer = 1 << 20;
constexpr size_t kMaxRegions = 32;
constexpr size_t kWriteMultiHead = 8;

// What a device's accesses are checked against; TypeScript owns the memory.
struct DeviceRegions {
  uint64_t sizes[kMaxRegions];
  uint32_t count;
  // Bit n: writes to region n may be answered as soon as they are queued.
  uint32_t posted;
};

inline bool IsInRegion(const DeviceRegions& device, uint32_t region, uint64_t offset, uint32_t count) {
  if (region >= device.count || region >= kMaxRegions || count > kMaxDataTransfer) return false;
  uint64_t size = device.sizes[region];
  return offset <= size && count <= size - offset;
}

// Whether a whole message, as long as its header says, is an access that the device is to be asked for. The first bytes
// of its body become `access`, which REGION_WRITE_MULTI has no use of.
inline bool CheckAccess(const uint8_t* message, const MessageHeader& header, const DeviceRegions& device,
                        RegionAccess* access) {
  // A flag that is not known here is TypeScript's.
  if ((header.flags & ~kNoReply) != 0) return false;
  size_t length = header.size - sizeof header;
  const uint8_t* body = message + sizeof header;
  if (header.command == kRegionWriteMulti) {
    uint64_t writes;
    if (length < kWriteMultiHead + sizeof(WriteMultiEntry) || length > kMaxDataTransfer) return false;
    std::memcpy(&writes, body, sizeof writes);
    size_t entries = length - kWriteMultiHead;
    if (entries % sizeof(WriteMultiEntry) != 0 || writes != entries / sizeof(WriteMultiEntry)) return false;
    for (size_t at = kWriteMultiHead; at < length; at += sizeof(WriteMultiEntry)) {
      WriteMultiEntry entry;
      std::memcpy(&entry, body + at, sizeof entry);
      if (entry.count > sizeof entry.data || !IsInRegion(device, entry.region, entry.offset, entry.count)) return false;
    }
    *access = {};
    return true;
  }
  if (header.command != kRegionRead && header.command != kRegionWrite) return false;
  if (length < sizeof *access) return false;
  std::memcpy(access, body, sizeof *access);
  size_t data = header.command == kRegionWrite ? access->count : 0;
  return length - sizeof *access == data && IsInRegion(device, access->region, access->offset, access->count);
}

// Whether a write is answered as soon as it is queued.
inline bool IsPosted(const MessageHeader& header, const DeviceRegions& device, const RegionAccess& access) {
  return header.command == kRegionWrite && ((device.posted >> (access.region & 31)) & 1) == 1;
}
