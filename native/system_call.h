// System calls of the hot paths without a way through libc. After each switch of processes nothing is in the caches,
// and each page of code that is not touched is a look-up of its address, and some cache lines, spared.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

// What the kernel returns: a negative errno where it fails.
#if defined(__x86_64__)
inline long SystemCall(long number, long a, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}
#else
inline long SystemCall(long number, long a, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  long result = syscall(number, a, b, c, d, e, f);
  return result < 0 ? -errno : result;
}
#endif

template <typename Type>
inline long Argument(Type* pointer) {
  return reinterpret_cast<long>(pointer);
}
