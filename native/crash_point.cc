// What crash_point.h counts in. Places are counted by all threads.
#include "crash_point.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "addon.h"

namespace {

enum Word { kThisLife, kNextLife, kPassed, kWords };

uint32_t* OpenWords() {
  const char* value = getenv("VFIO_USER_CRASH_AT");
  if (value == nullptr) return nullptr;
  static uint32_t own[kWords];
  if (value[0] != '/') {
    own[kThisLife] = static_cast<uint32_t>(strtoul(value, nullptr, 10));
    return own;
  }
  int fd = open(value, O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* memory = mmap(nullptr, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return nullptr;
  auto* words = static_cast<uint32_t*>(memory);
  uint32_t next = __atomic_exchange_n(&words[kNextLife], 0, __ATOMIC_SEQ_CST);
  if (next != 0) __atomic_store_n(&words[kThisLife], next, __ATOMIC_SEQ_CST);
  return words;
}

Napi::Value Count(const Napi::CallbackInfo& info) {
  CountCrashPoint();
  return info.Env().Undefined();
}

}  // namespace

uint32_t* crash_words = OpenWords();

void CountCrashPoint() {
  __atomic_fetch_add(&crash_words[kPassed], 1, __ATOMIC_RELAXED);
  uint32_t left = __atomic_load_n(&crash_words[kThisLife], __ATOMIC_SEQ_CST);
  while (left != 0) {
    if (!__atomic_compare_exchange_n(&crash_words[kThisLife], &left, left - 1, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST))
      continue;
    if (left > 1) return;
    kill(getpid(), SIGKILL);
    // Another thread may be the one that it ends first.
    for (;;) pause();
  }
}

void InitCrashPoint(Napi::Env env, Napi::Object exports) {
  if (crash_words != nullptr) Export<Count>(env, exports, "crashPoint");
}
