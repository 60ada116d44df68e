// When a program that died is started again: at once, so often; one more such start is allowed each time that kRegainMs
// have gone by. Without any left it waits, twice as long each time, until it has run for long.
#pragma once

#include <cstdint>
#include <cstdlib>

class Restarts {
 public:
  static constexpr int64_t kStartsAtOnce = 5;
  static constexpr int64_t kRegainMs = 2'000;
  static constexpr int64_t kStableMs = 10'000;
  static constexpr int64_t kFirstDelayMs = 100;
  static constexpr int64_t kMostDelayMs = 5'000;

  explicit Restarts(int64_t now) : counted_at_(now) {
    // For tests, whose program dies thousands of times, or once too often.
    const char* starts = getenv("VFIO_USER_STARTS");
    if (starts != nullptr) most_ = left_ = atoi(starts);
  }

  // A program that was started at `started` has died: how long to wait before the next start.
  int64_t DelayAfter(int64_t started, int64_t now) {
    if (delayed_ > 0 && now - started >= kStableMs) {
      delayed_ = 0;
      left_ = most_;
    }
    if (delayed_ == 0 && Take(now)) return 0;
    int64_t delay = kFirstDelayMs << (delayed_ < 6 ? delayed_ : 6);
    delayed_++;
    return delay < kMostDelayMs ? delay : kMostDelayMs;
  }

 private:
  // Takes one of the starts at once; false when there is none.
  bool Take(int64_t now) {
    int64_t regained = (now - counted_at_) / kRegainMs;
    counted_at_ += regained * kRegainMs;
    left_ = regained < most_ - left_ ? left_ + regained : most_;
    if (left_ == 0) return false;
    left_--;
    return true;
  }

  int64_t most_ = kStartsAtOnce;
  int64_t left_ = kStartsAtOnce;
  int64_t counted_at_;
  // Deaths since there were none left.
  int64_t delayed_ = 0;
};
