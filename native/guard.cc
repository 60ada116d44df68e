// The SIGBUS handler: once per process, installed with the first range, chained to whatever handled SIGBUS before.
//
// A page that faults is beyond its file's end, and so is all that follows it in the same map: that is replaced in one go.
// Page by page, a hostile peer could make us use up the process's number of maps (vm.max_map_count).
//
// Left out: memory errors of the machine itself (BUS_MCEERR_*). Zeros there would be silent corruption.
#include "guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <iterator>
#include <mutex>

namespace {

constexpr size_t kMaxRanges = 1024;
constexpr uintptr_t kPageSizes[] = {uintptr_t{1} << 12, uintptr_t{1} << 21, uintptr_t{1} << 30};

// What the handler looks at: written by any thread, read without a lock. A slot is free while its range is null.
struct Slot {
  std::atomic<GuardedRange*> range;
  std::atomic<uintptr_t> begin;
  std::atomic<uintptr_t> end;
};
Slot slots[kMaxRanges];
static_assert(std::atomic<uintptr_t>::is_always_lock_free);

struct sigaction previous;

void Chain(int signal_number, siginfo_t* info, void* context) {
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

void OnBusError(int signal_number, siginfo_t* info, void* context) {
  int saved = errno;
  uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  bool repaired = false;
  if (info->si_code == BUS_ADRERR) {
    for (Slot& slot : slots) {
      if (address < slot.begin.load() || address >= slot.end.load()) continue;
      GuardedRange* range = slot.range.load();
      repaired = range != nullptr && range->Repair(address);
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
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, nullptr, &previous);
    sigaction(SIGBUS, &action, nullptr);
  });
}

bool PutZeros(uintptr_t begin, uintptr_t end) {
  return mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
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

bool GuardedRange::Repair(uintptr_t address) {
  uintptr_t begin = base_;
  uintptr_t end = 0;
  if (!changing_.test_and_set()) {
    auto after = maps_.upper_bound(address);
    if (after != maps_.begin()) {
      begin = std::prev(after)->first;
      end = std::prev(after)->second;
    }
    changing_.clear();
  }
  // Pages of hugetlbfs can only be replaced whole.
  for (uintptr_t page_size : kPageSizes) {
    uintptr_t page = address & ~(page_size - 1);
    if (page < begin) break;
    if (PutZeros(page, end > address ? end : page + page_size)) return true;
  }
  return false;
}
