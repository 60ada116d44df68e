// Doorbells of a device that are words of memory: a write to one that arrives as a message is stored where a write to
// mapped memory would have gone, and whoever polls the words is woken.
#pragma once

#include <napi.h>

#include <cstdint>

class DoorbellTarget {
 public:
  // Stores `value` in word `index`, and wakes who waits for it. On the event loop's thread, in the order of the
  // messages. False, and nothing has happened: the write is JavaScript's.
  virtual bool Write(uint32_t index, uint32_t value) = 0;

 protected:
  ~DoorbellTarget() = default;
};

// Those of an object of JavaScript's; null when it has none.
DoorbellTarget* DoorbellTargetOf(Napi::Env env, napi_value object);
