// What a split virtqueue looks like in memory (VIRTIO 1.2, 2.7), for both of its sides: ring.h, device_ring.h.
#pragma once

#include <cstdint>

struct RingLayout {
  static constexpr uint32_t kDescriptorSize = 16;
  static constexpr uint32_t kUsedEntrySize = 8;
  static constexpr uint32_t kEntriesOffset = 4;
  // Of both rings, in words of 16 bits.
  static constexpr uint32_t kFlags = 0;
  static constexpr uint32_t kIndex = 1;
  static constexpr uint32_t kEntries = 2;
  static constexpr uint16_t kWrite = 2;
  static constexpr uint16_t kNoNotify = 1;
  static constexpr uint16_t kNoInterrupt = 1;

  // Words that the other side may change at any time.
  template <typename Word>
  static Word Load(const Word* from) {
    return __atomic_load_n(from, __ATOMIC_RELAXED);
  }
  template <typename Word>
  static void Store(Word* to, Word value) {
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
  }
};
