// What a StreamMemory tells the next process, in the first page of its memory.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "crash_point.h"

constexpr uint32_t kNoResult = 0xffffffff;
// Of `which`; neither is the other one with a byte changed.
constexpr uint32_t kFirst = 0x46495253;
constexpr uint32_t kSecond = 0x5345434f;
// What is in `boundary` where a message begins at `sent`.
constexpr uint64_t kNoBoundary = 0;

// A word with its complement, stored at once: what was damaged is not believed.
constexpr uint64_t Checked(uint32_t value) { return value | uint64_t{~value} << 32; }
constexpr bool IsChecked(uint64_t word) { return static_cast<uint32_t>(word) == ~static_cast<uint32_t>(word >> 32); }

struct Positions {
  uint32_t handled;
  uint32_t queued;
  uint32_t check;
  uint32_t reserved;

  uint32_t Check() const { return (handled * 0x01000193u) ^ (queued * 0x85ebca6bu) ^ 0x811c9dc5u; }
};

// A system call whose result the kernel stores, and the position that the result belongs to.
struct Call {
  uint64_t position;
  mmsghdr header;
};

// One store, which a process that is killed has made or not made; the compiler moves none over it.
template <typename Word>
void Store(Word* to, Word value) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  CrashPoint();
}

struct StreamState {
  uint64_t received;
  uint64_t sent;
  uint64_t received_base;
  uint64_t unsent_base;
  uint32_t which;
  // Descriptors are being thrown away with what was received last: nobody can go on from here.
  uint32_t dropping;
  Positions positions[2];
  // Where the message begins that `sent` is in the middle of.
  uint64_t boundary;
  Call receive;
  Call send;
};
