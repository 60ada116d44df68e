// A lane: a loop that finds the doorbells of its queues, does what it knows of their commands, and completes them,
// without JavaScript. What is to be done is a plug-in's (QueueSet), one a queue format: nothing in here knows any.
//
// `Turn` belongs to no thread: the lane's own thread makes turns while there is work, and TypeScript makes one where a
// doorbell came as a message and the thread sleeps, since waking it would take longer than most commands. Whoever makes
// one has the lane's lock, which goes from one to the other between two commands.
//
// LaneContext is what the lanes of one function share: driver-VM memory, interrupt vectors and disks. All of it changes
// with all lanes held, and a lane does nothing that outlasts its lock: what was taken away is not used any more when
// the change returns.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "lane_disk.h"
#include "lane_memory.h"
#include "lane_record.h"

class Lane;

// A vector that a lane can signal by itself, if any.
struct LaneVector {
  enum Kind { kNone, kEventfd, kRegister };
  Kind kind = kNone;
  int fd = -1;
  // A device's notification register, and what is written to it.
  volatile uint16_t* place = nullptr;
  uint16_t value = 0;
};

class LaneContext {
 public:
  explicit LaneContext(size_t vectors) : vectors(vectors) {}
  ~LaneContext();

  LaneMemory memory;
  std::vector<LaneVector> vectors;
  // By number; null where there is none.
  std::vector<std::unique_ptr<LaneDisk>> disks;
  std::vector<Lane*> lanes;

  // All lanes are between two commands as long as it lives.
  class Hold {
   public:
    explicit Hold(LaneContext& context);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    LaneContext& context_;
  };
};

// The queues of one format in one lane.
class QueueSet {
 public:
  virtual ~QueueSet() = default;
  // Looks at the doorbells, at `all` of them or those that matter most, and does up to so much work, or little more.
  // Returns how much it did.
  virtual uint32_t Serve(uint32_t budget, bool all) = 0;
  // Completes a command that went up, by what its slot says. False when that cannot be done now, or ever.
  virtual bool Answer(LaneSlot& slot) = 0;
  // Signals what is due.
  virtual void Flush() = 0;
  // Asks for signals before the lane rests, and looks once more. Whether there is something.
  virtual bool Arm() = 0;
  // Whether commands wait that could be fetched now.
  virtual bool HasMore() const = 0;
  // Doorbells are in memory that cannot be reached just now.
  virtual bool IsBlind() const = 0;
};

// When doorbells are looked at while none comes.
enum class LanePolling : uint32_t {
  // Not at all: each comes with a wake-up.
  kSignalled,
  // For a while, and then their writer is asked to signal.
  kArmed,
  // For a while, and then now and then.
  kAdaptive,
  kAlways,
};

class Lane {
 public:
  // `record`: zeros, or what a lane left, for as long as this lives. `signal_fd`: an eventfd for TypeScript, this
  // object's from now on; or -1 where nobody is to be signalled.
  Lane(LaneContext& context, uint32_t number, LaneRecord* record, int signal_fd);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  LaneContext& context() { return context_; }
  LaneRecord& record() { return *record_; }
  uint32_t number() const { return number_; }

  // With the lane held, or before it starts.
  void Add(QueueSet* set) { sets_.push_back(set); }
  void Remove(QueueSet* set);
  void SetPolling(LanePolling polling);
  void SetPaused(bool isPaused) { is_paused_ = isPaused; }

  // A thread of its own from now on; on `cpu`, unless that is negative. Returns 0 or an errno.
  int Start(int cpu);
  void Stop();

  // For TypeScript. Something came: makes a turn, unless the thread is awake and finds it. Returns how much was done.
  uint32_t Kick(uint32_t budget);
  // After a turn of TypeScript's: milliseconds until the next one is due, 0: at once, below 0: when it is kicked; so it
  // always is where there is a thread.
  double Delay();
  // Whether a thread of its own looks after it.
  bool has_thread() const { return thread_.joinable(); }

  // Held: between two commands.
  void Enter();
  void Leave() { mutex_.unlock(); }

  // For QueueSets, in a turn.

  // Somebody wants the lane: a turn ends after the command at hand.
  bool IsWanted() const { return wanted_.load(std::memory_order_relaxed) != 0; }
  void Count(LaneCount count, double value) { record_->counts[count] += value; }
  void Raise(LaneEvent event) { record_->events.fetch_or(event); }
  void RaiseQueue(uint32_t queue) {
    record_->raised[queue / 32].fetch_or(1u << (queue % 32));
    Raise(kLaneRaised);
  }
  // A slot for a command that goes up; null when there is none.
  LaneSlot* NewSlot();
  uint32_t free_slots() const { return static_cast<uint32_t>(free_.size()); }
  void SendUp(LaneSlot* slot);
  void Release(LaneSlot* slot);
  // Driver-VM memory, and a note that it is written where that is logged.
  LaneMemory::Place Find(uint64_t address, uint64_t length, bool writes) {
    LaneMemory::Place place = context_.memory.Find(address, length, writes);
    if (writes && place.length > 0 && context_.memory.logs()) context_.memory.Mark(address, place.length);
    return place;
  }
  void Signal(const LaneVector& vector);
  // With the lane held: posts the answers that are on their way down, and signals what is due.
  void TakeAnswers();
  void Settle();

 private:
  uint32_t Turn(uint32_t budget, bool all);
  void SignalOwner();
  // As Delay, whoever makes the turns.
  double Rest(int64_t now);
  bool HasMore() const;
  bool Arm();
  void Run();
  // Until a wake-up, or for so long.
  void Sleep(double milliseconds);
  void Wake();

  LaneContext& context_;
  const uint32_t number_;
  LaneRecord* const record_;
  const int signal_fd_;
  std::vector<QueueSet*> sets_;
  // Numbers of slots.
  std::vector<uint32_t> free_;
  LanePolling polling_ = LanePolling::kSignalled;
  bool is_paused_ = false;
  int64_t busy_at_ = 0;

  std::mutex mutex_;
  std::atomic<uint32_t> wanted_{0};
  std::atomic<bool> is_stopping_{false};
  std::atomic<bool> is_awake_{false};
  std::mutex sleep_mutex_;
  std::condition_variable sleep_;
  bool is_woken_ = false;
  std::thread thread_;
};
