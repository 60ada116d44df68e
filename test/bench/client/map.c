// Maps memory for the device and takes it away again. CPU COUNT SIZE SOCKET
#include "vfio-user.h"

enum { WARM_UP = 50 };

int main(int argc, char **argv) {
  check(argc == 5, "CPU COUNT SIZE SOCKET");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), fd = connect_to(argv[4]);
  size_t size = strtoull(argv[3], NULL, 0);
  int memory = make_memory(size);
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0;
  for (int i = -WARM_UP; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    dma_map(fd, memory, 1ull << 32, size);
    dma_unmap(fd, 1ull << 32, size);
    if (i >= 0) samples[i] = now_ns() - start;
  }
  report(samples, (size_t)count, 1, count, (double)(now_ns() - begun));
}
