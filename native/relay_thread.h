// The thread behind a Relay: waits for eventfds and passes their signals on. Knows nothing of JavaScript.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

class RelayThread {
 public:
  RelayThread() = default;
  ~RelayThread() { Close(); }
  RelayThread(const RelayThread&) = delete;
  RelayThread& operator=(const RelayThread&) = delete;

  // Returns 0 and sets the id, or an errno.
  int Add(int source, int target, uint32_t* id);
  // Gives the pair another target: a signal goes to one of the two, whatever the time. Takes no fd, so it fails for a
  // wrong one alone. Returns 0 or an errno, ENOENT for an unknown id.
  int Retarget(uint32_t id, int target);
  // When it returns, the thread is done with the pair, and the target has every signal of before. Unknown ids are
  // ignored.
  void Remove(uint32_t id);
  // Nothing for an unknown id.
  std::optional<uint64_t> Count(uint32_t id);
  uint64_t Total() const { return total_.load(std::memory_order_relaxed); }
  // Ends the thread and drops all pairs. No Add may follow.
  void Close();
  bool closed() const { return closed_; }
  bool running() const { return thread_.joinable(); }

 private:
  struct Pair {
    int source;
    int target;
    uint64_t count;
  };

  // Holds the mutex for a caller, before the thread takes it again: a busy thread would hardly ever release it.
  class Turn;

  int Start();
  void Run();
  void Relay(uint32_t id);
  // Passes on what the thread has not come to, and takes the source's count; with the mutex held.
  void Settle(Pair& pair);

  std::mutex mutex_;
  std::condition_variable no_callers_;
  int callers_ = 0;  // guarded by callers_mutex_
  std::mutex callers_mutex_;
  std::unordered_map<uint32_t, Pair> pairs_;  // guarded by mutex_
  uint32_t last_id_ = 0;
  std::atomic<uint64_t> total_ = 0;
  std::atomic<bool> stopping_ = false;
  bool closed_ = false;
  int epoll_ = -1;
  int wake_ = -1;
  std::thread thread_;
};
