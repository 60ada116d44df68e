// Two processes on one CPU exchange messages of a region read's sizes over an AF_UNIX stream socket. CPU COUNT
#include <sys/socket.h>
#include <sys/wait.h>

#include "bench.h"

enum { REQUEST = 32, REPLY = 36, WARM_UP = 500 };

int main(int argc, char **argv) {
  check(argc == 3, "CPU COUNT");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), pair[2];
  check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  char buffer[64] = {0};
  pid_t child = fork();
  check(child >= 0, "fork");
  if (child == 0) {
    close(pair[0]);
    while (read(pair[1], buffer, sizeof buffer) == REQUEST) check(write(pair[1], buffer, REPLY) == REPLY, "write");
    _exit(0);
  }
  close(pair[1]);
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0;
  for (int i = -WARM_UP; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    check(write(pair[0], buffer, REQUEST) == REQUEST, "write");
    check(read(pair[0], buffer, sizeof buffer) == REPLY, "read");
    if (i >= 0) samples[i] = now_ns() - start;
  }
  double elapsed = (double)(now_ns() - begun);
  close(pair[0]);
  waitpid(child, NULL, 0);
  report(samples, (size_t)count, 1, count, elapsed);
}
