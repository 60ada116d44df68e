// Two processes on one CPU wake each other through a pair of eventfds. CPU COUNT
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "bench.h"

enum { WARM_UP = 500 };

int main(int argc, char **argv) {
  check(argc == 3, "CPU COUNT");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), there = eventfd(0, 0), back = eventfd(0, 0);
  check(there >= 0 && back >= 0, "eventfd");
  uint64_t one = 1, got;
  pid_t child = fork();
  check(child >= 0, "fork");
  if (child == 0) {
    for (int i = -WARM_UP; i < count; i++) {
      check(read(there, &got, 8) == 8, "read");
      check(write(back, &one, 8) == 8, "write");
    }
    _exit(0);
  }
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0;
  for (int i = -WARM_UP; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    check(write(there, &one, 8) == 8, "write");
    check(read(back, &got, 8) == 8, "read");
    if (i >= 0) samples[i] = now_ns() - start;
  }
  double elapsed = (double)(now_ns() - begun);
  waitpid(child, NULL, 0);
  report(samples, (size_t)count, 1, count, elapsed);
}
