// Memory that a peer shares with us can be taken away under our feet: whoever holds the file may truncate it, and the next
// access is a SIGBUS. Guarded ranges survive that: zero pages are put in the place of what is gone.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>

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

  // For the signal handler: puts zeros at the address and at what follows it in its map. False when that fails.
  bool Repair(uintptr_t address);

 private:
  uintptr_t base_;
  uintptr_t end_;
  int slot_ = -1;
  // The end of each map by its start. The flag keeps a handler on another thread out while they change.
  std::map<uintptr_t, uintptr_t> maps_;
  std::atomic_flag changing_;
};
