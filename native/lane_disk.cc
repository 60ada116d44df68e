#include "lane_disk.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "file_end.h"
#include "lane_record.h"

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kZeros = uint64_t{64} << 10;
alignas(4096) uint8_t zeros[kZeros];

bool Overlap(uint64_t start, uint64_t end, uint64_t other_start, uint64_t other_end) {
  return start < other_end && other_start < end;
}

// What is moved in part only is EIO.
int Result(ssize_t moved, uint64_t length) {
  if (moved < 0) return errno;
  return static_cast<uint64_t>(moved) == length ? 0 : EIO;
}

}  // namespace

std::unique_ptr<LaneDisk> LaneDisk::Memory(int fd, uint64_t size) {
  uint64_t mapped = (std::max<uint64_t>(size, 1) + kPage - 1) & ~(kPage - 1);
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (memory == MAP_FAILED) return nullptr;
  // Large pages where the machine gives them to such files; and no dump holds a disk.
  madvise(memory, mapped, MADV_HUGEPAGE);
  madvise(memory, mapped, MADV_DONTDUMP);
  std::unique_ptr<LaneDisk> disk(new LaneDisk);
  disk->memory_ = static_cast<uint8_t*>(memory);
  disk->size_ = mapped;
  disk->guard_.emplace(memory, mapped);
  disk->guard_->Mapped(0, mapped);
  disk->fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  disk->punches_ = disk->fd_ >= 0;
  return disk;
}

std::unique_ptr<LaneDisk> LaneDisk::File(int fd, int read_flags, int write_flags, bool punches) {
  std::unique_ptr<LaneDisk> disk(new LaneDisk);
  disk->fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (disk->fd_ < 0) return nullptr;
  disk->read_flags_ = read_flags;
  disk->write_flags_ = write_flags;
  disk->punches_ = punches;
  return disk;
}

LaneDisk::~LaneDisk() {
  guard_.reset();
  if (memory_ != nullptr) munmap(memory_, size_);
  if (fd_ >= 0) close(fd_);
}

int LaneDisk::Read(const iovec* pieces, int count, uint64_t position, uint64_t length) {
  if (memory_ != nullptr) {
    const uint8_t* from = memory_ + position;
    for (int n = 0; n < count; n++) {
      memcpy(pieces[n].iov_base, from, pieces[n].iov_len);
      from += pieces[n].iov_len;
    }
    return IsLost(memory_ + position, length) ? EFAULT : 0;
  }
  ssize_t moved;
  do {
    moved = preadv2(fd_, pieces, count, static_cast<off_t>(position), read_flags_);
  } while (moved < 0 && errno == EINTR);
  int error = Result(moved, length);
  // Permanently: the file system has no such flag.
  if (error == EOPNOTSUPP) read_flags_ = -1;
  return error;
}

int LaneDisk::Write(const iovec* pieces, int count, uint64_t position, uint64_t length) {
  if (memory_ != nullptr) {
    uint8_t* to = memory_ + position;
    for (int n = 0; n < count; n++) {
      memcpy(to, pieces[n].iov_base, pieces[n].iov_len);
      to += pieces[n].iov_len;
    }
    return IsLost(memory_ + position, length) ? EFAULT : 0;
  }
  int error = FileEnd().Check(fd_, static_cast<off_t>(position + length));
  if (error != 0) return error;
  ssize_t moved;
  do {
    moved = pwritev2(fd_, pieces, count, static_cast<off_t>(position), write_flags_);
  } while (moved < 0 && errno == EINTR);
  error = Result(moved, length);
  if (error == EOPNOTSUPP) write_flags_ = -1;
  return error;
}

int LaneDisk::Zero(uint64_t position, uint64_t length) {
  if (memory_ != nullptr) {
    memset(memory_ + position, 0, length);
    return IsLost(memory_ + position, length) ? EFAULT : 0;
  }
  for (uint64_t done = 0; done < length;) {
    iovec pieces[16];
    int count = 0;
    uint64_t part = 0;
    for (; count < 16 && done + part < length; count++) {
      pieces[count] = {zeros, std::min(kZeros, length - done - part)};
      part += pieces[count].iov_len;
    }
    int error = Write(pieces, count, position + done, part);
    if (error != 0) return error;
    done += part;
  }
  return 0;
}

int LaneDisk::Punch(uint64_t position, uint64_t length) {
  int result;
  do {
    result = fallocate(fd_, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, static_cast<off_t>(position),
                       static_cast<off_t>(length));
  } while (result != 0 && errno == EINTR);
  if (result == 0) return 0;
  if (errno == EOPNOTSUPP) punches_ = false;
  return errno;
}

uint32_t LaneDisk::Enter(uint64_t start, uint64_t end, bool writes) {
  entered_.push_back({++last_number_, start, end, writes});
  if (writes) entered_writes_++;
  return last_number_;
}

void LaneDisk::Leave(uint32_t number) {
  auto found = std::find_if(entered_.begin(), entered_.end(), [=](const Entered& one) { return one.number == number; });
  if (found == entered_.end()) return;
  if (found->writes) entered_writes_--;
  *found = entered_.back();
  entered_.pop_back();
}

bool LaneDisk::IsFree(uint64_t start, uint64_t end, bool writes) const {
  if (writes ? entered_.empty() : entered_writes_ == 0) return true;
  return std::none_of(entered_.begin(), entered_.end(), [=](const Entered& one) {
    return (writes || one.writes) && Overlap(start, end, one.start, one.end);
  });
}

// Each lane first says what it wants, then looks at the others. Of two that want the same the one with the lower number
// goes first: the other takes its word back. Nobody waits for long: what a lane has claimed it does at once.
void LaneDisk::Claim(uint32_t lane, uint64_t start, uint64_t end, bool writes) {
  Claimed& own = claims_[lane];
  for (;;) {
    own.start.store(start, std::memory_order_relaxed);
    own.end.store(end, std::memory_order_relaxed);
    own.kind.store(writes ? 2 : 1);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool must_wait = false;
    for (uint32_t other = 0; other < kMaxLanes && !must_wait; other++) {
      if (other == lane) continue;
      const Claimed& theirs = claims_[other];
      auto conflicts = [&] {
        uint32_t kind = theirs.kind.load(std::memory_order_acquire);
        return kind != 0 && (writes || kind == 2) && Overlap(start, end, theirs.start.load(), theirs.end.load());
      };
      while (conflicts()) {
        if (other < lane) {
          must_wait = true;
          break;
        }
        Relax();
      }
    }
    if (!must_wait) return;
    own.kind.store(0);
    Relax();
  }
}
