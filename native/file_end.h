// A disk's file does not grow by being written: who made it smaller wants it so. What was in flight meanwhile ends as
// on a block device.
#pragma once

#include <sys/stat.h>

#include <cerrno>

class FileEnd {
 public:
  // Returns 0, or an errno for a write that ends beyond the end of a regular file. The size is asked for once for
  // writes to one file in a row: an object is good for as long as nobody waits.
  int Check(int fd, off_t end) {
    if (fd != fd_) {
      struct stat status;
      if (fstat(fd, &status) != 0) return errno;
      fd_ = fd;
      size_ = S_ISREG(status.st_mode) ? status.st_size : kNone;
    }
    return end > size_ ? ENOSPC : 0;
  }

 private:
  static constexpr off_t kNone = INT64_MAX;

  int fd_ = -1;
  off_t size_ = 0;
};
