// One epoll loop, edge-triggered: each signal of a source is an edge, also while its count is not zero, so the counts
// stay where they are and a call is spared for each signal. Each round relays at most one signal of each source, so a
// peer that never stops signalling costs the others a turn, and no more. No call in it can wait but epoll_wait (see
// eventfd.h).
#include "relay_thread.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "eventfd.h"

namespace {

constexpr int kBatch = 64;
constexpr uint32_t kWakeId = 0;

}  // namespace

class RelayThread::Turn {
 public:
  explicit Turn(RelayThread& relay) : relay_(relay) {
    {
      std::lock_guard lock(relay_.callers_mutex_);
      relay_.callers_++;
    }
    relay_.mutex_.lock();
  }
  ~Turn() {
    relay_.mutex_.unlock();
    std::lock_guard lock(relay_.callers_mutex_);
    if (--relay_.callers_ == 0) relay_.no_callers_.notify_one();
  }

 private:
  RelayThread& relay_;
};

int RelayThread::Add(int source, int target, uint32_t* id) {
  for (int fd : {source, target}) {
    if (int error = CheckEventfd(fd); error != 0) return error;
  }
  if (!running()) {
    if (int error = Start(); error != 0) return error;
  }
  Pair pair{fcntl(source, F_DUPFD_CLOEXEC, 0), -1, 0};
  if (pair.source < 0) return errno;
  pair.target = fcntl(target, F_DUPFD_CLOEXEC, 0);
  int error = pair.target < 0 ? errno : 0;
  Turn turn(*this);
  if (error == 0) {
    do {
      last_id_++;
    } while (last_id_ == kWakeId || pairs_.contains(last_id_));
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.u32 = last_id_;
    pairs_.emplace(last_id_, pair);
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, pair.source, &event) == 0) {
      *id = last_id_;
      return 0;
    }
    error = errno;
    pairs_.erase(last_id_);
    close(pair.target);
  }
  close(pair.source);
  return error;
}

int RelayThread::Retarget(uint32_t id, int target) {
  if (int error = CheckEventfd(target); error != 0) return error;
  if (!running()) return ENOENT;
  Turn turn(*this);
  auto found = pairs_.find(id);
  if (found == pairs_.end()) return ENOENT;
  // Over the old one, which needs no free number.
  return dup3(target, found->second.target, O_CLOEXEC) < 0 ? errno : 0;
}

void RelayThread::Remove(uint32_t id) {
  if (!running()) return;
  Turn turn(*this);
  auto found = pairs_.find(id);
  if (found == pairs_.end()) return;
  // By hand: closing does not do it, for the peer holds the same open file description.
  epoll_ctl(epoll_, EPOLL_CTL_DEL, found->second.source, nullptr);
  Settle(found->second);
  close(found->second.source);
  close(found->second.target);
  pairs_.erase(found);
}

std::optional<uint64_t> RelayThread::Count(uint32_t id) {
  if (!running()) return std::nullopt;
  Turn turn(*this);
  auto found = pairs_.find(id);
  if (found == pairs_.end()) return std::nullopt;
  return found->second.count;
}

void RelayThread::Close() {
  closed_ = true;
  if (running()) {
    stopping_ = true;
    uint64_t one = 1;
    // Ours alone, and far from full.
    [[maybe_unused]] ssize_t written = write(wake_, &one, sizeof one);
    thread_.join();
  }
  for (auto& [id, pair] : pairs_) {
    Settle(pair);
    close(pair.source);
    close(pair.target);
  }
  pairs_.clear();
  if (epoll_ >= 0) close(epoll_);
  if (wake_ >= 0) close(wake_);
  epoll_ = wake_ = -1;
}

int RelayThread::Start() {
  if (epoll_ < 0) epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return errno;
  if (wake_ < 0) {
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_ < 0) return errno;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = kWakeId;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) != 0) {
      int error = errno;
      close(wake_);
      wake_ = -1;
      return error;
    }
  }
  // The thread inherits this mask: signals are for the threads that expect them.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  try {
    thread_ = std::thread(&RelayThread::Run, this);
  } catch (const std::system_error& failure) {
    error = failure.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

void RelayThread::Run() {
  pthread_setname_np(pthread_self(), "doorbell-relay");
  epoll_event events[kBatch];
  while (!stopping_) {
    int count = epoll_wait(epoll_, events, kBatch, -1);
    {
      std::unique_lock lock(callers_mutex_);
      no_callers_.wait(lock, [this] { return callers_ == 0; });
    }
    std::lock_guard lock(mutex_);
    for (int i = 0; i < count; i++) {
      if (events[i].data.u32 != kWakeId) Relay(events[i].data.u32);
    }
  }
}

// Edges that came close together are one, so a count that is larger than what was relayed says only that a signal may
// be missing: one too many is harmless. What is taken must not be relayed again by the next pair with this source.
void RelayThread::Settle(Pair& pair) {
  uint64_t count = 0;
  if (TakeCount(pair.source, &count) == 0 && count > pair.count) Signal(pair.target);
}

void RelayThread::Relay(uint32_t id) {
  // Removed since epoll_wait returned, or even replaced by another pair under another id.
  auto found = pairs_.find(id);
  if (found == pairs_.end()) return;
  Pair& pair = found->second;
  int error = Signal(pair.target);
  if (error == 0) {
    pair.count++;
    total_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  // Not reached with eventfds: a pair that always fails must not keep the loop spinning.
  epoll_ctl(epoll_, EPOLL_CTL_DEL, pair.source, nullptr);
}
