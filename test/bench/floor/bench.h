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

static inline uint32_t next_random(uint32_t *state) {
  uint32_t x = *state;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return *state = x;
}
