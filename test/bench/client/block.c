// Reads or writes random 4 KiB blocks of a block device, DEPTH at a time, past the page cache (O_DIRECT and asynchronous
// I/O). Runs in the driver VM, so it is linked statically. MILLISECONDS read|write DEPTH DEVICE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "../floor/bench.h"

enum { BLOCK = 4096, MOST = 64, SPANS = 20, WARM_UP_SPANS = 2 };

int main(int argc, char **argv) {
  check(argc == 5, "MILLISECONDS read|write DEPTH DEVICE");
  uint64_t duration = (uint64_t)atoi(argv[1]) * 1000000u, size;
  int writes = strcmp(argv[2], "write") == 0, depth = atoi(argv[3]), fd = open(argv[4], O_RDWR | O_DIRECT);
  check(fd >= 0 && depth <= MOST && ioctl(fd, BLKGETSIZE64, &size) == 0, argv[4]);
  aio_context_t context = 0;
  check(syscall(SYS_io_setup, MOST, &context) == 0, "io_setup");
  char *buffers = aligned_alloc(BLOCK, (size_t)depth * BLOCK);
  memset(buffers, 1, (size_t)depth * BLOCK);
  struct iocb requests[MOST], *ready[MOST];
  struct io_event events[MOST];
  struct pace pace;
  uint32_t seed = 5;
  int idle = depth, count = 0, spans = -WARM_UP_SPANS;
  for (int i = 0; i < depth; i++) ready[i] = &requests[i];
  uint64_t span = now_ns();
  pace_begin(&pace, span, 0);
  while (spans < SPANS) {
    for (int i = 0; i < idle; i++) {
      long id = ready[i] - requests;
      requests[id] = (struct iocb){.aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                                   .aio_fildes = (uint32_t)fd,
                                   .aio_data = (uint64_t)id,
                                   .aio_buf = (uint64_t)(buffers + id * BLOCK),
                                   .aio_nbytes = BLOCK,
                                   .aio_offset = (int64_t)(next_random(&seed) % (size / BLOCK)) * BLOCK};
    }
    check(syscall(SYS_io_submit, context, idle, ready) == idle, "io_submit");
    long got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
    check(got > 0, "io_getevents");
    for (idle = 0; idle < got; idle++) {
      check(events[idle].res == BLOCK, "a short transfer");
      ready[idle] = &requests[events[idle].data];
    }
    count += (int)got;
    // A span is a time here, not a number: nobody knows how slow this disk is.
    uint64_t now = now_ns();
    if (now - span < duration / SPANS) continue;
    if (spans++ < 0) pace_begin(&pace, now, 0);
    else pace_note(&pace, now, count);
    span = now;
    if (spans <= 0) count = 0;
  }
  syscall(SYS_io_destroy, context);
  pace_report(&pace);
}
