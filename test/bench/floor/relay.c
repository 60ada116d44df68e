// A process moves signals from one eventfd to another by epoll, as plainly as can be done; we wait for them. CPU COUNT
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "bench.h"

enum { WARM_UP = 500 };

int main(int argc, char **argv) {
  check(argc == 3, "CPU COUNT");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), kick = eventfd(0, EFD_NONBLOCK), call = eventfd(0, 0);
  check(kick >= 0 && call >= 0, "eventfd");
  uint64_t one = 1, got;
  pid_t child = fork();
  check(child >= 0, "fork");
  if (child == 0) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = kick};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, kick, &event) == 0, "epoll_ctl");
    for (;;) {
      if (epoll_wait(epoll, &event, 1, -1) == 1 && read(event.data.fd, &got, 8) == 8)
        check(write(call, &one, 8) == 8, "write");
    }
  }
  uint64_t *samples = calloc((size_t)count, sizeof *samples), begun = 0;
  for (int i = -WARM_UP; i < count; i++) {
    uint64_t start = now_ns();
    if (i == 0) begun = start;
    check(write(kick, &one, 8) == 8, "write");
    check(read(call, &got, 8) == 8, "read");
    if (i >= 0) samples[i] = now_ns() - start;
  }
  double elapsed = (double)(now_ns() - begun);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  report(samples, (size_t)count, 1, count, elapsed);
}
