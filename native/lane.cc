#include "lane.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <system_error>

#include "eventfd.h"

namespace {

// What a thread does before it looks whether somebody wants the lane; it is wanted sooner by IsWanted.
constexpr uint32_t kTurnWork = 64;
// Doorbells are looked at again and again for so long after the last command.
constexpr int64_t kArmedSpinNs = 1'000'000;
constexpr int64_t kAdaptiveSpinNs = 2'000'000;
// Then a lane that nobody signals waits for a share of the time for which nothing came.
constexpr int64_t kIdleShare = 8;
constexpr double kMinRestMs = 1;
constexpr double kMaxRestMs = 15;
// Doorbells cannot be reached, as while the driver VM's memory is mapped again.
constexpr double kBlindMs = 10;
// The clock is read once in so many looks that find nothing.
constexpr uint32_t kLooks = 16;

int64_t Now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

LaneContext::~LaneContext() {
  for (const LaneVector& vector : vectors) {
    if (vector.fd >= 0) close(vector.fd);
  }
}

LaneContext::Hold::Hold(LaneContext& context) : context_(context) {
  for (Lane* lane : context_.lanes) lane->Enter();
}

LaneContext::Hold::~Hold() {
  for (Lane* lane : context_.lanes) lane->Leave();
}

Lane::Lane(LaneContext& context, uint32_t number, LaneRecord* record, int signal_fd)
    : context_(context), number_(number), record_(record), signal_fd_(signal_fd) {
  record_->magic = kLaneMagic;
  record_->version = kLaneVersion;
  record_->size = sizeof(LaneRecord);
  record_->slot_count = kLaneSlots;
  for (uint32_t n = kLaneSlots; n > 0; n--) {
    if (record_->slots[n - 1].state == LaneSlot::kFree) free_.push_back(n - 1);
  }
  context_.lanes.push_back(this);
}

Lane::~Lane() {
  Stop();
  std::erase(context_.lanes, this);
  if (signal_fd_ >= 0) close(signal_fd_);
}

void Lane::Remove(QueueSet* set) { std::erase(sets_, set); }

void Lane::SetPolling(LanePolling polling) {
  polling_ = polling;
  busy_at_ = Now();
  Wake();
}

int Lane::Start(int cpu) {
  // A new thread inherits this mask: signals are for the threads that expect them, but for those that a thread causes
  // itself by touching memory that is gone (guard.h).
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  for (int number : {SIGBUS, SIGSEGV, SIGILL, SIGFPE}) sigdelset(&all, number);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  is_stopping_ = false;
  is_awake_ = true;
  try {
    thread_ = std::thread(&Lane::Run, this);
  } catch (const std::system_error& failure) {
    error = failure.code().value();
    is_awake_ = false;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0 || cpu < 0) return error;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  error = cpu < CPU_SETSIZE ? pthread_setaffinity_np(thread_.native_handle(), sizeof cpus, &cpus) : EINVAL;
  if (error != 0) Stop();
  return error;
}

void Lane::Stop() {
  if (!thread_.joinable()) return;
  is_stopping_ = true;
  Wake();
  thread_.join();
  is_awake_ = false;
}

void Lane::Enter() {
  wanted_.fetch_add(1);
  mutex_.lock();
  wanted_.fetch_sub(1);
}

uint32_t Lane::Kick(uint32_t budget) {
  // Of what was stored before and whether the thread is awake, this or the thread sees the other's: see Run.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (is_awake_.load()) return 0;
  Enter();
  busy_at_ = Now();
  uint32_t work = Turn(budget, true);
  bool is_more = has_thread() && (HasMore() || polling_ != LanePolling::kSignalled);
  Leave();
  if (is_more) Wake();
  return work;
}

double Lane::Delay() {
  if (has_thread()) return -1;
  Enter();
  double delay = Rest(Now());
  if (delay != 0 && Arm()) delay = 0;
  record_->rests = delay != 0;
  Leave();
  return delay;
}

LaneSlot* Lane::NewSlot() {
  if (free_.empty()) return nullptr;
  LaneSlot* slot = &record_->slots[free_.back()];
  free_.pop_back();
  return slot;
}

void Lane::SendUp(LaneSlot* slot) {
  slot->state = LaneSlot::kFetched;
  uint32_t tail = record_->up_tail.load(std::memory_order_relaxed);
  record_->up[tail % kLaneSlots] = static_cast<uint32_t>(slot - record_->slots);
  record_->up_tail.store(tail + 1, std::memory_order_release);
  Count(kLaneSentUp, 1);
}

void Lane::Release(LaneSlot* slot) {
  slot->state = LaneSlot::kFree;
  free_.push_back(static_cast<uint32_t>(slot - record_->slots));
}

void Lane::Signal(const LaneVector& vector) {
  if (vector.kind == LaneVector::kEventfd) ::Signal(vector.fd);
  else *vector.place = vector.value;
  Count(kLaneInterrupts, 1);
}

// TypeScript writes only numbers of slots that it was given.
void Lane::TakeAnswers() {
  uint32_t head = record_->down_head.load(std::memory_order_relaxed);
  uint32_t tail = record_->down_tail.load(std::memory_order_acquire);
  for (; head != tail; head++) {
    LaneSlot& slot = record_->slots[record_->down[head % kLaneSlots] % kLaneSlots];
    if (slot.state != LaneSlot::kFetched) continue;
    bool is_posted = false;
    for (QueueSet* set : sets_) is_posted = is_posted || set->Answer(slot);
    if (is_posted) Release(&slot);
    else slot.state = LaneSlot::kDone;
  }
  record_->down_head.store(head, std::memory_order_release);
}

void Lane::Settle() {
  TakeAnswers();
  for (QueueSet* set : sets_) set->Flush();
}

uint32_t Lane::Turn(uint32_t budget, bool all) {
  if (is_paused_) return 0;
  uint32_t work = 0;
  if (record_->down_head.load(std::memory_order_relaxed) != record_->down_tail.load(std::memory_order_acquire)) {
    TakeAnswers();
    work++;
  }
  for (QueueSet* set : sets_) {
    work += set->Serve(budget - std::min(budget, work), all);
    set->Flush();
  }
  return work;
}

void Lane::SignalOwner() {
  bool is_wanted = record_->events.load(std::memory_order_relaxed) != 0 ||
                   record_->up_head.load(std::memory_order_relaxed) != record_->up_tail.load(std::memory_order_relaxed);
  if (!is_wanted || record_->signalled.exchange(1) != 0) return;
  uint64_t one = 1;
  // TypeScript's alone, and far from full.
  [[maybe_unused]] ssize_t written = write(signal_fd_, &one, sizeof one);
}

double Lane::Rest(int64_t now) {
  if (is_paused_) return -1;
  if (HasMore()) return 0;
  int64_t idle = now - busy_at_;
  switch (polling_) {
    case LanePolling::kSignalled:
      return -1;
    case LanePolling::kArmed:
      if (idle < kArmedSpinNs) return 0;
      for (QueueSet* set : sets_) {
        if (set->IsBlind()) return kBlindMs;
      }
      return -1;
    case LanePolling::kAdaptive:
      if (idle < kAdaptiveSpinNs) return 0;
      return std::clamp(static_cast<double>(idle / kIdleShare) / 1e6, kMinRestMs, kMaxRestMs);
    case LanePolling::kAlways:
      return 0;
  }
  return -1;
}

bool Lane::HasMore() const {
  return std::any_of(sets_.begin(), sets_.end(), [](QueueSet* set) { return set->HasMore(); });
}

bool Lane::Arm() {
  if (is_paused_) return false;
  bool is_found = record_->down_head.load() != record_->down_tail.load();
  for (QueueSet* set : sets_) {
    if (set->Arm()) is_found = true;
  }
  return is_found;
}

void Lane::Run() {
  char name[16];
  snprintf(name, sizeof name, "lane-%u", number_);
  pthread_setname_np(pthread_self(), name);
  uint32_t looks = 0;
  int64_t now = Now();
  mutex_.lock();
  while (!is_stopping_.load(std::memory_order_relaxed)) {
    uint32_t work = Turn(kTurnWork, false);
    SignalOwner();
    if (IsWanted()) {
      mutex_.unlock();
      while (IsWanted()) sched_yield();
      mutex_.lock();
    }
    if (work > 0) {
      now = Now();
      busy_at_ = now;
      looks = 0;
      continue;
    }
    if (++looks % kLooks != 0) {
      Relax();
      continue;
    }
    now = Now();
    double delay = Rest(now);
    if (delay == 0) continue;
    // Whoever has something for the lane and finds it asleep makes a turn; and who does not is heard here.
    is_awake_.store(false);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (Arm()) {
      is_awake_.store(true);
      continue;
    }
    record_->rests = 1;
    mutex_.unlock();
    Sleep(delay);
    mutex_.lock();
    record_->rests = 0;
    is_awake_.store(true);
  }
  mutex_.unlock();
}

void Lane::Sleep(double milliseconds) {
  std::unique_lock lock(sleep_mutex_);
  auto is_woken = [this] { return is_woken_; };
  if (milliseconds < 0) sleep_.wait(lock, is_woken);
  else sleep_.wait_for(lock, std::chrono::duration<double, std::milli>(milliseconds), is_woken);
  is_woken_ = false;
}

void Lane::Wake() {
  std::lock_guard lock(sleep_mutex_);
  is_woken_ = true;
  sleep_.notify_one();
}
