// The driver's side of a split virtqueue (VIRTIO 1.2, 2.7), for buffers of one descriptor whose number is the buffer's:
// what shared/virtqueue/driver.ts is, over the same positions. Whoever of the two runs goes on where the other one
// stopped.
//
// The device can rewrite its ring at any time: each of its words is read once and checked against what it was given.
// What breaks the rules is not taken; TypeScript finds what is wrong with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ring_layout.h"

// Where a ring stands. TypeScript owns the memory and has the same table (DriverState).
struct DriverState {
  uint32_t next_available;
  uint32_t next_used;
  uint32_t unpublished;
  uint32_t wants_interrupt;
  uint32_t armed;
  uint32_t in_flight;
};

class DriverRing : private RingLayout {
 public:
  struct Used {
    uint32_t id;
    uint32_t length;
  };
  // kOther: the device broke the rules.
  enum class Next { kNone, kBuffer, kOther };

  // Each part has the size that VIRTIO demands for `size` descriptors, a power of two, and its alignment; there is a
  // length for each of them.
  void Set(DriverState* state, double* lengths, uint8_t* descriptors, uint8_t* available, uint8_t* used, uint32_t size,
           bool event_index) {
    state_ = state;
    lengths_ = lengths;
    descriptors_ = descriptors;
    available_ = reinterpret_cast<uint16_t*>(available);
    used_ = used;
    size_ = size;
    event_index_ = event_index;
  }

  uint32_t size() const { return size_; }
  uint32_t unpublished() const { return state_->unpublished; }

  // The device has done nothing that was not taken.
  bool IsIdle() const { return Waiting() == 0; }

  // Looks at the next buffer that the device is done with, and leaves it where it is.
  Next Peek(Used* used) const {
    uint16_t waiting = Waiting();
    if (waiting == 0) return Next::kNone;
    if (waiting > state_->in_flight) return Next::kOther;
    const uint32_t* entry = reinterpret_cast<const uint32_t*>(used_ + kEntriesOffset) +
                            size_t{2} * (state_->next_used & (size_ - 1));
    used->id = Load(entry);
    used->length = Load(entry + 1);
    double expected = used->id < size_ ? lengths_[used->id] : kNotInFlight;
    if (expected == kNotInFlight) return Next::kOther;
    if (expected == kReadOnly) used->length = 0;
    else if (used->length > expected) return Next::kOther;
    return Next::kBuffer;
  }

  // Takes the buffer that Peek found.
  void Take(const Used& used) {
    Disarm();
    lengths_[used.id] = kNotInFlight;
    state_->next_used = (state_->next_used + 1) & 0xffff;
    state_->in_flight--;
  }

  // Puts a buffer that is not in flight into the ring; the device sees it after Publish.
  void Add(uint32_t id, uint64_t address, uint32_t length, bool device_writes) {
    uint8_t* descriptor = descriptors_ + size_t{kDescriptorSize} * id;
    Store(reinterpret_cast<uint64_t*>(descriptor), address);
    Store(reinterpret_cast<uint32_t*>(descriptor + 8), length);
    Store(reinterpret_cast<uint32_t*>(descriptor + 12), device_writes ? uint32_t{kWrite} : 0);
    lengths_[id] = device_writes ? static_cast<double>(length) : kReadOnly;
    Store(available_ + kEntries + (state_->next_available & (size_ - 1)), static_cast<uint16_t>(id));
    state_->next_available = (state_->next_available + 1) & 0xffff;
    state_->unpublished++;
    state_->in_flight++;
  }

  // Publishes all that was added. Whether the device wants to be notified.
  bool Publish() {
    uint32_t count = state_->unpublished;
    uint16_t next = static_cast<uint16_t>(state_->next_available);
    state_->unpublished = 0;
    __atomic_store_n(available_ + kIndex, next, __ATOMIC_SEQ_CST);
    if (event_index_) {
      uint32_t at = kEntries + size_ * (kUsedEntrySize / sizeof(uint16_t));
      uint16_t event = __atomic_load_n(UsedWord(at), __ATOMIC_SEQ_CST);
      return static_cast<uint16_t>(next - event - 1) < count;
    }
    return (__atomic_load_n(UsedWord(kFlags), __ATOMIC_SEQ_CST) & kNoNotify) == 0;
  }

  // Has the device interrupt for the next buffer. False when that is there already, which brings no interrupt.
  bool Arm() {
    if (state_->armed == 0) {
      state_->armed = 1;
      if (event_index_) {
        uint16_t* event = available_ + kEntries + size_;
        __atomic_store_n(event, static_cast<uint16_t>(state_->next_used), __ATOMIC_SEQ_CST);
      } else {
        __atomic_store_n(available_ + kFlags, uint16_t{0}, __ATOMIC_SEQ_CST);
      }
    }
    return IsIdle();
  }

 private:
  // In place of the length of a buffer that the device may write.
  static constexpr double kReadOnly = -1;
  static constexpr double kNotInFlight = -2;

  uint16_t* UsedWord(uint32_t index) const { return reinterpret_cast<uint16_t*>(used_) + index; }

  uint16_t Waiting() const {
    uint16_t index = __atomic_load_n(UsedWord(kIndex), __ATOMIC_SEQ_CST);
    return static_cast<uint16_t>(index - state_->next_used);
  }

  // An event index that the device has passed needs nothing.
  void Disarm() {
    if (state_->armed == 0) return;
    state_->armed = 0;
    if (!event_index_) __atomic_store_n(available_ + kFlags, kNoInterrupt, __ATOMIC_SEQ_CST);
  }

  DriverState* state_ = nullptr;
  double* lengths_ = nullptr;
  uint8_t* descriptors_ = nullptr;
  uint16_t* available_ = nullptr;
  uint8_t* used_ = nullptr;
  uint32_t size_ = 0;
  bool event_index_ = false;
};
