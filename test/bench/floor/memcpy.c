// memcpy between shared memory, a place further on each time, and a private buffer. CPU COUNT read|write SIZE PARTS SPAN
// One operation moves PARTS parts of SIZE bytes; the shared memory has SPAN bytes, and parts lie where strides() puts them.
#include <sys/mman.h>

#include "bench.h"

int main(int argc, char **argv) {
  check(argc == 7, "CPU COUNT read|write SIZE PARTS SPAN");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), reads = strcmp(argv[3], "read") == 0;
  size_t size = strtoull(argv[4], NULL, 0), parts = strtoull(argv[5], NULL, 0), span = strtoull(argv[6], NULL, 0);
  int fd = memfd_create("floor", 0);
  check(fd >= 0 && ftruncate(fd, (off_t)span) == 0, "memfd");
  char *shared = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *own = aligned_alloc(4096, size * parts);
  check(shared != MAP_FAILED && own, "memory");
  memset(shared, 1, span);
  memset(own, 2, size * parts);
  // Operations for a sample: the clock takes about as long as the smallest copy.
  size_t batch = size * parts >= 1048576 ? 1 : 1048576 / (size * parts), at = 0;
  uint64_t *samples = calloc((size_t)count, sizeof *samples), elapsed = 0;
  for (int i = -count / 4; i < count; i++) {
    uint64_t start = now_ns();
    for (size_t n = 0; n < batch; n++) {
      for (size_t part = 0; part < parts; part++) {
        char *there = shared + at, *here = own + part * size;
        if (reads) memcpy(here, there, size);
        else memcpy(there, here, size);
        __asm__ volatile("" : : "r"(here), "r"(there) : "memory");
        // Parts of a scatter list are pages apart.
        at += parts > 1 ? 3 * size : size;
        if (at + size > span) at = 0;
      }
    }
    uint64_t took = now_ns() - start;
    if (i < 0) continue;
    samples[i] = took;
    elapsed += took;
  }
  report(samples, (size_t)count, (double)batch, (double)batch * count, (double)elapsed);
}
