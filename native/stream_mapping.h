// Where the bytes of a StreamMemory are mapped: one part that is mapped once, and rings, each of them twice, one behind
// the other, so that what goes round their end is in one piece all the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

class StreamMapping {
 public:
  StreamMapping() = default;
  StreamMapping(const StreamMapping&) = delete;
  StreamMapping& operator=(const StreamMapping&) = delete;
  ~StreamMapping() { End(); }

  // The sizes of the part in front and of the rings, in whole pages, which lie so in a file from `offset` on, or in
  // memory of its own where `fd` is negative. Null, or the system call that failed, with errno.
  const char* Map(int fd, size_t offset, const std::array<size_t, 3>& sizes);
  // At once, whoever still refers to it.
  void End();

  uint8_t* base() const { return static_cast<uint8_t*>(base_); }

 private:
  void* base_ = nullptr;
  size_t size_ = 0;
};
