// Places at which a test has the process die: CrashPoint() is called behind each store of what outlives the process,
// and each system call that moves bytes, descriptors or signals.
//
// VFIO_USER_CRASH_AT=n in the environment kills the process (SIGKILL) at its n-th. VFIO_USER_CRASH_AT=/path is a file
// of 32-bit words, which a test has mapped, too: [0] counts down to this process's death, [1] to that of the next one
// that is started with the file, and 0 is never; [2] counts all.
#pragma once

#include <cstdint>

// Null when nobody tests.
extern uint32_t* crash_words;

void CountCrashPoint();

inline void CrashPoint() {
  if (__builtin_expect(crash_words != nullptr, 0)) CountCrashPoint();
}
