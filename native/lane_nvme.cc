#include "lane_nvme.h"

#include <algorithm>
#include <cstring>

#include "lane_nvme_table.h"

namespace {

// Completion queues with less room are looked at along with the tails.
constexpr uint32_t kLittleRoom = 16;
// Of so many turns one looks at all doorbells: a line that the driver writes is dear to look at.
constexpr uint32_t kLooks = 16;
constexpr uint32_t kNoSlot = UINT32_MAX;

template <typename Number>
Number Load(const uint8_t* from) {
  Number number;
  memcpy(&number, from, sizeof number);
  return number;
}

}  // namespace

NvmeQueues::NvmeQueues(Lane& lane, const uint32_t* doorbells, size_t stride)
    : lane_(lane), doorbells_(doorbells), stride_(stride) {}

NvmeQueues::~NvmeQueues() = default;

bool NvmeQueues::Fill(Ring& ring, uint32_t id, uint64_t base, uint32_t size, uint32_t entry_size, bool writes) {
  ring.id = id;
  ring.base = base;
  ring.size = size;
  ring.entry_size = entry_size;
  ring.writes = writes;
  *ring.record = {RingRecord::kServed, size, base, 0, 0, 1, 0};
  return size >= 2 && size <= kMaxEntries;
}

bool NvmeQueues::AddCompletion(uint32_t id, uint64_t base, uint32_t size, int32_t vector) {
  auto queue = std::make_unique<Completion>();
  queue->record = &lane_.record().completion[id];
  queue->vector = vector;
  if (!Fill(*queue, id, base, size, nvme::kCompletionEntrySize, true) || EntryOf(*queue, 0) == nullptr ||
      EntryOf(*queue, size - 1) == nullptr) {
    queue->record->state = RingRecord::kNone;
    return false;
  }
  completions_[id] = std::move(queue);
  return true;
}

bool NvmeQueues::AddSubmission(uint32_t id, uint64_t base, uint32_t size, uint32_t completion) {
  if (completions_[completion] == nullptr) return false;
  auto queue = std::make_unique<Submission>();
  queue->record = &lane_.record().submission[id];
  queue->completion = completions_[completion].get();
  if (!Fill(*queue, id, base, size, nvme::kSubmissionEntrySize, false)) {
    queue->record->state = RingRecord::kNone;
    return false;
  }
  queue->record->partner = completion;
  completions_[completion]->submissions.push_back(id);
  row_.push_back(queue.get());
  submissions_[id] = std::move(queue);
  return true;
}

void NvmeQueues::RemoveSubmission(uint32_t id) {
  if (submissions_[id] == nullptr) return;
  FreeSlots(id);
  std::erase(row_, submissions_[id].get());
  next_ = 0;
  std::erase(submissions_[id]->completion->submissions, id);
  submissions_[id]->record->state = RingRecord::kNone;
  submissions_[id] = nullptr;
}

void NvmeQueues::RemoveCompletion(uint32_t id) {
  if (completions_[id] == nullptr) return;
  while (!completions_[id]->submissions.empty()) RemoveSubmission(completions_[id]->submissions.back());
  std::erase(due_, completions_[id].get());
  lane_.record().due = static_cast<uint32_t>(due_.size());
  lane_.record().raised[id / 32].fetch_and(~(1u << (id % 32)));
  completions_[id]->record->state = RingRecord::kNone;
  completions_[id] = nullptr;
}

void NvmeQueues::RemoveAll() {
  for (uint32_t id = 0; id < kLaneQueues; id++) RemoveCompletion(id);
  watched_.clear();
  SetShadow(0, 0, 0);
}

void NvmeQueues::StopCompletion(uint32_t id) {
  if (completions_[id] != nullptr) completions_[id]->record->state = RingRecord::kLost;
  lane_.TakeAnswers();
}

// Numbers that TypeScript has not taken yet are taken back: their slots may be another command's by then.
void NvmeQueues::FreeSlots(uint32_t id) {
  LaneRecord& record = lane_.record();
  auto is_meant = [&](uint32_t number) {
    return record.slots[number].queue == id && record.slots[number].state != LaneSlot::kFree;
  };
  uint32_t tail = record.up_tail.load();
  for (uint32_t at = record.up_head.load(); at != tail; at++) {
    uint32_t& number = record.up[at % kLaneSlots];
    if (number < kLaneSlots && is_meant(number)) number = kNoSlot;
  }
  for (uint32_t number = 0; number < kLaneSlots; number++) {
    if (!is_meant(number)) continue;
    submissions_[id]->completion->reserved -= record.slots[number].state == LaneSlot::kFetched ? 1 : 0;
    lane_.Release(&record.slots[number]);
  }
}

