// What a peer can have done in one turn of the event loop, counted as shared/turn.ts counts it.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

// TypeScript's numbers: what a message costs at least, a light turn at most, and any, in bytes; and nanoseconds.
struct TurnBudget {
  uint32_t least_cost;
  uint32_t light_cost;
  uint32_t most_cost;
  uint32_t most_ns;
};

class Turn {
 public:
  explicit Turn(const TurnBudget& budget) : budget_(budget), look_(budget.light_cost + 1) {}

  // What was spent so far, in bytes.
  uint32_t cost = 0;

  // Counts a message. False when the turn is over.
  bool Spend(size_t bytes) {
    cost += std::max(static_cast<uint32_t>(bytes), budget_.least_cost);
    if (cost < look_) return true;
    look_ = std::min(cost + budget_.light_cost, budget_.most_cost);
    uint64_t now = Now();
    if (started_at_ == 0) started_at_ = now;
    return cost < budget_.most_cost && now - started_at_ < budget_.most_ns;
  }

  // Since the clock was looked at first: in a turn that is no light one any more.
  uint32_t Nanoseconds() const { return static_cast<uint32_t>(std::min<uint64_t>(Now() - started_at_, UINT32_MAX)); }

 private:
  static uint64_t Now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
  }

  const TurnBudget& budget_;
  uint32_t look_;
  uint64_t started_at_ = 0;
};
