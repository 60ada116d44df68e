// mmap and munmap of a memfd, nothing touched. CPU COUNT SIZE
#include <sys/mman.h>

#include "bench.h"

int main(int argc, char **argv) {
  check(argc == 4, "CPU COUNT SIZE");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), fd = memfd_create("floor", 0);
  size_t size = strtoull(argv[3], NULL, 0);
  check(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = now_ns();
  for (int i = 0; i < count; i++) {
    uint64_t start = now_ns();
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(at != MAP_FAILED && munmap(at, size) == 0, "mmap");
    samples[i] = now_ns() - start;
  }
  report(samples, (size_t)count, 1, count, (double)(now_ns() - begun));
}
