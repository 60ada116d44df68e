// Doorbells of a lane's queues: words that the driver writes, wherever they are, each read once and checked.
#include <algorithm>
#include <atomic>

#include "lane_nvme.h"

void NvmeQueues::Watch(uint32_t number, uint32_t value) {
  Unwatch(number);
  watched_.push_back({number, value});
}

void NvmeQueues::Unwatch(uint32_t number) {
  std::erase_if(watched_, [=](const Watched& one) { return one.number == number; });
}

void NvmeQueues::SetShadow(uint64_t doorbells, uint64_t events, uint32_t length) {
  shadow_address_ = doorbells;
  events_address_ = events;
  shadow_length_ = length;
  shadow_version_ = 0;
  shadow_doorbells_ = shadow_events_ = nullptr;
}

// Finds the shadow doorbells, where there are any. False when they are not in the window.
bool NvmeQueues::Locate() {
  const LaneMemory& memory = lane_.context().memory;
  if (shadow_length_ == 0) return true;
  if (shadow_version_ == memory.version()) return shadow_doorbells_ != nullptr;
  shadow_version_ = memory.version();
  shadow_doorbells_ = shadow_events_ = nullptr;
  auto find = [&](uint64_t address, bool writes) -> volatile uint32_t* {
    LaneMemory::Place place = memory.Find(address, shadow_length_, writes);
    return place.length == shadow_length_ ? reinterpret_cast<volatile uint32_t*>(place.host) : nullptr;
  };
  volatile uint32_t* events = find(events_address_, true);
  volatile uint32_t* doorbells = find(shadow_address_, true);
  if (events == nullptr || doorbells == nullptr || find(shadow_address_, false) == nullptr) return false;
  shadow_doorbells_ = doorbells;
  shadow_events_ = events;
  return true;
}

uint32_t NvmeQueues::Word(uint32_t number) const {
  const volatile uint32_t* word =
      IsShadowed(number) ? shadow_doorbells_ + number : doorbells_ + number * stride_;
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void NvmeQueues::TakeTail(Submission& queue) {
  if (IsShadowed(queue.id * 2) && shadow_doorbells_ == nullptr) return;
  RingRecord& record = *queue.record;
  uint32_t tail = Word(queue.id * 2);
  if (tail == record.tail || tail == queue.invalid) return;
  if (tail >= queue.size || (tail + queue.size - record.tail) % queue.size > queue.size - 1 - queue.used()) {
    Invalid(queue, tail);
    return;
  }
  record.tail = tail;
  queue.invalid = UINT64_MAX;
}

void NvmeQueues::TakeHead(Completion& queue) {
  if (IsShadowed(queue.id * 2 + 1) && shadow_doorbells_ == nullptr) return;
  RingRecord& record = *queue.record;
  uint32_t head = Word(queue.id * 2 + 1);
  if (head == record.head || head == queue.invalid) return;
  if (head >= queue.size || (head + queue.size - record.head) % queue.size > queue.used()) {
    Invalid(queue, head);
    return;
  }
  record.head = head;
  queue.invalid = UINT64_MAX;
  if (queue.vector >= 0 && lane_.context().vectors[queue.vector].kind == LaneVector::kNone) lane_.Raise(kLaneHeads);
}

void NvmeQueues::TakeHeads() {
  for (const auto& queue : completions_) {
    if (queue != nullptr) TakeHead(*queue);
  }
}

void NvmeQueues::LookAtWatched() {
  for (Watched& one : watched_) {
    if (IsShadowed(one.number) && shadow_doorbells_ == nullptr) continue;
    uint32_t value = Word(one.number);
    if (value == one.seen) continue;
    one.seen = value;
    lane_.Raise(kLaneDoorbell);
  }
}

void NvmeQueues::Invalid(Ring& ring, uint32_t value) {
  ring.invalid = value;
  lane_.Raise(kLaneInvalid);
}

bool NvmeQueues::Arm() {
  bool is_shadowed = shadow_length_ > 0 && Locate();
  if (is_shadowed) {
    for (const Submission* queue : row_) {
      shadow_events_[queue->id * 2] = queue->record->tail;
      // Of a completion queue only what somebody waits for.
      const Completion& completion = *queue->completion;
      bool waits = queue->record->head != queue->record->tail && (completion.room() == 0 || queue->is_stuck);
      if (waits) shadow_events_[completion.id * 2 + 1] = completion.record->head;
    }
    for (const Watched& one : watched_) {
      if (IsShadowed(one.number)) shadow_events_[one.number] = one.seen;
    }
    // The driver may have written its doorbell before it could see that it is asked.
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  auto has_changed = [&](const Ring& ring, uint32_t number, uint32_t value) {
    if (IsShadowed(number) && !is_shadowed) return false;
    uint32_t word = Word(number);
    return word != value && word != ring.invalid;
  };
  for (const Submission* queue : row_) {
    if (has_changed(*queue, queue->id * 2, queue->record->tail)) return true;
    const Completion& completion = *queue->completion;
    bool waits = queue->record->head != queue->record->tail;
    if (waits && has_changed(completion, completion.id * 2 + 1, completion.record->head)) return true;
  }
  return std::any_of(watched_.begin(), watched_.end(), [&](const Watched& one) {
    return (!IsShadowed(one.number) || is_shadowed) && Word(one.number) != one.seen;
  });
}
