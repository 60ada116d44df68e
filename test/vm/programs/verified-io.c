/*
 * Reads and writes of a disk, each of whose blocks says what it is, by several threads until a file appears: `verified-io DISK MIB STOP`.
 * It ends with 1 and a line that says why at the first block that is not what was written last, and at the first error; otherwise it reads
 * everything once more and says how many requests there were, and the longest times in which not one ended, in milliseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, BLOCK = 4096, MOST_BLOCKS = 16, WORDS = BLOCK / 8, GAPS = 256 };

static int disk;
static const char *stop;
static uint64_t blocks_each;
static uint32_t *versions;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double last_end, gaps[GAPS];
static uint64_t requests;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void fail(const char *what, uint64_t block, const char *why) {
  printf("%s block %llu: %s\n", what, (unsigned long long)block, why);
  fflush(stdout);
  _exit(1);
}

/* Keeps the longest times, the shortest of them first to go. */
static void ended(void) {
  pthread_mutex_lock(&lock);
  double time = now(), gap = time - last_end;
  int least = 0;
  for (int n = 1; n < GAPS; n++)
    if (gaps[n] < gaps[least]) least = n;
  if (gap > gaps[least]) gaps[least] = gap;
  last_end = time;
  requests++;
  pthread_mutex_unlock(&lock);
}

/* xorshift64*. */
static uint64_t next(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 0x2545f4914f6cdd1dull;
}

static void fill(uint64_t *words, uint64_t block, uint32_t version) {
  uint64_t state = (block << 32 | version) * 0x9e3779b97f4a7c15ull + 1;
  words[0] = block;
  words[1] = version;
  for (int n = 2; n < WORDS; n++) words[n] = next(&state);
}

static void check(const uint64_t *words, uint64_t block) {
  uint64_t expected[WORDS];
  char why[128];
  if (versions[block] == 0) return;
  fill(expected, block, versions[block]);
  if (memcmp(words, expected, BLOCK) == 0) return;
  snprintf(why, sizeof why, "version %u is expected, and it says block %llu, version %llu", versions[block], (unsigned long long)words[0],
           (unsigned long long)words[1]);
  fail("read", block, why);
}

static void transfer(int is_write, uint64_t *words, uint64_t block, uint64_t count) {
  off_t at = (off_t)(block * BLOCK);
  ssize_t size = (ssize_t)(count * BLOCK);
  ssize_t done = is_write ? pwrite(disk, words, size, at) : pread(disk, words, size, at);
  if (done != size) fail(is_write ? "write" : "read", block, done < 0 ? strerror(errno) : "a part only");
  ended();
}

static void *work(void *number) {
  uint64_t first = (uint64_t)(uintptr_t)number * blocks_each;
  uint64_t state = first * 2 + 1;
  uint64_t *words = aligned_alloc(BLOCK, MOST_BLOCKS * BLOCK);
  while (access(stop, F_OK) != 0) {
    uint64_t count = 1 + next(&state) % MOST_BLOCKS;
    uint64_t block = first + next(&state) % (blocks_each - count);
    int is_write = next(&state) % 2;
    for (uint64_t n = 0; is_write && n < count; n++) fill(words + n * WORDS, block + n, ++versions[block + n]);
    transfer(is_write, words, block, count);
    for (uint64_t n = 0; !is_write && n < count; n++) check(words + n * WORDS, block + n);
    if (next(&state) % 64 == 0 && fsync(disk) != 0) fail("sync", block, strerror(errno));
  }
  for (uint64_t block = first; block < first + blocks_each; block++) {
    transfer(0, words, block, 1);
    check(words, block);
  }
  return NULL;
}

static int longer(const void *a, const void *b) {
  double difference = *(const double *)b - *(const double *)a;
  return difference > 0 ? 1 : difference < 0 ? -1 : 0;
}

int main(int count, char **arguments) {
  pthread_t threads[THREADS];
  if (count != 4) return 2;
  disk = open(arguments[1], O_RDWR | O_DIRECT);
  if (disk < 0) fail("open", 0, strerror(errno));
  blocks_each = strtoull(arguments[2], NULL, 10) * 1024 * 1024 / BLOCK / THREADS;
  stop = arguments[3];
  versions = calloc(blocks_each * THREADS, sizeof *versions);
  last_end = now();
  for (uintptr_t n = 0; n < THREADS; n++) pthread_create(&threads[n], NULL, work, (void *)n);
  for (int n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
  qsort(gaps, GAPS, sizeof *gaps, longer);
  printf("requests %llu, pauses", (unsigned long long)requests);
  for (int n = 0; n < GAPS && gaps[n] >= 10; n++) printf(" %.0f", gaps[n]);
  printf("\n");
  return 0;
}
