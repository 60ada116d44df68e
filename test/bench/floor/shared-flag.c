// Two threads on two CPUs take turns by a flag in shared memory; for each turn the second one copies DEPTH blocks of 4 KiB:
// what a disk in memory would cost if nobody ever slept and no software stood in between. CPU OTHER-CPU COUNT DEPTH
#include <pthread.h>

#include "bench.h"

enum { BLOCK = 4096, DISK = 64 << 20 };
static _Alignas(64) volatile uint32_t asked;
static _Alignas(64) volatile uint32_t done;
static int other_cpu, turns, depth;
static char *disk, *buffers;

static void *serve(void *unused) {
  pin(other_cpu);
  uint32_t seed = 7;
  for (uint32_t turn = 1; turn <= (uint32_t)turns; turn++) {
    while (__atomic_load_n(&asked, __ATOMIC_ACQUIRE) != turn) continue;
    for (int i = 0; i < depth; i++)
      memcpy(buffers + i * BLOCK, disk + (size_t)(next_random(&seed) % (DISK / BLOCK)) * BLOCK, BLOCK);
    __atomic_store_n(&done, turn, __ATOMIC_RELEASE);
  }
  return unused;
}

int main(int argc, char **argv) {
  check(argc == 5, "CPU OTHER-CPU COUNT DEPTH");
  pin(atoi(argv[1]));
  other_cpu = atoi(argv[2]);
  depth = atoi(argv[4]);
  turns = atoi(argv[3]) / depth;
  disk = malloc(DISK);
  buffers = malloc((size_t)depth * BLOCK);
  memset(disk, 1, DISK);
  memset(buffers, 1, (size_t)depth * BLOCK);
  struct pace pace;
  pthread_t thread;
  check(pthread_create(&thread, NULL, serve, NULL) == 0, "pthread_create");
  pace_begin(&pace, now_ns(), (double)turns * depth);
  for (uint32_t turn = 1; turn <= (uint32_t)turns; turn++) {
    __atomic_store_n(&asked, turn, __ATOMIC_RELEASE);
    while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) != turn) continue;
    if (turn % 64 == 0) pace_note(&pace, now_ns(), (double)turn * depth);
  }
  pthread_join(thread, NULL);
  pace_report(&pace);
}
