// Where a command's data is in driver-VM memory: PRPs and SGLs (NVM Express 1.4, 4.3 and 4.4) as data-pointer.ts
// resolves them, as far as all of it, lists included, is in the window. Whatever is wrong, or elsewhere, is false: then
// TypeScript says what. Each entry of a list is read once.
#pragma once

#include <cstdint>
#include <vector>

#include "lane_memory.h"

struct NvmeRange {
  uint64_t address;
  uint64_t length;
};

class NvmeDataPointer {
 public:
  // `entry`: a copy of the submission queue entry. Fills `ranges`, neighbours joined; `dma_read` counts bytes of lists.
  bool Resolve(const LaneMemory& memory, const uint8_t* entry, uint64_t length, uint32_t page_size);

  std::vector<NvmeRange> ranges;
  uint64_t dma_read = 0;

 private:
  bool ResolvePrps(const LaneMemory& memory, uint64_t prp1, uint64_t prp2);
  bool ResolveSgl(const LaneMemory& memory, const uint8_t* descriptor);
  bool TakeBlock(uint64_t address, uint32_t length);
  bool Add(uint64_t address, uint64_t length);
  // Copies a list, which must lie in one run.
  bool ReadList(const LaneMemory& memory, uint64_t address, uint64_t length);

  uint64_t remaining_ = 0;
  uint32_t page_size_ = 4096;
  std::vector<uint8_t> list_;
};
