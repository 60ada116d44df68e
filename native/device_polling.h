// Polling a link's ring a little longer before sleeping. Where the device process has a CPU of its own, the bridge's
// next message is often there within some tens of microseconds, and being woken for it costs as long again. Where it
// has not, polling keeps the bridge from sending anything at all; so a round that finds nothing makes the next ones
// rarer.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>

class BusyPolling {
 public:
  // kAdaptive: as long as it pays. kAlways: the process never sleeps, and takes all of a CPU. kNever: at once.
  enum class Kind { kAdaptive, kAlways, kNever };

  explicit BusyPolling(Kind kind) : kind_(kind) {}

  bool IsEndless() const { return kind_ == Kind::kAlways; }

  // Whether to poll again instead of sleeping. `found`: messages came since this was asked last. `clock`, in
  // nanoseconds, is looked at where it matters.
  template <typename Clock>
  bool Continues(bool found, const Clock& clock) {
    if (kind_ != Kind::kAdaptive) return IsEndless();
    if (found) {
      if (is_polling_) {
        sleeps_ = 0;
      } else if (left_ > 0) {
        left_--;
        return false;
      }
      is_polling_ = true;
      end_ = clock() + kPollNs;
      return true;
    }
    if (!is_polling_) return false;
    if (clock() < end_) return true;
    is_polling_ = false;
    sleeps_ = std::min(kMostSleeps, std::max(uint32_t{1}, 2 * sleeps_));
    left_ = sleeps_;
    return false;
  }

  static uint64_t Now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
  }

 private:
  // How long after the last message.
  static constexpr uint64_t kPollNs = 50000;
  // Sleeps between two rounds, when all of them found nothing.
  static constexpr uint32_t kMostSleeps = 1024;

  Kind kind_;
  bool is_polling_ = false;
  uint64_t end_ = 0;
  // Sleeps that come before the next round, and how many there were to be when the last one found nothing.
  uint32_t left_ = 0;
  uint32_t sleeps_ = 0;
};
