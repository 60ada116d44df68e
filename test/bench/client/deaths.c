// Reads a register that the device computes, again and again, until so many reads have taken long: as long as a bridge that was killed is
// not there. CPU COUNT SOCKET
#include "vfio-user.h"

enum { COMPUTED = 0x80, LONG_NS = 15 * 1000 * 1000 };

int main(int argc, char **argv) {
  check(argc == 4, "CPU COUNT SOCKET");
  pin(atoi(argv[1]));
  size_t wanted = (size_t)atoi(argv[2]), seen = 0;
  int fd = connect_to(argv[3]);
  enable(fd);
  uint64_t *samples = calloc(wanted, sizeof *samples), begun = now_ns();
  while (seen < wanted) {
    uint64_t start = now_ns();
    region_read(fd, BAR0, COMPUTED);
    uint64_t took = now_ns() - start;
    if (took >= LONG_NS) samples[seen++] = took;
  }
  report(samples, wanted, 1, (double)wanted, (double)(now_ns() - begun));
}
