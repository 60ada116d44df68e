// fstat for descriptors of peers. A file system may ask its server before it answers (FUSE, NFS), and the server may be
// the peer; with AT_STATX_DONT_SYNC it says what it knows. What it knows of memory is the truth.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

// 0, or -1 with errno.
inline int StatusWithoutWaiting(int fd, struct statx* status) {
  constexpr unsigned kStatusFields = STATX_TYPE | STATX_MODE | STATX_SIZE | STATX_INO | STATX_BLOCKS;
  return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, kStatusFields, status);
}
