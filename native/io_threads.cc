// One queue behind one mutex, which a thread takes once for each request: it puts the completion of one and takes the
// next.
//
// Waking a thread costs more than most writes, which go to the page cache. So writes are left to the thread that is
// awake, or to one that is woken for all of them, until one takes long, or the owner says that nothing is completed;
// its completion is signalled along with those of the next ones. A read comes here because it has to wait for a device,
// so each may have a thread of its own, and its completion is signalled at once.
#include "io_threads.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

#include "file_end.h"
#include "guard.h"

namespace {

// A write that takes longer waits for something.
constexpr int64_t kSlowNs = 50'000;
// So many quick writes after it count as slow ones.
constexpr unsigned kSlowWrites = 32;
// Completions that wait for others to be signalled along with them.
constexpr unsigned kMaxUnsignalled = 16;

int64_t Now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Returns 0, or EFAULT when some of the memory is gone: it was taken for zeros (guard.h).
int Copy(const IoRequest& request) {
  for (size_t n = 0; n + 1 < request.pieces.size(); n += 2) {
    memmove(request.pieces[n + 1].iov_base, request.pieces[n].iov_base, request.pieces[n].iov_len);
  }
  auto is_lost = [](const iovec& piece) { return IsLost(piece.iov_base, piece.iov_len); };
  return std::any_of(request.pieces.begin(), request.pieces.end(), is_lost) ? EFAULT : 0;
}

// Returns 0 or an errno, once all bytes are moved or one of them cannot be: EIO or ENOSPC where the file ends.
int Move(IoRequest& request) {
  iovec* next = request.pieces.data();
  iovec* end = next + request.pieces.size();
  off_t position = request.position;
  if (request.operation == IoRequest::kWrite) {
    off_t last = position;
    for (const iovec& piece : request.pieces) last += static_cast<off_t>(piece.iov_len);
    int error = FileEnd().Check(request.fd, last);
    if (error != 0) return error;
  }
  while (next < end) {
    int count = static_cast<int>(std::min<ptrdiff_t>(end - next, IOV_MAX));
    ssize_t moved = request.operation == IoRequest::kRead ? preadv(request.fd, next, count, position)
                                                          : pwritev(request.fd, next, count, position);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return errno;
    if (moved == 0) return EIO;
    position += moved;
    size_t left = static_cast<size_t>(moved);
    while (next < end && left >= next->iov_len) left -= next++->iov_len;
    if (left > 0) {
      next->iov_base = static_cast<uint8_t*>(next->iov_base) + left;
      next->iov_len -= left;
    }
  }
  return 0;
}

int Sync(const IoRequest& request) {
  int result;
  do {
    result = request.operation == IoRequest::kSync ? fdatasync(request.fd) : fsync(request.fd);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

int Allocate(const IoRequest& request) {
  int result;
  do {
    result = fallocate(request.fd, request.mode, request.position, request.length);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

// Of two pieces, the name, which ends with a zero, and the value.
int SetAttribute(const IoRequest& request) {
  const char* name = static_cast<const char*>(request.pieces[0].iov_base);
  const iovec& value = request.pieces[1];
  return fsetxattr(request.fd, name, value.iov_base, value.iov_len, 0) == 0 ? 0 : errno;
}

int Perform(IoRequest& request) {
  switch (request.operation) {
    case IoRequest::kRead:
    case IoRequest::kWrite:
      return Move(request);
    case IoRequest::kCopy:
      return Copy(request);
    case IoRequest::kSync:
    case IoRequest::kSyncAll:
      return Sync(request);
    case IoRequest::kAllocate:
      return Allocate(request);
    case IoRequest::kSetAttribute:
      return SetAttribute(request);
  }
  return EINVAL;
}

}  // namespace

IoThreads::IoThreads(uint32_t most, unsigned max_threads, int signal_fd)
    : most_(most), max_threads_(max_threads), signal_fd_(signal_fd), requests_(new IoRequest[most]), queue_(most) {
  void* memory = calloc(1, completions_size());
  if (memory == nullptr) throw std::bad_alloc();
  completions_ = std::shared_ptr<IoCompletions>(static_cast<IoCompletions*>(memory), free);
}

IoThreads::~IoThreads() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  close(signal_fd_);
}

void IoThreads::Start() {
  unsigned wanted = 0;
  unsigned idle;
  {
    std::lock_guard lock(mutex_);
    bool any_slow = false;
    for (uint32_t number : added_) {
      queue_[tail_++ & (most_ - 1)] = number;
      if (requests_[number].operation != IoRequest::kWrite) any_slow = true;
    }
    added_.clear();
    idle = idle_;
    unsigned busy = static_cast<unsigned>(threads_.size()) - idle;
    unsigned waiting = tail_ - head_;
    if (any_slow || slow_ > 0) wanted = waiting;
    else if (busy == 0) wanted = std::min(waiting, 1u);
  }
  for (unsigned n = 0; n < std::min(wanted, idle); n++) wanted_.notify_one();
  if (wanted <= idle || threads_.size() == max_threads_) return;
  int error = MakeThreads(wanted - idle);
  if (!threads_.empty()) return;
  while (head_ != tail_) {
    uint32_t number = Take();
    bool is_copy = requests_[number].operation == IoRequest::kCopy;
    PutCompletion(number, is_copy ? Perform(requests_[number]) : error, true);
  }
  Signal();
}

void IoThreads::AddWorkers() {
  {
    std::lock_guard lock(mutex_);
    slow_ = kSlowWrites;
  }
  Start();
}

// Returns 0 or an errno.
int IoThreads::MakeThreads(unsigned count) {
  // Signals are for the threads that expect them; a new thread inherits this mask. SIGBUS is for whoever touched the
  // memory.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigdelset(&all, SIGBUS);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  try {
    for (unsigned n = 0; n < count && threads_.size() < max_threads_; n++) {
      std::thread thread(&IoThreads::Run, this);
      std::lock_guard lock(mutex_);
      threads_.push_back(std::move(thread));
    }
  } catch (const std::system_error& failure) {
    error = failure.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

void IoThreads::Run() {
  pthread_setname_np(pthread_self(), "disk-io");
  std::unique_lock lock(mutex_);
  for (;;) {
    while (head_ == tail_ && !stopping_) {
      idle_++;
      wanted_.wait(lock);
      idle_--;
    }
    if (stopping_) return;
    uint32_t number = Take();
    lock.unlock();
    IoRequest& request = requests_[number];
    bool is_write = request.operation == IoRequest::kWrite;
    int64_t start = is_write ? Now() : 0;
    int error = Perform(request);
    bool is_slow = !is_write || Now() - start > kSlowNs;
    lock.lock();
    if (is_write) slow_ = is_slow ? kSlowWrites : slow_ - std::min(slow_, 1u);
    if (!PutCompletion(number, error, is_slow)) continue;
    lock.unlock();
    Signal();
    lock.lock();
  }
}

bool IoThreads::PutCompletion(uint32_t number, int error, bool at_once) {
  requests_[number].busy.store(false, std::memory_order_release);
  uint32_t count = completions_->count.load(std::memory_order_relaxed);
  completions_->completions[count & (most_ - 1)] = {number, static_cast<uint32_t>(error)};
  completions_->count.store(count + 1);
  completions_->count.notify_all();
  unsignalled_++;
  if (!at_once && head_ != tail_ && unsignalled_ < kMaxUnsignalled) return false;
  unsignalled_ = 0;
  return completions_->signalled.exchange(1) == 0;
}

void IoThreads::Signal() {
  uint64_t one = 1;
  // Ours alone, and far from full.
  [[maybe_unused]] ssize_t written = write(signal_fd_, &one, sizeof one);
}
