// What all the small C programs of the benchmarks share: pinning, the clock, and the one line of JSON that each prints.
#pragma once
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline void check(int ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static inline void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  check(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

// What a loop that waits for memory does, as every driver's.
static inline void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int compare_samples(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

// Samples in ns, each of `per` operations; `elapsed` ns for all of `operations`, which gives the rate.
static inline void report(uint64_t *samples, size_t count, double per, double operations, double elapsed) {
  qsort(samples, count, sizeof *samples, compare_samples);
  printf("{\"median\":%.2f,\"p99\":%.2f,\"perSecond\":%.1f}\n", (double)samples[count / 2] / per,
         (double)samples[count * 99 / 100] / per, operations * 1e9 / elapsed);
}

// A rate that pauses of the machine do not spoil: the median over WINDOWS spans of a run, shorter than a turn of the
// scheduler.
enum { WINDOWS = 400 };
struct pace {
  uint64_t samples[2 * WINDOWS], last;
  int count;
  double step, last_done;
};

static inline void pace_begin(struct pace *pace, uint64_t now, double total) {
  pace->last = now;
  pace->count = 0;
  pace->last_done = 0;
  pace->step = total / WINDOWS;
}

// So many operations are done.
static inline void pace_note(struct pace *pace, uint64_t now, double done) {
  if (done - pace->last_done < pace->step || pace->count == 2 * WINDOWS) return;
  // Picoseconds for each operation.
  pace->samples[pace->count++] = (uint64_t)((double)(now - pace->last) * 1000 / (done - pace->last_done));
  pace->last = now;
  pace->last_done = done;
}

static inline void pace_report(struct pace *pace) {
  if (pace->count == 0) pace->samples[pace->count++] = 1;
  qsort(pace->samples, (size_t)pace->count, sizeof *pace->samples, compare_samples);
  double each = (double)pace->samples[pace->count / 2] / 1000;
  double slow = (double)pace->samples[pace->count * 99 / 100] / 1000;
  printf("{\"median\":%.2f,\"p99\":%.2f,\"perSecond\":%.1f}\n", each, slow, 1e9 / each);
}

static inline uint32_t next_random(uint32_t *state) {
  uint32_t x = *state;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return *state = x;
}
