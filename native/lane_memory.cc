#include "lane_memory.h"

#include <algorithm>

namespace {

// Words of the log: 64 pages each.
constexpr size_t kMaxLogWords = size_t{1} << 18;

}  // namespace

bool LaneMemory::Add(const Map& map) {
  auto after = std::upper_bound(maps_.begin(), maps_.end(), map.address,
                                [](uint64_t address, const Map& each) { return address < each.address; });
  if (after != maps_.end() && after->address - map.address < map.size) return false;
  if (after != maps_.begin() && map.address - std::prev(after)->address < std::prev(after)->size) return false;
  maps_.insert(after, map);
  version_++;
  return true;
}

void LaneMemory::Remove(uint64_t address, uint64_t size) {
  // By offsets, as a range may end at 2^64.
  size_t before = maps_.size();
  std::erase_if(maps_, [=](const Map& map) {
    uint64_t offset = map.address - address;
    return offset < size && map.size <= size - offset;
  });
  if (maps_.size() != before) version_++;
}

void LaneMemory::Clear() {
  maps_.clear();
  version_++;
}

void LaneMemory::Permit(bool isPermitted) {
  if (is_permitted_ != isPermitted) version_++;
  is_permitted_ = isPermitted;
}

LaneMemory::Place LaneMemory::Find(uint64_t address, uint64_t length, bool writes) const {
  auto after = std::upper_bound(maps_.begin(), maps_.end(), address,
                                [](uint64_t wanted, const Map& each) { return wanted < each.address; });
  if (after == maps_.begin() || !is_permitted_) return {nullptr, 0};
  const Map& map = *std::prev(after);
  uint64_t offset = address - map.address;
  if (offset >= map.size || !(writes ? map.writable : map.readable)) return {nullptr, 0};
  return {map.host + offset, std::min(length, map.size - offset)};
}

void LaneMemory::StartLog(uint32_t page_shift) {
  StopLog();
  log_shift_ = page_shift;
}

void LaneMemory::StopLog() {
  log_shift_ = 0;
  log_is_full_ = false;
  log_.clear();
}

void LaneMemory::Mark(uint64_t address, uint64_t length) {
  uint64_t last = (address + length - 1) >> log_shift_;
  for (uint64_t page = address >> log_shift_;; page++) {
    log_[page >> 6] |= uint64_t{1} << (page & 63);
    if (page == last) break;
  }
  if (log_.size() <= kMaxLogWords) return;
  log_is_full_ = true;
  log_.clear();
}

bool LaneMemory::TakeLog(std::vector<std::pair<uint64_t, uint64_t>>* runs) {
  bool is_whole = !log_is_full_;
  for (const auto& [word, bits] : log_) {
    for (uint32_t bit = 0; bit < 64; bit++) {
      if (((bits >> bit) & 1) == 0) continue;
      uint32_t end = bit;
      while (end < 64 && ((bits >> end) & 1) != 0) end++;
      runs->push_back({(word * 64 + bit) << log_shift_, uint64_t{end - bit} << log_shift_});
      bit = end;
    }
  }
  log_.clear();
  log_is_full_ = false;
  return is_whole;
}
