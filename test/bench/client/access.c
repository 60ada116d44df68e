// Reads or writes a 4-byte register, one access at a time, of each socket's device in turn: "read" one that is a stored value,
// "ask" one that the device computes. CPU COUNT read|ask|write SOCKET...
#include "vfio-user.h"

enum { WARM_UP = 500, STORED = 0, COMPUTED = 0x80 };

int main(int argc, char **argv) {
  check(argc > 4, "CPU COUNT read|ask|write SOCKET...");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), writes = strcmp(argv[3], "write") == 0, sockets = argc - 4, *fds = calloc((size_t)sockets, sizeof *fds);
  for (int i = 0; i < sockets; i++) {
    fds[i] = connect_to(argv[4 + i]);
    enable(fds[i]);
  }
  uint64_t offset = strcmp(argv[3], "read") == 0 ? STORED : COMPUTED;
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0;
  for (int i = -WARM_UP, n = 0; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    if (writes) region_write(fds[n], BAR0, offset, (uint32_t)i, 4);
    else region_read(fds[n], BAR0, offset);
    if (i >= 0) samples[i] = now_ns() - start;
    if (++n == sockets) n = 0;
  }
  report(samples, (size_t)count, 1, count, (double)(now_ns() - begun));
}
