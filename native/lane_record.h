// What a lane has fetched and not completed, in memory that it is given: queues with their positions, and commands
// (entries, as they were fetched) in slots. Another process can go on from it, whatever the moment at which this one
// ended: see "A lane's record" in docs/decisions/024-lanes.md.
//
// Slots are also how commands go up to TypeScript and answers come back: `up` and `down` are rings of slot numbers,
// each written by one side. shared/lane-record.ts has the same as a field table, and a test compares the two.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

inline void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint32_t kLaneMagic = 0x454e414c;
constexpr uint32_t kLaneVersion = 1;
constexpr uint32_t kLaneSlots = 1024;
// Queues by identifier, of each of two kinds.
constexpr uint32_t kLaneQueues = 65;
constexpr uint32_t kLaneEntry = 64;

// What happened, as bits of `events`.
enum LaneEvent : uint32_t {
  // A doorbell changed of a queue that TypeScript serves.
  kLaneDoorbell = 1,
  // Completion queues (`raised`) have entries, and no way of a lane's own to say so.
  kLaneRaised = 2,
  // A doorbell has an invalid value.
  kLaneInvalid = 4,
  // A queue's memory cannot be reached (RingRecord.state is LOST).
  kLaneLost = 8,
  // A queue's memory is gone.
  kLaneGone = 16,
  // Heads of completion queues moved whose interrupts are TypeScript's.
  kLaneHeads = 32,
};

enum LaneCount : uint32_t {
  kLaneCommands,
  kLaneReads,
  kLaneWrites,
  kLaneBytesRead,
  kLaneBytesWritten,
  kLaneDmaRead,
  kLaneDmaWritten,
  kLaneInterrupts,
  kLaneBusyNs,
  kLaneSentUp,
  kLaneCounts = 16,
};

struct RingRecord {
  enum State : uint32_t { kNone, kServed, kLost };

  uint32_t state;
  uint32_t size;
  uint64_t base;
  // The next entry to be fetched; of a completion queue the first that its driver has not taken.
  uint32_t head;
  uint32_t tail;
  uint32_t phase;
  // The completion queue of a submission queue.
  uint32_t partner;
};

struct LaneSlot {
  // DONE: answered, and the completion could not be posted; TypeScript has the queue by now, or will have it.
  enum State : uint32_t { kFree, kFetched, kDone };
  // Flags: nothing followed it in its queue.
  static constexpr uint32_t kLast = 1;

  uint32_t state;
  uint32_t queue;
  uint32_t flags;
  // TypeScript's answer.
  uint32_t status;
  uint32_t result;
  uint32_t reserved;
  uint8_t entry[kLaneEntry];
};

struct LaneRecord {
  uint32_t magic;
  uint32_t version;
  uint32_t size;
  uint32_t slot_count;
  std::atomic<uint32_t> events;
  // 1 once TypeScript was signalled, until it looks.
  std::atomic<uint32_t> signalled;
  // 1 while nothing is looked at before a wake-up or a time-out.
  std::atomic<uint32_t> rests;
  // Completion queues whose vectors are masked, with entries that nobody was interrupted for.
  std::atomic<uint32_t> due;
  std::atomic<uint32_t> up_head;
  std::atomic<uint32_t> up_tail;
  std::atomic<uint32_t> down_head;
  std::atomic<uint32_t> down_tail;
  std::atomic<uint32_t> raised[4];
  double counts[kLaneCounts];
  uint32_t up[kLaneSlots];
  uint32_t down[kLaneSlots];
  RingRecord submission[kLaneQueues];
  RingRecord completion[kLaneQueues];
  LaneSlot slots[kLaneSlots];
};
static_assert(sizeof(RingRecord) == 32 && sizeof(LaneSlot) == 88);
static_assert(offsetof(LaneRecord, counts) == 64);
static_assert(std::atomic<uint32_t>::is_always_lock_free);
