// Files of huge pages (hugetlbfs, memfds with MFD_HUGETLB), of which mmap maps whole pages only.
#pragma once

#include <fcntl.h>
#include <sys/vfs.h>

#include <cstddef>

// 0 for a file that has none.
inline size_t HugePageSize(int fd) {
  constexpr unsigned kHugetlbfs = 0x958458f6;
  struct statfs status;
  // Asked of memory alone: other file systems may ask a server first.
  bool has = fcntl(fd, F_GET_SEALS) != -1 && fstatfs(fd, &status) == 0 &&
             static_cast<unsigned>(status.f_type) == kHugetlbfs;
  return has ? static_cast<size_t>(status.f_bsize) : 0;
}
