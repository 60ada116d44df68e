// A binary search for random addresses in a sorted table of maps. CPU COUNT MAPS
#include "bench.h"

enum { BATCH = 1000, SIZE = 0x10000, STRIDE = 0x20000 };
struct map {
  uint64_t address, size, window;
};

static __attribute__((noinline)) const struct map *find(const struct map *maps, size_t count, uint64_t address) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (maps[middle].address <= address) low = middle + 1;
    else high = middle;
  }
  if (low == 0 || address - maps[low - 1].address >= maps[low - 1].size) return NULL;
  return &maps[low - 1];
}

int main(int argc, char **argv) {
  check(argc == 4, "CPU COUNT MAPS");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]);
  size_t n = strtoull(argv[3], NULL, 0);
  struct map *maps = calloc(n, sizeof *maps);
  for (size_t i = 0; i < n; i++) maps[i] = (struct map){i * STRIDE, SIZE, i * SIZE};
  uint64_t *samples = calloc((size_t)count, sizeof *samples), elapsed = 0, sum = 0;
  static uint64_t addresses[BATCH];
  uint32_t seed = 1;
  for (int i = -count / 4; i < count; i++) {
    for (int k = 0; k < BATCH; k++) {
      uint32_t random = next_random(&seed);
      addresses[k] = (uint64_t)(random % n) * STRIDE + (random >> 8) % SIZE;
    }
    uint64_t start = now_ns();
    for (int k = 0; k < BATCH; k++) {
      const struct map *map = find(maps, n, addresses[k]);
      if (map) sum += map->window + addresses[k] - map->address;
    }
    uint64_t took = now_ns() - start;
    if (i < 0) continue;
    samples[i] = took;
    elapsed += took;
  }
  __asm__ volatile("" : : "r"(sum));
  report(samples, (size_t)count, BATCH, (double)count * BATCH, (double)elapsed);
}
