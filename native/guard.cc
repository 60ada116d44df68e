// The handler of SIGBUS and SIGSEGV: once per process, installed with the first range, chained to whatever handled them
// before.
//
// A page that faults may be a hole in huge pages where none is free any more: that is one page. Or it is beyond its
// file's end, and so is all that follows it in the same map. After some pages that is replaced in one go: page by page,
// a hostile peer could make us use up the process's number of maps (vm.max_map_count). These pages are counted for all
// ranges together, since one peer has memory in a thousand of them. Between maps it is the same.
//
// Left out: memory errors of the machine itself (BUS_MCEERR_*). Zeros there would be silent corruption.
#include "guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <mutex>

namespace {

// A GiB each, mostly.
constexpr size_t kMaxRanges = 32768;
constexpr uintptr_t kPageSizes[] = {uintptr_t{1} << 12, uintptr_t{1} << 21, uintptr_t{1} << 30};

// What the handler looks at: written by any thread, read without a lock. A slot is free while its range is null.
struct Slot {
  std::atomic<GuardedRange*> range;
  std::atomic<uintptr_t> begin;
  std::atomic<uintptr_t> end;
};
Slot slots[kMaxRanges];
// Slots from here on were never used.
std::atomic<size_t> used_slots;
static_assert(std::atomic<uintptr_t>::is_always_lock_free);

// Pages of all ranges that are repaired one by one now; and pages so far that were between maps.
std::atomic<uint32_t> single_pages;
std::atomic<uint32_t> pages_between;
constexpr uint32_t kPagesBetween = 512;

struct sigaction previous_bus;
struct sigaction previous_segv;

void Chain(int signal_number, siginfo_t* info, void* context) {
  const struct sigaction& previous = signal_number == SIGBUS ? previous_bus : previous_segv;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal_number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal_number);
  } else {
    // The default action, as if this handler had never been there.
    signal(signal_number, SIG_DFL);
    raise(signal_number);
  }
}

void OnFault(int signal_number, siginfo_t* info, void* context) {
  int saved = errno;
  uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  bool isBus = signal_number == SIGBUS;
  bool repaired = false;
  if (info->si_code == (isBus ? int{BUS_ADRERR} : int{SEGV_ACCERR})) {
    size_t used = used_slots.load();
    for (size_t i = 0; i < used; i++) {
      if (address < slots[i].begin.load() || address >= slots[i].end.load()) continue;
      GuardedRange* range = slots[i].range.load();
      repaired = range != nullptr && (isBus ? range->Repair(address) : range->Permit(address));
      break;
    }
  }
  if (!repaired) Chain(signal_number, info, context);
  errno = saved;
}

void InstallHandler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, nullptr, &previous_bus);
    sigaction(SIGSEGV, nullptr, &previous_segv);
    sigaction(SIGBUS, &action, nullptr);
    sigaction(SIGSEGV, &action, nullptr);
  });
}

bool PutZeros(uintptr_t begin, uintptr_t end) {
  return mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

bool PutCopy(uintptr_t begin, size_t length) {
  void* place = reinterpret_cast<void*>(begin);
  void* copy = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (copy == MAP_FAILED) return false;
  // By the kernel, which survives what another thread unmaps meanwhile.
  iovec to = {copy, length};
  iovec from = {place, length};
  (void)!process_vm_readv(getpid(), &to, 1, &from, 1, 0);
  if (mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, place) != MAP_FAILED) return true;
  munmap(copy, length);
  return false;
}

}  // namespace

std::atomic<uint32_t> any_lost;
static_assert(std::atomic<uint32_t>::is_always_lock_free);

bool SearchLost(const void* address, size_t length) {
  uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  uintptr_t end = begin + length;
  size_t used = used_slots.load();
  for (size_t i = 0; i < used; i++) {
    if (begin >= slots[i].end.load() || end <= slots[i].begin.load()) continue;
    GuardedRange* range = slots[i].range.load();
    if (range != nullptr && range->IsLost(begin, end)) return true;
  }
  return false;
}

GuardedRange::GuardedRange(void* base, size_t length)
    : base_(reinterpret_cast<uintptr_t>(base)), end_(base_ + length) {
  InstallHandler();
  for (size_t i = 0; i < kMaxRanges && slot_ < 0; i++) {
    GuardedRange* none = nullptr;
    if (!slots[i].range.compare_exchange_strong(none, this)) continue;
    slots[i].begin = base_;
    slots[i].end = end_;
    slot_ = static_cast<int>(i);
    size_t used = used_slots.load();
    while (used < i + 1 && !used_slots.compare_exchange_weak(used, i + 1)) {
    }
  }
}

GuardedRange::~GuardedRange() {
  ForgetLostPages(base_, end_);
  if (slot_ < 0) return;
  slots[slot_].end = 0;
  slots[slot_].begin = 0;
  slots[slot_].range = nullptr;
}

