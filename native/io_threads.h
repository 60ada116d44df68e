// A few threads that read, write and sync files and copy memory for one that must not wait: requests in, completions
// out, a wake-up for many of either.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct IoRequest {
  enum Operation : uint32_t { kRead, kWrite, kCopy, kSync, kSyncAll, kAllocate, kSetAttribute };

  Operation operation;
  int fd;
  off_t position;
  // Of kAllocate: fallocate's.
  int mode;
  off_t length;
  // Of a copy in pairs of one length, from the first to the second. Kept from one use to the next, so that they need no
  // memory of their own each time.
  std::vector<iovec> pieces;
  // From Add until a thread is done with it.
  std::atomic<bool> busy = false;
};

// What the owner of the threads sees of completed requests, in memory that it reads without a call.
struct IoCompletions {
  // Completions so far, modulo 2^32.
  std::atomic<uint32_t> count;
  // The owner clears it before it looks; a signal is sent only when it is clear.
  std::atomic<uint32_t> signalled;
  struct Completion {
    uint32_t number;
    uint32_t error;
  };
  // As many as there are requests; that of a completion is its count modulo that.
  Completion completions[];
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(IoCompletions) == 8);

class IoThreads {
 public:
  // `most`: requests at a time, a power of two. `signal_fd`: an eventfd, ours from now on.
  IoThreads(uint32_t most, unsigned max_threads, int signal_fd);
  // Requests that no thread has begun are dropped; waits for the others.
  ~IoThreads();
  IoThreads(const IoThreads&) = delete;
  IoThreads& operator=(const IoThreads&) = delete;

  uint32_t most() const { return most_; }
  IoRequest& request(uint32_t number) { return requests_[number]; }
  // It may outlive the threads.
  std::shared_ptr<IoCompletions> completions() { return completions_; }
  size_t completions_size() const { return sizeof(IoCompletions) + most_ * sizeof(IoCompletions::Completion); }

  // Notes a request for `Start`.
  void Add(uint32_t number) { added_.push_back(number); }
  // Waits until the count of completions is another than `seen`.
  void Wait(uint32_t seen) { completions_->count.wait(seen); }

  // Puts what was added into the queue. Where no thread can be made, requests end with the error that it was.
  void Start();
  // What is being carried out takes long: requests that wait get threads of their own, as long as there are any.
  void AddWorkers();

 private:
  int MakeThreads(unsigned count);
  void Run();
  // Both with the mutex held. PutCompletion returns whether the owner is to be signalled.
  bool PutCompletion(uint32_t number, int error, bool at_once);
  uint32_t Take() { return queue_[head_++ & (most_ - 1)]; }
  void Signal();

  const uint32_t most_;
  const unsigned max_threads_;
  const int signal_fd_;
  std::unique_ptr<IoRequest[]> requests_;
  std::shared_ptr<IoCompletions> completions_;
  std::vector<uint32_t> added_;

  std::mutex mutex_;
  std::condition_variable wanted_;
  // Guarded by the mutex: numbers in the order of their requests, from `head_` to `tail_` modulo `most_`.
  std::vector<uint32_t> queue_;
  uint32_t head_ = 0;
  uint32_t tail_ = 0;
  unsigned idle_ = 0;
  // Completions that the owner was not signalled for yet.
  unsigned unsignalled_ = 0;
  // Above 0: writes take long, so each one may have a thread. Counts down with each that did not.
  unsigned slow_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};
