// The handler of SIGBUS and SIGSEGV: once per process, installed with the first range, chained to whatever handled them before.
//
// A page that faults may be a hole in huge pages where none is free any more: that is one page. Or it is beyond its file's end, and so
// is all that follows it in the same map. After some pages that is replaced in one go: page by page, a hostile peer could make us use
// up the process's number of maps (vm.max_map_count).
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
// Pages of a range that are repaired one by one.
constexpr uint32_t kSinglePages = 64;
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
  if (slot_ < 0) return;
  slots[slot_].end = 0;
  slots[slot_].begin = 0;
  slots[slot_].range = nullptr;
}

void GuardedRange::Mapped(size_t offset, size_t length) {
  Unmapped(offset, length);
  while (changing_.test_and_set()) {
  }
  maps_[base_ + offset] = base_ + offset + length;
  changing_.clear();
}

void GuardedRange::Unmapped(size_t offset, size_t length) {
  uintptr_t begin = base_ + offset;
  uintptr_t end = begin + length;
  while (changing_.test_and_set()) {
  }
  auto at = maps_.lower_bound(begin);
  if (at != maps_.begin() && std::prev(at)->second > begin) {
    auto before = std::prev(at);
    if (before->second > end) maps_[end] = before->second;
    before->second = begin;
  }
  while (at != maps_.end() && at->first < end) {
    if (at->second > end) maps_[end] = at->second;
    at = maps_.erase(at);
  }
  changing_.clear();
}

// Whoever changes the record touches no guarded memory meanwhile, so it is another thread, and soon done.
GuardedRange::Map GuardedRange::Find(uintptr_t address) {
  Map found = {base_, 0};
  while (changing_.test_and_set()) {
  }
  auto after = maps_.upper_bound(address);
  if (after != maps_.begin() && std::prev(after)->second > address) {
    found = {std::prev(after)->first, std::prev(after)->second};
  }
  changing_.clear();
  return found;
}

bool GuardedRange::Repair(uintptr_t address) {
  Map map = Find(address);
  bool isSingle = repairs_.fetch_add(1) < kSinglePages;
  // Pages of hugetlbfs can only be replaced whole.
  for (uintptr_t page_size : kPageSizes) {
    uintptr_t page = address & ~(page_size - 1);
    if (page < map.begin) break;
    if (PutZeros(page, isSingle ? page + page_size : std::max(map.end, page + page_size))) return true;
  }
  return false;
}

bool GuardedRange::Permit(uintptr_t address) {
  Map map = Find(address);
  if (map.end == 0) {
    uintptr_t page = address & ~(kPageSizes[0] - 1);
    return PutZeros(page, page + kPageSizes[0]);
  }
  for (uintptr_t page_size : kPageSizes) {
    uintptr_t page = address & ~(page_size - 1);
    if (page < map.begin || page + page_size > map.end) break;
    if (!PutCopy(page, page_size)) continue;
    uint64_t one = 1;
    int stray = stray_.load();
    if (stray >= 0) (void)!write(stray, &one, sizeof one);
    return true;
  }
  return false;
}