void GuardedRange::Mapped(size_t offset, size_t length) {
  Unmapped(offset, length);
  while (changing_.test_and_set()) {
  }
  uintptr_t end = base_ + offset + length;
  maps_[base_ + offset] = {end, end};
  changing_.clear();
}

void GuardedRange::Unmapped(size_t offset, size_t length) {
  uintptr_t begin = base_ + offset;
  uintptr_t end = begin + length;
  while (changing_.test_and_set()) {
  }
  auto at = maps_.lower_bound(begin);
  if (at != maps_.begin() && std::prev(at)->second.end > begin) {
    MapEnd& before = std::prev(at)->second;
    if (before.end > end) maps_[end] = {before.end, std::max(before.lost, end)};
    before = {begin, std::min(before.lost, begin)};
  }
  while (at != maps_.end() && at->first < end) {
    if (at->second.end > end) maps_[end] = {at->second.end, std::max(at->second.lost, end)};
    at = maps_.erase(at);
  }
  ForgetLostPages(begin, end);
  changing_.clear();
}

void GuardedRange::ForgetLostPages(uintptr_t begin, uintptr_t end) {
  Map* kept = std::remove_if(lost_pages_, lost_pages_end_,
                             [=](const Map& page) { return page.begin >= begin && page.end <= end; });
  single_pages -= static_cast<uint32_t>(lost_pages_end_ - kept);
  lost_pages_end_ = kept;
}

// Whoever changes the record touches no guarded memory meanwhile, so it is another thread, and soon done.
GuardedRange::Place GuardedRange::Find(uintptr_t address) {
  Place found = {{base_, end_}, false};
  while (changing_.test_and_set()) {
  }
  auto after = maps_.upper_bound(address);
  if (after != maps_.end()) found.end = after->first;
  if (after != maps_.begin()) {
    const auto& [begin, map] = *std::prev(after);
    found = map.end > address ? Place{{begin, map.end}, true} : Place{{map.end, found.end}, false};
  }
  changing_.clear();
  return found;
}

bool GuardedRange::IsLost(uintptr_t begin, uintptr_t end) {
  while (changing_.test_and_set()) {
  }
  bool isLost = std::any_of(lost_pages_, lost_pages_end_,
                            [=](const Map& page) { return page.begin < end && begin < page.end; });
  auto at = maps_.upper_bound(begin);
  if (at != maps_.begin()) --at;
  for (; at != maps_.end() && at->first < end && !isLost; ++at) {
    const auto& [map_end, lost] = at->second;
    isLost = lost < map_end && lost < end && begin < map_end;
  }
  changing_.clear();
  return isLost;
}

// Nothing is allocated. The flag is set before there are zeros, and where they are is noted before anybody can look:
// who copied one finds out.
bool GuardedRange::Repair(uintptr_t address) {
  bool isSingle = repairs_.fetch_add(1) < kSinglePages;
  any_lost = 1;
  bool isRepaired = false;
  while (changing_.test_and_set()) {
  }
  auto after = maps_.upper_bound(address);
  MapEnd* map = after != maps_.begin() && std::prev(after)->second.end > address ? &std::prev(after)->second : nullptr;
  uintptr_t first = map != nullptr ? std::prev(after)->first : base_;
  if (isSingle && lost_pages_end_ == std::end(lost_pages_)) isSingle = false;
  if (isSingle && single_pages.fetch_add(1) >= kAllSinglePages) {
    single_pages--;
    isSingle = false;
  }
  // Pages of hugetlbfs can only be replaced whole.
  for (uintptr_t page_size : kPageSizes) {
    uintptr_t page = address & ~(page_size - 1);
    if (page < first) break;
    uintptr_t end = page + page_size;
    if (!isSingle && map != nullptr) end = std::max(end, map->end);
    isRepaired = PutZeros(page, end);
    if (!isRepaired) continue;
    if (isSingle) *lost_pages_end_++ = {page, end};
    else if (map != nullptr) map->lost = std::min(map->lost, page);
    break;
  }
  if (isSingle && !isRepaired) single_pages--;
  // A process with as many maps as it can have can still have one in the place of another.
  if (!isRepaired && map != nullptr && PutZeros(first, map->end)) {
    map->lost = first;
    isRepaired = true;
  }
  changing_.clear();
  return isRepaired;
}

bool GuardedRange::Permit(uintptr_t address) {
  Place place = Find(address);
  if (!place.is_map) {
    uintptr_t page = address & ~(kPageSizes[0] - 1);
    return (pages_between.fetch_add(1) < kPagesBetween && PutZeros(page, page + kPageSizes[0])) ||
           PutZeros(place.begin, place.end);
  }
  for (uintptr_t page_size : kPageSizes) {
    uintptr_t page = address & ~(page_size - 1);
    if (page < place.begin || page + page_size > place.end) break;
    if (!PutCopy(page, page_size)) continue;
    uint64_t one = 1;
    int stray = stray_.load();
    if (stray >= 0) (void)!write(stray, &one, sizeof one);
    return true;
  }
  return false;
}