bool NvmeQueues::Abort(uint32_t id, uint32_t command, uint32_t status) {
  Submission* queue = submissions_[id].get();
  if (queue == nullptr || queue->is_in_pair) return false;
  TakeTail(*queue);
  TakeHead(*queue->completion);
  if (queue->completion->room() < 1) return false;
  for (uint32_t at = queue->record->head; at != queue->record->tail; at = queue->Next(at)) {
    const uint8_t* entry = EntryOf(*queue, at);
    if (entry == nullptr) return false;
    uint32_t word = Load<uint32_t>(entry);
    if (word >> 16 != command || queue->aborted[at]) continue;
    if (((word >> 8) & nvme::kFuseMask) != 0) return false;
    queue->aborted[at] = true;
    return Post(*queue, queue->record->head, command, 0, status);
  }
  return false;
}

bool NvmeQueues::WasAborted(uint32_t id, uint32_t index) const {
  return submissions_[id] != nullptr && index < kMaxEntries && submissions_[id]->aborted[index];
}

uint8_t* NvmeQueues::EntryOf(Ring& ring, uint32_t index) {
  const LaneMemory& memory = lane_.context().memory;
  if (ring.version != memory.version()) {
    ring.version = memory.version();
    uint64_t length = uint64_t{ring.size} * ring.entry_size;
    LaneMemory::Place place = memory.Find(ring.base, length, ring.writes);
    ring.whole = place.length == length ? place.host : nullptr;
  }
  uint64_t offset = uint64_t{index} * ring.entry_size;
  if (ring.whole != nullptr) return ring.whole + offset;
  LaneMemory::Place place = memory.Find(ring.base + offset, ring.entry_size, ring.writes);
  return place.length == ring.entry_size ? place.host : nullptr;
}

void NvmeQueues::Lose(Ring& ring) {
  ring.record->state = RingRecord::kLost;
  lane_.Raise(kLaneLost);
}

uint32_t NvmeQueues::Serve(uint32_t budget, bool all) {
  Locate();
  if (all || ++turns_ % kLooks == 0) {
    TakeHeads();
    LookAtWatched();
  }
  uint32_t work = 0;
  for (size_t idle = 0; work < budget && idle < row_.size() && !lane_.IsWanted();) {
    if (next_ >= row_.size()) next_ = 0;
    uint32_t done = ServeBurst(*row_[next_++]);
    idle = done == 0 ? idle + 1 : 0;
    work += done;
  }
  return work;
}

uint32_t NvmeQueues::ServeBurst(Submission& queue) {
  TakeTail(queue);
  queue.is_stuck = false;
  if (queue.record->head == queue.record->tail) return 0;
  if (queue.completion->room() < kLittleRoom) TakeHead(*queue.completion);
  uint32_t count = 0;
  uint64_t moved = 0;
  while ((count < nvme::kBurst && moved < nvme::kBurstBytes) || queue.is_in_pair) {
    if (ServeOne(queue, &moved) == 0) break;
    count++;
    if (lane_.IsWanted()) break;
  }
  return count + static_cast<uint32_t>(moved >> nvme::kWorkShift);
}

// Returns 1 when a command was fetched, else 0.
uint32_t NvmeQueues::ServeOne(Submission& queue, uint64_t* moved) {
  RingRecord& record = *queue.record;
  Completion& completion = *queue.completion;
  if (record.head == record.tail || completion.room() < 1) return 0;
  if (record.state != RingRecord::kServed || completion.record->state != RingRecord::kServed) return 0;
  if (queue.aborted[record.head]) {
    queue.aborted[record.head] = false;
    record.head = queue.Next(record.head);
    return 1;
  }
  const uint8_t* source = EntryOf(queue, record.head);
  if (source == nullptr || EntryOf(completion, completion.record->tail) == nullptr) {
    Lose(source == nullptr ? static_cast<Ring&>(queue) : completion);
    return 0;
  }
  alignas(8) uint8_t entry[nvme::kSubmissionEntrySize];
  memcpy(entry, source, sizeof entry);
  // Zeros, of which the opcode is one, are no command there.
  if (entry[nvme::kOpcodeAt] == 0 && IsLost(source, sizeof entry)) {
    record.state = RingRecord::kLost;
    lane_.Raise(kLaneGone);
    return 0;
  }
  uint32_t next = queue.Next(record.head);
  uint32_t fuse = entry[nvme::kFlagsAt] & nvme::kFuseMask;
  if (fuse == 0 && !queue.is_in_pair && Execute(entry, moved)) {
    Post(queue, next, Load<uint16_t>(entry + nvme::kIdentifierAt), 0, 0);
  } else {
    // A pair begins when both of it can complete: no half waits for room that another half has.
    bool is_first = fuse == nvme::kFuseFirst;
    bool is_last = !IsFollowed(queue) || completion.size == 2;
    uint32_t needed = is_first && !is_last ? 2 : 1;
    if (lane_.free_slots() < needed || completion.room() < needed) {
      queue.is_stuck = true;
      return 0;
    }
    SendUp(queue, entry, is_last);
    queue.is_in_pair = is_first && !is_last;
  }
  record.head = next;
  lane_.Count(kLaneCommands, 1);
  lane_.Count(kLaneDmaRead, sizeof entry);
  return 1;
}

