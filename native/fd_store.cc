// See fd_store.h.
#include "fd_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kFirst = 3;  // SD_LISTEN_FDS_START

// The names with a colon between them. Not on the stack of a process that has little of it.
char names[FdStore::kMostNames];

bool SetNumber(const char* variable, long number) {
  char text[24];
  snprintf(text, sizeof text, "%ld", number);
  return setenv(variable, text, 1) == 0;
}

}  // namespace

bool FdStore::Add(int fd, const char* name, size_t length) {
  // One more for what stands between two names, or behind the last.
  if (count_ == kMostFds || length > kMostName || names_ + length + 1 > kMostNames) return false;
  Entry& entry = entries_[count_++];
  entry.fd = fd;
  entry.length = length;
  memcpy(entry.name, name, length);
  names_ += length + 1;
  return true;
}

void FdStore::Remove(const char* name, size_t length) {
  size_t kept = 0;
  for (size_t i = 0; i < count_; i++) {
    Entry& entry = entries_[i];
    if (entry.length == length && memcmp(entry.name, name, length) == 0) {
      close(entry.fd);
      names_ -= length + 1;
    } else {
      if (kept != i) entries_[kept] = entry;
      kept++;
    }
  }
  count_ = kept;
}

bool FdStore::HandOver() {
  unsetenv("LISTEN_PIDFDID");
  if (count_ == 0) {
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return true;
  }
  // First out of the way of the numbers that they are to have, then to these.
  int end = kFirst + static_cast<int>(count_);
  for (size_t i = 0; i < count_; i++) {
    Entry& entry = entries_[i];
    if (entry.fd >= end) continue;
    int moved = fcntl(entry.fd, F_DUPFD_CLOEXEC, end);
    if (moved < 0) return false;
    entry.fd = moved;
  }
  size_t length = 0;
  for (size_t i = 0; i < count_; i++) {
    if (dup2(entries_[i].fd, kFirst + static_cast<int>(i)) < 0) return false;
    memcpy(names + length, entries_[i].name, entries_[i].length);
    length += entries_[i].length;
    names[length++] = ':';
  }
  names[length - 1] = '\0';
  return SetNumber("LISTEN_PID", getpid()) && SetNumber("LISTEN_FDS", static_cast<long>(count_)) &&
         setenv("LISTEN_FDNAMES", names, 1) == 0;
}
