// The device's side of a split virtqueue (VIRTIO 1.2, 2.7) for messages that take one buffer: what
// shared/virtqueue/device.ts is, over the same positions. Whoever of the two runs goes on where the other one stopped.
//
// The driver can rewrite its memory at any time: each of its words is read once, checked, then used. What is not a
// single buffer in one piece of known memory is not taken; TypeScript takes it, or finds what is wrong with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ring_layout.h"

// Where a ring stands. TypeScript owns the memory and has the same table (shared/virtqueue/device.ts, RingState).
struct RingState {
  uint32_t running;
  uint32_t next_available;
  uint32_t next_used;
  // The driver was asked to notify of the next chain.
  uint32_t armed;
  // Chains completed since the driver was last asked whether it wants to be interrupted.
  uint32_t uncalled;
  // The eventfd that interrupts it, or -1; 1 in owes_call when it wanted that and there was none.
  int32_t call;
  uint32_t owes_call;
};

// The memory that the driver's addresses are in.
class GuestMemory {
 public:
  struct Segment {
    uint64_t address;
    uint64_t length;
    uint8_t* bytes;
  };

  void Clear() {
    segments_.clear();
    last_ = 0;
  }
  void Add(const Segment& segment) { segments_.push_back(segment); }

  // Null where [address, address + length) is not in one segment.
  uint8_t* Find(uint64_t address, uint32_t length) {
    if (last_ < segments_.size()) {
      if (uint8_t* found = In(segments_[last_], address, length); found != nullptr) return found;
    }
    for (size_t n = 0; n < segments_.size(); n++) {
      if (uint8_t* found = In(segments_[n], address, length); found != nullptr) {
        last_ = n;
        return found;
      }
    }
    return nullptr;
  }

 private:
  static uint8_t* In(const Segment& segment, uint64_t address, uint32_t length) {
    uint64_t offset = address - segment.address;
    return offset < segment.length && length <= segment.length - offset ? segment.bytes + offset : nullptr;
  }

  std::vector<Segment> segments_;
  // Where the last look-up ended.
  size_t last_ = 0;
};

class DeviceRing : private RingLayout {
 public:
  struct Buffer {
    uint8_t* bytes;
    uint32_t length;
    bool is_writable;
    uint16_t head;
  };
  // kOther: something is there that is TypeScript's.
  enum class Next { kNone, kBuffer, kOther };

  // Each part has the size that VIRTIO demands for `size` descriptors, a power of two, and its alignment.
  void Set(RingState* state, uint8_t* descriptors, uint8_t* available, uint8_t* used, uint32_t size, bool event_index) {
    state_ = state;
    descriptors_ = descriptors;
    available_ = reinterpret_cast<uint16_t*>(available);
    used_ = used;
    size_ = size;
    event_index_ = event_index;
  }
  void Unset() { state_ = nullptr; }

  bool Runs() const { return state_ != nullptr && state_->running != 0; }

  // Looks at the next chain, and leaves it where it is. When there is none, the driver will notify of the next one.
  Next Peek(GuestMemory& memory, Buffer* buffer) {
    uint16_t waiting = Waiting();
    if (waiting == 0) {
      if (state_->armed != 0) return Next::kNone;
      Arm();
      // One that came before the driver could see this is not notified of.
      waiting = Waiting();
      if (waiting == 0) return Next::kNone;
    }
    if (waiting > size_) return Next::kOther;
    Disarm();
    uint16_t head = Load(available_ + kEntries + (state_->next_available & (size_ - 1)));
    if (head >= size_) return Next::kOther;
    const uint8_t* descriptor = descriptors_ + size_t{kDescriptorSize} * head;
    uint64_t address = Load(reinterpret_cast<const uint64_t*>(descriptor));
    uint32_t length = Load(reinterpret_cast<const uint32_t*>(descriptor + 8));
    uint16_t flags = Load(reinterpret_cast<const uint16_t*>(descriptor + 12));
    if ((flags & ~kWrite) != 0) return Next::kOther;
    buffer->bytes = memory.Find(address, length);
    buffer->length = length;
    buffer->is_writable = (flags & kWrite) != 0;
    buffer->head = head;
    return buffer->bytes == nullptr ? Next::kOther : Next::kBuffer;
  }

  // Gives the buffer that Peek found back, with `written` bytes in it. The index is stored last: until then nothing has
  // happened for the driver, nor for who finds the ring after a crash.
  void Complete(const Buffer& buffer, uint32_t written) {
    uint8_t* entry = used_ + kEntriesOffset + size_t{kUsedEntrySize} * (state_->next_used & (size_ - 1));
    Store(reinterpret_cast<uint32_t*>(entry), uint32_t{buffer.head});
    Store(reinterpret_cast<uint32_t*>(entry + 4), written);
    state_->next_available = (state_->next_available + 1) & 0xffff;
    state_->next_used = (state_->next_used + 1) & 0xffff;
    state_->uncalled++;
    __atomic_store_n(UsedWord(kIndex), static_cast<uint16_t>(state_->next_used), __ATOMIC_SEQ_CST);
  }

  // Whether the driver wants to be interrupted for what was completed since this was last asked.
  bool ShouldCall() {
    uint32_t count = state_->uncalled;
    if (count == 0) return false;
    state_->uncalled = 0;
    if (event_index_) {
      uint16_t event = __atomic_load_n(available_ + kEntries + size_, __ATOMIC_SEQ_CST);
      return static_cast<uint16_t>(state_->next_used - event - 1) < count;
    }
    return (__atomic_load_n(available_ + kFlags, __ATOMIC_SEQ_CST) & kNoInterrupt) == 0;
  }

  RingState& state() { return *state_; }

  // The used index that gives the next buffer back.
  uint32_t NextUsed() const { return (state_->next_used + 1) & 0xffff; }

 private:
  uint16_t* UsedWord(uint32_t index) { return reinterpret_cast<uint16_t*>(used_) + index; }

  uint16_t Waiting() const {
    uint16_t index = __atomic_load_n(available_ + kIndex, __ATOMIC_SEQ_CST);
    return static_cast<uint16_t>(index - state_->next_available);
  }

  void Arm() {
    state_->armed = 1;
    if (event_index_) {
      uint16_t* event = UsedWord(kEntries + size_ * (kUsedEntrySize / sizeof(uint16_t)));
      __atomic_store_n(event, static_cast<uint16_t>(state_->next_available), __ATOMIC_SEQ_CST);
    } else {
      __atomic_store_n(UsedWord(kFlags), uint16_t{0}, __ATOMIC_SEQ_CST);
    }
  }

  // An event index that the driver has passed needs nothing.
  void Disarm() {
    if (state_->armed == 0) return;
    state_->armed = 0;
    if (!event_index_) __atomic_store_n(UsedWord(kFlags), kNoNotify, __ATOMIC_SEQ_CST);
  }

  RingState* state_ = nullptr;
  uint8_t* descriptors_ = nullptr;
  uint16_t* available_ = nullptr;
  uint8_t* used_ = nullptr;
  uint32_t size_ = 0;
  bool event_index_ = false;
};
