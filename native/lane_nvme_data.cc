#include "lane_nvme_data.h"

#include <algorithm>
#include <cstring>

#include "guard.h"
#include "lane_nvme_table.h"

namespace {

template <typename Number>
Number Load(const uint8_t* from) {
  Number number;
  memcpy(&number, from, sizeof number);
  return number;
}

// As shared/address.ts says: what JavaScript has no exact number for is never mapped.
bool IsExact(uint64_t address, uint64_t length) {
  constexpr int64_t kMost = (int64_t{1} << 53) - 1;
  int64_t at = static_cast<int64_t>(address);
  return at >= -kMost && at <= kMost - static_cast<int64_t>(length);
}

}  // namespace

bool NvmeDataPointer::Resolve(const LaneMemory& memory, const uint8_t* entry, uint64_t length, uint32_t page_size) {
  ranges.clear();
  dma_read = 0;
  remaining_ = length;
  page_size_ = page_size;
  const uint8_t* pointer = entry + nvme::kPointerAt;
  if (entry[nvme::kFlagsAt] >> nvme::kPsdtShift != 0) return ResolveSgl(memory, pointer);
  return ResolvePrps(memory, Load<uint64_t>(pointer), Load<uint64_t>(pointer + nvme::kPrpSize));
}

bool NvmeDataPointer::ResolvePrps(const LaneMemory& memory, uint64_t prp1, uint64_t prp2) {
  const uint64_t mask = page_size_ - 1;
  if (prp1 % nvme::kPrpAlignment != 0) return false;
  if (!Add(prp1, std::min(remaining_, page_size_ - (prp1 & mask)))) return false;
  if (remaining_ == 0) return true;
  if (remaining_ <= page_size_) return (prp2 & mask) == 0 && Add(prp2, remaining_);
  for (uint64_t list = prp2;;) {
    if (list % nvme::kPrpSize != 0) return false;
    uint64_t wanted = (remaining_ + mask) / page_size_ * nvme::kPrpSize;
    uint64_t size = std::min(page_size_ - (list & mask), wanted);
    if (!ReadList(memory, list, size)) return false;
    uint64_t entries = size / nvme::kPrpSize;
    // A list's last entry points to the next list when data is left.
    bool is_chained = entries * page_size_ < remaining_;
    for (uint64_t n = 0; n < entries; n++) {
      uint64_t address = Load<uint64_t>(list_.data() + n * nvme::kPrpSize);
      if ((address & mask) != 0) return false;
      if (is_chained && n == entries - 1) list = address;
      else if (!Add(address, std::min<uint64_t>(remaining_, page_size_))) return false;
    }
    if (!is_chained) return true;
  }
}

bool NvmeDataPointer::ResolveSgl(const LaneMemory& memory, const uint8_t* descriptor) {
  uint8_t first[nvme::kSglDescriptorSize];
  memcpy(first, descriptor, sizeof first);
  const uint8_t* next = first;
  // Of the segment at hand, what was not read yet, and what of it is in the list.
  uint64_t address = 0;
  uint64_t unread = 0;
  uint64_t in_list = sizeof first;
  bool is_last_segment = false;
  for (uint32_t count = 1;; count++) {
    if (count > nvme::kMaxDescriptors) return false;
    uint64_t where = Load<uint64_t>(next);
    uint32_t length = Load<uint32_t>(next + 8);
    uint8_t identifier = next[15];
    next += sizeof first;
    in_list -= sizeof first;
    bool is_final = unread == 0 && in_list == 0;
    if (identifier == nvme::kSglDataBlock) {
      if (!TakeBlock(where, length)) return false;
      // Only a last segment ends without pointing further; a command's own descriptor is all there is.
      if (is_final) return remaining_ == 0 && (count == 1 || is_last_segment);
    } else if (identifier == nvme::kSglSegment || identifier == nvme::kSglLastSegment) {
      if (!is_final || is_last_segment || length == 0 || length % sizeof first != 0) return false;
      is_last_segment = identifier == nvme::kSglLastSegment;
      address = where;
      unread = length;
    } else {
      return false;
    }
    if (in_list > 0) continue;
    in_list = std::min<uint64_t>(unread, nvme::kMaxSegmentRead);
    if (!ReadList(memory, address, in_list)) return false;
    next = list_.data();
    address += in_list;
    unread -= in_list;
  }
}

bool NvmeDataPointer::TakeBlock(uint64_t address, uint32_t length) {
  if (address % nvme::kSglAlignment != 0 || length % nvme::kSglAlignment != 0 || length > remaining_) return false;
  return Add(address, length);
}

bool NvmeDataPointer::Add(uint64_t address, uint64_t length) {
  remaining_ -= length;
  if (!IsExact(address, length)) return false;
  if (length == 0) return true;
  if (!ranges.empty() && ranges.back().address + ranges.back().length == address) ranges.back().length += length;
  else ranges.push_back({address, length});
  return true;
}

bool NvmeDataPointer::ReadList(const LaneMemory& memory, uint64_t address, uint64_t length) {
  LaneMemory::Place place = memory.Find(address, length, false);
  if (place.length < length) return false;
  if (list_.size() < length) list_.resize(length);
  memcpy(list_.data(), place.host, length);
  dma_read += length;
  return !IsLost(place.host, length);
}
