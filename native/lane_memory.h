// Driver-VM memory as lanes see it: DMA maps by address, each with the place in this process where it lies. What is not
// here is not mapped, or can be reached by messages only; a lane leaves that to TypeScript.
//
// It is changed with all lanes held (lane_context.h), and so has no lock of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

class LaneMemory {
 public:
  struct Map {
    uint64_t address;
    uint64_t size;
    uint8_t* host;
    bool readable;
    bool writable;
  };

  // False when it overlaps one that is there.
  bool Add(const Map& map);
  // All that lie in the range.
  void Remove(uint64_t address, uint64_t size);
  void Clear();
  // PCI's bus master bit, and whether the function may do DMA at all.
  void Permit(bool isPermitted);

  // Changes with every change: what was found before is good as long as this stays.
  uint32_t version() const { return version_; }

  // The place of `address`, and how many of `length` bytes lie there in one run, which is 0 where nothing does.
  struct Place {
    uint8_t* host;
    uint64_t length;
  };
  Place Find(uint64_t address, uint64_t length, bool writes) const;

  // Pages that were written are noted, from now on or no longer.
  void StartLog(uint32_t page_shift);
  void StopLog();
  bool logs() const { return log_shift_ != 0; }
  void Mark(uint64_t address, uint64_t length);
  // Takes what was noted, as runs of an address and a length. False when there was more than fits: all counts.
  bool TakeLog(std::vector<std::pair<uint64_t, uint64_t>>* runs);

 private:
  // By address.
  std::vector<Map> maps_;
  uint32_t version_ = 1;
  bool is_permitted_ = true;
  uint32_t log_shift_ = 0;
  bool log_is_full_ = false;
  // Pages, as bits of words by the number of the word; and the word of the last mark.
  std::unordered_map<uint64_t, uint64_t> log_;
};
