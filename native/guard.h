// Memory that a peer shares with us can be taken away under our feet: whoever holds the file may truncate it, and the
// next access is a SIGBUS. And what is not mapped, or not for writing, is a SIGSEGV. Guarded ranges survive both: zero
// pages are put in the place of what is gone or was never there, and a private copy in the place of a page that may
// only be read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>

// 1 once this process found memory to be gone, else 0.
extern std::atomic<uint32_t> any_lost;

// Whether a part of [address, address + length) is zeros that were put in the place of what is gone, until it is mapped
// again. To be asked after a copy from or to memory of a peer's; it costs nothing as long as no peer ever took memory
// away.
bool SearchLost(const void* address, size_t length);
inline bool IsLost(const void* address, size_t length) {
  // It is set before there are zeros to be copied.
  std::atomic_thread_fence(std::memory_order_acquire);
  return any_lost.load(std::memory_order_relaxed) != 0 && SearchLost(address, length);
}

// A range of addresses and the maps in it. Registered with the signal handler as long as it lives.
class GuardedRange {
 public:
  GuardedRange(void* base, size_t length);
  ~GuardedRange();
  GuardedRange(const GuardedRange&) = delete;
  GuardedRange& operator=(const GuardedRange&) = delete;

  // False when the process has as many guarded ranges as it can have.
  bool registered() const { return slot_ >= 0; }

  // [offset, offset + length) is now one map, or is no map any more. Both only change the record.
  void Mapped(size_t offset, size_t length);
  void Unmapped(size_t offset, size_t length);

  // The eventfd that is signalled for a write to what is mapped for reading only; -1: none. It has to stay open.
  void TellStrays(int eventfd) { stray_ = eventfd; }

  // How often something was repaired by zeros that is mapped.
  uint32_t repairs() const { return repairs_; }

  // Whether zeros are in the place of a part of [begin, end) that is mapped.
  bool IsLost(uintptr_t begin, uintptr_t end);

  // For the signal handler. What is gone (SIGBUS): puts zeros there. False when that fails.
  bool Repair(uintptr_t address);
  // What may not be accessed (SIGSEGV): puts zeros where nothing is mapped, and a copy where it is mapped for reading
  // only.
  bool Permit(uintptr_t address);

 private:
  // Pages of a range that are repaired one by one; and of all ranges of this process, at a time.
  static constexpr uint32_t kSinglePages = 64;
  static constexpr uint32_t kAllSinglePages = 2048;

  struct Map {
    uintptr_t begin;
    uintptr_t end;
  };
  struct MapEnd {
    uintptr_t end;
    // From here on all of the map was replaced by zeros: `end` where nothing was.
    uintptr_t lost;
  };

  // The map that the address is in, or what lies between two maps.
  struct Place : Map {
    bool is_map;
  };
  Place Find(uintptr_t address);
  // With the flag held, but at the end.
  void ForgetLostPages(uintptr_t begin, uintptr_t end);

  uintptr_t base_;
  uintptr_t end_;
  int slot_ = -1;
  // Each map by its start. The flag keeps a handler on another thread out while they change.
  std::map<uintptr_t, MapEnd> maps_;
  // Single pages that were replaced by zeros and are not mapped again: those in front of `lost_pages_end_`.
  Map lost_pages_[kSinglePages];
  Map* lost_pages_end_ = lost_pages_;
  std::atomic_flag changing_;
  std::atomic<int> stray_{-1};
  std::atomic<uint32_t> repairs_{0};
};
