// A disk as lanes use it: memory, or a file whose reads and writes do not wait. Only what can be done at once is done
// here; a lane leaves the rest, and every error, to TypeScript, which then does all of it from the start.
//
// Transfers that TypeScript has in flight, or that wait there, are known here by their ranges: a lane does nothing that
// overlaps one of them where either writes, so that no block is torn. What lanes do at the same time is kept apart by
// `Claim`.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "guard.h"

constexpr uint32_t kMaxLanes = 16;

class LaneDisk {
 public:
  // Memory that is a file, which this maps. Null when there is no address space.
  static std::unique_ptr<LaneDisk> Memory(int fd, uint64_t size);
  // Flags of preadv2 and pwritev2 by which they do not wait; -1 where there are none.
  static std::unique_ptr<LaneDisk> File(int fd, int read_flags, int write_flags, bool punches);
  ~LaneDisk();
  LaneDisk(const LaneDisk&) = delete;
  LaneDisk& operator=(const LaneDisk&) = delete;

  // What its owner says of it, with all lanes held.
  uint32_t block_shift = 9;
  uint64_t block_count = 0;
  // Nothing may begin, or nothing that changes it.
  bool is_open = false;
  bool is_writable = false;
  // There is a cache over stable storage, and what is written may stay there.
  bool may_cache = true;

  bool is_volatile() const { return memory_ != nullptr; }
  bool reads() const { return is_open && (memory_ != nullptr || read_flags_ >= 0); }
  bool writes() const { return is_open && is_writable && (memory_ != nullptr || write_flags_ >= 0); }
  bool punches() const { return is_open && is_writable && punches_; }
  // Zeros are as good as written by hand.
  bool zeroes_by_writing() const { return memory_ != nullptr || punches_; }

  // Each returns 0 when all of it was done, or an errno. Positions and lengths are bytes.
  int Read(const iovec* pieces, int count, uint64_t position, uint64_t length);
  int Write(const iovec* pieces, int count, uint64_t position, uint64_t length);
  int Zero(uint64_t position, uint64_t length);
  int Punch(uint64_t position, uint64_t length);
  // The first lines of what is read next.
  void Prefetch(uint64_t position) const {
    if (memory_ == nullptr || position >= size_) return;
    for (uint64_t at = 0; at < 256; at += 64) __builtin_prefetch(memory_ + position + at);
  }

  // Transfers of TypeScript's, with all lanes held. Returns what Leave wants.
  uint32_t Enter(uint64_t start, uint64_t end, bool writes);
  void Leave(uint32_t number);
  bool IsFree(uint64_t start, uint64_t end, bool writes) const;
  bool has_writes() const { return entered_writes_ > 0; }

  // A lane's own range, for as long as it works on it; waits for other lanes that overlap.
  void Claim(uint32_t lane, uint64_t start, uint64_t end, bool writes);
  void Unclaim(uint32_t lane) { claims_[lane].kind.store(0, std::memory_order_release); }

 private:
  LaneDisk() = default;

  struct Entered {
    uint32_t number;
    uint64_t start;
    uint64_t end;
    bool writes;
  };
  struct alignas(64) Claimed {
    std::atomic<uint64_t> start;
    std::atomic<uint64_t> end;
    // 0: none; 1: reads; 2: writes.
    std::atomic<uint32_t> kind;
  };

  uint8_t* memory_ = nullptr;
  uint64_t size_ = 0;
  std::optional<GuardedRange> guard_;
  int fd_ = -1;
  int read_flags_ = -1;
  int write_flags_ = -1;
  bool punches_ = false;
  std::vector<Entered> entered_;
  uint32_t entered_writes_ = 0;
  uint32_t last_number_ = 0;
  Claimed claims_[kMaxLanes]{};
};
