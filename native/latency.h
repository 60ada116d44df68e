// Latencies in the words of shared/histogram.ts: for each command a sum, the largest value, and the buckets.
#pragma once

#include <time.h>

#include <cstddef>
#include <cstdint>

class Latencies {
 public:
  // Null where nobody looks: then no clock is read.
  uint32_t* words = nullptr;

  static constexpr size_t kCommands = 32;
  static constexpr size_t kSub = 16;
  static constexpr size_t kBuckets = kSub * 29;
  static constexpr size_t kFirstBucket = 4;
  static constexpr size_t kWords = kFirstBucket + kBuckets;

  // Modulo 2^32: longer than any command may take. 0 where nobody looks.
  uint32_t Now() const {
    if (words == nullptr) return 0;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint32_t ns = static_cast<uint32_t>(static_cast<uint64_t>(now.tv_sec) * 1000000000 + now.tv_nsec);
    return ns == 0 ? 1 : ns;
  }

  // `started_at`: what Now said, 0 for a command that began when nobody looked.
  void Record(uint32_t command, uint32_t started_at) {
    if (words == nullptr || started_at == 0 || command >= kCommands) return;
    uint32_t ns = Now() - started_at;
    uint32_t* own = words + command * kWords;
    uint32_t sum = own[0] + ns;
    if (sum < ns) own[1]++;
    own[0] = sum;
    if (ns > own[2]) own[2] = ns;
    own[kFirstBucket + Bucket(ns)]++;
  }

 private:
  static size_t Bucket(uint32_t ns) {
    if (ns < kSub) return ns;
    unsigned exponent = 31u - static_cast<unsigned>(__builtin_clz(ns));
    return (exponent - 3) * kSub + ((ns >> (exponent - 4)) & (kSub - 1));
  }
};
