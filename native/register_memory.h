// Values of a device's registers in memory that the device keeps up to date: reads of them are answered here, without a
// call into JavaScript (shared/vfio-user/register-memory.ts, which has the layout and the rules).
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>

#include "access_check.h"
#include "arguments.h"

class RegisterMemory {
 public:
  // A reply with the largest register that is answered here.
  static constexpr size_t kMostReply = 40;

  // A Uint8Array, and a Uint32Array that says what is in it; undefined takes it away. Throws RangeError for areas
  // outside of it.
  void Set(Napi::Value memory, Napi::Value areas);

  // The length of the reply to a whole message, which is written to `reply`; 0 when it is not one that can be answered
  // here.
  size_t Answer(const uint8_t* message, size_t length, uint8_t* reply) const;

  // For the device's own process, when all that came before is done: writes what an access reads to `to`, and returns
  // its size; 0 when it is not here.
  size_t Copy(const RegionAccess& access, uint8_t* to) const;

  // There is such memory, and its values count.
  bool IsValid() const;

  // The word in which the device counts the writes that it has dealt with; null when there is no memory.
  uint32_t* WritesDone() const;

 private:
  uint32_t* head() const { return reinterpret_cast<uint32_t*>(memory_.data); }
  const uint8_t* Find(uint32_t region, uint64_t offset, uint32_t count) const;

  Bytes memory_{};
  const uint32_t* areas_ = nullptr;
  size_t count_ = 0;
  Napi::ObjectReference memory_kept_;
  Napi::ObjectReference areas_kept_;
};
