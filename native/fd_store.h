// The file descriptors that the holder keeps, by name, in the order in which they came. Of fixed size: nothing of it
// can fail for want of memory, and pages that are not needed are not there.
#pragma once

#include <cstddef>

class FdStore {
 public:
  static constexpr size_t kMostFds = 4096;
  // As systemd has it (FDNAME_MAX).
  static constexpr size_t kMostName = 255;
  // All names are one string of the environment, which execve takes up to 128 KiB of (MAX_ARG_STRLEN).
  static constexpr size_t kMostNames = 120 * 1024;

  // Keeps it and owns it from now on; false, and it is still the caller's, when there is no room.
  bool Add(int fd, const char* name, size_t length);
  // Closes all of that name.
  void Remove(const char* name, size_t length);
  size_t count() const { return count_; }

  // For the child process, after fork(): the descriptors become 3, 4, ... and survive execve(), and the environment
  // says so (sd_listen_fds(3)). False when there is no room for that, with errno.
  bool HandOver();

 private:
  struct Entry {
    int fd;
    size_t length;
    char name[kMostName];
  };
  Entry entries_[kMostFds];
  size_t count_ = 0;
  size_t names_ = 0;
};
