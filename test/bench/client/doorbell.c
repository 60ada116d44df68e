// Kicks a doorbell (fd 3: the device VM's kick eventfd) and waits for the interrupt at the eventfd that it bound to MSI-X
// vector 0. CPU COUNT SOCKET
#include <sys/eventfd.h>

#include "vfio-user.h"

enum { WARM_UP = 500, KICK = 3 };

int main(int argc, char **argv) {
  check(argc == 4, "CPU COUNT SOCKET");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), fd = connect_to(argv[3]), interrupt = eventfd(0, 0);
  enable(fd);
  bind_vectors(fd, &interrupt, 1);
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0, one = 1, got;
  for (int i = -WARM_UP; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    check(write(KICK, &one, 8) == 8, "write");
    check(read(interrupt, &got, 8) == 8, "read");
    if (i >= 0) samples[i] = now_ns() - start;
  }
  report(samples, (size_t)count, 1, count, (double)(now_ns() - begun));
}
