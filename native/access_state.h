// What an AccessPath knows (access_path.h), in memory of TypeScript's, which has the same tables
// (shared/vfio-user/socket/access-path.ts).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "access_check.h"
#include "crash_point.h"
#include "ring.h"
#include "turn.h"

// In front of the numbers that a check is over; TypeScript has the same (checkWords).
constexpr uint32_t kCheckStart = 0x811c9dc5;

inline uint32_t CheckOver(const void* record, size_t from, size_t to) {
  uint32_t check = kCheckStart;
  for (size_t at = from; at < to; at += sizeof(uint32_t)) {
    uint32_t word;
    std::memcpy(&word, static_cast<const uint8_t*>(record) + at, sizeof word);
    check = (check ^ word) * 0x01000193;
    check ^= check >> 15;
  }
  return check;
}

// Stored when all before it is, and before all behind it: a process that is killed has made all stores up to some one.
template <typename Word>
void StoreLast(Word* to, Word value) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  CrashPoint();
}

// Words of a session's share (shared/turn.ts).
enum Share : size_t { kOwnTurns, kRests, kShareWords };

// Ids of the path's requests on the link are these and the next ones; TypeScript's own are below.
constexpr uint16_t kFirstId = 0x8000;

// An access that the device was asked for. The request's id on the link is the entry's number, plus kFirstId.
struct PendingAccess {
  // kFree when the entry is free. An abandoned one waits for a reply that is nobody's any more. None is another one
  // with a byte changed.
  enum State : uint32_t { kFree = 0, kWaits = 0x57414954, kAbandoned = 0x474f4e45 };
  uint32_t state;
  uint32_t client_id;
  uint32_t command;
  uint32_t flags;
  // Where the message is in what the client sent: from its first byte to the first behind it.
  uint32_t position;
  uint32_t end;
  RegionAccess access;
  // The used index of the ring to the device that gave it the access.
  uint32_t used;
  uint32_t check;
  // In TypeScript's ticks.
  uint32_t started_at;
  // Where latencies are measured, in nanoseconds; else 0.
  uint32_t measured_at;

  uint32_t Check() const {
    return CheckOver(this, offsetof(PendingAccess, client_id), offsetof(PendingAccess, check));
  }
};
static_assert(sizeof(PendingAccess) == 56);

// How far messages to the device process had come when a used index was stored; the next process finds by the ring's
// index which of two holds.
struct SentRecord {
  uint32_t used;
  // Messages so far, whole ones.
  uint32_t count;
  // Bytes that were left of one of TypeScript's.
  uint32_t left;
  // Of the client's command that was passed on last.
  uint32_t position;
  uint32_t check;

  uint32_t Check() const { return CheckOver(this, 0, offsetof(SentRecord, check)); }
};

// What outlives the process, `pending` and `sent_records`, is readable after a crash at any instruction: what
// was done is told by the rings' used indices, which are stored last of all that belongs to a message.
struct PathState {
  // Few: they are used in turn, and with many sessions each costs a cache line.
  static constexpr size_t kPending = 16;

  // TypeScript's: why the path is stopped, as bits; its clock; whether commands wait for the end of the active access.
  uint32_t stopped;
  uint32_t ticks;
  uint32_t held;
  TurnBudget budget;
  // The entry that the client waits for, plus 1.
  uint32_t active;
  uint32_t next_entry;
  // Messages to the device process so far, whoever sent them.
  uint32_t sent_count;
  // What the last turn that was not a light one cost, in bytes and nanoseconds; TypeScript clears it.
  uint32_t turn_cost;
  uint32_t turn_ns;
  // Counts, modulo 2^32.
  uint32_t reads;
  uint32_t reads_from_memory;
  uint32_t writes;
  uint32_t posted_writes;
  uint32_t sent;
  uint32_t received;
  uint32_t signals;
  uint32_t reserved;
  SentRecord sent_records[2];
  DeviceRegions device;
  PendingAccess pending[kPending];
};

// The words of `layout`: TypeScript's table of the state has to be ours.
constexpr uint32_t kLayout[] = {
    offsetof(PathState, stopped),
    offsetof(PathState, budget),
    offsetof(PathState, active),
    offsetof(PathState, sent_count),
    offsetof(PathState, turn_cost),
    offsetof(PathState, reads),
    offsetof(PathState, sent_records),
    offsetof(PathState, device),
    offsetof(PathState, pending),
    sizeof(PathState),
    offsetof(DeviceRegions, count),
    offsetof(DeviceRegions, posted),
    offsetof(PendingAccess, position),
    offsetof(PendingAccess, access),
    offsetof(PendingAccess, used),
    sizeof(PendingAccess),
    sizeof(SentRecord),
    PendingAccess::kWaits,
    PendingAccess::kAbandoned,
    offsetof(RingState, call),
    sizeof(RingState),
    kFirstId,
};
