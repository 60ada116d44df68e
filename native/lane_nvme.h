// NVM Express queues in a lane (1.4, section 4): doorbells, submission and completion queues, and Read, Write, Write
// Zeroes and Deallocate where nothing has to be waited for. All else goes up: other commands, pairs, errors of every
// kind, data outside of the window, what a disk cannot do at once.
//
// Doorbells are words of memory, wherever they are: BAR 0's, mapped or not, or shadow doorbells (7.13), whose buffers a
// lane looks up like any other driver-VM memory.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <vector>

#include "lane.h"
#include "lane_nvme_data.h"

class NvmeQueues : public QueueSet {
 public:
  // `doorbells`: a word each, `stride` words apart, of submission and completion queues in turns.
  NvmeQueues(Lane& lane, const uint32_t* doorbells, size_t stride);
  ~NvmeQueues() override;

  // What follows is called with all lanes held.

  uint32_t page_size = 4096;
  uint32_t max_transfer = 1 << 20;
  // Each command goes up, so that TypeScript sees it.
  bool sends_all_up = false;
  // Vectors that are masked, of the first 32.
  uint32_t mask = 0;

  // New queues, which begin at 0. False when their memory is not in the window.
  bool AddCompletion(uint32_t id, uint64_t base, uint32_t size, int32_t vector);
  bool AddSubmission(uint32_t id, uint64_t base, uint32_t size, uint32_t completion);
  // What went up of it is TypeScript's to end: no answer is posted any more.
  void RemoveSubmission(uint32_t id);
  void RemoveCompletion(uint32_t id);
  void RemoveAll();
  // The queue and those that complete there are not served any more; answers that cannot be posted stay in their slots.
  void StopCompletion(uint32_t id);
  // A queue of TypeScript's, whose doorbell is looked at for it from this value on.
  void Watch(uint32_t number, uint32_t value);
  void Unwatch(uint32_t number);
  // Shadow doorbells, of queues from 1 on; a length of 0: none.
  void SetShadow(uint64_t doorbells, uint64_t events, uint32_t length);
  // Ends a command that was not fetched yet. False where there is no such one, or no room for its completion.
  bool Abort(uint32_t id, uint32_t command, uint32_t status);
  // Whether the entry at an index was ended so, for who takes the queue over.
  bool WasAborted(uint32_t id, uint32_t index) const;

  uint32_t Serve(uint32_t budget, bool all) override;
  bool Answer(LaneSlot& slot) override;
  void Flush() override;
  bool Arm() override;
  bool HasMore() const override;
  bool IsBlind() const override { return shadow_length_ > 0 && shadow_doorbells_ == nullptr; }

 private:
  static constexpr uint32_t kMaxEntries = 4096;

  // A ring in driver-VM memory, found again when a map has changed.
  struct Ring {
    uint32_t id;
    uint64_t base;
    uint32_t size;
    uint32_t entry_size;
    bool writes;
    RingRecord* record;
    uint32_t version = 0;
    // The whole of it, when it lies in one run.
    uint8_t* whole = nullptr;
    // The invalid value that its doorbell had last: reported once, and nothing else until it is another.
    uint64_t invalid = UINT64_MAX;

    uint32_t used() const { return (record->tail + size - record->head) % size; }
    uint32_t Next(uint32_t index) const { return index + 1 == size ? 0 : index + 1; }
  };
  struct Completion : Ring {
    int32_t vector;
    uint32_t reserved = 0;
    bool is_due = false;
    std::vector<uint32_t> submissions;

    uint32_t room() const { return size - 1 - used() - reserved; }
  };
  struct Submission : Ring {
    Completion* completion;
    std::bitset<kMaxEntries> aborted;
    // The first half of a pair went up: what follows goes up as well.
    bool is_in_pair = false;
    // Its next command waits for a slot, or for two entries in the completion queue.
    bool is_stuck = false;
  };
  struct Watched {
    uint32_t number;
    uint32_t seen;
  };

  static bool Fill(Ring& ring, uint32_t id, uint64_t base, uint32_t size, uint32_t entry_size, bool writes);
  uint8_t* EntryOf(Ring& ring, uint32_t index);
  void Lose(Ring& ring);
  bool Locate();
  uint32_t Word(uint32_t number) const;
  bool IsShadowed(uint32_t number) const { return shadow_length_ > 0 && number >= 2; }
  void TakeTail(Submission& queue);
  void TakeHead(Completion& queue);
  void TakeHeads();
  void LookAtWatched();
  void Invalid(Ring& ring, uint32_t value);
  uint32_t ServeBurst(Submission& queue);
  uint32_t ServeOne(Submission& queue, uint64_t* moved);
  // Puts a command up. False when there is no room.
  bool SendUp(Submission& queue, const uint8_t* entry, bool is_last);
  // Whether a further command waits behind the one at the head.
  bool IsFollowed(const Submission& queue) const;
  bool Post(Submission& queue, uint32_t head, uint32_t command, uint32_t result, uint32_t status);
  void FreeSlots(uint32_t id);

  // Each does all of a command, or nothing and returns false.
  bool Execute(const uint8_t* entry, uint64_t* moved);
  bool Transfer(LaneDisk& disk, const uint8_t* entry, bool isRead, uint64_t* moved);
  bool WriteZeroes(LaneDisk& disk, const uint8_t* entry, uint64_t* moved);
  bool Deallocate(LaneDisk& disk, const uint8_t* entry, uint64_t* moved);
  bool RangeOf(const LaneDisk& disk, const uint8_t* entry, uint64_t* position, uint64_t* length) const;
  bool LocateData(bool writes);
  bool MayBeCached(const LaneDisk& disk, const uint8_t* entry) const;

  Lane& lane_;
  const volatile uint32_t* const doorbells_;
  const size_t stride_;
  std::unique_ptr<Submission> submissions_[kLaneQueues];
  std::unique_ptr<Completion> completions_[kLaneQueues];
  // Those that are there, and which of them is next.
  std::vector<Submission*> row_;
  size_t next_ = 0;
  std::vector<Completion*> due_;
  std::vector<Watched> watched_;
  uint32_t turns_ = 0;
  // Shadow doorbells and event indices; null while they are not in the window.
  uint64_t shadow_address_ = 0;
  uint64_t events_address_ = 0;
  uint32_t shadow_length_ = 0;
  uint32_t shadow_version_ = 0;
  volatile uint32_t* shadow_doorbells_ = nullptr;
  volatile uint32_t* shadow_events_ = nullptr;
  NvmeDataPointer pointer_;
  std::vector<iovec> pieces_;
  std::vector<NvmeRange> holes_;
};