bool NvmeQueues::IsFollowed(const Submission& queue) const {
  uint32_t at = queue.Next(queue.record->head);
  while (at != queue.record->tail && queue.aborted[at]) at = queue.Next(at);
  return at != queue.record->tail;
}

bool NvmeQueues::SendUp(Submission& queue, const uint8_t* entry, bool is_last) {
  LaneSlot* slot = lane_.NewSlot();
  if (slot == nullptr) return false;
  slot->queue = queue.id;
  slot->flags = is_last ? LaneSlot::kLast : 0;
  memcpy(slot->entry, entry, sizeof slot->entry);
  queue.completion->reserved++;
  lane_.SendUp(slot);
  return true;
}

bool NvmeQueues::Answer(LaneSlot& slot) {
  Submission* queue = slot.queue < kLaneQueues ? submissions_[slot.queue].get() : nullptr;
  if (queue == nullptr) return true;
  queue->completion->reserved--;
  uint32_t command = Load<uint16_t>(slot.entry + nvme::kIdentifierAt);
  return Post(*queue, queue->record->head, command, slot.result, slot.status);
}

bool NvmeQueues::Post(Submission& queue, uint32_t head, uint32_t command, uint32_t result, uint32_t status) {
  Completion& completion = *queue.completion;
  RingRecord& record = *completion.record;
  uint8_t* entry = EntryOf(completion, record.tail);
  if (entry == nullptr) {
    Lose(completion);
    return false;
  }
  uint32_t words[] = {result, 0, head | queue.id << 16};
  memcpy(entry, words, sizeof words);
  // The phase makes the entry valid, so its word goes last and as one.
  uint32_t last = (status << 1 | record.phase) << 16 | command;
  __atomic_store_n(reinterpret_cast<uint32_t*>(entry + nvme::kCompletionLastWordAt), last, __ATOMIC_RELEASE);
  LaneMemory& memory = lane_.context().memory;
  uint64_t address = completion.base + uint64_t{record.tail} * nvme::kCompletionEntrySize;
  if (memory.logs()) memory.Mark(address, nvme::kCompletionEntrySize);
  record.tail = completion.Next(record.tail);
  if (record.tail == 0) record.phase ^= 1;
  lane_.Count(kLaneDmaWritten, nvme::kCompletionEntrySize);
  if (IsLost(entry, nvme::kCompletionEntrySize)) {
    record.state = RingRecord::kLost;
    lane_.Raise(kLaneGone);
  }
  if (completion.vector >= 0 && !completion.is_due) {
    completion.is_due = true;
    due_.push_back(&completion);
  }
  return true;
}

void NvmeQueues::Flush() {
  if (due_.empty()) return;
  std::erase_if(due_, [&](Completion* queue) {
    if (queue->vector < 32 && ((mask >> queue->vector) & 1) != 0) return false;
    queue->is_due = false;
    const LaneVector& vector = lane_.context().vectors[queue->vector];
    if (vector.kind == LaneVector::kNone) lane_.RaiseQueue(queue->id);
    else lane_.Signal(vector);
    return true;
  });
  lane_.record().due = static_cast<uint32_t>(due_.size());
}

bool NvmeQueues::HasMore() const {
  return std::any_of(row_.begin(), row_.end(), [](const Submission* queue) {
    return queue->record->head != queue->record->tail && !queue->is_stuck && queue->completion->room() > 0 &&
           queue->record->state == RingRecord::kServed && queue->completion->record->state == RingRecord::kServed;
  });
}
