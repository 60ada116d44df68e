// What a lane does by itself: Read, Write, Write Zeroes and Deallocate (NVM Express 1.4, section 6). Each checks as
// io.ts and command.ts do, by the same table; what does not pass goes up, and gets its error there.
#include <algorithm>
#include <cstring>

#include "lane_nvme.h"
#include "lane_nvme_table.h"

namespace {

template <typename Number>
Number Load(const uint8_t* from) {
  Number number;
  memcpy(&number, from, sizeof number);
  return number;
}

uint32_t Dword(const uint8_t* entry, uint32_t number) { return Load<uint32_t>(entry + number * 4); }

// A lane's claim of a range of a disk, where there are other lanes.
class Claim {
 public:
  Claim(Lane& lane, LaneDisk& disk, uint64_t start, uint64_t end, bool writes)
      : disk_(lane.context().lanes.size() > 1 ? &disk : nullptr), lane_(lane.number()) {
    if (disk_ != nullptr) disk_->Claim(lane_, start, end, writes);
  }
  ~Claim() {
    if (disk_ != nullptr) disk_->Unclaim(lane_);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  LaneDisk* disk_;
  uint32_t lane_;
};

}  // namespace

bool NvmeQueues::Execute(const uint8_t* entry, uint64_t* moved) {
  uint32_t flags = entry[nvme::kFlagsAt];
  uint32_t number = Load<uint32_t>(entry + nvme::kNamespaceAt);
  const auto& disks = lane_.context().disks;
  if (sends_all_up || (flags & nvme::kReservedFlags) != 0 || flags >> nvme::kPsdtShift == nvme::kPsdtReserved ||
      number >= disks.size() || disks[number] == nullptr || !disks[number]->is_open) {
    return false;
  }
  LaneDisk& disk = *disks[number];
  switch (entry[nvme::kOpcodeAt]) {
    case nvme::kRead:
      return disk.reads() && Transfer(disk, entry, true, moved);
    case nvme::kWrite:
      return disk.writes() && MayBeCached(disk, entry) && Transfer(disk, entry, false, moved);
    case nvme::kWriteZeroes:
      return WriteZeroes(disk, entry, moved);
    case nvme::kDatasetManagement:
      return Deallocate(disk, entry, moved);
    default:
      return false;
  }
}

// What has to be on stable storage is not done here, unless there is none.
bool NvmeQueues::MayBeCached(const LaneDisk& disk, const uint8_t* entry) const {
  if (disk.is_volatile()) return true;
  return disk.may_cache && (Dword(entry, 12) & nvme::kForceUnitAccess) == 0;
}

bool NvmeQueues::RangeOf(const LaneDisk& disk, const uint8_t* entry, uint64_t* position, uint64_t* length) const {
  uint64_t block = Load<uint64_t>(entry + nvme::kDword10At);
  uint64_t count = (Dword(entry, 12) & nvme::kBlocksMask) + 1;
  if (block > disk.block_count || count > disk.block_count - block) return false;
  *position = block << disk.block_shift;
  *length = count << disk.block_shift;
  return true;
}

// Fills `pieces_` with where the ranges of the data pointer lie.
bool NvmeQueues::LocateData(bool writes) {
  pieces_.clear();
  for (const NvmeRange& range : pointer_.ranges) {
    for (uint64_t done = 0; done < range.length;) {
      LaneMemory::Place place = lane_.Find(range.address + done, range.length - done, writes);
      if (place.length == 0) return false;
      iovec* last = pieces_.empty() ? nullptr : &pieces_.back();
      if (last != nullptr && static_cast<uint8_t*>(last->iov_base) + last->iov_len == place.host) {
        last->iov_len += place.length;
      } else {
        pieces_.push_back({place.host, place.length});
      }
      done += place.length;
    }
  }
  // What one system call takes.
  return pieces_.size() <= 1024;
}

bool NvmeQueues::Transfer(LaneDisk& disk, const uint8_t* entry, bool isRead, uint64_t* moved) {
  uint64_t position;
  uint64_t length;
  if (!RangeOf(disk, entry, &position, &length) || length > max_transfer) return false;
  // What is to be read from stable storage has to be written there first.
  if (isRead && !disk.is_volatile() && (Dword(entry, 12) & nvme::kForceUnitAccess) != 0) return false;
  uint64_t end = position + length;
  if (!disk.IsFree(position, end, !isRead)) return false;
  disk.Prefetch(position);
  if (!pointer_.Resolve(lane_.context().memory, entry, length, page_size) || !LocateData(isRead)) return false;
  auto is_lost = [this] {
    return std::any_of(pieces_.begin(), pieces_.end(),
                       [](const iovec& piece) { return IsLost(piece.iov_base, piece.iov_len); });
  };
  // What is known to be gone is not moved at all: a system call would not notice.
  if (is_lost()) return false;
  int count = static_cast<int>(pieces_.size());
  int error;
  {
    Claim claim(lane_, disk, position, end, !isRead);
    error = isRead ? disk.Read(pieces_.data(), count, position, length)
                   : disk.Write(pieces_.data(), count, position, length);
  }
  if (error != 0 || is_lost()) return false;
  lane_.Count(isRead ? kLaneReads : kLaneWrites, 1);
  lane_.Count(isRead ? kLaneBytesRead : kLaneBytesWritten, static_cast<double>(length));
  double data = static_cast<double>(length);
  lane_.Count(kLaneDmaRead, static_cast<double>(pointer_.dma_read) + (isRead ? 0 : data));
  lane_.Count(kLaneDmaWritten, isRead ? data : 0);
  *moved += length;
  return true;
}

// What it deallocates are holes, and else zeros are written: it shall take space afterwards.
bool NvmeQueues::WriteZeroes(LaneDisk& disk, const uint8_t* entry, uint64_t* moved) {
  uint64_t position;
  uint64_t length;
  if (!RangeOf(disk, entry, &position, &length) || !MayBeCached(disk, entry)) return false;
  bool punches = (Dword(entry, 12) & nvme::kDeallocateZeroes) != 0;
  uint64_t end = position + length;
  if (!disk.IsFree(position, end, true)) return false;
  if (punches) {
    // Other writes in flight may have the file's lock.
    if (!disk.punches() || length > nvme::kMaxHoles || disk.has_writes()) return false;
  } else if (!disk.writes() || !disk.zeroes_by_writing() || length > nvme::kMaxZeroes) {
    return false;
  }
  Claim claim(lane_, disk, position, end, true);
  int error = punches ? disk.Punch(position, length) : disk.Zero(position, length);
  if (error != 0) return false;
  lane_.Count(kLaneWrites, 1);
  *moved += length;
  return true;
}

bool NvmeQueues::Deallocate(LaneDisk& disk, const uint8_t* entry, uint64_t* moved) {
  if ((Dword(entry, 11) & nvme::kDeallocate) == 0 || !disk.punches() || disk.has_writes()) return false;
  if (!disk.is_volatile() && !disk.may_cache) return false;
  uint64_t size = ((Dword(entry, 10) & nvme::kRangesMask) + 1) * nvme::kRangeSize;
  if (!pointer_.Resolve(lane_.context().memory, entry, size, page_size) || !LocateData(false)) return false;
  uint8_t list[(nvme::kRangesMask + 1) * nvme::kRangeSize];
  uint64_t at = 0;
  for (const iovec& piece : pieces_) {
    memcpy(list + at, piece.iov_base, piece.iov_len);
    if (IsLost(piece.iov_base, piece.iov_len)) return false;
    at += piece.iov_len;
  }
  holes_.clear();
  uint64_t total = 0;
  for (at = 0; at < size; at += nvme::kRangeSize) {
    uint64_t count = Load<uint32_t>(list + at + 4);
    uint64_t block = Load<uint64_t>(list + at + 8);
    if (count == 0) continue;
    if (block > disk.block_count || count > disk.block_count - block) return false;
    holes_.push_back({block << disk.block_shift, count << disk.block_shift});
    total += count << disk.block_shift;
    if (total > nvme::kMaxHoles) return false;
    const NvmeRange& hole = holes_.back();
    if (!disk.IsFree(hole.address, hole.address + hole.length, true)) return false;
  }
  std::sort(holes_.begin(), holes_.end(), [](const NvmeRange& a, const NvmeRange& b) { return a.address < b.address; });
  for (size_t n = 0; n < holes_.size();) {
    uint64_t start = holes_[n].address;
    uint64_t end = start;
    for (; n < holes_.size() && holes_[n].address <= end; n++) {
      end = std::max(end, holes_[n].address + holes_[n].length);
    }
    Claim claim(lane_, disk, start, end, true);
    // Holes that are there already do no harm when all of it is done again.
    if (disk.Punch(start, end - start) != 0) return false;
  }
  lane_.Count(kLaneDmaRead, static_cast<double>(size));
  *moved += total;
  return true;
}
